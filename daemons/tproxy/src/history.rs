// SPDX-License-Identifier: Apache-2.0
//! Keys that auditors were ever told, and the account: a certbot that was installed anew knows less, and certificates stay
//! in the logs of Certificate Transparency.
//!
//! ```text
//! <state>/acme.json    {"version":1,"data":{"account_uri":URL,"public_keys":[HEX, …]}}
//! ```

use crate::acme::Info;
use dstack_service::state::{self, StateError};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

const FILE: &str = "acme.json";
const VERSION: u32 = 1;
/// Most bytes of all keys together: some ten thousand of elliptic curves.
const BYTES_MAX: usize = 1024 * 1024;

#[derive(Serialize, Deserialize)]
struct Stored {
    account_uri: String,
    public_keys: Vec<String>,
}

/// How what is kept stands to the disk.
#[derive(Debug, PartialEq, Eq)]
enum Disk {
    /// It has the same.
    Same,
    /// It has less; it is tried again.
    Behind,
}

/// What was ever told.
#[derive(Debug)]
pub struct History {
    path: PathBuf,
    kept: Mutex<(Info, Disk)>,
}

impl History {
    /// Reads it from the state directory.
    ///
    /// # Errors
    /// [`StateError`]: what cannot be read is not empty.
    pub fn open(directory: &Path) -> Result<Self, StateError> {
        let path = directory.join(FILE);
        let stored = state::load::<Stored>(&path, VERSION)?;
        let kept = stored.map(|stored| info(stored, &path)).transpose()?.unwrap_or_default();
        Ok(Self { path, kept: Mutex::new((kept, Disk::Same)) })
    }

    /// What is said now and was said before; kept for the next time. It writes a file, so call it where it may block.
    ///
    /// # Errors
    /// A sentence, when it is too much.
    pub fn join(&self, now: Info) -> Result<Info, String> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let all = now.with(&kept.0);
        if all.public_keys.iter().map(Vec::len).sum::<usize>() > BYTES_MAX {
            return Err(format!(
                "all keys that were ever in use take more than {BYTES_MAX} bytes; move {} away and restart dstack-tproxy",
                self.path.display()
            ));
        }
        if all != kept.0 || kept.1 == Disk::Behind {
            kept.1 = self.write(&all, &kept.1);
            kept.0 = all.clone();
        }
        Ok(all)
    }

    /// Auditors are told all the same when it cannot be written: who hears less would take our certificates for a
    /// stranger's. The trouble is logged once.
    fn write(&self, all: &Info, before: &Disk) -> Disk {
        let public_keys = all.public_keys.iter().map(hex::encode).collect();
        let stored = Stored { account_uri: all.account_uri.clone(), public_keys };
        match state::store(&self.path, VERSION, &stored) {
            Ok(()) => Disk::Same,
            Err(error) => {
                if *before == Disk::Same {
                    tracing::error!("{error}; a restart would forget keys that auditors are to be told");
                }
                Disk::Behind
            }
        }
    }
}

fn info(stored: Stored, path: &Path) -> Result<Info, StateError> {
    let keys: Result<Vec<Vec<u8>>, _> = stored.public_keys.iter().map(hex::decode).collect();
    let damaged = |e: hex::FromHexError| StateError::Damaged { path: path.to_owned(), reason: e.to_string() };
    Ok(Info { account_uri: stored.account_uri, public_keys: keys.map_err(damaged)? })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn said(account: &str, keys: &[u8]) -> Info {
        Info { account_uri: account.to_owned(), public_keys: keys.iter().map(|key| vec![*key]).collect() }
    }

    #[test]
    fn whoever_says_less_takes_nothing_away() {
        let dir = tempfile::tempdir().unwrap();
        let history = History::open(dir.path()).unwrap();
        assert_eq!(history.join(Info::default()).unwrap(), Info::default());
        assert_eq!(history.join(said("https://acme/1", &[1, 2])).unwrap(), said("https://acme/1", &[1, 2]));
        for history in [history, History::open(dir.path()).unwrap()] {
            assert_eq!(history.join(Info::default()).unwrap(), said("https://acme/1", &[1, 2]));
        }
        let history = History::open(dir.path()).unwrap();
        let all = said("https://acme/2", &[1, 2, 3]);
        assert_eq!(history.join(said("https://acme/2", &[3])).unwrap(), all, "the newer account counts");
        assert_eq!(History::open(dir.path()).unwrap().join(Info::default()).unwrap(), all);
    }

    #[test]
    fn what_cannot_be_written_is_told_and_written_later() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        let history = History::open(&state).unwrap();
        assert_eq!(history.join(said("", &[1])).unwrap(), said("", &[1]));
        std::fs::create_dir(&state).unwrap();
        assert_eq!(history.join(Info::default()).unwrap(), said("", &[1]));
        assert_eq!(History::open(&state).unwrap().join(Info::default()).unwrap(), said("", &[1]));
    }

    #[test]
    fn p30_a_damaged_history_is_told_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        for (text, said) in [
            ("{", "damaged"),
            (r#"{"version":1,"data":{"account_uri":"","public_keys":["x"]}}"#, "damaged"),
            (r#"{"version":2,"data":{}}"#, "newer package"),
        ] {
            std::fs::write(dir.path().join(FILE), text).unwrap();
            assert!(History::open(dir.path()).unwrap_err().to_string().contains(said));
            assert_eq!(std::fs::read_to_string(dir.path().join(FILE)).unwrap(), text);
        }
    }

    #[test]
    fn p15_what_is_kept_can_be_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let history = History::open(dir.path()).unwrap();
        let large =
            |byte: u8| Info { account_uri: String::new(), public_keys: vec![vec![byte; BYTES_MAX / 2]] };
        history.join(large(1)).unwrap();
        history.join(large(2)).unwrap();
        assert!(history.join(large(3)).unwrap_err().contains("acme.json"));
        assert_eq!(History::open(dir.path()).unwrap().join(Info::default()).unwrap().public_keys.len(), 2);
    }
}
