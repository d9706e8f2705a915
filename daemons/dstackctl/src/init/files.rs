// SPDX-License-Identifier: Apache-2.0
//! Files of root, as wholes: a new one beside the old one, synced, renamed, and the directory synced.

use crate::errors::Failure;
use crate::places::cannot;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Largest file of ours, bytes.
const TEXT_MAX: u64 = 256 * 1024;
/// Units that an interrupted run was to restart; a reboot starts everything anyway, and forgets it.
pub const NOTE: &str = "/run/dstack-init.note";
/// Held while something is changed.
pub const LOCK: &str = "/run/dstack-init.lock";

/// The root of all paths; another directory in tests.
#[derive(Debug, Clone)]
pub struct Root(PathBuf);

impl Default for Root {
    fn default() -> Self {
        Self("/".into())
    }
}

impl Root {
    /// Below this directory.
    #[must_use]
    pub fn below(directory: &Path) -> Self {
        Self(directory.to_owned())
    }

    /// Where an absolute path really is.
    #[must_use]
    pub fn real(&self, path: &str) -> PathBuf {
        self.0.join(path.trim_start_matches('/'))
    }

    /// Text of a file; `None` when there is none.
    ///
    /// # Errors
    /// When it cannot be read, or is no text of ours.
    pub fn read(&self, path: &str) -> Result<Option<String>, Failure> {
        let real = self.real(path);
        let size = match std::fs::metadata(&real) {
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                return Ok(None);
            }
            other => other.map_err(|e| cannot("read", &real, &e))?.len(),
        };
        if size > TEXT_MAX {
            return Err(Failure::new(format!("{path} is larger than {TEXT_MAX} bytes"))
                .hint("dstackctl init wrote no such file: move it away, and run init again"));
        }
        std::fs::read_to_string(&real).map(Some).map_err(|e| cannot("read", &real, &e))
    }

    /// Replaces a file, or makes it, with the directories above it.
    ///
    /// # Errors
    /// When it cannot be written; the old one is as it was then.
    pub fn write(&self, path: &str, bytes: &[u8], mode: u32) -> Result<(), Failure> {
        let real = self.real(path);
        let directory = real.parent().unwrap_or(Path::new("/"));
        let failed = |error: std::io::Error| cannot("write", &real, &error);
        let above = if mode & 0o077 == 0 { 0o700 } else { 0o755 };
        std::fs::DirBuilder::new().recursive(true).mode(above).create(directory).map_err(failed)?;
        let beside = beside(&real);
        prepare(&beside, bytes, mode).map_err(failed)?;
        std::fs::rename(&beside, &real).map_err(failed)?;
        File::open(directory).and_then(|d| d.sync_all()).map_err(failed)
    }

    /// Removes a file; one that is not there is no error.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove(&self, path: &str) -> Result<(), Failure> {
        let real = self.real(path);
        match std::fs::remove_file(&real) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            other => other.map_err(|e| cannot("remove", &real, &e))?,
        }
        let directory = real.parent().unwrap_or(Path::new("/"));
        File::open(directory).and_then(|d| d.sync_all()).map_err(|e| cannot("remove", &real, &e))
    }

    /// The units of the note.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn noted(&self) -> Result<BTreeSet<String>, Failure> {
        let text = self.read(NOTE)?.unwrap_or_default();
        Ok(text.lines().filter(|unit| super::plan::is_ours(unit)).map(str::to_owned).collect())
    }

    /// Notes units.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn note(&self, units: &BTreeSet<String>) -> Result<(), Failure> {
        let text: String = units.iter().map(|unit| format!("{unit}\n")).collect();
        self.write(NOTE, text.as_bytes(), 0o644)
    }
}

fn beside(real: &Path) -> PathBuf {
    let mut name = real.as_os_str().to_owned();
    // Daemons and systemd read *.toml and *.conf, so they never read this.
    name.push(".new");
    PathBuf::from(name)
}

/// The new file, whole and synced, under another name.
fn prepare(beside: &Path, bytes: &[u8], mode: u32) -> std::io::Result<()> {
    match std::fs::remove_file(beside) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(beside)?;
    file.write_all(bytes)?;
    // Not the umask decides who can read settings.
    rustix::fs::fchmod(&file, rustix::fs::Mode::from_raw_mode(mode))?;
    file.sync_all()
}

/// Keeps others from changing things at the same time, until it is dropped.
///
/// # Errors
/// When somebody else holds it.
pub fn lock(root: &Root) -> Result<File, Failure> {
    let path = root.real(LOCK);
    let opened = std::fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
    let file = opened.map_err(|e| cannot("open", &path, &e))?;
    let taken = rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive);
    taken.map_err(|_| {
        Failure::new("another `dstackctl init` is at work on this host").hint("wait until it has ended")
    })?;
    Ok(file)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn files_are_replaced_as_wholes_and_with_their_mode() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::below(directory.path());
        let path = "/etc/dstack/kms.toml.d/20-init.toml";
        assert_eq!(root.read(path).unwrap(), None);
        // What a killed run left.
        std::fs::create_dir_all(root.real("/etc/dstack/kms.toml.d")).unwrap();
        std::fs::write(root.real(&format!("{path}.new")), "half").unwrap();
        root.write(path, b"whole", 0o644).unwrap();
        assert_eq!(root.read(path).unwrap().unwrap(), "whole");
        assert_eq!(std::fs::metadata(root.real(path)).unwrap().permissions().mode() & 0o777, 0o644);
        assert_eq!(std::fs::read_dir(root.real("/etc/dstack/kms.toml.d")).unwrap().count(), 1);
        root.remove(path).unwrap();
        root.remove(path).unwrap();
        assert_eq!(root.read(path).unwrap(), None);
    }

    #[test]
    fn a_note_holds_our_units_alone() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::below(directory.path());
        assert!(root.noted().unwrap().is_empty());
        let units = BTreeSet::from(["dstack-kms.service".to_owned(), "ssh.service".to_owned()]);
        root.note(&units).unwrap();
        assert_eq!(root.noted().unwrap(), BTreeSet::from(["dstack-kms.service".to_owned()]));
    }

    #[test]
    fn one_at_a_time() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("run")).unwrap();
        let root = Root::below(directory.path());
        let held = lock(&root).unwrap();
        assert!(lock(&root).unwrap_err().message.contains("at work"));
        drop(held);
        lock(&root).unwrap();
    }
}
