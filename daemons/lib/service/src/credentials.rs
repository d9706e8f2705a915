// SPDX-License-Identifier: Apache-2.0
//! Secrets: only from `$CREDENTIALS_DIRECTORY`, wiped after use.

use std::io::Read;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// Largest credential, bytes.
pub const CREDENTIAL_MAX: usize = 64 * 1024;

/// Why a credential cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// systemd passed no credentials at all.
    #[error("credential {0:?} is needed, but no credentials were passed; start the daemon by its unit")]
    NoDirectory(String),
    /// It is not there.
    #[error(
        "credential {0:?} is missing; set it with systemd-creds and LoadCredentialEncrypted=, see the daemon's man page"
    )]
    Missing(String),
    /// It cannot be read.
    #[error("credential {name:?} cannot be read: {error}")]
    Unreadable {
        /// Its name.
        name: String,
        /// Why.
        error: std::io::Error,
    },
    /// It is larger than [`CREDENTIAL_MAX`].
    #[error("credential {0:?} is larger than {CREDENTIAL_MAX} bytes")]
    TooLarge(String),
}

/// Reads a credential that must be there.
///
/// # Errors
/// [`CredentialError`] names it and says how to set it.
pub fn read(name: &str) -> Result<Zeroizing<Vec<u8>>, CredentialError> {
    let directory = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
    let directory = directory.ok_or_else(|| CredentialError::NoDirectory(name.to_owned()))?;
    read_in(&directory, name)?.ok_or_else(|| CredentialError::Missing(name.to_owned()))
}

/// Reads a credential that may be absent; unreadable is an error, absent is `None`.
///
/// # Errors
/// [`CredentialError`] when it is there but cannot be used.
pub fn read_optional(name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, CredentialError> {
    match std::env::var_os("CREDENTIALS_DIRECTORY") {
        Some(directory) => read_in(Path::new(&directory), name),
        None => Ok(None),
    }
}

fn read_in(directory: &Path, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, CredentialError> {
    let unreadable = |error| CredentialError::Unreadable { name: name.to_owned(), error };
    let file = match std::fs::File::open(directory.join(name)) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(unreadable)?,
    };
    let mut bytes = Zeroizing::new(Vec::with_capacity(4096));
    file.take(CREDENTIAL_MAX as u64 + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() > CREDENTIAL_MAX {
        return Err(CredentialError::TooLarge(name.to_owned()));
    }
    Ok(Some(bytes))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn absent_is_not_unreadable() {
        let dir = tempfile::tempdir().unwrap();
        assert!(read_in(dir.path(), "token").unwrap().is_none());
        std::fs::write(dir.path().join("token"), "s3cret").unwrap();
        assert_eq!(read_in(dir.path(), "token").unwrap().unwrap().as_slice(), b"s3cret");
        std::fs::create_dir(dir.path().join("dir")).unwrap();
        assert!(matches!(read_in(dir.path(), "dir"), Err(CredentialError::Unreadable { .. })));
        std::fs::write(dir.path().join("big"), vec![0; CREDENTIAL_MAX + 1]).unwrap();
        assert!(matches!(read_in(dir.path(), "big"), Err(CredentialError::TooLarge(_))));
    }
}
