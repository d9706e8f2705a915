// SPDX-License-Identifier: Apache-2.0
//! Where a certificate is kept, in the layout of the original.
//!
//! ```text
//! live                     -> backup/<time>: one link, so chain and key change at one moment
//! backup/<time>/cert.pem   every chain that was issued; <time> is ISO 8601, UTC
//! backup/<time>/key.pem    its key, mode 0600
//! order.json               an order under way, with the key of its certificate
//! renewal.json             failures, and what the authority suggests
//! dns.json                 TXT records that we made and have not removed yet
//! caa.json                 CAA records that we ever made
//! ```
//!
//! The original has a directory `live` with two links in it; it is replaced by the one link when a certificate is stored.

use crate::certificate::{self, Leaf, Pair};
use crate::files::{self, FileError};
use crate::limits::BACKUPS_MAX;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// How names of what is not finished begin.
const UNFINISHED: &str = ".new-";

/// Directory of one certificate.
#[derive(Debug, Clone)]
pub struct Workdir(PathBuf);

impl Workdir {
    /// Opens it, makes what is not there, and sweeps what a killed run left.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn open(path: &Path) -> Result<Self, FileError> {
        let backup = path.join("backup");
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&backup).map_err(FileError::at(&backup))?;
        let this = Self(path.to_owned());
        this.sweep(path)?;
        this.sweep(&backup)?;
        dstack_service::state::sweep(path).map_err(FileError::at(path))?;
        Ok(this)
    }

    /// One to be read, whatever is there; nothing is made or swept.
    #[must_use]
    pub fn existing(path: &Path) -> Self {
        Self(path.to_owned())
    }

    fn sweep(&self, directory: &Path) -> Result<(), FileError> {
        let at = || FileError::at(directory);
        for entry in fs::read_dir(directory).map_err(at())? {
            let entry = entry.map_err(at())?;
            if !entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
                continue;
            }
            let removed = match entry.file_type().map_err(at())?.is_dir() {
                true => fs::remove_dir_all(entry.path()),
                false => fs::remove_file(entry.path()),
            };
            removed.map_err(FileError::at(&entry.path()))?;
        }
        Ok(())
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A file of it.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The live certificate; `None` when there is none.
    ///
    /// # Errors
    /// [`FileError`] for what is there and is no pair of a chain and its key.
    pub fn live(&self) -> Result<Option<Pair>, FileError> {
        let live = self.0.join("live");
        let (cert, key) = (live.join("cert.pem"), live.join("key.pem"));
        let (Some(chain), Some(secret)) = (files::read(&cert)?, files::read(&key)?) else {
            return match fs::symlink_metadata(&live) {
                Ok(_) => Err(FileError::new(
                    &live,
                    "has not both cert.pem and key.pem; put them back, or remove it",
                )),
                Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
                Err(error) => Err(FileError::new(&live, error)),
            };
        };
        let (chain, secret) = (text(&cert, chain)?, text(&key, secret)?);
        Pair::new(chain.to_string(), secret).map(Some).map_err(|reason| FileError::new(&live, reason))
    }

    /// Stores a certificate and makes it the live one: new directory, sync, rename, sync, link, sync. `time` is its name.
    ///
    /// # Errors
    /// [`FileError`]; the old one is live then.
    pub fn publish(
        &self,
        pair: &Pair,
        time: &str,
        mut step: impl FnMut(&'static str),
    ) -> Result<(), FileError> {
        let backup = self.0.join("backup");
        let (new, done) = (backup.join(format!("{UNFINISHED}{time}")), backup.join(time));
        fs::DirBuilder::new().mode(0o700).create(&new).map_err(FileError::at(&new))?;
        write(&new.join("cert.pem"), pair.chain.as_bytes(), 0o644)?;
        step("chain-written");
        write(&new.join("key.pem"), pair.key.as_bytes(), 0o600)?;
        sync(&new)?;
        step("pair-written");
        fs::rename(&new, &done).map_err(FileError::at(&done))?;
        sync(&backup)?;
        step("backup-named");
        self.link(&format!("backup/{time}"), &mut step)
    }

    fn link(&self, target: &str, step: &mut impl FnMut(&'static str)) -> Result<(), FileError> {
        let (new, live) = (self.0.join(format!("{UNFINISHED}live")), self.0.join("live"));
        files::remove(&new)?;
        symlink(target, &new).map_err(FileError::at(&new))?;
        step("link-made");
        let is_directory = fs::symlink_metadata(&live).is_ok_and(|m| m.is_dir());
        if is_directory {
            // The original's, with two links in it.
            renameat_with(CWD, &new, CWD, &live, RenameFlags::EXCHANGE)
                .map_err(|e| FileError::new(&live, io::Error::from(e)))?;
            fs::remove_dir_all(&new).map_err(FileError::at(&new))?;
        } else {
            fs::rename(&new, &live).map_err(FileError::at(&live))?;
        }
        sync(&self.0)?;
        step("link-swapped");
        Ok(())
    }

    /// The newest stored pair with this public key, by its name; for a run that was killed before the link was swapped.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn stored(&self, public_key: &[u8]) -> Result<Option<String>, FileError> {
        let mut found = None;
        for path in self.backups()? {
            let Some(pem) = files::read(&path.join("cert.pem"))? else { continue };
            let is_it = certificate::first(&pem).is_ok_and(|leaf| leaf.public_key == public_key);
            if is_it && path.join("key.pem").exists() {
                found = found.max(path.file_name().map(|n| n.to_string_lossy().into_owned()));
            }
        }
        Ok(found)
    }

    /// Makes a stored pair the live one.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn make_live(&self, name: &str) -> Result<(), FileError> {
        self.link(&format!("backup/{name}"), &mut |_| {})
    }

    /// Every public key that was in such a certificate, SubjectPublicKeyInfo in DER.
    ///
    /// # Errors
    /// [`FileError`] names a chain that cannot be read: a history with a gap is none.
    pub fn history(&self, such: impl Fn(&Leaf) -> bool) -> Result<BTreeSet<Vec<u8>>, FileError> {
        let mut keys = BTreeSet::new();
        for path in self.backups()? {
            let path = path.join("cert.pem");
            if let Some(pem) = files::read(&path)? {
                let leaf = certificate::first(&pem).map_err(|reason| FileError::new(&path, reason))?;
                keys.extend(Some(leaf).filter(&such).map(|leaf| leaf.public_key));
            }
        }
        Ok(keys)
    }

    fn backups(&self) -> Result<Vec<PathBuf>, FileError> {
        let backup = self.0.join("backup");
        let entries = match fs::read_dir(&backup) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(FileError::at(&backup))?,
        };
        let paths: Vec<PathBuf> = entries
            .take(BACKUPS_MAX + 1)
            .map(|entry| entry.map(|e| e.path()))
            .collect::<Result<_, _>>()
            .map_err(FileError::at(&backup))?;
        if paths.len() > BACKUPS_MAX {
            return Err(FileError::new(
                &backup,
                format!("has more than {BACKUPS_MAX} certificates; move old ones away"),
            ));
        }
        let finished =
            |path: &PathBuf| path.file_name().is_some_and(|n| !n.to_string_lossy().starts_with(UNFINISHED));
        Ok(paths.into_iter().filter(finished).collect())
    }
}

fn text(path: &Path, bytes: Zeroizing<Vec<u8>>) -> Result<Zeroizing<String>, FileError> {
    let text = std::str::from_utf8(&bytes).map_err(|_| FileError::new(path, "is no PEM"))?;
    Ok(Zeroizing::new(text.to_owned()))
}

fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
    let at = || FileError::at(path);
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map_err(at())?;
    file.write_all(bytes).map_err(at())?;
    file.sync_all().map_err(at())
}

fn sync(directory: &Path) -> Result<(), FileError> {
    File::open(directory).and_then(|d| d.sync_all()).map_err(FileError::at(directory))
}

#[cfg(test)]
#[path = "workdir_tests.rs"]
mod tests;
