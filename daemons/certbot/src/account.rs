// SPDX-License-Identifier: Apache-2.0
//! `credentials.json`: the ACME account, in the format of the original.
//!
//! ```json
//! {"account_id": URL, "credentials": {"id": URL, "key_pkcs8": base64url without padding, "directory": URL}}
//! ```
//!
//! Newer ones of the original have `acme_url` beside `account_id`; it is written, too. The key is on the disk, as
//! `account-key.json`, before the authority hears of it: an authority has one account per key, so a run that was killed
//! in between finds the same account again.

use crate::files::{self, FileError};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use dstack_service::state;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use zeroize::{Zeroize, Zeroizing};

/// Name of the file.
pub const FILE: &str = "credentials.json";
/// Name of the file with a key whose account is not known yet.
const KEY_FILE: &str = "account-key.json";
/// Longest URL.
const URL_MAX: usize = 2_048;

/// An account at an authority.
#[derive(Clone)]
pub struct Credentials {
    /// Its URL.
    pub id: String,
    /// P-256 key, PKCS#8.
    pub key: Zeroizing<Vec<u8>>,
    /// URL of the authority's directory.
    pub directory: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials")
            .field("id", &self.id)
            .field("directory", &self.directory)
            .finish_non_exhaustive()
    }
}

#[derive(Serialize, Deserialize)]
struct File {
    account_id: String,
    credentials: Inner,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    acme_url: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct Inner {
    id: String,
    key_pkcs8: String,
    directory: String,
}

/// Why an account cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AccountError {
    /// The file cannot be read or written.
    #[error("{0}; it was left as it is, and no new account is made")]
    File(#[from] FileError),
    /// It is of another authority.
    #[error(
        "{}: is an account at {found}, but acme_url is {wanted}; set acme_url back, or, to begin anew there: mv {} {}.old",
        path.display(), path.display(), path.display()
    )]
    OtherAuthority {
        /// The file.
        path: PathBuf,
        /// Directory of its authority.
        found: String,
        /// The configured one.
        wanted: String,
    },
}

/// Parses `credentials.json`. Pure.
///
/// # Errors
/// A sentence on what is wrong.
pub fn parse(bytes: &[u8]) -> Result<Credentials, String> {
    let mut file: File = serde_json::from_slice(bytes).map_err(|e| format!("is damaged ({e})"))?;
    let key = URL_SAFE_NO_PAD.decode(&file.credentials.key_pkcs8).map(Zeroizing::new);
    file.credentials.key_pkcs8.zeroize();
    let key = key.map_err(|_| "is damaged (key_pkcs8 is not base64url)".to_owned())?;
    if file.account_id != file.credentials.id {
        return Err("is damaged (account_id and credentials.id differ)".to_owned());
    }
    if file.acme_url.as_ref().is_some_and(|url| *url != file.credentials.directory) {
        return Err("is damaged (acme_url and credentials.directory differ)".to_owned());
    }
    let Inner { id, directory, .. } = file.credentials;
    for (what, url) in [("account_id", &id), ("directory", &directory)] {
        if !url.starts_with("https://") || url.len() > URL_MAX {
            return Err(format!("is damaged ({what} is no https URL)"));
        }
    }
    Ok(Credentials { id, key, directory })
}

/// The bytes of `credentials.json`.
#[must_use]
pub fn format(credentials: &Credentials) -> Zeroizing<Vec<u8>> {
    let file = File {
        account_id: credentials.id.clone(),
        acme_url: Some(credentials.directory.clone()),
        credentials: Inner {
            id: credentials.id.clone(),
            key_pkcs8: URL_SAFE_NO_PAD.encode(&credentials.key),
            directory: credentials.directory.clone(),
        },
    };
    // Serializing strings into memory cannot fail; an empty file would be refused when read, so nothing is hidden.
    Zeroizing::new(serde_json::to_vec_pretty(&file).unwrap_or_default())
}

/// The account in `dir` for this authority; `None` only when there is no file.
///
/// # Errors
/// [`AccountError`]; no new account may be made then.
pub fn load(dir: &Path, directory: &str) -> Result<Option<Credentials>, AccountError> {
    let path = dir.join(FILE);
    let Some(found) = read(dir)? else { return Ok(None) };
    if found.directory != directory {
        return Err(AccountError::OtherAuthority {
            path,
            found: found.directory,
            wanted: directory.to_owned(),
        });
    }
    Ok(Some(found))
}

/// The account in `dir`, whatever its authority.
///
/// # Errors
/// [`FileError`].
pub fn read(dir: &Path) -> Result<Option<Credentials>, FileError> {
    let path = dir.join(FILE);
    let Some(bytes) = files::read(&path)? else { return Ok(None) };
    parse(&bytes).map(Some).map_err(|reason| FileError::new(&path, reason))
}

