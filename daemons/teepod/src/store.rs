// SPDX-License-Identifier: Apache-2.0
//! VMs on disk: `<state>/vms/<name>/` with `record.json`, `config.tar` and, once started, `launch.json`.
//!
//! A VM exists exactly when its directory has its final name: it is made under a temporary name and renamed as the last
//! step, and removed by renaming it back first. A teepod that is killed in between leaves a temporary directory, which
//! the next one sweeps.

use crate::vm::record::{Record, VERSION};
use dstack_core::config_disk::{self, ConfigDiskError, Files};
use dstack_core::ids::VmName;
use dstack_core::limits::CONFIG_DISK_MAX;
use dstack_core::spec::LaunchSpec;
use dstack_service::state::{self, StateError};
use std::fs::{self, DirBuilder};
use std::io::{self, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

const TEMPORARY: &str = ".#tmp-";
const RECORD: &str = "record.json";
const CONFIG: &str = "config.tar";
const LAUNCH: &str = "launch.json";

/// Why a VM's files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A state file.
    #[error(transparent)]
    State(#[from] StateError),
    /// The config disk.
    #[error("{}: {error}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// Why.
        error: ConfigDiskError,
    },
    /// A file that the caller gave is over its cap.
    #[error(transparent)]
    Input(#[from] ConfigDiskError),
    /// A directory or file.
    #[error("{}: {error}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

impl StoreError {
    fn at(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |error| Self::Io { path, error }
    }

    /// Whether the file system had no room.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        match self {
            Self::State(error) => error.is_no_space(),
            Self::Io { error, .. } => {
                matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
            }
            _ => false,
        }
    }
}

/// A step of [`Store::create`], for tests that stop after each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The temporary directory is there.
    Directory,
    /// The config disk is written.
    Config,
    /// The record is written.
    Record,
    /// The directory has its final name: from here on the VM exists.
    Rename,
    /// And will have it after a power cut.
    Durable,
}

/// The directory of all VMs.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

/// What was found at a start.
#[derive(Debug, Default)]
pub struct Found {
    /// VMs.
    pub records: Vec<Record>,
    /// VMs whose files cannot be used, with the reason; they are left as they are.
    pub unreadable: Vec<(VmName, StoreError)>,
    /// Left-overs of a killed teepod that were removed.
    pub swept: usize,
}

impl Store {
    /// The store below teepod's state directory; [`Store::load`] makes it.
    #[must_use]
    pub fn new(state: &Path) -> Self {
        Self { root: state.join("vms") }
    }

    /// The directory of a VM.
    #[must_use]
    pub fn directory(&self, name: &VmName) -> PathBuf {
        self.root.join(name.as_str())
    }

    /// Reads all VMs and sweeps left-overs.
    ///
    /// # Errors
    /// When the directory cannot be made or listed; a single unreadable VM is no error.
    pub fn load(&self) -> Result<Found, StoreError> {
        let mut found = Found::default();
        let at = || StoreError::at(&self.root);
        DirBuilder::new().recursive(true).mode(0o700).create(&self.root).map_err(at())?;
        for entry in fs::read_dir(&self.root).map_err(at())? {
            let entry = entry.map_err(at())?;
            let text = entry.file_name().to_string_lossy().into_owned();
            if text.starts_with(TEMPORARY) {
                fs::remove_dir_all(entry.path()).map_err(StoreError::at(&entry.path()))?;
                found.swept += 1;
            } else if let Ok(name) = text.parse::<VmName>() {
                match self.load_one(&name) {
                    Ok(record) => found.records.push(record),
                    Err(error) => found.unreadable.push((name, error)),
                }
            } else {
                tracing::warn!("{}: is not a VM; it was left as it is", entry.path().display());
            }
        }
        found.records.sort_by(|a, b| a.spec.name.cmp(&b.spec.name));
        Ok(found)
    }

    fn load_one(&self, name: &VmName) -> Result<Record, StoreError> {
        let directory = self.directory(name);
        let path = directory.join(RECORD);
        let damaged = |reason: &str| StateError::Damaged { path: path.clone(), reason: reason.to_owned() };
        let record: Record = state::load(&path, VERSION)?.ok_or_else(|| damaged("there is no such file"))?;
        if record.spec.name != *name {
            return Err(damaged(&format!("it describes VM {:?}", record.spec.name.as_str())).into());
        }
        // A replacement that was interrupted; harmless, but it would add up.
        state::sweep(&directory).map_err(StoreError::at(&directory))?;
        Ok(record)
    }

