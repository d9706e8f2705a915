// SPDX-License-Identifier: Apache-2.0
//! The encrypted environment: ephemeral X25519 key (32) ‖ IV (12) ‖ AES-256-GCM ciphertext and tag.
//!
//! The plaintext is `{"env":[{"key":K,"value":V},…]}`. The format is the original's; it names no sender and binds no
//! app, so a signature beside it does (trust rule T9): [`sign`] and [`verify`].

mod sender;

pub use sender::{SenderError, Sent, sign, verify};

use crate::derive::x25519_public;
use crate::{KeyError, Secret};
use dstack_core::env::EnvError;
use dstack_core::limits::ENCRYPTED_ENV_MAX;
use openssl::derive::Deriver;
use openssl::pkey::{Id, PKey};
use openssl::symm::{Cipher, decrypt_aead, encrypt_aead};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use zeroize::Zeroizing;

/// Most variables.
pub const VARIABLES_MAX: usize = 1024;
/// Largest value, bytes.
pub const VALUE_MAX: usize = 128 * 1024;

const KEY: usize = 32;
const IV: usize = 12;
const TAG: usize = 16;

/// Variables by name, sorted.
pub type Variables = BTreeMap<String, Zeroizing<String>>;

/// Why an environment cannot be used. No message carries a value.
#[derive(Debug, thiserror::Error)]
pub enum EncryptedEnvError {
    /// Shorter than its fixed parts or larger than [`ENCRYPTED_ENV_MAX`].
    #[error("encrypted environment of {0} bytes is too short or over {ENCRYPTED_ENV_MAX}")]
    Length(usize),
    /// Not encrypted for this key, or changed on the way.
    #[error(
        "encrypted environment does not open with this app's key: it was encrypted for another app or changed"
    )]
    Sealed,
    /// What was encrypted is not a list of variables.
    #[error("encrypted environment holds no list of variables")]
    Plaintext,
    /// More than [`VARIABLES_MAX`] variables, or a value over [`VALUE_MAX`].
    #[error("environment has over {VARIABLES_MAX} variables or a value over {VALUE_MAX} bytes")]
    TooLarge,
    /// A name that is not allowed.
    #[error(transparent)]
    Name(#[from] EnvError),
    /// A key operation failed.
    #[error(transparent)]
    Key(#[from] KeyError),
}

impl From<openssl::error::ErrorStack> for EncryptedEnvError {
    fn from(error: openssl::error::ErrorStack) -> Self {
        Self::Key(error.into())
    }
}

#[derive(Serialize, Deserialize)]
struct Plaintext<'a> {
    #[serde(borrow)]
    env: Vec<Entry<'a>>,
}

#[derive(Serialize, Deserialize)]
struct Entry<'a> {
    key: std::borrow::Cow<'a, str>,
    value: std::borrow::Cow<'a, str>,
}

/// Encrypts variables for an app's public key.
///
/// # Errors
/// [`EncryptedEnvError`] names the variable that is not allowed.
pub fn encrypt(variables: &Variables, public: &[u8; 32]) -> Result<Vec<u8>, EncryptedEnvError> {
    check(variables)?;
    let entry = |(key, value): (&String, &Zeroizing<String>)| Entry {
        key: key.clone().into(),
        value: value.as_str().to_owned().into(),
    };
    let plaintext = Plaintext { env: variables.iter().map(entry).collect() };
    let plaintext = Zeroizing::new(serde_json::to_vec(&plaintext).map_err(|_| EncryptedEnvError::Plaintext)?);
    let ephemeral = Secret::random()?;
    let mut iv = [0; IV];
    openssl::rand::rand_bytes(&mut iv)?;
    let mut tag = [0; TAG];
    let shared = agree(&ephemeral, public)?;
    let ciphertext =
        encrypt_aead(Cipher::aes_256_gcm(), shared.expose(), Some(&iv), &[], &plaintext, &mut tag)?;
    let blob = [&x25519_public(&ephemeral)?[..], &iv, &ciphertext, &tag].concat();
    if blob.len() > ENCRYPTED_ENV_MAX { Err(EncryptedEnvError::Length(blob.len())) } else { Ok(blob) }
}

/// Decrypts and checks an environment; it is all or nothing.
///
/// # Errors
/// [`EncryptedEnvError`].
pub fn decrypt(blob: &[u8], secret: &Secret) -> Result<Variables, EncryptedEnvError> {
    parse(&open(blob, secret)?)
}

/// Reads and checks what was encrypted.
///
/// # Errors
/// [`EncryptedEnvError`].
pub fn parse(plaintext: &[u8]) -> Result<Variables, EncryptedEnvError> {
    let parsed: Plaintext<'_> =
        serde_json::from_slice(plaintext).map_err(|_| EncryptedEnvError::Plaintext)?;
    if parsed.env.len() > VARIABLES_MAX {
        return Err(EncryptedEnvError::TooLarge);
    }
    // A later entry of the same name wins, as in the original.
    let entries = parsed.env.into_iter();
    let variables = entries.map(|e| (e.key.into_owned(), Zeroizing::new(e.value.into_owned()))).collect();
    check(&variables)?;
    Ok(variables)
}

