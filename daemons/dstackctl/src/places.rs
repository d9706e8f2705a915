// SPDX-License-Identifier: Apache-2.0
//! Where the command line keeps its own files, and how it writes them.

use crate::errors::Failure;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Largest file of the command line's own, bytes.
const OWN_MAX: u64 = 1024 * 1024;

/// The user's settings: `$XDG_CONFIG_HOME/dstack`, or `~/.config/dstack`.
///
/// # Errors
/// When the user has no home.
pub fn config() -> Result<PathBuf, Failure> {
    below_home("XDG_CONFIG_HOME", ".config")
}

/// What the command line remembers: `$XDG_STATE_HOME/dstack`, or `~/.local/state/dstack`.
///
/// # Errors
/// When the user has no home.
pub fn state() -> Result<PathBuf, Failure> {
    below_home("XDG_STATE_HOME", ".local/state")
}

fn below_home(variable: &str, usual: &str) -> Result<PathBuf, Failure> {
    let set = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let base = set(variable).or_else(|| Some(set("HOME")?.join(usual)));
    base.map(|base| base.join("dstack")).ok_or_else(|| {
        Failure::new(format!("neither {variable} nor HOME is set, so there is no place for keys"))
    })
}

/// Reads a file of one's own; `None` when there is none.
///
/// # Errors
/// When it cannot be read, or is too large to be one.
pub fn read(path: &Path) -> Result<Option<zeroize::Zeroizing<Vec<u8>>>, Failure> {
    let file = match std::fs::File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        other => other.map_err(|e| cannot("read", path, &e))?,
    };
    let mut bytes = zeroize::Zeroizing::new(Vec::new());
    file.take(OWN_MAX + 1).read_to_end(&mut bytes).map_err(|e| cannot("read", path, &e))?;
    if bytes.len() as u64 > OWN_MAX {
        return Err(Failure::new(format!("{} is larger than {OWN_MAX} bytes", path.display())));
    }
    Ok(Some(bytes))
}

/// Makes a directory for the user alone, unless it is there.
///
/// # Errors
/// When it cannot be made.
pub fn make_directory(path: &Path, mode: u32) -> Result<(), Failure> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true).mode(mode).create(path).map_err(|e| cannot("make", path, &e))
}

/// Writes a new file of this mode and syncs it; an existing one is never replaced.
///
/// # Errors
/// When it is there already, or cannot be written.
pub fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<(), Failure> {
    let mut options = std::fs::OpenOptions::new();
    let file = options.write(true).create_new(true).mode(mode).open(path);
    let written = file.and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()));
    written.map_err(|e| cannot("write", path, &e))
}

/// Replaces a file as a whole: a temporary one beside it, synced, renamed.
///
/// # Errors
/// When it cannot be written.
pub fn replace(path: &Path, bytes: &[u8], mode: u32) -> Result<(), Failure> {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".new-{}", std::process::id()));
    let temporary = PathBuf::from(name);
    // What a killed process of the same number left.
    drop(std::fs::remove_file(&temporary));
    write_new(&temporary, bytes, mode)?;
    let renamed = std::fs::rename(&temporary, path).map_err(|e| cannot("write", path, &e));
    if renamed.is_err() {
        drop(std::fs::remove_file(&temporary));
    }
    renamed
}

/// The failure of an operation on a file.
#[must_use]
pub fn cannot(verb: &str, path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(format!("cannot {verb} {}: {error}", path.display()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn files_are_private_and_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/key");
        make_directory(path.parent().unwrap(), 0o700).unwrap();
        assert!(read(&path).unwrap().is_none());
        write_new(&path, b"one", 0o600).unwrap();
        assert!(write_new(&path, b"two", 0o600).is_err());
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        replace(&path, b"three", 0o600).unwrap();
        assert_eq!(read(&path).unwrap().unwrap().as_slice(), b"three");
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        let big = directory.path().join("big");
        std::fs::write(&big, vec![0; 1 << 21]).unwrap();
        assert!(read(&big).unwrap_err().message.contains("larger"));
    }
}