/// Writes the account, and forgets the key that waited for it.
///
/// # Errors
/// [`FileError`].
pub fn store(dir: &Path, credentials: &Credentials) -> Result<(), FileError> {
    state::replace(&dir.join(FILE), &format(credentials), 0o600)?;
    files::remove(&dir.join(KEY_FILE))
}

#[derive(Serialize, Deserialize)]
struct Waiting {
    directory: String,
    key_pkcs8: String,
}

/// The key for a new account at this authority: the one that an earlier run made, or a fresh one, on the disk.
///
/// # Errors
/// [`FileError`].
pub fn key(
    dir: &Path,
    directory: &str,
    fresh: impl FnOnce() -> Result<Zeroizing<Vec<u8>>, String>,
) -> Result<Zeroizing<Vec<u8>>, FileError> {
    let path = dir.join(KEY_FILE);
    let waiting: Option<Waiting> = state::load(&path, 1)?;
    if let Some(mut waiting) = waiting.filter(|w| w.directory == directory) {
        let key = URL_SAFE_NO_PAD.decode(&waiting.key_pkcs8).map(Zeroizing::new);
        waiting.key_pkcs8.zeroize();
        return key.map_err(|e| FileError::new(&path, format!("is damaged ({e}); move it away")));
    }
    let key = fresh().map_err(|e| FileError::new(&path, e))?;
    let waiting = Waiting { directory: directory.to_owned(), key_pkcs8: URL_SAFE_NO_PAD.encode(&key) };
    state::store(&path, 1, &waiting)?;
    Ok(key)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// As the original writes it; the key is a test's.
    const ORIGINAL: &str = r#"{"account_id":"https://ca.example/acct/1","credentials":{"id":"https://ca.example/acct/1","key_pkcs8":"MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg","directory":"https://ca.example/dir"}}"#;

    #[test]
    fn the_originals_file_is_read_and_written() {
        let found = parse(ORIGINAL.as_bytes()).unwrap();
        assert_eq!(
            (found.id.as_str(), found.directory.as_str()),
            ("https://ca.example/acct/1", "https://ca.example/dir")
        );
        let again = parse(&format(&found)).unwrap();
        assert_eq!((again.id, again.key, again.directory), (found.id, found.key, found.directory));
        let newer = ORIGINAL.replacen('{', r#"{"acme_url":"https://ca.example/dir","#, 1);
        assert!(parse(newer.as_bytes()).is_ok());
    }

    #[test]
    fn p30_an_unreadable_account_is_no_new_account() {
        let dir = tempfile::tempdir().unwrap();
        assert!(load(dir.path(), "https://ca.example/dir").unwrap().is_none());
        let bad = [
            "",
            "{",
            "{}",
            "null",
            &ORIGINAL.replace("key_pkcs8\":\"M", "key_pkcs8\":\"*"),
            &ORIGINAL.replacen("acct/1", "acct/2", 1),
        ];
        for bad in bad {
            std::fs::write(dir.path().join(FILE), bad).unwrap();
            let error = load(dir.path(), "https://ca.example/dir").unwrap_err().to_string();
            assert!(error.contains("credentials.json") && error.contains("no new account"), "{bad}: {error}");
            assert_eq!(std::fs::read(dir.path().join(FILE)).unwrap(), bad.as_bytes(), "it was left as it is");
        }
        std::fs::remove_file(dir.path().join(FILE)).unwrap();
        std::fs::create_dir(dir.path().join(FILE)).unwrap();
        assert!(load(dir.path(), "https://ca.example/dir").is_err());
    }

    #[test]
    fn accounts_of_two_authorities_are_kept_apart() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE), ORIGINAL).unwrap();
        let error = load(dir.path(), "https://other.example/dir").unwrap_err().to_string();
        assert!(error.contains("https://ca.example/dir") && error.contains("mv "), "{error}");
        assert!(load(dir.path(), "https://ca.example/dir").unwrap().is_some());
    }

    #[test]
    fn p30_a_killed_registration_finds_its_key_again() {
        let dir = tempfile::tempdir().unwrap();
        let fresh = |n: u8| move || Ok(Zeroizing::new(vec![n]));
        assert_eq!(*key(dir.path(), "https://a/d", fresh(1)).unwrap(), [1]);
        assert_eq!(*key(dir.path(), "https://a/d", fresh(2)).unwrap(), [1]);
        assert_eq!(*key(dir.path(), "https://b/d", fresh(3)).unwrap(), [3], "of another authority");
        let account = parse(ORIGINAL.as_bytes()).unwrap();
        store(dir.path(), &account).unwrap();
        assert_eq!(*key(dir.path(), "https://b/d", fresh(4)).unwrap(), [4]);
        std::fs::write(dir.path().join(KEY_FILE), "{").unwrap();
        assert!(key(dir.path(), "https://b/d", fresh(5)).is_err());
    }
}
