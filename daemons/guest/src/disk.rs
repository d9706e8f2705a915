// SPDX-License-Identifier: Apache-2.0
//! The data disk: LUKS2 over the host's virtio disk, ext4 in it. systemd's `data.mount` mounts it.
//!
//! The ephemeral disk (T24) is made anew at each boot with a detached header that lives in the guest's memory and is
//! deleted once the disk is open: the host can neither swap a header in (P01) nor keep one. A disk that outlives the
//! boot has its header on the disk; it is read once, judged, and the disk is opened from that copy (T13). cryptsetup
//! itself never reads a header from the host's disk.

pub mod header;
pub mod opened;
mod tools;

use crate::command::CommandError;
use crate::layout::{DATA_DISK, Layout};
use crate::rollback::RollbackError;
use dstack_core::epoch;
use dstack_core::luks::{self, HEADER_SIZE};
use dstack_keys::{KeyError, Secret, derive};
use header::{Foreign, Found};
use opened::{Mapper, Opened, Sector};
use std::fs::{self, File};
use std::io::{self, Read};
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
    /// The key service does not let this boot go on with it (T13).
    #[error(transparent)]
    Rollback(#[from] RollbackError),
    /// The opened disk holds no file system: its first boot was ended by force, or the host damaged it.
    #[error("the data disk holds no ext4 file system")]
    NoFileSystem,
}

/// Who watches over a disk that outlives the boot.
pub trait Watch {
    /// Learns when it was last written, seconds since 1970.
    fn written(&mut self, time: u64);

    /// Says whether the boot may have it, by the first sector of the opened disk, while nothing on
    /// the disk was changed; `fresh`: it is empty, and would be made now. Gives the sector to write, if one is.
    ///
    /// # Errors
    /// [`RollbackError`]: the disk must be left as it is.
    fn begin(&mut self, sector: &Sector, fresh: bool) -> Result<Option<Sector>, RollbackError>;

    /// Says whether the boot may go on, now that the sector is on the disk.
    ///
    /// # Errors
    /// [`RollbackError`].
    fn commit(&mut self) -> Result<(), RollbackError>;
}

/// The label of a disk: the instance's id, or the app's where all instances are one.
#[must_use]
pub fn label(id: &[u8; 20]) -> String {
    format!("dstack-{}", hex::encode(id))
}

/// Makes the data disk ready to mount. Run again in the same boot it does nothing.
///
/// # Errors
/// [`DiskError`]; a next run starts over.
pub fn prepare(layout: &Layout, key: &DiskKey, watch: &mut dyn Watch) -> Result<(), DiskError> {
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
        DiskKey::Persistent { key, label } => persistent(&header, key, label, watch)?,
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

fn persistent(path: &Path, key: &Secret, label: &str, watch: &mut dyn Watch) -> Result<(), DiskError> {
    let missing = |e| DiskError::Missing(DATA_DISK, e);
    let mut disk = File::options().read(true).write(true).open(DATA_DISK).map_err(missing)?;
    let area = header::read(&disk).map_err(missing)?;
    let mac = derive::hkdf(key, &[b"dstack-disk-unfinished-v1", label.as_bytes()])?;
    let marker = luks::marker(label, mac.expose());
    let passphrase = key.expose_hex();
    match header::judge(&area, label, &marker)? {
        Found::Ours => reopen(path, area.get(..HEADER_SIZE).unwrap_or_default(), &passphrase, watch)?,
        found => {
            let epoch = watch.begin(&[0; epoch::SIZE], true)?;
            println!("making a new data disk ({found:?})");
            let header = create(path, &passphrase, label, epoch)?;
            header::publish(&mut disk, &header, &marker).map_err(DiskError::Io)?;
        }
    }
    Ok(watch.commit()?)
}

/// Opens from the judged copy, checks and grows the file system.
fn reopen(path: &Path, header: &[u8], passphrase: &str, watch: &mut dyn Watch) -> Result<(), DiskError> {
    let file = File::options().write(true).create_new(true).mode(0o600).open(path);
    file.and_then(|f| f.write_all_at(header, 0)).map_err(DiskError::State)?;
    tools::open(path, passphrase).run().map_err(|error| match error.code() {
        Some(WRONG_KEY) => DiskError::Foreign(Foreign::Key),
        _ => error.into(),
    })?;
    forget(path)?;
    opened::settle(&mut Mapper, watch)
}

/// Makes header and file system; the header is only in memory so far.
fn create(
    path: &Path,
    passphrase: &str,
    label: &str,
    epoch: Option<Sector>,
) -> Result<Zeroizing<Vec<u8>>, DiskError> {
    tools::format_persistent(path, passphrase, label).run()?;
    let mut header = Zeroizing::new(Vec::with_capacity(HEADER_SIZE + 1));
    let file = File::open(path).map_err(DiskError::State)?;
    file.take(HEADER_SIZE as u64 + 1).read_to_end(&mut header).map_err(DiskError::State)?;
    luks::parse(&header).map_err(DiskError::Header)?;
    tools::open(path, passphrase).run()?;
    tools::make_file_system(true).run()?;
    // What the header is about to promise must be there; zeros are no epoch.
    Mapper.write_first_sector(&epoch.unwrap_or([0; epoch::SIZE]))?;
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
