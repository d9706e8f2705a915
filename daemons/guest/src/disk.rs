// SPDX-License-Identifier: Apache-2.0
//! The data disk: LUKS2 over the host's virtio disk, ext4 in it. systemd's `data.mount` mounts it.
//!
//! The ephemeral disk (T24) is made anew at each boot with a detached header that lives in the guest's memory and is
//! deleted once the disk is open: the host can neither swap a header in (P01) nor keep one. A disk that outlives the
//! boot has its header on the disk; it is read once, judged, and the disk is opened from that copy (T13). cryptsetup
//! itself never reads a header from the host's disk.

pub mod header;
mod tools;

use crate::command::CommandError;
use crate::layout::{DATA_DISK, Layout};
use dstack_core::ext4::{self, Superblock};
use dstack_core::luks::{self, HEADER_SIZE};
use dstack_keys::{KeyError, Secret, derive};
use header::{Foreign, Found};
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use zeroize::Zeroizing;

/// Exit status of cryptsetup for a passphrase that opens no key slot.
const WRONG_KEY: i32 = 2;
/// Greatest exit status of e2fsck that leaves a good file system: 1 is "errors corrected", 2 asks for a reboot of
/// whoever has it mounted, which nobody has.
const CORRECTED: i32 = 3;

/// How the data disk is to be treated.
#[derive(Debug)]
pub enum DiskKey {
    /// A fresh disk for this boot only (T24): the key is forgotten with the guest.
    Ephemeral,
    /// A disk that outlives the boot.
    Persistent {
        /// The key service's key for this instance; its hex text is the passphrase.
        key: Secret,
        /// Whose disk it is: [`label`].
        label: String,
    },
}

