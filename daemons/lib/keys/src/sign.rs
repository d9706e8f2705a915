// SPDX-License-Identifier: Apache-2.0
//! Recoverable secp256k1 signatures: 65 bytes `r ‖ s ‖ recovery id` over a Keccak-256 digest (RFC 6979, low `s`).

use crate::{KeyError, Secret};
use dstack_core::ids::AppId;
use k256::ecdsa::signature::hazmat::PrehashVerifier;
use k256::ecdsa::{RecoveryId, Signature, SigningKey, VerifyingKey};
use sha3::{Digest, Keccak256};

/// A signature.
pub type Recoverable = [u8; 65];
/// A compressed public key.
pub type PublicKey = [u8; 33];

/// Domain of the signature over an app's public key.
const APP_KEY_DOMAIN: &[u8] = b"dstack-kms-issued";
/// Domain of the signature over an app's environment key.
const ENV_KEY_DOMAIN: &[u8] = b"dstack-env-encrypt-pubkey";
/// Domain of the signature over the release log's head.
const RELEASE_LOG_DOMAIN: &[u8] = b"dstack-release-log-v1";

/// The compressed public key of a scalar.
///
/// # Errors
/// [`KeyError::NotAKey`].
pub fn public_key(scalar: &Secret) -> Result<PublicKey, KeyError> {
    compressed(signing_key(scalar)?.verifying_key())
}

/// Signs a message.
///
/// # Errors
/// [`KeyError::NotAKey`].
pub fn sign(scalar: &Secret, message: &[u8]) -> Result<Recoverable, KeyError> {
    sign_digest(scalar, &Keccak256::digest(message).into())
}

/// Signs a digest of 32 bytes.
///
/// # Errors
/// [`KeyError::NotAKey`].
pub fn sign_digest(scalar: &Secret, digest: &[u8; 32]) -> Result<Recoverable, KeyError> {
    let (signature, id) = signing_key(scalar)?.sign_prehash_recoverable(digest);
    let mut out = [0; 65];
    out.iter_mut().zip(signature.to_bytes().iter().chain(&[id.to_byte()])).for_each(|(to, from)| *to = *from);
    Ok(out)
}

/// The public key that signed a message.
///
/// # Errors
/// [`KeyError::Form`] when the signature is not one.
pub fn recover(message: &[u8], signature: &Recoverable) -> Result<PublicKey, KeyError> {
    let refused = KeyError::Form("not a recoverable signature");
    let [body @ .., id] = signature;
    let (Ok(parsed), Some(id)) = (Signature::from_slice(body), RecoveryId::from_byte(*id)) else {
        return Err(refused);
    };
    let digest = Keccak256::digest(message);
    compressed(&VerifyingKey::recover_from_prehash(&digest, &parsed, id).map_err(|_| refused)?)
}

/// Whether a signature over a digest is by this public key (SEC1, compressed or not). A recovery id after the 64 bytes
/// is not looked at.
///
/// # Errors
/// [`KeyError::Form`] when the key is none.
pub fn verify_digest(public_key: &[u8], digest: &[u8; 32], signature: &[u8]) -> Result<bool, KeyError> {
    let key = VerifyingKey::from_sec1_bytes(public_key);
    let key = key.map_err(|_| KeyError::Form("not a secp256k1 public key"))?;
    let body = match signature {
        [body @ .., _] if body.len() == 64 => body,
        body => body,
    };
    Ok(Signature::from_slice(body).is_ok_and(|parsed| key.verify_prehash(digest, &parsed).is_ok()))
}

/// What the root key signs of an app's public key: domain, `:`, app id, key.
#[must_use]
pub fn app_key_message(app: &AppId, key: &PublicKey) -> Vec<u8> {
    [APP_KEY_DOMAIN, b":", app.as_bytes(), key].concat()
}

/// What the root key signs of an app's environment key: domain, `:`, app id, key.
#[must_use]
pub fn env_key_message(app: &AppId, key: &[u8; 32]) -> Vec<u8> {
    [ENV_KEY_DOMAIN, b":", app.as_bytes(), key].concat()
}

/// The same with the time (Unix seconds) between app id and key, so that an old key cannot be replayed.
#[must_use]
pub fn env_key_message_v1(app: &AppId, timestamp: u64, key: &[u8; 32]) -> Vec<u8> {
    [ENV_KEY_DOMAIN, b":", app.as_bytes(), &timestamp.to_be_bytes(), key].concat()
}

/// What the root key signs of the newest entry of the release log: domain, number, hash (trust rule T23).
#[must_use]
pub fn release_head_message(seq: u64, hash: &[u8; 32]) -> Vec<u8> {
    [RELEASE_LOG_DOMAIN, &seq.to_be_bytes(), hash].concat()
}

/// Report data of the quote that a key service in a CVM makes over its new root keys: the root CA's SubjectPublicKeyInfo
/// and the compressed secp256k1 key. The misspelling is the original's.
#[must_use]
pub fn bootstrap_report_data(ca_public_key: &[u8], k256: &PublicKey) -> [u8; 64] {
    let (ca, k256) = (hex::encode(ca_public_key), hex::encode(k256));
    let digest = Keccak256::digest(format!("dstack-kms-genereted-keys-v1:{ca};{k256};"));
    let mut data = [0; 64];
    data.iter_mut().zip(digest).for_each(|(to, from)| *to = from);
    data
}