fn check(variables: &Variables) -> Result<(), EncryptedEnvError> {
    if variables.len() > VARIABLES_MAX || variables.values().any(|v| v.len() > VALUE_MAX) {
        return Err(EncryptedEnvError::TooLarge);
    }
    for (name, value) in variables {
        dstack_core::env::check(name, value)?;
    }
    Ok(())
}

/// The plaintext of a blob.
fn open(blob: &[u8], secret: &Secret) -> Result<Zeroizing<Vec<u8>>, EncryptedEnvError> {
    let length = EncryptedEnvError::Length(blob.len());
    if blob.len() > ENCRYPTED_ENV_MAX {
        return Err(length);
    }
    let Some((public, rest)) = blob.split_first_chunk::<KEY>() else { return Err(length) };
    let Some((iv, rest)) = rest.split_first_chunk::<IV>() else { return Err(length) };
    let Some((ciphertext, tag)) = rest.split_last_chunk::<TAG>() else { return Err(length) };
    let shared = agree(secret, public).map_err(|_| EncryptedEnvError::Sealed)?;
    decrypt_aead(Cipher::aes_256_gcm(), shared.expose(), Some(iv), &[], ciphertext, tag)
        .map(Zeroizing::new)
        .map_err(|_| EncryptedEnvError::Sealed)
}

/// X25519; the library refuses points of small order.
fn agree(secret: &Secret, public: &[u8; 32]) -> Result<Secret, KeyError> {
    let ours = PKey::private_key_from_raw_bytes(secret.expose(), Id::X25519)?;
    let theirs = PKey::public_key_from_raw_bytes(public, Id::X25519)?;
    let mut deriver = Deriver::new(&ours)?;
    deriver.set_peer(&theirs)?;
    Secret::try_from(Zeroizing::new(deriver.derive_to_vec()?).as_slice())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Variables {
        let pairs = [("API_KEY", "s3cret"), ("MULTI", "line\none\\ \"two\" $three"), ("EMPTY", "")];
        pairs.into_iter().map(|(k, v)| (k.to_owned(), Zeroizing::new(v.to_owned()))).collect()
    }

    #[test]
    fn published_vector() {
        let secret = hex::decode("7c282bf94b35dc47801dc953bfa0896fc2bd313381d3e8eca4e42f6536d2a96f").unwrap();
        let blob = "0bd18749612f4c8b9dd583c7d6a646b90abd34e3c731a7708d0caf9039095641e1f0948e775f0b7351788db7\
                    f246d51806954626dcccb6a60d64665ca3715c6bef75616cab476d27bba04080361200d6a58cec";
        let plaintext =
            open(&hex::decode(blob).unwrap(), &Secret::try_from(secret.as_slice()).unwrap()).unwrap();
        assert_eq!(plaintext.as_slice(), br#"[{"key":"","value":""}]"#);
    }

    #[test]
    fn p05_values_survive_whatever_they_contain() {
        let secret = Secret::random().unwrap();
        let blob = encrypt(&sample(), &x25519_public(&secret).unwrap()).unwrap();
        assert_eq!(decrypt(&blob, &secret).unwrap(), sample());
        assert!(matches!(decrypt(&blob, &Secret::random().unwrap()), Err(EncryptedEnvError::Sealed)));
    }

    #[test]
    fn p05_it_is_all_or_nothing() {
        let secret = Secret::random().unwrap();
        let blob = encrypt(&sample(), &x25519_public(&secret).unwrap()).unwrap();
        for at in 0..blob.len() {
            let mut other = blob.clone();
            other[at] ^= 1;
            assert!(decrypt(&other, &secret).is_err(), "byte {at}");
            assert!(decrypt(&blob[..at], &secret).is_err(), "length {at}");
        }
        assert!(
            matches!(decrypt(&[0; 60], &secret), Err(EncryptedEnvError::Sealed)),
            "a point of small order"
        );
        assert!(decrypt(&vec![0; ENCRYPTED_ENV_MAX + 1], &secret).is_err());
    }

    #[test]
    fn t10_reserved_names_are_refused_on_both_sides() {
        let secret = Secret::random().unwrap();
        let public = x25519_public(&secret).unwrap();
        let reserved: Variables = [("LD_PRELOAD".to_owned(), Zeroizing::new("x".to_owned()))].into();
        assert!(matches!(encrypt(&reserved, &public), Err(EncryptedEnvError::Name(_))));
        let big: Variables = [("A".to_owned(), Zeroizing::new("x".repeat(VALUE_MAX + 1)))].into();
        assert!(matches!(encrypt(&big, &public), Err(EncryptedEnvError::TooLarge)));
    }
}
