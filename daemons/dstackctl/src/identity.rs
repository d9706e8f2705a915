// SPDX-License-Identifier: Apache-2.0
//! The user's own Ed25519 keys: one that signs secrets (T9), made at first use, and those that sign upgrades (T8).

use crate::errors::Failure;
use crate::places;
use dstack_core::ids::SignerKey;
use dstack_keys::{KeyError, Secret, ed25519, keyfile};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// A key pair.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The private key.
    pub secret: Secret,
    /// The public key.
    pub public: SignerKey,
}

impl Identity {
    fn new(secret: Secret) -> Result<Self, Failure> {
        let public = ed25519::public_key(&secret).map_err(|e| failed(&e))?;
        Ok(Self { secret, public })
    }

    /// Makes a key and writes it; an existing file is never replaced.
    ///
    /// # Errors
    /// When the file is there or cannot be written.
    pub fn generate(path: &Path) -> Result<Self, Failure> {
        let identity = Self::new(Secret::random().map_err(|e| failed(&e))?)?;
        let pem = keyfile::to_pem(&identity.secret).map_err(|e| failed(&e))?;
        places::write_new(path, &pem, 0o600)?;
        Ok(identity)
    }

    /// Reads a private key.
    ///
    /// # Errors
    /// When it is not there, not such a key, or readable by others.
    pub fn load(path: &Path) -> Result<Self, Failure> {
        Self::load_if_there(path)?.ok_or_else(|| Failure::new(format!("there is no {}", path.display())))
    }

    fn load_if_there(path: &Path) -> Result<Option<Self>, Failure> {
        let Some(pem) = places::read(path)? else { return Ok(None) };
        let mode =
            std::fs::metadata(path).map_err(|e| places::cannot("read", path, &e))?.permissions().mode();
        if mode & 0o077 != 0 {
            return Err(Failure::new(format!(
                "{} can be read by others, so it may be known to them",
                path.display()
            ))
            .hint(format!("if it is not: chmod 600 {}", path.display())));
        }
        let secret = keyfile::from_pem(&pem).map_err(|e| Failure::new(format!("{}: {e}", path.display())))?;
        Self::new(secret).map(Some)
    }

    /// The key that signs secrets: the given one, or the user's, which is made at first use.
    ///
    /// # Errors
    /// When it cannot be read or made.
    pub fn of_secrets(given: Option<&Path>) -> Result<Self, Failure> {
        if let Some(path) = given {
            return Self::load(path);
        }
        let path = signer_path()?;
        match Self::load_if_there(&path)? {
            Some(identity) => Ok(identity),
            None => Self::first(&path),
        }
    }

    /// Of two that are made at the same time, the one counts that was written first.
    fn first(path: &Path) -> Result<Self, Failure> {
        places::make_directory(path.parent().unwrap_or(Path::new("/")), 0o700)?;
        match Self::generate(path) {
            Ok(identity) => {
                crate::output::note(&format!(
                    "note: made {}, the key that signs your apps' secrets; keep it to be able to change them",
                    path.display()
                ));
                Ok(identity)
            }
            Err(failure) => Self::load_if_there(path)?.ok_or(failure),
        }
    }
}

/// Where the key that signs secrets is.
///
/// # Errors
/// When the user has no home.
pub fn signer_path() -> Result<PathBuf, Failure> {
    Ok(places::config()?.join("env-signer.pem"))
}

/// A public key as a user names it: 64 hex digits, or a PEM file of a public or private key.
///
/// # Errors
/// When it is neither.
pub fn public(text: &str) -> Result<SignerKey, Failure> {
    if let Ok(key) = text.parse() {
        return Ok(key);
    }
    let path = Path::new(text);
    let Some(pem) = places::read(path)? else {
        return Err(Failure::usage(format!("{text:?} is neither 64 hexadecimal digits nor a file")));
    };
    match keyfile::public_from_pem(&pem) {
        Ok(key) => Ok(key),
        Err(error) => match keyfile::from_pem(&pem) {
            Ok(secret) => ed25519::public_key(&secret).map_err(|e| failed(&e)),
            Err(_) => Err(Failure::new(format!("{text}: {error}"))),
        },
    }
}

fn failed(error: &KeyError) -> Failure {
    Failure::new(error.to_string())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn t09_the_key_of_secrets_is_private() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/key.pem");
        let made = Identity::first(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(Identity::load(&path).unwrap().public, made.public);
        assert_eq!(Identity::first(&path).unwrap().public, made.public, "never replaced");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        let failure = Identity::load(&path).unwrap_err();
        assert!(failure.hint.is_some_and(|h| h.contains("chmod 600")));
        assert!(Identity::load(&directory.path().join("none")).unwrap_err().message.contains("no "));
    }

    #[test]
    fn t08_public_keys_are_named_in_three_ways() {
        let directory = tempfile::tempdir().unwrap();
        let (private, public_file) = (directory.path().join("k.pem"), directory.path().join("k.pub"));
        let made = Identity::generate(&private).unwrap();
        std::fs::write(&public_file, keyfile::public_to_pem(&made.public).unwrap()).unwrap();
        for name in
            [made.public.to_string().as_str(), private.to_str().unwrap(), public_file.to_str().unwrap()]
        {
            assert_eq!(public(name).unwrap(), made.public, "{name}");
        }
        std::fs::write(&public_file, "x").unwrap();
        assert!(public(public_file.to_str().unwrap()).is_err());
        assert!(public("00").unwrap_err().message.contains("neither"));
    }
}