/// What an app key signs of a derived key: `<purpose>:<hex of its public key>`.
#[must_use]
pub fn purpose_message(purpose: &str, key: &[u8]) -> Vec<u8> {
    format!("{purpose}:{}", hex::encode(key)).into_bytes()
}

fn signing_key(scalar: &Secret) -> Result<SigningKey, KeyError> {
    SigningKey::from_slice(scalar.expose()).map_err(|_| KeyError::NotAKey)
}

fn compressed(key: &VerifyingKey) -> Result<PublicKey, KeyError> {
    key.to_sec1_point(true).as_bytes().try_into().map_err(|_| KeyError::NotAKey)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::derive::{Roots, of_path, x25519_public};

    const ROOT_PUBLIC: &str = "02466d7fcae563e5cb09a0d1870bb580344804617879a14949cf22285f1bae3f27";

    fn roots() -> (Roots, AppId) {
        let roots = Roots { ca: Secret::from([0x11; 32]), k256: Secret::from([0x22; 32]) };
        (roots, "3327603e03f5bd1f830812ca4a789277fc31f577".parse().unwrap())
    }

    #[test]
    fn published_vector_of_the_app_key() {
        let (roots, app) = roots();
        assert_eq!(hex::encode(public_key(&roots.k256).unwrap()), ROOT_PUBLIC);
        let key = public_key(&roots.app_key(&app).unwrap()).unwrap();
        assert_eq!(hex::encode(key), "03e0412ddaa22920ef7214f8faa1c01c9d3617cf7ab1875fc09b33c69eeeb4cad8");
        let signature = sign(&roots.k256, &app_key_message(&app, &key)).unwrap();
        let expected = "1d5d3b27e3eed0b0c24ad2b0a152506beea076f27e2f518cff19b740c374dcd7\
                        184745917abb05389ca8126e9ced4529c5dfc590a6ad24aaad30cbc394be04c301";
        assert_eq!(hex::encode(signature), expected);
        assert_eq!(hex::encode(recover(&app_key_message(&app, &key), &signature).unwrap()), ROOT_PUBLIC);
    }

    #[test]
    fn published_vector_of_the_env_key() {
        let (roots, app) = roots();
        let key = x25519_public(&roots.env_secret(&app).unwrap()).unwrap();
        let expected = "fe4f30f3986af8952d10ae923012368e58896a6915cc7b90f3514be94840f692\
                        43735d4dbd2bbda9f80ab63e7d1e5c57b7a7fbb674d2b02708bb964ff9b1f76700";
        assert_eq!(hex::encode(sign(&roots.k256, &env_key_message(&app, &key)).unwrap()), expected);
    }

    #[test]
    fn published_vector_of_a_purpose() {
        let (roots, app) = roots();
        let app_key = roots.app_key(&app).unwrap();
        let key = public_key(&of_path(&app_key, "wallet/eth").unwrap()).unwrap();
        let message = purpose_message("mainnet", &key);
        let text = "mainnet:0230157a4fcc1af2c89f88fcf52d7728abf7323586f7b4e319534e6e6425801d58";
        assert_eq!(message, text.as_bytes());
        let expected = "6bed4825be4f7c629d32dcbb5a051ab6a4b7b4db992827905ca0329ce8b669d7\
                        3da63dece11acfb2fe5a467bad12100e214a99d1ee404979be8134e82b84a0fb00";
        assert_eq!(hex::encode(sign(&app_key, &message).unwrap()), expected);
    }

    #[test]
    fn t15_the_bootstrap_quote_binds_both_root_keys() {
        let data = bootstrap_report_data(&[1, 2], &[3; 33]);
        let text = format!("dstack-kms-genereted-keys-v1:0102;{};", "03".repeat(33));
        assert_eq!(data[..32], Keccak256::digest(text)[..]);
        assert_eq!(data[32..], [0; 32]);
        assert_ne!(bootstrap_report_data(&[1, 2], &[4; 33]), data);
        assert_ne!(bootstrap_report_data(&[1], &[3; 33]), data);
    }

    #[test]
    fn a_signature_is_of_its_key_and_digest() {
        let (roots, _) = roots();
        let (digest, key) = ([7; 32], public_key(&roots.k256).unwrap());
        let signature = sign_digest(&roots.k256, &digest).unwrap();
        for good in [&signature[..], &signature[..64]] {
            assert!(verify_digest(&key, &digest, good).unwrap());
        }
        for bad in [&signature[..63], &signature[1..], &[], &[0; 64], &[signature.as_slice(), &[0]].concat()]
        {
            assert!(!verify_digest(&key, &digest, bad).unwrap(), "{bad:?}");
        }
        assert!(!verify_digest(&key, &[8; 32], &signature).unwrap());
        assert!(!verify_digest(&public_key(&roots.ca).unwrap(), &digest, &signature).unwrap());
        for no_key in [&[][..], &[2; 32], &[9; 33]] {
            assert!(verify_digest(no_key, &digest, &signature).is_err(), "{no_key:?}");
        }
    }

    #[test]
    fn a_changed_message_or_signature_recovers_another_key() {
        let (roots, _) = roots();
        let signature = sign(&roots.k256, b"message").unwrap();
        assert_ne!(recover(b"other", &signature).ok().map(hex::encode).as_deref(), Some(ROOT_PUBLIC));
        for at in 0..65 {
            let mut other = signature;
            other[at] ^= 1;
            assert_ne!(
                recover(b"message", &other).ok().map(hex::encode).as_deref(),
                Some(ROOT_PUBLIC),
                "{at}"
            );
        }
    }
}
