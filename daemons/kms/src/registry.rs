// SPDX-License-Identifier: Apache-2.0
//! What is known about apps, in files below the state directory:
//!
//! ```text
//! upgrade_registry/<app id>/<compose hash, 64 or 40 hex>    allowed by the operator; the content does not matter
//! revoked/<app id>/<compose hash, 64 or 40 hex>             revoked by the operator
//! apps/<app id>.json                                        who signs upgrades, and the owner's statements
//! ```
//!
//! The first directory has the original's layout, so files that were touched there by hand count too.

use crate::decide::{self, HashName, Known, Owners};
use dstack_core::ids::{AppId, ComposeHash, SignerKey};
use dstack_core::limits::{APP_COMPOSE_MAX, UPGRADE_KEYS_MAX};
use dstack_core::upgrade::Statement;
use dstack_service::state::{self, StateError};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Format of `apps/<app id>.json`.
const VERSION: u32 = 1;
/// Most names that one app's directory may hold.
const NAMES_MAX: usize = 4096;

/// Why the registry refuses, or cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
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
    /// More than [`NAMES_MAX`] names.
    #[error("{}: holds more than {NAMES_MAX} names; remove old ones", .0.display())]
    TooMany(PathBuf),
    /// The hash is neither allowed nor the app's first.
    #[error("compose hash {1} is not allowed for app {0}, so there is nothing to revoke")]
    NotThere(AppId, HashName),
    /// The owner signs upgrades, so an entry would not count.
    #[error(
        "app {0} names keys that sign its upgrades, so the registry does not count; submit the owner's statement with: \
         dstackctl kms submit-upgrade FILE"
    )]
    OwnerDecides(AppId),
    /// A first compose file that is not the app's, or cannot be read.
    #[error("{0}")]
    Compose(String),
    /// A statement that is not in force.
    #[error("{0}")]
    Statement(String),
}

impl RegistryError {
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
            _ => false,
        }
    }
}

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct App {
    owners: Owners,
    statements: Vec<Statement>,
}

/// The files.
#[derive(Debug)]
pub struct Registry {
    root: PathBuf,
    /// One change at a time.
    changing: Mutex<()>,
}

impl Registry {
    /// The registry below a state directory; removes what a killed daemon left.
    ///
    /// # Errors
    /// When the directories cannot be made.
    pub fn open(root: &Path) -> Result<Self, RegistryError> {
        for name in ["upgrade_registry", "revoked", "apps"] {
            let path = root.join(name);
            fs::create_dir_all(&path).map_err(RegistryError::io(&path))?;
        }
        let apps = root.join("apps");
        state::sweep(&apps).map_err(RegistryError::io(&apps))?;
        Ok(Self { root: root.to_owned(), changing: Mutex::new(()) })
    }

    /// What is known about an app.
    ///
    /// # Errors
    /// When a file is there and cannot be read: that is never taken for absent (known attack P30).
    pub fn known(&self, app: &AppId) -> Result<Known, RegistryError> {
        let App { owners, statements } = self.app(app)?;
        let allowed = names(&self.directory("upgrade_registry", app))?;
        Ok(Known { owners, statements, allowed, revoked: names(&self.directory("revoked", app))? })
    }

