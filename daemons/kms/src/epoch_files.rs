// SPDX-License-Identifier: Apache-2.0
//! The epochs of data disks, one file each below the state directory: `epochs/<app id>/<instance id>.json`.

use crate::epoch::Record;
use dstack_core::ids::{AppId, InstanceId};
use dstack_service::state::{self, StateError};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

/// Format of a file.
const VERSION: u32 = 1;
/// Most instances of one app whose disks are remembered.
pub const INSTANCES_MAX: usize = 4096;
/// Most apps with such instances.
pub const APPS_MAX: usize = 16 * 1024;

/// How long it is remembered that a boot has begun that never went on.
pub const BEGUN_KEPT: Duration = Duration::from_secs(90 * 86_400);

/// Why a record cannot be read or kept.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// A file cannot be read or written.
    #[error(transparent)]
    State(#[from] StateError),
    /// A directory cannot be read or written.
    #[error("{}: {error}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// There is no room for one more.
    #[error("{}: holds {limit} entries, and no more are kept; remove those of instances that are gone", path.display())]
    TooMany {
        /// Which directory.
        path: PathBuf,
        /// Its limit.
        limit: usize,
    },
}

impl FilesError {
    fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |error| Self::Io { path, error }
    }

    /// Whether the file system had no room.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        match self {
            Self::State(error) => error.is_no_space(),
            Self::Io { error, .. } => error.kind() == io::ErrorKind::StorageFull,
            Self::TooMany { .. } => true,
        }
    }
}

/// The files.
#[derive(Debug)]
pub struct EpochFiles {
    root: PathBuf,
    /// One change at a time.
    changing: Mutex<()>,
}

impl EpochFiles {
    /// The files below a state directory; removes what a killed daemon left.
    ///
    /// # Errors
    /// When a directory cannot be made or read.
    pub fn open(state: &Path) -> Result<Self, FilesError> {
        let root = state.join("epochs");
        fs::create_dir_all(&root).map_err(FilesError::io(&root))?;
        for entry in fs::read_dir(&root).map_err(FilesError::io(&root))? {
            let path = entry.map_err(FilesError::io(&root))?.path();
            if path.is_dir() {
                state::sweep(&path).map_err(FilesError::io(&path))?;
            }
        }
        Ok(Self { root, changing: Mutex::new(()) })
    }

    /// What is known about an instance's disk.
    ///
    /// # Errors
    /// When a file is there and cannot be read: that is never taken for absent (known attack P30).
    pub fn known(&self, app: &AppId, instance: &InstanceId) -> Result<Record, FilesError> {
        Ok(state::load(&self.file(app, instance), VERSION)?.unwrap_or_default())
    }

    /// Changes what is known; it is on the disk when this returns. `change` gives the new record, or `None` to keep the
    /// old one, and whatever the caller wants to have.
    ///
    /// # Errors
    /// Those of `change`, and [`FilesError`]; the old record is in force then.
    pub fn change<T, E: From<FilesError>>(
        &self,
        app: &AppId,
        instance: &InstanceId,
        change: impl FnOnce(&Record) -> Result<(Option<Record>, T), E>,
    ) -> Result<T, E> {
        let _changing = self.turn();
        let (next, told) = change(&self.known(app, instance)?)?;
        if let Some(next) = next {
            self.keep(app, instance, &next)?;
        }
        Ok(told)
    }

    fn keep(&self, app: &AppId, instance: &InstanceId, record: &Record) -> Result<(), FilesError> {
        let (directory, file) = (self.directory(app), self.file(app, instance));
        if !directory.is_dir() {
            room(&self.root, APPS_MAX)?;
            fs::create_dir_all(&directory).map_err(FilesError::io(&directory))?;
            state::sync_parent(&directory).map_err(FilesError::io(&directory))?;
        }
        if !file.exists() {
            room(&directory, INSTANCES_MAX)?;
        }
        Ok(state::store(&file, VERSION, record)?)
    }

