// SPDX-License-Identifier: Apache-2.0
//! The opened disk: what happens between opening one that is ours and mounting it, in an order that counts.

use super::{CORRECTED, DiskError, Watch, tools};
use dstack_core::epoch;
use dstack_core::ext4::{self, Superblock};
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

/// The first sector of the opened disk, in which its epoch stands.
pub type Sector = [u8; epoch::SIZE];

/// An opened disk with a file system.
pub trait Opened {
    /// The superblock, and the size of the disk in bytes.
    ///
    /// # Errors
    /// [`DiskError`].
    fn superblock(&mut self) -> Result<(Superblock, u64), DiskError>;

    /// Reads the first sector.
    ///
    /// # Errors
    /// [`DiskError`].
    fn first_sector(&mut self) -> Result<Sector, DiskError>;

    /// Replays the journal, checks the file system, and lets it fill the disk when it `grows`.
    ///
    /// # Errors
    /// [`DiskError`].
    fn check(&mut self, grows: bool) -> Result<(), DiskError>;

    /// Writes the first sector; it is on the disk when this returns.
    ///
    /// # Errors
    /// [`DiskError`].
    fn write_first_sector(&mut self, sector: &Sector) -> Result<(), DiskError>;
}

/// Makes an opened disk ready to mount, up to the commit.
///
/// # Errors
/// [`DiskError`]; a disk that may not be had was not written to.
pub fn settle(disk: &mut dyn Opened, watch: &mut dyn Watch) -> Result<(), DiskError> {
    let (superblock, size) = disk.superblock()?;
    // Before the check: it sets the times of a file system to the clock, be that right or wrong.
    watch.written(superblock.newest);
    // Also before the check, which writes: a disk that is refused stays as it is.
    let epoch = watch.begin(&disk.first_sector()?, false)?;
    disk.check(superblock.can_grow(size))?;
    // After the check: replaying the journal puts back the block of the superblock, with the epoch of its time in it.
    epoch.map_or(Ok(()), |sector| disk.write_first_sector(&sector))
}

/// The device that cryptsetup made.
#[derive(Debug, Clone, Copy)]
pub struct Mapper;

impl Opened for Mapper {
    fn superblock(&mut self) -> Result<(Superblock, u64), DiskError> {
        let mut mapper = File::open(tools::mapper()).map_err(DiskError::Io)?;
        let mut bytes = vec![0; ext4::SIZE];
        mapper.read_exact_at(&mut bytes, ext4::OFFSET).map_err(DiskError::Io)?;
        let size = mapper.seek(SeekFrom::End(0)).map_err(DiskError::Io)?;
        Superblock::parse(&bytes).map(|block| (block, size)).ok_or(DiskError::NoFileSystem)
    }

    fn first_sector(&mut self) -> Result<Sector, DiskError> {
        let mut sector = [0; epoch::SIZE];
        let mapper = File::open(tools::mapper()).map_err(DiskError::Io)?;
        mapper.read_exact_at(&mut sector, epoch::OFFSET).map_err(DiskError::Io)?;
        Ok(sector)
    }

    fn check(&mut self, grows: bool) -> Result<(), DiskError> {
        tools::check_file_system(grows).run_up_to(CORRECTED)?;
        if grows {
            tools::grow_file_system().run()?;
        }
        Ok(())
    }

    fn write_first_sector(&mut self, sector: &Sector) -> Result<(), DiskError> {
        let mapper = File::options().write(true).open(tools::mapper()).map_err(DiskError::Io)?;
        write_flushed(&mapper, sector).map_err(DiskError::Io)
    }
}

fn write_flushed(mapper: &File, sector: &Sector) -> io::Result<()> {
    mapper.write_all_at(sector, epoch::OFFSET)?;
    mapper.sync_all()
}