    /// Lets the operator allow a compose hash, or take a revocation back.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub fn allow(&self, app: &AppId, name: HashName) -> Result<(), RegistryError> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let known = self.known(app)?;
        let first = name.is_first_of(app);
        let was_revoked = known.revoked.iter().any(|revoked| overlaps(revoked, &name));
        if matches!(known.owners, Owners::Keys(_)) && !first && !was_revoked {
            return Err(RegistryError::OwnerDecides(*app));
        }
        if !first {
            touch(&self.directory("upgrade_registry", app), &name)?;
        }
        let directory = self.directory("revoked", app);
        known.revoked.iter().filter(|r| overlaps(r, &name)).try_for_each(|r| remove(&directory, r))
    }

    /// Lets the operator revoke a compose hash: one that was allowed, one that the owner signed, or the first.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub fn revoke(&self, app: &AppId, name: HashName) -> Result<(), RegistryError> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let known = self.known(app)?;
        let signed = known.statements.iter().any(|s| name.names(&s.compose_hash));
        let allowed: Vec<&HashName> = known.allowed.iter().filter(|a| overlaps(a, &name)).collect();
        if allowed.is_empty() && !signed && !name.is_first_of(app) {
            return Err(RegistryError::NotThere(*app, name));
        }
        // First the mark, so that a kill in between leaves it revoked.
        touch(&self.directory("revoked", app), &name)?;
        let directory = self.directory("upgrade_registry", app);
        allowed.into_iter().try_for_each(|a| remove(&directory, a))
    }

    /// Learns from an app's first compose file who signs its upgrades.
    ///
    /// # Errors
    /// When it is not the first compose file, or cannot be parsed: owners that cannot be read are not absent.
    pub fn learn(&self, app: &AppId, first_compose: &[u8]) -> Result<Owners, RegistryError> {
        let owners = self.owners(app, first_compose)?;
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut stored = self.app(app)?;
        if stored.owners != Owners::Unknown {
            return Ok(stored.owners);
        }
        stored.owners = owners;
        state::store(&self.file(app), VERSION, &stored)?;
        Ok(stored.owners)
    }

    /// Who signs an app's upgrades by its first compose file, without keeping it.
    ///
    /// # Errors
    /// As [`Self::learn`].
    pub fn owners(&self, app: &AppId, first_compose: &[u8]) -> Result<Owners, RegistryError> {
        let hash = ComposeHash::of(first_compose);
        if hash.app_id() != *app {
            let reason = format!("the compose file of hash {hash} is not the first one of app {app}");
            return Err(RegistryError::Compose(reason));
        }
        owners(first_compose)
            .map_err(|e| RegistryError::Compose(format!("the first compose file of app {app}: {e}")))
    }

    /// Puts an owner's statement in force, whose signature was checked.
    ///
    /// # Errors
    /// [`RegistryError::Statement`] when it is not newer than all before it.
    pub fn submit(&self, statement: Statement) -> Result<(), RegistryError> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let app = statement.app_id;
        let mut stored = self.app(&app)?;
        decide::add(&mut stored.statements, statement).map_err(RegistryError::Statement)?;
        Ok(state::store(&self.file(&app), VERSION, &stored)?)
    }

    fn app(&self, app: &AppId) -> Result<App, RegistryError> {
        Ok(state::load(&self.file(app), VERSION)?.unwrap_or_default())
    }

    fn file(&self, app: &AppId) -> PathBuf {
        // An id is 40 hex digits by its type, so no path can come of it (known attack P26).
        self.root.join("apps").join(format!("{app}.json"))
    }

    fn directory(&self, kind: &str, app: &AppId) -> PathBuf {
        self.root.join(kind).join(app.to_string())
    }
}

/// The one key of a compose file that matters here; a guest of another version may know more of the others.
#[derive(Deserialize)]
struct First {
    #[serde(default)]
    upgrade_keys: Vec<SignerKey>,
}

/// Who signs an app's upgrades, by its first compose file.
fn owners(first_compose: &[u8]) -> Result<Owners, String> {
    if first_compose.len() > APP_COMPOSE_MAX {
        return Err(format!("it is larger than {APP_COMPOSE_MAX} bytes"));
    }
    let First { upgrade_keys } = serde_json::from_slice(first_compose).map_err(|e| e.to_string())?;
    match upgrade_keys.len() {
        0 => Ok(Owners::Operator),
        1..=UPGRADE_KEYS_MAX => Ok(Owners::Keys(upgrade_keys)),
        _ => Err(format!("upgrade_keys has more than {UPGRADE_KEYS_MAX} keys")),
    }
}

/// Whether both can name the same hash.
fn overlaps(one: &HashName, other: &HashName) -> bool {
    let head = |name: &HashName| match name {
        HashName::Whole(hash) => hash.app_id(),
        HashName::Head(head) => *head,
    };
    match (one, other) {
        (HashName::Whole(a), HashName::Whole(b)) => a == b,
        _ => head(one) == head(other),
    }
}

/// The names in a directory that are hashes; others are somebody's notes.
fn names(directory: &Path) -> Result<BTreeSet<HashName>, RegistryError> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        other => other.map_err(RegistryError::io(directory))?,
    };
    let mut names = BTreeSet::new();
    for (index, entry) in entries.enumerate() {
        if index >= NAMES_MAX {
            return Err(RegistryError::TooMany(directory.to_owned()));
        }
        let name = entry.map_err(RegistryError::io(directory))?.file_name();
        names.extend(name.to_str().and_then(|n| n.parse::<HashName>().ok()));
    }
    Ok(names)
}

fn touch(directory: &Path, name: &HashName) -> Result<(), RegistryError> {
    fs::create_dir_all(directory).map_err(RegistryError::io(directory))?;
    state::sync_parent(directory).map_err(RegistryError::io(directory))?;
    Ok(state::replace(&directory.join(name.to_string()), b"", 0o600)?)
}

