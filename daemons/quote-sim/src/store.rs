// SPDX-License-Identifier: Apache-2.0
//! The test root on disk: made once, at install.

use crate::SimError;
use crate::pki::{self, Stored, TestRoot};
use dstack_service::state::{self, StateError};
use std::path::Path;
use time::OffsetDateTime;

/// Name of the file with the keys, mode 0600; also of the daemon's credential.
pub const KEYS: &str = "testroot.json";
/// Name of the file with the root certificate, which a verifier may be told to trust.
pub const CERTIFICATE: &str = "testroot.pem";
const VERSION: u32 = 1;

/// Why there is no test root.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file cannot be read or written.
    #[error(transparent)]
    State(#[from] StateError),
    /// The root cannot be made or used.
    #[error(transparent)]
    Root(#[from] SimError),
    /// The credential is not what `--make-root` writes.
    #[error("the credential {KEYS} is damaged: {0}; install dstack-testroot again")]
    Credential(String),
}

/// Makes a test root in `directory` unless there is one; gives it either way.
///
/// # Errors
/// [`StoreError`]; a root that is there is never replaced, also when it is damaged.
pub fn make(directory: &Path, now: OffsetDateTime) -> Result<TestRoot, StoreError> {
    let path = directory.join(KEYS);
    let stored = match state::load::<Stored>(&path, VERSION)? {
        Some(stored) => stored,
        None => {
            let stored = pki::generate(now)?;
            state::store(&path, VERSION, &stored)?;
            stored
        }
    };
    let root = TestRoot::load(&stored)?;
    state::replace(&directory.join(CERTIFICATE), root.certificate_pem().as_bytes(), 0o644)?;
    Ok(root)
}

#[derive(serde::Deserialize)]
struct Envelope {
    data: Stored,
}

/// A test root from the bytes of its file, as a credential carries them.
///
/// # Errors
/// [`StoreError::Credential`] or [`StoreError::Root`].
pub fn parse(bytes: &[u8]) -> Result<TestRoot, StoreError> {
    let envelope: Envelope =
        serde_json::from_slice(bytes).map_err(|e| StoreError::Credential(e.to_string()))?;
    Ok(TestRoot::load(&envelope.data)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_root_is_made_once() {
        let dir = tempfile::tempdir().unwrap();
        let now = OffsetDateTime::now_utc();
        let first = make(dir.path(), now).unwrap();
        assert_eq!(make(dir.path(), now).unwrap().fingerprint(), first.fingerprint());
        let read = parse(&fs::read(dir.path().join(KEYS)).unwrap()).unwrap();
        assert_eq!(read.fingerprint(), first.fingerprint());
        fs::write(dir.path().join(KEYS), "{}").unwrap();
        assert!(make(dir.path(), now).is_err(), "never replaced");
    }

    #[test]
    fn p03_keys_are_private_and_the_certificate_is_not() {
        let dir = tempfile::tempdir().unwrap();
        make(dir.path(), OffsetDateTime::now_utc()).unwrap();
        let mode = |name| fs::metadata(dir.path().join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(KEYS), mode(CERTIFICATE)), (0o600, 0o644));
        assert!(!fs::read_to_string(dir.path().join(CERTIFICATE)).unwrap().contains("PRIVATE"));
    }
}