    /// Makes a VM; `after` is called after each step and does nothing outside tests.
    ///
    /// # Errors
    /// [`StoreError`]; nothing is left behind then.
    pub fn create(
        &self,
        record: &Record,
        files: &Files,
        mut after: impl FnMut(Step),
    ) -> Result<(), StoreError> {
        let disk = config_disk::write(files)?;
        let temporary = self.temporary(&record.spec.name);
        let made = self.fill(&temporary, record, &disk, &mut after);
        if made.is_err() {
            // The first error is the one to tell; a left-over is swept at the next start.
            drop(fs::remove_dir_all(&temporary));
        }
        made
    }

    fn fill(
        &self,
        temporary: &Path,
        record: &Record,
        disk: &[u8],
        after: &mut impl FnMut(Step),
    ) -> Result<(), StoreError> {
        let target = self.directory(&record.spec.name);
        DirBuilder::new().mode(0o700).create(temporary).map_err(StoreError::at(temporary))?;
        after(Step::Directory);
        state::replace(&temporary.join(CONFIG), disk, 0o644)?;
        after(Step::Config);
        state::store(&temporary.join(RECORD), VERSION, record)?;
        after(Step::Record);
        // Fails when the target exists and is not empty, so that a VM is never overwritten.
        fs::rename(temporary, &target).map_err(StoreError::at(&target))?;
        after(Step::Rename);
        state::sync_parent(&target).map_err(StoreError::at(&self.root))?;
        after(Step::Durable);
        Ok(())
    }

    /// Replaces a VM's record.
    ///
    /// # Errors
    /// [`StoreError::State`]; the old one is still there then.
    pub fn save(&self, record: &Record) -> Result<(), StoreError> {
        Ok(state::store(&self.directory(&record.spec.name).join(RECORD), VERSION, record)?)
    }

    /// Reads a VM's config disk.
    ///
    /// # Errors
    /// [`StoreError`] when it cannot be read or is not one.
    pub fn config(&self, name: &VmName) -> Result<Files, StoreError> {
        let path = self.config_path(name);
        let mut bytes = Vec::new();
        let file = fs::File::open(&path).map_err(StoreError::at(&path))?;
        file.take(CONFIG_DISK_MAX as u64 + 1).read_to_end(&mut bytes).map_err(StoreError::at(&path))?;
        config_disk::parse(&bytes).map_err(|error| StoreError::Config { path, error })
    }

    /// Replaces a VM's config disk; a running VM keeps the one it has.
    ///
    /// # Errors
    /// [`StoreError`]; the old one is still there then.
    pub fn save_config(&self, name: &VmName, files: &Files) -> Result<(), StoreError> {
        Ok(state::replace(&self.config_path(name), &config_disk::write(files)?, 0o644)?)
    }

    fn config_path(&self, name: &VmName) -> PathBuf {
        self.directory(name).join(CONFIG)
    }

    /// Writes what the VM's unit takes as its credential `launch`.
    ///
    /// # Errors
    /// [`StoreError`] when it cannot be written.
    pub fn save_launch(&self, launch: &LaunchSpec) -> Result<(), StoreError> {
        let path = self.directory(&launch.vm.name).join(LAUNCH);
        let bytes = serde_json::to_vec(launch)
            .map_err(|e| StateError::Damaged { path: path.clone(), reason: e.to_string() })?;
        Ok(state::replace(&path, &bytes, 0o600)?)
    }

    /// Removes a VM; a directory that is gone already is no error.
    ///
    /// # Errors
    /// When it cannot be renamed; a left-over after that is swept at the next start.
    pub fn remove(&self, name: &VmName) -> Result<(), StoreError> {
        let (target, temporary) = (self.directory(name), self.temporary(name));
        match fs::rename(&target, &temporary) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(StoreError::at(&target))?,
        }
        state::sync_parent(&target).map_err(StoreError::at(&self.root))?;
        fs::remove_dir_all(&temporary).map_err(StoreError::at(&temporary))
    }

    fn temporary(&self, name: &VmName) -> PathBuf {
        self.root.join(format!("{TEMPORARY}{}-{}", name, uuid::Uuid::new_v4().simple()))
    }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