fn remove(directory: &Path, name: &HashName) -> Result<(), RegistryError> {
    let path = directory.join(name.to_string());
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(RegistryError::io(&path)(error)),
        _ => state::sync_parent(&path).map_err(RegistryError::io(&path)),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::decide::{Basis, decide};
    use dstack_ra_tls::certificate::Custody;

    fn compose(more: &str) -> Vec<u8> {
        format!(
            r#"{{"manifest_version":2,"name":"a","runner":"docker-compose","docker_compose_file":"services: {{}}"{more}}}"#
        )
        .into_bytes()
    }

    fn open() -> (tempfile::TempDir, Registry) {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::open(dir.path()).unwrap();
        (dir, registry)
    }

    fn decided(registry: &Registry, app: &AppId, hash: &ComposeHash) -> Result<Basis, decide::Denial> {
        decide(app, hash, &registry.known(app).unwrap(), Custody::Host, 1_800_000_000)
    }

    #[test]
    fn allowing_and_revoking_survive_a_restart() {
        let (dir, registry) = open();
        let (app, hash) = (ComposeHash::of(b"1").app_id(), ComposeHash::of(b"2"));
        let short: HashName = hash.app_id().to_string().parse().unwrap();
        assert!(matches!(registry.revoke(&app, short), Err(RegistryError::NotThere(..))));
        registry.allow(&app, short).unwrap();
        let again = Registry::open(dir.path()).unwrap();
        assert_eq!(decided(&again, &app, &hash), Ok(Basis::Operator));
        again.revoke(&app, HashName::Whole(hash)).unwrap();
        assert!(matches!(decided(&registry, &app, &hash), Err(decide::Denial::Revoked(..))));
        again.allow(&app, short).unwrap();
        assert_eq!(decided(&registry, &app, &hash), Ok(Basis::Operator));
        registry.revoke(&app, app.to_string().parse().unwrap()).unwrap();
        assert!(decided(&registry, &app, &ComposeHash::of(b"1")).is_err(), "the first one");
    }

    #[test]
    fn a_file_that_was_touched_by_hand_counts() {
        let (dir, registry) = open();
        let (app, hash) = (ComposeHash::of(b"1").app_id(), ComposeHash::of(b"2"));
        let directory = dir.path().join("upgrade_registry").join(app.to_string());
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("README"), "mine").unwrap();
        assert!(decided(&registry, &app, &hash).is_err());
        fs::write(directory.join(hash.app_id().to_string()), "").unwrap();
        assert_eq!(decided(&registry, &app, &hash), Ok(Basis::Operator));
    }

    #[test]
    fn t08_the_first_compose_says_who_signs() {
        let (_dir, registry) = open();
        let key = "01".repeat(32);
        let first = compose(&format!(r#","upgrade_keys":["{key}"]"#));
        let (app, hash) = (ComposeHash::of(&first).app_id(), ComposeHash::of(b"2"));
        assert!(registry.learn(&app, &compose("")).is_err(), "not the first");
        assert_eq!(registry.learn(&app, &first).unwrap(), Owners::Keys(vec![key.parse().unwrap()]));
        assert!(matches!(registry.allow(&app, HashName::Whole(hash)), Err(RegistryError::OwnerDecides(_))));
        let statement = Statement { app_id: app, compose_hash: hash, seq: 1, not_after: 0, revoke_below: 0 };
        registry.submit(statement.clone()).unwrap();
        assert!(matches!(registry.submit(statement), Err(RegistryError::Statement(_))));
        assert_eq!(decided(&registry, &app, &hash), Ok(Basis::Owner(1)));
    }

    #[test]
    fn p30_owners_that_cannot_be_read_are_not_absent() {
        let (dir, registry) = open();
        let broken = compose(r#","upgrade_keys":["x"]"#);
        let app = ComposeHash::of(&broken).app_id();
        assert!(matches!(registry.learn(&app, &broken), Err(RegistryError::Compose(_))));
        let file = dir.path().join("apps").join(format!("{app}.json"));
        fs::write(&file, "{").unwrap();
        assert!(registry.known(&app).is_err());
        fs::remove_file(&file).unwrap();
        fs::write(dir.path().join("revoked").join(app.to_string()), "no directory").unwrap();
        assert!(registry.known(&app).is_err());
    }

    #[test]
    fn p26_names_are_hashes_and_never_paths() {
        for bad in ["../x", "/etc/passwd", "..", "a/b", "", &"0".repeat(63)] {
            assert!(bad.parse::<HashName>().is_err(), "{bad}");
        }
    }
}
