// SPDX-License-Identifier: Apache-2.0
//! Our WireGuard key: made once, kept in the state directory for nobody else.

use dstack_core::wireguard::{PrivateKey, PublicKey};
use dstack_keys::derive::x25519_public;
use dstack_keys::{KeyError, Secret};
use dstack_service::state::{self, StateError};
use std::io::{ErrorKind, Read};
use std::path::Path;
use zeroize::Zeroizing;

/// Name of the file: 32 bytes, nothing else.
pub const FILE: &str = "wireguard.key";

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// The file.
    #[error(transparent)]
    File(#[from] StateError),
    /// Making it, or its public part.
    #[error(transparent)]
    Key(#[from] KeyError),
}

/// The key of a state directory; a new one at the first start.
///
/// # Errors
/// [`KeyFileError`]; a damaged file is left as it is.
pub fn load_or_make(directory: &Path) -> Result<(PrivateKey, PublicKey), KeyFileError> {
    let path = directory.join(FILE);
    let mut bytes = Zeroizing::new([0; 32]);
    match std::fs::File::open(&path) {
        Ok(mut file) => {
            let mut rest = [0; 1];
            let whole = file.read_exact(&mut *bytes).and_then(|()| file.read(&mut rest));
            if !matches!(whole, Ok(0)) {
                let reason = "it must have exactly 32 bytes".to_owned();
                return Err(StateError::Damaged { path, reason }.into());
            }
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let random = getrandom::fill(&mut *bytes);
            random.map_err(|_| KeyError::Form("there is no randomness for a key"))?;
            state::replace(&path, &*bytes, 0o600)?;
        }
        Err(error) => return Err(StateError::Io { path, error }.into()),
    }
    let public = x25519_public(&Secret::from(*bytes))?;
    Ok((PrivateKey::from(*bytes), PublicKey::from(public)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_key_is_made_once_and_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (private, public) = load_or_make(dir.path()).unwrap();
        assert_eq!(load_or_make(dir.path()).unwrap(), (private, public));
        let path = dir.path().join(FILE);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        for bad in [&[][..], &[1; 31], &[1; 33]] {
            std::fs::write(&path, bad).unwrap();
            assert!(matches!(load_or_make(dir.path()), Err(KeyFileError::File(StateError::Damaged { .. }))));
            assert_eq!(std::fs::read(&path).unwrap(), bad);
        }
    }
}
