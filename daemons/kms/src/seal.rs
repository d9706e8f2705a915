// SPDX-License-Identifier: Apache-2.0
//! What the root oneshot does: seals the record that dstack-kms left, and nothing else.
//!
//! It runs as root and reads what an unprivileged user wrote, so it follows no link, takes only a private file of that
//! directory's owner, and seals only what parses as root keys. A target that is there is never replaced.

use crate::record::{RECORD_MAX, Record, RecordError};
use dstack_service::sealing::{SealingError, encrypt};
use rustix::fs::{FileType, Mode, OFlags, fstat, open, openat};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// Why nothing was sealed.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// There are sealed keys.
    #[error(
        "{}: root keys were sealed before and are never replaced; `systemctl restart dstack-kms` loads them",
        .0.display()
    )]
    Exists(PathBuf),
    /// The record is not a private file of the directory's owner.
    #[error("{}: is not a private file of the owner of its directory", .0.display())]
    NotPrivate(PathBuf),
    /// A file cannot be read or written.
    #[error("{}: {error}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// It holds something else.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// systemd-creds failed.
    #[error("{0}; nothing was sealed")]
    Creds(#[from] SealingError),
}

impl SealError {
    fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |error| Self::Io { path, error }
    }
}

/// Reads the record.
///
/// # Errors
/// [`SealError`].
pub fn read(source: &Path) -> Result<Zeroizing<Vec<u8>>, SealError> {
    let errno = |error: rustix::io::Errno| SealError::io(source)(error.into());
    // Link by link, without openat2, which containers do not always have: the directory, then the file in it.
    let (parent, name) = (source.parent().unwrap_or(Path::new("/")), source.file_name().unwrap_or_default());
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let parent = open(parent, flags | OFlags::DIRECTORY, Mode::empty()).map_err(errno)?;
    let file = File::from(openat(&parent, name, flags, Mode::empty()).map_err(errno)?);
    let (found, directory) = (fstat(&file).map_err(errno)?, fstat(&parent).map_err(errno)?);
    let regular = FileType::from_raw_mode(found.st_mode) == FileType::RegularFile;
    let private = found.st_mode & 0o077 == 0 && found.st_nlink == 1 && found.st_uid == directory.st_uid;
    if !regular || !private {
        return Err(SealError::NotPrivate(source.to_owned()));
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(RECORD_MAX + 1));
    file.take(RECORD_MAX as u64 + 1).read_to_end(&mut bytes).map_err(SealError::io(source))?;
    Record::parse(&bytes)?;
    Ok(bytes)
}

/// Puts sealed bytes at `target`, whole or not at all, unless something is there.
///
/// # Errors
/// [`SealError`].
pub fn place(sealed: &[u8], target: &Path) -> Result<(), SealError> {
    let temporary = target.with_extension(format!("new-{}", std::process::id()));
    let mut options = OpenOptions::new();
    let written = options.write(true).create_new(true).mode(0o600).open(&temporary);
    let written = written.and_then(|mut file| file.write_all(sealed).and_then(|()| file.sync_all()));
    // A link, unlike a rename, fails when the name is taken.
    let linked = written.and_then(|()| std::fs::hard_link(&temporary, target));
    let removed = std::fs::remove_file(&temporary);
    match linked {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Err(SealError::Exists(target.to_owned()));
        }
        other => other.map_err(SealError::io(target))?,
    }
    removed.map_err(SealError::io(&temporary))?;
    let directory = target.parent().unwrap_or(Path::new("/"));
    File::open(directory).and_then(|d| d.sync_all()).map_err(SealError::io(directory))
}

/// Everything: read, encrypt, place.
///
/// # Errors
/// [`SealError`].
pub fn run(source: &Path, target: &Path, name: &str, with_key: &str) -> Result<(), SealError> {
    if target.symlink_metadata().is_ok() {
        return Err(SealError::Exists(target.to_owned()));
    }
    let record = read(source)?;
    place(&encrypt(&record, name, with_key)?, target)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use dstack_keys::Secret;
    use dstack_keys::derive::Roots;
    use dstack_ra_tls::{Label, certificate::Custody};
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn record() -> Zeroizing<Vec<u8>> {
        Record {
            domain: "kms.example.com".parse().unwrap(),
            realm: Label::Intel,
            custody: Custody::Host,
            created_at: 1,
            onboarded: false,
            roots: Roots { ca: Secret::from([1; 32]), k256: Secret::from([2; 32]) },
        }
        .to_bytes()
    }

    fn put(path: &Path, bytes: &[u8], mode: u32) {
        std::fs::write(path, bytes).unwrap();
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    }

    #[test]
    fn only_a_private_record_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kmsroot.new");
        put(&path, &record(), 0o600);
        assert_eq!(read(&path).unwrap(), record());
        put(&path, &record(), 0o640);
        assert!(matches!(read(&path), Err(SealError::NotPrivate(_))));
        put(&path, b"root:x:0:0", 0o600);
        assert!(matches!(read(&path), Err(SealError::Record(_))));
    }

    #[test]
    fn root_follows_no_link_of_that_user() {
        let dir = tempfile::tempdir().unwrap();
        let (secret, path) = (dir.path().join("secret"), dir.path().join("kmsroot.new"));
        put(&secret, &record(), 0o600);
        symlink(&secret, &path).unwrap();
        assert!(matches!(read(&path), Err(SealError::Io { .. })));
        std::fs::remove_file(&path).unwrap();
        std::fs::hard_link(&secret, &path).unwrap();
        assert!(matches!(read(&path), Err(SealError::NotPrivate(_))));
        let inside = dir.path().join("link");
        symlink(dir.path(), &inside).unwrap();
        assert!(matches!(read(&inside.join("secret")), Err(SealError::Io { .. })));
        assert!(matches!(read(&dir.path().join("absent")), Err(SealError::Io { .. })));
    }

    #[test]
    fn p23_sealed_keys_are_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("kmsroot");
        place(b"one", &target).unwrap();
        assert!(matches!(place(b"two", &target), Err(SealError::Exists(_))));
        assert_eq!(std::fs::read(&target).unwrap(), b"one");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(matches!(run(&target, &target, "kmsroot", "host"), Err(SealError::Exists(_))));
    }
}
