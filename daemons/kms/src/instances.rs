// SPDX-License-Identifier: Apache-2.0
//! The evidence that each instance showed when it got its keys last: what the forecast judges again (trust rule T22).
//!
//! One file an instance, `<state>/instances/<app id>-<instance id>.json`. It is nobody's secret, and nothing is released
//! by it. Each boot has another quote, so a file is written when the platform in it is another one, or after a while.

use dstack_core::event_log::{Event, LOG_MAX, parse};
use dstack_core::ids::{AppId, ComposeHash, InstanceId};
use dstack_ra_rpc::Shown;
use dstack_service::state::{self, StateError};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Format of the files.
const VERSION: u32 = 1;
/// Most instances that are kept.
pub const INSTANCES_MAX: usize = 4096;
/// A file of the same platform is written again only after this long, seconds.
const PAUSE: u64 = 3600;
/// Instances that got no keys for this long are forgotten, seconds: 90 days.
pub const LATELY: u64 = 90 * 86_400;
/// Register of the boot's own events; those of the firmware say nothing that a policy looks at.
const RUNTIME: u32 = 3;
/// What a quote says of the platform before it says what runs: header, module's version and module.
const PLATFORM_HEAD: usize = 48 + 16 + 48;

/// What is kept of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// When it got keys last, Unix seconds; within an hour of it.
    pub seen: u64,
    /// Its app.
    pub app: AppId,
    /// Its id; `None` when its app's instances share all.
    pub instance: Option<InstanceId>,
    /// Its compose file.
    pub compose_hash: ComposeHash,
    /// Its quote.
    #[serde(with = "hex::serde")]
    quote: Vec<u8>,
    /// The boot's own events.
    events: Vec<Event>,
}

impl Instance {
    /// What an instance has shown; `None` when its log cannot be read, which a verdict would have said.
    #[must_use]
    pub fn of(
        seen: u64,
        app: AppId,
        instance: Option<InstanceId>,
        compose_hash: ComposeHash,
        shown: &Shown,
    ) -> Option<Self> {
        let mut events = parse(&shown.event_log).ok()?;
        events.retain(|event| event.imr == RUNTIME);
        Some(Self { seen, app, instance, compose_hash, quote: shown.quote.clone(), events })
    }

    /// Its evidence.
    #[must_use]
    pub fn shown(&self) -> Shown {
        let event_log = serde_json::to_vec(&self.events).unwrap_or_default();
        debug_assert!(event_log.len() <= LOG_MAX, "a part of a log is no longer than the log");
        Shown { quote: self.quote.clone(), event_log }
    }

    fn name(&self) -> String {
        let instance = self.instance.map_or_else(|| "shared".to_owned(), |id| id.to_string());
        format!("{}-{instance}.json", self.app)
    }

    /// What tells one platform's state from another's.
    fn platform(&self) -> [u8; 32] {
        let chain = self.quote.windows(5).position(|window| window == b"-----").unwrap_or(self.quote.len());
        let head = self.quote.get(..PLATFORM_HEAD).unwrap_or(&self.quote);
        let chain = self.quote.get(chain..).unwrap_or_default();
        Sha256::new()
            .chain_update(self.compose_hash.as_bytes())
            .chain_update(head)
            .chain_update(chain)
            .finalize()
            .into()
    }
}

/// Why an instance cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// There are too many.
    #[error(
        "{INSTANCES_MAX} instances are kept for the forecast, and another one is not; those that got no keys for 90 days \
         are forgotten"
    )]
    Full,
    /// Its file.
    #[error(transparent)]
    State(#[from] StateError),
}

/// A file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct Unreadable {
    /// App id and instance id, as the file's name has them.
    pub name: String,
    /// Why.
    pub error: StateError,
}

/// When a file was written, and of which platform.
type Written = (u64, [u8; 32]);

/// The files.
#[derive(Debug)]
pub struct Instances {
    directory: PathBuf,
    /// By name; what an earlier run wrote counts as old.
    written: Mutex<HashMap<String, Written>>,
}

