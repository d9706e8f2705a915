// SPDX-License-Identifier: Apache-2.0
//! What outlives a restart: one file each for alerts, known keys, the last check, and the place in each source.
//!
//! ```text
//! <state>/alerts.json            Book
//! <state>/known.json             keys by the name of who told them
//! <state>/check.json             Check
//! <state>/source-<digest>.json   Position
//! ```
//!
//! Each is replaced whole and synced. Alerts are written before the place in a source goes on, so that a kill in between
//! shows a certificate twice and loses none.

use crate::alert::Book;
use crate::head::Head;
use crate::merkle::Frontier;
use dstack_service::state::{self, StateError};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Version of all files.
const VERSION: u32 = 1;

/// Where a source has come to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cursor {
    /// Nowhere.
    #[default]
    Start,
    /// A search: the entries that were checked, by their numbers. Not just the highest: lower ones may come later.
    Search {
        /// Their numbers.
        checked: BTreeSet<u64>,
        /// Those that could not be looked at.
        #[serde(default)]
        failed: BTreeMap<u64, Attempts>,
    },
    /// A log.
    Log {
        /// The newest signed tree head.
        head: Head,
        /// The right edge of the tree up to the first entry that was not looked at; proven to be the log's.
        frontier: Frontier,
    },
}

/// Vain tries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempts {
    /// How many.
    pub count: u32,
    /// Not to be tried before, Unix seconds.
    pub retry_at: u64,
}

/// What is kept of a source.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Its name, for people.
    pub name: String,
    /// Where it has come to.
    pub cursor: Cursor,
    /// Not to be asked before, Unix seconds.
    pub retry_at: u64,
    /// Failures since the last success.
    pub failures: u32,
    /// When it was first asked, Unix seconds.
    pub since: u64,
    /// When it was last asked with success, Unix seconds.
    pub last_success: u64,
    /// What went wrong since, empty when nothing did.
    pub error: String,
    /// Entries that are known of and not checked yet.
    pub pending: u64,
}

/// Keys as somebody told them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// Digests of SubjectPublicKeyInfos, hex.
    pub keys: BTreeSet<String>,
    /// When, Unix seconds.
    pub at: u64,
}

/// The last check.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// When it ended, Unix seconds.
    pub at: u64,
    /// When one ended without any trouble, Unix seconds.
    pub good_at: u64,
    /// What went wrong, empty when nothing did.
    pub error: String,
}

/// The files, or memory for whoever keeps nothing.
#[derive(Debug)]
pub struct Store {
    directory: Option<PathBuf>,
    memory: Mutex<BTreeMap<String, serde_json::Value>>,
}

impl Store {
    /// Files in this directory; what a killed run left half-written is swept.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn open(directory: &Path) -> std::io::Result<Self> {
        state::sweep(directory)?;
        Ok(Self { directory: Some(directory.to_owned()), memory: Mutex::default() })
    }

    /// Keeps everything in memory.
    #[must_use]
    pub fn memory() -> Self {
        Self { directory: None, memory: Mutex::default() }
    }

    fn load<T: DeserializeOwned + Default>(&self, name: &str) -> Result<T, StateError> {
        let damaged = |e: serde_json::Error| StateError::Damaged { path: name.into(), reason: e.to_string() };
        match &self.directory {
            Some(directory) => Ok(state::load(&directory.join(name), VERSION)?.unwrap_or_default()),
            None => match self.memory.lock().unwrap_or_else(PoisonError::into_inner).get(name) {
                Some(value) => serde_json::from_value(value.clone()).map_err(damaged),
                None => Ok(T::default()),
            },
        }
    }

    fn store<T: Serialize>(&self, name: &str, data: &T) -> Result<(), StateError> {
        let damaged = |e: serde_json::Error| StateError::Damaged { path: name.into(), reason: e.to_string() };
        match &self.directory {
            Some(directory) => state::store(&directory.join(name), VERSION, data),
            None => {
                let value = serde_json::to_value(data).map_err(damaged)?;
                self.memory.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), value);
                Ok(())
            }
        }
    }

    /// All alerts.
    ///
    /// # Errors
    /// [`StateError`]: what cannot be read is not empty.
    pub fn book(&self) -> Result<Book, StateError> {
        self.load("alerts.json")
    }

    /// Replaces all alerts.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn put_book(&self, book: &Book) -> Result<(), StateError> {
        self.store("alerts.json", book)
    }

    /// Keys by who told them.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn known(&self) -> Result<BTreeMap<String, Told>, StateError> {
        self.load("known.json")
    }

    /// Replaces the keys.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn put_known(&self, known: &BTreeMap<String, Told>) -> Result<(), StateError> {
        self.store("known.json", known)
    }

    /// The last check.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn check(&self) -> Result<Check, StateError> {
        self.load("check.json")
    }

    /// Replaces the last check.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn put_check(&self, check: &Check) -> Result<(), StateError> {
        self.store("check.json", check)
    }

    /// The place in a source.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn position(&self, source: &str) -> Result<Position, StateError> {
        let found: Position = self.load(&file_of(source))?;
        Ok(Position { name: source.to_owned(), ..found })
    }

    /// Replaces it.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn put_position(&self, position: &Position) -> Result<(), StateError> {
        self.store(&file_of(&position.name), position)
    }
}

/// Names of sources have characters that names of files must not have.
fn file_of(source: &str) -> String {
    let digest = hex::encode(Sha256::digest(source));
    format!("source-{}.json", digest.get(..32).unwrap_or_default())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::alert::Alert;

    #[test]
    fn everything_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let mut book = Book::default();
        book.note(Alert::blind("x", 1, "y", 2)).unwrap();
        let failed = BTreeMap::from([(4, Attempts { count: 2, retry_at: 9 })]);
        let cursor = Cursor::Search { checked: BTreeSet::from([3, 5]), failed };
        let position = Position { name: "crt.sh a/b".into(), cursor, retry_at: 7, ..Position::default() };
        for store in [Store::open(dir.path()).unwrap(), Store::memory()] {
            assert_eq!(store.book().unwrap(), Book::default());
            store.put_book(&book).unwrap();
            store.put_position(&position).unwrap();
            assert_eq!(
                (store.book().unwrap(), store.position("crt.sh a/b").unwrap()),
                (book.clone(), position.clone())
            );
            assert_eq!(store.position("other").unwrap().cursor, Cursor::Start);
        }
        assert_eq!(Store::open(dir.path()).unwrap().position("crt.sh a/b").unwrap(), position);
    }

    #[test]
    fn a_search_of_before_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let old = r#"{"version":1,"data":{"name":"a","cursor":{"search":{"checked":[3]}},"retry_at":0,"failures":0,
            "since":1,"last_success":2,"error":"","pending":0}}"#;
        std::fs::write(dir.path().join(file_of("a")), old).unwrap();
        let cursor = Store::open(dir.path()).unwrap().position("a").unwrap().cursor;
        assert_eq!(cursor, Cursor::Search { checked: BTreeSet::from([3]), failed: BTreeMap::new() });
    }

    #[test]
    fn p30_damaged_files_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        std::fs::write(dir.path().join("alerts.json"), "{").unwrap();
        std::fs::write(dir.path().join(file_of("a")), r#"{"version":2,"data":{}}"#).unwrap();
        assert!(matches!(store.book(), Err(StateError::Damaged { .. })));
        assert!(matches!(store.position("a"), Err(StateError::Newer { .. })));
        assert_eq!(std::fs::read(dir.path().join("alerts.json")).unwrap(), b"{");
    }
}
