// SPDX-License-Identifier: Apache-2.0
//! Small state: one versioned JSON file per object, replaced atomically. Unreadable is never taken for absent.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Largest state file, bytes.
pub const STATE_MAX: u64 = 4 * 1024 * 1024;

/// Why a state file cannot be used. It is left as it is.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// It cannot be read or written.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// It is not what this daemon writes.
    #[error("{}: is damaged ({reason}); it was left as it is: mend it, or move it away", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// It was written by a newer daemon.
    #[error("{}: has version {found}, this daemon knows up to {known}; install the newer package again", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The highest known one.
        known: u32,
    },
}

impl StateError {
    fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |error| Self::Io { path, error }
    }

    /// Whether the file system had no room.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        matches!(self, Self::Io { error, .. }
            if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    }
}

#[derive(Serialize, Deserialize)]
struct Envelope<T> {
    version: u32,
    data: T,
}

/// Reads a state file; `None` only when it does not exist.
///
/// # Errors
/// [`StateError`] when it exists but cannot be read, is damaged, or is newer than `version`.
pub fn load<T: DeserializeOwned>(path: &Path, version: u32) -> Result<Option<T>, StateError> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(StateError::io(path))?,
    };
    let mut bytes = Vec::new();
    file.take(STATE_MAX + 1).read_to_end(&mut bytes).map_err(StateError::io(path))?;
    let damaged = |reason: String| StateError::Damaged { path: path.to_owned(), reason };
    if bytes.len() as u64 > STATE_MAX {
        return Err(damaged(format!("larger than {STATE_MAX} bytes")));
    }
    let envelope: Envelope<serde_json::Value> =
        serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
    if envelope.version > version {
        return Err(StateError::Newer { path: path.to_owned(), found: envelope.version, known: version });
    }
    serde_json::from_value(envelope.data).map(Some).map_err(|e| damaged(e.to_string()))
}

/// Writes a state file, mode 0600.
///
/// # Errors
/// [`StateError::Io`]; the old content is still there then.
pub fn store<T: Serialize>(path: &Path, version: u32, data: &T) -> Result<(), StateError> {
    let bytes = serde_json::to_vec_pretty(&Envelope { version, data })
        .map_err(|e| StateError::Damaged { path: path.to_owned(), reason: e.to_string() })?;
    replace(path, &bytes, 0o600)
}

/// Replaces a file's content: unique temporary file, fsync, rename, fsync of the directory.
///
/// # Errors
/// [`StateError::Io`]; the old content is still there then, and no temporary file is left.
pub fn replace(path: &Path, bytes: &[u8], mode: u32) -> Result<(), StateError> {
    let temporary = temporary_name(path);
    let written = write_new(&temporary, bytes, mode).and_then(|()| fs::rename(&temporary, path));
    if let Err(error) = written {
        // The first error is the one to tell; a left-over is swept at the next start.
        drop(fs::remove_file(&temporary));
        return Err(StateError::Io { path: path.to_owned(), error });
    }
    sync_parent(path).map_err(StateError::io(path))
}

/// Makes a rename or removal in the directory of `path` durable.
///
/// # Errors
/// When the directory cannot be opened or synced.
pub fn sync_parent(path: &Path) -> io::Result<()> {
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

/// Removes temporary files that a killed daemon left in `directory`.
///
/// # Errors
/// When the directory cannot be listed or a file not removed.
pub fn sweep(directory: &Path) -> io::Result<usize> {
    let mut swept = 0;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(TEMPORARY) && entry.file_type()?.is_file() {
            fs::remove_file(entry.path())?;
            swept += 1;
        }
    }
    Ok(swept)
}

const TEMPORARY: &str = ".#tmp-";

fn temporary_name(path: &Path) -> PathBuf {
    let mut random = [0; 8];
    // Without randomness the process id still tells daemons apart; O_EXCL guards the rest.
    if getrandom::fill(&mut random).is_err() {
        random = u64::from(std::process::id()).to_le_bytes();
    }
    let unique = u64::from_le_bytes(random);
    path.with_file_name(format!("{TEMPORARY}{unique:016x}"))
}

fn write_new(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    // The daemon's umask must not decide who else may read it.
    file.set_permissions(Permissions::from_mode(mode))?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn survives_and_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        assert_eq!(load::<Vec<u32>>(&path, 1).unwrap(), None);
        store(&path, 1, &vec![1, 2]).unwrap();
        store(&path, 1, &vec![3]).unwrap();
        assert_eq!(load::<Vec<u32>>(&path, 1).unwrap(), Some(vec![3]));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn p30_unreadable_is_not_absent() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        for bad in ["", "{", "[]", r#"{"version":1}"#, r#"{"version":1,"data":"x"}"#] {
            fs::write(&path, bad).unwrap();
            assert!(matches!(load::<Vec<u32>>(&path, 1), Err(StateError::Damaged { .. })), "{bad}");
        }
        fs::write(&path, r#"{"version":2,"data":[]}"#).unwrap();
        assert!(matches!(load::<Vec<u32>>(&path, 1), Err(StateError::Newer { found: 2, known: 1, .. })));
    }

    #[test]
    fn p04_parallel_writers_never_mix() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        std::thread::scope(|scope| {
            for writer in 0..16_u8 {
                let path = &path;
                scope.spawn(move || (0..10).for_each(|_| store(path, 1, &vec![writer; 1000]).unwrap()));
            }
        });
        let content = load::<Vec<u8>>(&path, 1).unwrap().unwrap();
        assert!(content.len() == 1000 && content.windows(2).all(|w| w.first() == w.last()));
        fs::write(dir.path().join(".#tmp-left"), "").unwrap();
        assert_eq!(sweep(dir.path()).unwrap(), 1);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
