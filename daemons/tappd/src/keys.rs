// SPDX-License-Identifier: Apache-2.0
//! The app's keys, as apps know them: what `GetKey`, `Sign` and `Verify` give.
//!
//! A secp256k1 key is the original's to the byte. An Ed25519 key of the same path has other bytes (known attack P13).

use crate::trust::TrustError;
use dstack_core::ids::SignerKey;
use dstack_keys::handover::{AppKeys, Provider};
use dstack_keys::{KeyError, Secret, derive, ed25519, sign};
use sha2::{Digest, Sha256};

/// Longest path and purpose, bytes.
pub const TEXT_MAX: usize = 1024;
/// Where the keys of `Sign` come from, and what they are for.
const SIGN_PATH: &str = "vms";
const SIGN_PURPOSE: &str = "signing";

/// Curve of a derived key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Curve {
    /// secp256k1.
    Secp256k1,
    /// Ed25519.
    Ed25519,
}

impl Curve {
    /// The curve that `GetKey` calls so; nothing is secp256k1.
    ///
    /// # Errors
    /// [`TrustError::Argument`].
    pub fn of(algorithm: &str) -> Result<Self, TrustError> {
        match algorithm {
            "" | "secp256k1" | "k256" => Ok(Self::Secp256k1),
            "ed25519" => Ok(Self::Ed25519),
            other => Err(unknown(other, "secp256k1 or ed25519")),
        }
    }
}

/// How `Sign` signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scheme {
    /// ECDSA over the SHA-256 of the data.
    Secp256k1,
    /// ECDSA over the data, which are a digest.
    Prehashed,
    /// Ed25519 over the data.
    Ed25519,
}

impl Scheme {
    fn of(algorithm: &str) -> Result<Self, TrustError> {
        match algorithm {
            "secp256k1" | "k256" => Ok(Self::Secp256k1),
            "secp256k1_prehashed" => Ok(Self::Prehashed),
            "ed25519" => Ok(Self::Ed25519),
            other => Err(unknown(other, "ed25519, secp256k1 or secp256k1_prehashed")),
        }
    }

    const fn curve(self) -> Curve {
        match self {
            Self::Ed25519 => Curve::Ed25519,
            Self::Secp256k1 | Self::Prehashed => Curve::Secp256k1,
        }
    }

    /// What ECDSA signs.
    fn digest(self, data: &[u8]) -> Result<[u8; 32], TrustError> {
        if self == Self::Prehashed {
            let refused = || format!("data has {} bytes; a SHA-256 digest has 32", data.len());
            return data.try_into().map_err(|_| TrustError::Argument(refused()));
        }
        Ok(Sha256::digest(data).into())
    }
}

fn unknown(algorithm: &str, known: &str) -> TrustError {
    let shown: String = algorithm.chars().take(32).collect();
    TrustError::Argument(format!("algorithm {shown:?} is not known; use {known}"))
}

/// A key of a path.
#[derive(Debug)]
pub struct Derived {
    /// The secret: a scalar of secp256k1, or the seed of an Ed25519 key.
    pub secret: Secret,
    /// The public key: 33 bytes compressed, or 32.
    pub public_key: Vec<u8>,
    /// The app key's signature over the public key, and the key service's over the app key. The latter is empty when no
    /// key service gave the keys (trust rule T24).
    pub signature_chain: [Vec<u8>; 2],
}

/// What `Sign` gives.
#[derive(Debug)]
pub struct Signed {
    /// The signature.
    pub signature: Vec<u8>,
    /// The key that signed.
    pub by: Derived,
}

/// The keys that the boot handed over.
#[derive(Debug)]
pub struct Keys {
    handed: AppKeys,
    signature: Vec<u8>,
}

impl Keys {
    /// Reads the credential; its absence in the form that the unit gives is `None`.
    ///
    /// # Errors
    /// [`TrustError::BadKeys`], which tells nothing of the keys.
    pub fn parse(credential: &[u8]) -> Result<Option<Self>, TrustError> {
        if credential.trim_ascii() == b"none" {
            return Ok(None);
        }
        Self::new(AppKeys::parse(credential)?).map(Some)
    }