    fn turn(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes records of boots that have begun before [`BEGUN_KEPT`] and never went on, and directories of apps that are
    /// empty by then; gives how many records. A kill leaves fewer records or an empty directory, which the next call
    /// removes. What cannot be read is left, and told.
    ///
    /// # Errors
    /// When a directory cannot be read, or something not removed.
    pub fn sweep(&self, now: SystemTime) -> Result<usize, FilesError> {
        let mut swept = 0;
        for directory in entries(&self.root)?.into_iter().filter(|path| path.is_dir()) {
            for file in entries(&directory)? {
                swept += usize::from(self.sweep_one(&file, now)?);
            }
            self.sweep_directory(&directory)?;
        }
        Ok(swept)
    }

    /// A boot may be about to use it, so this takes turns with them.
    fn sweep_one(&self, file: &Path, now: SystemTime) -> Result<bool, FilesError> {
        let _changing = self.turn();
        let written = fs::metadata(file).and_then(|found| found.modified()).map_err(FilesError::io(file))?;
        let is_old = now.duration_since(written).is_ok_and(|age| age >= BEGUN_KEPT);
        if !is_old || file.extension().is_none_or(|extension| extension != "json") {
            return Ok(false);
        }
        match state::load::<Record>(file, VERSION) {
            Ok(Some(record)) if record.is_only_begun() => {
                fs::remove_file(file)
                    .and_then(|()| state::sync_parent(file))
                    .map_err(FilesError::io(file))?;
                Ok(true)
            }
            Ok(_) => Ok(false),
            Err(error) => {
                tracing::warn!("{error}");
                Ok(false)
            }
        }
    }

    fn sweep_directory(&self, directory: &Path) -> Result<(), FilesError> {
        let _changing = self.turn();
        match fs::remove_dir(directory) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
            other => other.map_err(FilesError::io(directory)),
        }
    }

    fn directory(&self, app: &AppId) -> PathBuf {
        // Ids are 40 hex digits by their types, so no path can come of them (known attack P26).
        self.root.join(app.to_string())
    }

