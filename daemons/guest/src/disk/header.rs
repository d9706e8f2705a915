// SPDX-License-Identifier: Apache-2.0
//! The header area of a disk that outlives the boot: what is found there, and how a new header gets there.
//!
//! A first boot makes the header in the guest's memory, opens the disk by it and makes the file system. Only then it
//! publishes the header, in three steps with a flush after each: a marker in the first sector, everything but the first
//! sector, the first sector. A kill before the marker leaves zeros, a kill after it leaves the marker, whatever else was
//! written; in both cases no data is on the disk yet and it is made anew. Nothing else is ever formatted (T13).

use dstack_core::luks::{self, DATA_OFFSET, LuksError, SECTOR};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// What a header area holds.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// Zeros: nothing was ever there.
    Empty,
    /// The marker of this instance: its first boot did not come to the end.
    Unfinished,
    /// A header of this instance.
    Ours,
}

/// Why a disk is left untouched.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Foreign {
    /// It is another instance's.
    #[error("it is the disk of {0}, not of this instance")]
    Instance(String),
    /// Neither empty nor a header that this guest makes.
    #[error("{0}")]
    Header(#[from] LuksError),
    /// The key does not open it.
    #[error("the key of this instance does not open it")]
    Key,
}

/// Reads the header area, once.
///
/// # Errors
/// The error of reading; a disk that is smaller is one.
pub fn read(disk: &File) -> io::Result<Vec<u8>> {
    let mut area = vec![0; DATA_OFFSET];
    disk.read_exact_at(&mut area, 0)?;
    Ok(area)
}

/// Judges a header area. `marker` is that of this instance.
///
/// # Errors
/// [`Foreign`] for whatever this instance may not touch.
pub fn judge(area: &[u8], label: &str, marker: &[u8; SECTOR]) -> Result<Found, Foreign> {
    if area.iter().all(|b| *b == 0) {
        return Ok(Found::Empty);
    }
    if area.get(..SECTOR) == Some(marker) {
        return Ok(Found::Unfinished);
    }
    let header = luks::parse(area)?;
    if header.label == label { Ok(Found::Ours) } else { Err(Foreign::Instance(header.label)) }
}

/// Where a header is written to.
pub trait Disk {
    /// Writes at an offset.
    ///
    /// # Errors
    /// The error of writing.
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Waits until everything written is on the disk.
    ///
    /// # Errors
    /// The error of flushing.
    fn flush(&mut self) -> io::Result<()>;
}

impl Disk for File {
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sync_all()
    }
}

/// Puts a header on the disk. A sector is written whole or not at all, so the last step is the one that counts.
///
/// # Errors
/// The error of writing.
pub fn publish(disk: &mut impl Disk, header: &[u8], marker: &[u8; SECTOR]) -> io::Result<()> {
    let (first, rest) = header.split_at_checked(SECTOR).ok_or(io::ErrorKind::UnexpectedEof)?;
    disk.write_at(marker, 0)?;
    disk.flush()?;
    disk.write_at(rest, SECTOR as u64)?;
    disk.flush()?;
    disk.write_at(first, 0)?;
    disk.flush()
}

#[cfg(test)]
#[path = "header_tests.rs"]
mod tests;