    /// Checks that the parts belong together.
    ///
    /// # Errors
    /// [`TrustError::BadKeys`].
    pub fn new(handed: AppKeys) -> Result<Self, TrustError> {
        let bad = |what| Err(TrustError::BadKeys(what));
        sign::public_key(&handed.k256_key)?;
        let Ok(signature) = hex::decode(&handed.k256_signature) else {
            return bad("the signature is not hexadecimal");
        };
        match (handed.provider, signature.len(), &handed.ca_key) {
            (Provider::Kms, 65, None) if !handed.provider_id.is_empty() => {}
            (Provider::None, 0, Some(_)) if handed.provider_id.is_empty() => {}
            _ => return bad("provider, signature and CA do not belong together"),
        }
        Ok(Self { handed, signature })
    }

    /// What the boot handed over.
    #[must_use]
    pub const fn handed(&self) -> &AppKeys {
        &self.handed
    }

    /// A key of a path, for a purpose.
    ///
    /// # Errors
    /// [`TrustError`].
    pub fn derive(&self, path: &str, purpose: &str, curve: Curve) -> Result<Derived, TrustError> {
        limit("path", path)?;
        limit("purpose", purpose)?;
        let app_key = &self.handed.k256_key;
        let (secret, public_key) = match curve {
            Curve::Secp256k1 => {
                let secret = derive::of_path(app_key, path)?;
                let public_key = sign::public_key(&secret)?.to_vec();
                (secret, public_key)
            }
            Curve::Ed25519 => {
                let secret = derive::ed25519_of_path(app_key, path)?;
                let public_key = ed25519::public_key(&secret)?.as_bytes().to_vec();
                (secret, public_key)
            }
        };
        let own = sign::sign(app_key, &sign::purpose_message(purpose, &public_key))?.to_vec();
        Ok(Derived { secret, public_key, signature_chain: [own, self.signature.clone()] })
    }

    /// The scalar of `DeriveKey` for a path: the same 32 bytes as the original's.
    ///
    /// # Errors
    /// [`TrustError`].
    pub fn p256(&self, path: &str) -> Result<Secret, TrustError> {
        limit("path", path)?;
        Ok(derive::of_path(&self.handed.k256_key, path)?)
    }

    /// Signs data with the app's own signing key.
    ///
    /// # Errors
    /// [`TrustError`].
    pub fn sign(&self, algorithm: &str, data: &[u8]) -> Result<Signed, TrustError> {
        let scheme = Scheme::of(algorithm)?;
        let by = self.derive(SIGN_PATH, SIGN_PURPOSE, scheme.curve())?;
        let signature = match scheme {
            Scheme::Ed25519 => ed25519::sign(&by.secret, data)?.to_vec(),
            Scheme::Secp256k1 | Scheme::Prehashed => {
                sign::sign_digest(&by.secret, &scheme.digest(data)?)?.to_vec()
            }
        };
        Ok(Signed { signature, by })
    }
}

/// Whether a signature is good; whose key it is, is not said.
///
/// # Errors
/// [`TrustError`] for an unknown algorithm and for what is no public key or digest.
pub fn verify(algorithm: &str, data: &[u8], signature: &[u8], public_key: &[u8]) -> Result<bool, TrustError> {
    let scheme = Scheme::of(algorithm)?;
    if scheme == Scheme::Ed25519 {
        let key = <[u8; 32]>::try_from(public_key).map(SignerKey::from);
        let key = key.map_err(|_| KeyError::Form("an Ed25519 public key has 32 bytes"))?;
        let Ok(signature) = signature.try_into() else { return Ok(false) };
        return Ok(ed25519::verify(&key, data, signature)?);
    }
    Ok(sign::verify_digest(public_key, &scheme.digest(data)?, signature)?)
}

fn limit(what: &str, text: &str) -> Result<(), TrustError> {
    if text.len() > TEXT_MAX {
        return Err(TrustError::Argument(format!("{what} is longer than {TEXT_MAX} bytes")));
    }
    Ok(())
}

#[cfg(test)]
#[path = "keys_tests.rs"]
mod tests;