/// Why there is no data disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The VM has no such disk.
    #[error("the data disk {0} cannot be read: {1}")]
    Missing(&'static str, io::Error),
    /// It is not this instance's, and was left untouched.
    #[error("the data disk was left untouched: {0}")]
    Foreign(#[from] Foreign),
    /// cryptsetup or a file system tool failed.
    #[error(transparent)]
    Tool(#[from] CommandError),
    /// What cryptsetup made is not what this guest accepts.
    #[error("the new header is not of the accepted form: {0}")]
    Header(luks::LuksError),
    /// A file of ours.
    #[error("cannot keep the disk's state: {0}")]
    State(io::Error),
    /// The header or the file system cannot be read or written.
    #[error("the data disk fails: {0}")]
    Io(io::Error),
    /// A key operation.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The opened disk holds no file system: its first boot was ended by force, or the host damaged it.
    #[error("the data disk holds no ext4 file system")]
    NoFileSystem,
}

/// The label of a disk: the instance's id, or the app's where all instances are one.
#[must_use]
pub fn label(id: &[u8; 20]) -> String {
    format!("dstack-{}", hex::encode(id))
}

/// Makes the data disk ready to mount, and tells when it was last written (seconds since 1970). Run again in the same
/// boot it does nothing.
///
/// # Errors
/// [`DiskError`]; a next run starts over.
pub fn prepare(layout: &Layout, key: &DiskKey, time: &dyn Fn(u64)) -> Result<(), DiskError> {
    let ready = layout.private().join("data-disk.ready");
    if ready.exists() {
        return Ok(());
    }
    if tools::mapper().exists() {
        tools::close().run()?;
    }
    let header = layout.private().join("data-disk.header");
    forget(&header)?;
    match key {
        DiskKey::Ephemeral => ephemeral(&header)?,
        DiskKey::Persistent { key, label } => persistent(&header, key, label, time)?,
    }
    forget(&header)?;
    fs::write(ready, b"").map_err(DiskError::State)
}

fn ephemeral(header: &Path) -> Result<(), DiskError> {
    fs::metadata(DATA_DISK).map_err(|e| DiskError::Missing(DATA_DISK, e))?;
    let passphrase = Secret::random()?.expose_hex();
    tools::format_ephemeral(header, &passphrase).run()?;
    tools::open(header, &passphrase).run()?;
    forget(header)?;
    Ok(tools::make_file_system(false).run()?)
}

fn persistent(path: &Path, key: &Secret, label: &str, time: &dyn Fn(u64)) -> Result<(), DiskError> {
    let missing = |e| DiskError::Missing(DATA_DISK, e);
    let mut disk = File::options().read(true).write(true).open(DATA_DISK).map_err(missing)?;
    let area = header::read(&disk).map_err(missing)?;
    let mac = derive::hkdf(key, &[b"dstack-disk-unfinished-v1", label.as_bytes()])?;
    let marker = luks::marker(label, mac.expose());
    let passphrase = key.expose_hex();
    match header::judge(&area, label, &marker)? {
        Found::Ours => reopen(path, area.get(..HEADER_SIZE).unwrap_or_default(), &passphrase, time),
        found => {
            println!("making a new data disk ({found:?})");
            let header = create(path, &passphrase, label)?;
            header::publish(&mut disk, &header, &marker).map_err(DiskError::Io)
        }
    }
}

/// Opens from the judged copy, checks and grows the file system.
fn reopen(path: &Path, header: &[u8], passphrase: &str, time: &dyn Fn(u64)) -> Result<(), DiskError> {
    let file = File::options().write(true).create_new(true).mode(0o600).open(path);
    file.and_then(|f| f.write_all_at(header, 0)).map_err(DiskError::State)?;
    tools::open(path, passphrase).run().map_err(|error| match error.code() {
        Some(WRONG_KEY) => DiskError::Foreign(Foreign::Key),
        _ => error.into(),
    })?;
    forget(path)?;
    let (superblock, size) = superblock()?;
    // Before the check: it sets the times of a file system to the clock, be that right or wrong.
    time(superblock.newest);
    let grows = superblock.can_grow(size);
    tools::check_file_system(grows).run_up_to(CORRECTED)?;
    if grows {
        tools::grow_file_system().run()?;
    }
    Ok(())
}

/// The superblock, and the size of the opened disk in bytes.
fn superblock() -> Result<(Superblock, u64), DiskError> {
    let mut mapper = File::open(tools::mapper()).map_err(DiskError::Io)?;
    let mut bytes = vec![0; ext4::SIZE];
    mapper.read_exact_at(&mut bytes, ext4::OFFSET).map_err(DiskError::Io)?;
    let size = mapper.seek(SeekFrom::End(0)).map_err(DiskError::Io)?;
    Superblock::parse(&bytes).map(|block| (block, size)).ok_or(DiskError::NoFileSystem)
}

/// Makes header and file system; the header is only in memory so far.
fn create(path: &Path, passphrase: &str, label: &str) -> Result<Zeroizing<Vec<u8>>, DiskError> {
    tools::format_persistent(path, passphrase, label).run()?;
    let mut header = Zeroizing::new(Vec::with_capacity(HEADER_SIZE + 1));
    let file = File::open(path).map_err(DiskError::State)?;
    file.take(HEADER_SIZE as u64 + 1).read_to_end(&mut header).map_err(DiskError::State)?;
    luks::parse(&header).map_err(DiskError::Header)?;
    tools::open(path, passphrase).run()?;
    tools::make_file_system(true).run()?;
    // What the header is about to promise must be there.
    File::open(tools::mapper()).and_then(|mapper| mapper.sync_all()).map_err(DiskError::Io)?;
    Ok(header)
}

fn forget(header: &Path) -> Result<(), DiskError> {
    match fs::remove_file(header) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(DiskError::State(e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t13_a_label_names_its_instance_and_fits() {
        assert_eq!(label(&[0xab; 20]), format!("dstack-{}", "ab".repeat(20)));
        assert!(label(&[0; 20]).len() < 48, "with its final zero it fits the field");
    }
}
