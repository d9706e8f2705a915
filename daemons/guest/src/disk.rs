// SPDX-License-Identifier: Apache-2.0
//! The data disk: LUKS2 over the host's virtio disk, ext4 in it. systemd's `data.mount` mounts it.
//!
//! The ephemeral disk (T24) is made anew at each boot with a detached header that lives in the guest's memory and is
//! deleted once the disk is open: the host can neither swap a header in (P01) nor keep one. No byte of the host's disk
//! is read before it was written through the encryption (T13). A disk that outlives the boot has its header on the
//! disk: it is one more case of [`DiskKey`], with its own checks before [`open`].

use crate::command::{CommandError, Program, arg};
use crate::keys::DiskKey;
use crate::layout::{DATA_DISK, DATA_MAPPER, Layout};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Why there is no data disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The VM has no such disk.
    #[error("the data disk {0} is missing: {1}")]
    Missing(&'static str, io::Error),
    /// cryptsetup or mkfs failed.
    #[error(transparent)]
    Tool(#[from] CommandError),
    /// A file of ours.
    #[error("cannot keep the disk's state: {0}")]
    State(io::Error),
}

/// Makes the data disk ready to mount. Run again in the same boot it does nothing.
///
/// # Errors
/// [`DiskError`]; a next run starts over.
pub fn prepare(layout: &Layout, key: &DiskKey) -> Result<(), DiskError> {
    let ready = layout.private().join("data-disk.ready");
    if ready.exists() {
        return Ok(());
    }
    fs::metadata(DATA_DISK).map_err(|e| DiskError::Missing(DATA_DISK, e))?;
    if mapper().exists() {
        close().run()?;
    }
    match key {
        DiskKey::Ephemeral(passphrase) => ephemeral(&layout.private().join("data-disk.header"), passphrase)?,
    }
    fs::write(ready, b"").map_err(DiskError::State)
}

fn ephemeral(header: &Path, passphrase: &str) -> Result<(), DiskError> {
    forget(header)?;
    format(header, passphrase).run()?;
    open(header, passphrase).run()?;
    forget(header)?;
    Ok(make_file_system().run()?)
}

fn forget(header: &Path) -> Result<(), DiskError> {
    match fs::remove_file(header) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(DiskError::State(e)),
        _ => Ok(()),
    }
}

fn mapper() -> PathBuf {
    Path::new("/dev/mapper").join(DATA_MAPPER)
}

/// The passphrase is random, so stretching it adds nothing: 1000 rounds are the least that cryptsetup takes. One key
/// slot needs 252 KiB; below some multiple of it cryptsetup warns.
fn format(header: &Path, passphrase: &str) -> Program {
    let options = [
        "luksFormat",
        "--batch-mode",
        "--type",
        "luks2",
        "--cipher",
        "aes-xts-plain64",
        "--key-size",
        "512",
        "--sector-size",
        "4096",
        "--pbkdf",
        "pbkdf2",
        "--pbkdf-force-iterations",
        "1000",
        "--luks2-metadata-size",
        "16k",
        "--luks2-keyslots-size",
        "1m",
        "--key-file",
        "-",
        "--header",
    ];
    with_header(&options, header, passphrase, &[DATA_DISK])
}

/// Opens by the header in memory. No discards: they would show the host which blocks are free.
fn open(header: &Path, passphrase: &str) -> Program {
    let options = ["open", "--type", "luks2", "--key-file", "-", "--header"];
    with_header(&options, header, passphrase, &[DATA_DISK, DATA_MAPPER])
}

fn with_header(options: &[&str], header: &Path, passphrase: &str, last: &[&str]) -> Program {
    let mut program = Program::new("cryptsetup", options).input(passphrase);
    program.args.push(arg(header));
    program.args.extend(last.iter().map(|a| (*a).to_owned()));
    program
}

fn close() -> Program {
    Program::new("cryptsetup", &["close", DATA_MAPPER])
}

/// No journal: after a crash there is no disk to recover. Tables are written when they are first used.
fn make_file_system() -> Program {
    let options = [
        "-q",
        "-F",
        "-L",
        "dstack-data",
        "-m",
        "0",
        "-O",
        "^has_journal",
        "-E",
        "nodiscard,lazy_itable_init=1",
    ];
    let mut program = Program::new("mkfs.ext4", &options);
    program.args.push(arg(&mapper()));
    program
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p02_the_key_is_in_no_argument() {
        let key = "5e".repeat(32);
        for program in
            [format(Path::new("/h"), &key), open(Path::new("/h"), &key), make_file_system(), close()]
        {
            assert!(program.args.iter().all(|a| !a.contains(&key)), "{program:?}");
            assert!(program.env.is_empty());
        }
        assert_eq!(open(Path::new("/h"), &key).input, Some(key.as_str().into()));
    }

    #[test]
    fn t24_p01_the_header_of_an_ephemeral_disk_is_not_on_the_disk() {
        for program in [format(Path::new("/h"), "k"), open(Path::new("/h"), "k")] {
            let at = program.args.iter().position(|a| a == "--header").unwrap_or_default();
            assert_eq!(program.args.get(at + 1).map(String::as_str), Some("/h"));
            assert_eq!(program.args.get(at + 2).map(String::as_str), Some(DATA_DISK));
        }
    }
}