    fn file(&self, app: &AppId, instance: &InstanceId) -> PathBuf {
        self.directory(app).join(format!("{instance}.json"))
    }
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>, FilesError> {
    let found = fs::read_dir(directory).map_err(FilesError::io(directory))?;
    found.map(|entry| Ok(entry.map_err(FilesError::io(directory))?.path())).collect()
}

fn room(directory: &Path, limit: usize) -> Result<(), FilesError> {
    let entries = fs::read_dir(directory).map_err(FilesError::io(directory))?.take(limit);
    if entries.count() < limit {
        return Ok(());
    }
    Err(FilesError::TooMany { path: directory.to_owned(), limit })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use dstack_core::epoch::Epoch;

    const APP: [u8; 20] = [1; 20];

    fn forget(files: &EpochFiles, instance: u8) -> Result<(), FilesError> {
        let (app, instance) = (AppId::from(APP), InstanceId::from([instance; 20]));
        files.change(&app, &instance, |known| Ok((Some(known.forget()), ())))
    }

    #[test]
    fn what_is_kept_survives_and_belongs_to_one_instance() {
        let dir = tempfile::tempdir().unwrap();
        forget(&EpochFiles::open(dir.path()).unwrap(), 2).unwrap();
        let again = EpochFiles::open(dir.path()).unwrap();
        let known = |n: u8| again.known(&AppId::from(APP), &InstanceId::from([n; 20])).unwrap();
        assert!(known(2).forgotten);
        assert_eq!(known(3), Record::default());
        assert_eq!(
            again.known(&AppId::from([9; 20]), &InstanceId::from([2; 20])).unwrap(),
            Record::default()
        );
    }

    #[test]
    fn p30_a_record_that_cannot_be_read_is_not_absent() {
        let dir = tempfile::tempdir().unwrap();
        let files = EpochFiles::open(dir.path()).unwrap();
        forget(&files, 2).unwrap();
        let file = files.file(&AppId::from(APP), &InstanceId::from([2; 20]));
        for bad in ["", "{", r#"{"version":1,"data":{}}"#, r#"{"version":2,"data":{}}"#] {
            fs::write(&file, bad).unwrap();
            assert!(forget(&files, 2).is_err(), "{bad}");
            assert_eq!(fs::read_to_string(&file).unwrap(), bad, "it is left as it is");
        }
    }

    #[test]
    fn p15_one_app_fills_its_own_room_alone() {
        let dir = tempfile::tempdir().unwrap();
        let files = EpochFiles::open(dir.path()).unwrap();
        forget(&files, 2).unwrap();
        let directory = files.directory(&AppId::from(APP));
        (1..INSTANCES_MAX).for_each(|n| fs::write(directory.join(n.to_string()), "").unwrap());
        let error = forget(&files, 3).unwrap_err();
        assert!(matches!(error, FilesError::TooMany { limit: INSTANCES_MAX, .. }) && error.is_no_space());
        forget(&files, 2).unwrap();
        let other = AppId::from([9; 20]);
        let kept: Result<(), FilesError> =
            files.change(&other, &InstanceId::from([3; 20]), |known| Ok((Some(known.forget()), ())));
        kept.unwrap();
    }

    #[test]
    fn a_full_disk_is_told_and_loses_nothing() {
        let Some(disk) = dstack_testing::disk::SmallDisk::new(64) else { return };
        let files = EpochFiles::open(disk.path()).unwrap();
        forget(&files, 2).unwrap();
        disk.fill();
        // In the place of one that is there, a new one, and a new app's.
        for (app, instance) in [(1, 2), (1, 3), (9, 3)] {
            let (app, instance) = (AppId::from([app; 20]), InstanceId::from([instance; 20]));
            let failed: Result<Epoch, FilesError> = files.change(&app, &instance, |known| {
                let (next, pending, _) = known.begin(None, false, &[7; 16]).unwrap();
                Ok((Some(next), pending))
            });
            let error = failed.unwrap_err();
            assert!(error.is_no_space() && error.to_string().contains("No space left"), "{error}");
        }
        let before = |files: &EpochFiles| {
            let known = |n: u8| files.known(&AppId::from(APP), &InstanceId::from([n; 20])).unwrap();
            (known(2).forgotten, known(2).pending, known(3))
        };
        assert_eq!(before(&files), (true, None, Record::default()));
        assert_eq!(files.sweep(SystemTime::now() + BEGUN_KEPT * 2).unwrap(), 0);
        // A restart changes nothing, and with space it goes on.
        let files = EpochFiles::open(disk.path()).unwrap();
        assert_eq!(before(&files), (true, None, Record::default()));
        disk.clear();
        forget(&files, 3).unwrap();
        let left = fs::read_dir(files.directory(&AppId::from(APP))).unwrap().count();
        assert_eq!(left, 2, "two records and nothing half-written");
    }

    #[test]
    fn boots_that_never_went_on_make_room_again() {
        let dir = tempfile::tempdir().unwrap();
        let files = EpochFiles::open(dir.path()).unwrap();
        let of = |app: u8, instance: u8| (AppId::from([app; 20]), InstanceId::from([instance; 20]));
        let begin = |app: u8, instance: u8| {
            let (app, instance) = of(app, instance);
            let begun: Result<_, FilesError> = files.change(&app, &instance, |known| {
                let (next, pending, _) = known.begin(None, false, &[7; 16]).unwrap();
                Ok((Some(next), pending))
            });
            begun.unwrap()
        };
        let commit = |app: u8, instance: u8| {
            let pending = begin(app, instance);
            let (app, instance) = of(app, instance);
            let gone_on: Result<(), FilesError> =
                files.change(&app, &instance, |known| Ok((known.commit(pending).unwrap(), ())));
            gone_on.unwrap();
        };
        begin(1, 1);
        commit(1, 2);
        forget(&files, 3).unwrap();
        begin(2, 1);
        let bad = files.directory(&AppId::from(APP)).join("bad.json");
        fs::write(&bad, "{").unwrap();
        let now = SystemTime::now();
        assert_eq!(files.sweep(now + BEGUN_KEPT - Duration::from_secs(60)).unwrap(), 0);
        assert_eq!(files.sweep(now - BEGUN_KEPT).unwrap(), 0, "a clock that was set back");
        let later = now + BEGUN_KEPT + Duration::from_secs(60);
        assert_eq!(files.sweep(later).unwrap(), 2);
        let known = |n: u8| files.known(&AppId::from(APP), &InstanceId::from([n; 20])).unwrap();
        assert_eq!(known(1), Record::default());
        assert!(known(2).committed.is_some() && known(3).forgotten && bad.exists());
        assert!(!files.directory(&AppId::from([2; 20])).exists(), "nothing is left of the other app");
        // A kill left an empty directory; and the app comes back.
        fs::create_dir(files.directory(&AppId::from([2; 20]))).unwrap();
        assert_eq!(files.sweep(later).unwrap(), 0);
        commit(2, 1);
        assert_eq!(files.sweep(later).unwrap(), 0);
    }

    #[test]
    fn a_refused_change_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let files = EpochFiles::open(dir.path()).unwrap();
        let (app, instance) = (AppId::from(APP), InstanceId::from([2; 20]));
        let failed: Result<(), FilesError> =
            files.change(&app, &instance, |_| Err(FilesError::io(Path::new("x"))(io::Error::other("no"))));
        assert!(failed.is_err() && !files.directory(&app).exists());
    }
}