impl Instances {
    /// The files of an earlier run.
    ///
    /// # Errors
    /// When the directory cannot be made or listed.
    pub fn open(state: &Path) -> io::Result<Self> {
        let directory = state.join("instances");
        std::fs::create_dir_all(&directory)?;
        state::sweep(&directory)?;
        let names = names(&directory)?.into_iter().map(|name| (name, (0, [0; 32]))).collect();
        Ok(Self { directory, written: Mutex::new(names) })
    }

    /// Keeps an instance; gives whether its file was written.
    ///
    /// # Errors
    /// [`KeepError`].
    pub fn keep(&self, instance: &Instance) -> Result<bool, KeepError> {
        let (name, platform) = (instance.name(), instance.platform());
        let mut written = self.lock();
        match written.get(&name) {
            Some((at, same)) if *same == platform && instance.seen.abs_diff(*at) < PAUSE => return Ok(false),
            None if written.len() >= INSTANCES_MAX => return Err(KeepError::Full),
            _ => {}
        }
        state::store(&self.directory.join(&name), VERSION, instance)?;
        written.insert(name, (instance.seen, platform));
        Ok(true)
    }

    /// All that got keys lately; the others are forgotten.
    ///
    /// # Errors
    /// When the directory cannot be listed, or a file not removed.
    pub fn lately(&self, now: u64) -> io::Result<Vec<Result<Instance, Unreadable>>> {
        let mut found = Vec::new();
        for name in names(&self.directory)? {
            let path = self.directory.join(&name);
            // Between two looks another run of this may have removed it.
            match state::load::<Instance>(&path, VERSION).transpose() {
                Some(Ok(instance)) if instance.seen.saturating_add(LATELY) < now => self.forget(&name)?,
                Some(Ok(instance)) => found.push(Ok(instance)),
                Some(Err(error)) => {
                    let name = name.trim_end_matches(".json").to_owned();
                    found.push(Err(Unreadable { name, error }));
                }
                None => {}
            }
        }
        Ok(found)
    }

    fn forget(&self, name: &str) -> io::Result<()> {
        let mut written = self.lock();
        std::fs::remove_file(self.directory.join(name))?;
        written.remove(name);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Written>> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn names(directory: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.ends_with(".json") && !name.starts_with('.') {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(id: u8, seen: u64, chain: &str) -> Instance {
        let events = vec![Event::runtime("system-preparing", b"").unwrap()];
        let quote = [&vec![7; PLATFORM_HEAD + 400][..], b"-----BEGIN", chain.as_bytes()].concat();
        let shown = Shown { quote, event_log: serde_json::to_vec(&events).unwrap() };
        let app = AppId::from([1; 20]);
        Instance::of(seen, app, Some(InstanceId::from([id; 20])), ComposeHash::from([3; 32]), &shown).unwrap()
    }

    #[test]
    fn t22_an_instance_is_written_when_its_platform_changes_or_time_has_passed() {
        let dir = tempfile::tempdir().unwrap();
        let instances = Instances::open(dir.path()).unwrap();
        let at = |seen, chain| instances.keep(&instance(1, seen, chain)).unwrap();
        assert!(at(1000, "a") && !at(1001, "a") && at(1002, "b") && at(1002 + PAUSE, "b"));
        let kept = instances.lately(1002 + PAUSE).unwrap().remove(0).unwrap();
        assert_eq!(kept, instance(1, 1002 + PAUSE, "b"));
        // After a restart the first release is written again.
        assert!(Instances::open(dir.path()).unwrap().keep(&kept).unwrap());
    }

    #[test]
    fn what_is_old_is_forgotten_and_what_is_unreadable_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let instances = Instances::open(dir.path()).unwrap();
        for id in [1, 2, 3] {
            instances.keep(&instance(id, 1000 * u64::from(id), "a")).unwrap();
        }
        let broken = instance(3, 0, "a").name();
        std::fs::write(dir.path().join("instances").join(&broken), "{").unwrap();
        let found = instances.lately(1001 + LATELY).unwrap();
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(matches!(&found[1], Err(e) if broken.starts_with(&e.name)), "{found:?}");
        assert_eq!(Instances::open(dir.path()).unwrap().lock().len(), 2);
    }
}
