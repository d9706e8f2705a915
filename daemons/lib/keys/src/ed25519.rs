// SPDX-License-Identifier: Apache-2.0
//! Ed25519 signatures of an app's owner, and ECDSA-P256 signatures of a certificate's key.

use crate::{KeyError, Secret};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{Id, PKey, Public};
use openssl::sign::{Signer, Verifier};
use zeroize::Zeroizing;

/// The public key of an Ed25519 secret.
///
/// # Errors
/// When the library refuses.
pub fn public_key(secret: &Secret) -> Result<[u8; 32], KeyError> {
    let raw = PKey::private_key_from_raw_bytes(secret.expose(), Id::ED25519)?.raw_public_key()?;
    raw.as_slice().try_into().map_err(|_| KeyError::Form("an Ed25519 public key has 32 bytes"))
}

/// Signs a message with an Ed25519 secret.
///
/// # Errors
/// When the library refuses.
pub fn sign(secret: &Secret, message: &[u8]) -> Result<[u8; 64], KeyError> {
    let key = PKey::private_key_from_raw_bytes(secret.expose(), Id::ED25519)?;
    let signature = Signer::new_without_digest(&key)?.sign_oneshot_to_vec(message)?;
    signature.as_slice().try_into().map_err(|_| KeyError::Form("an Ed25519 signature has 64 bytes"))
}

/// Whether an Ed25519 signature over a message is by this key; a key or signature out of form is a no.
#[must_use]
pub fn verify(key: &[u8; 32], message: &[u8], signature: &[u8; 64]) -> bool {
    let checked = PKey::public_key_from_raw_bytes(key, Id::ED25519)
        .and_then(|key| Verifier::new_without_digest(&key)?.verify_oneshot(signature, message));
    // A failed check leaves the library's errors in a queue that the next caller would read.
    drop(openssl::error::ErrorStack::get());
    checked.unwrap_or(false)
}

/// Whether an ECDSA-P256-SHA256 signature (ASN.1) over a message is by this key (SubjectPublicKeyInfo, DER).
#[must_use]
pub fn verify_p256(public_key: &[u8], message: &[u8], signature: &[u8]) -> bool {
    let checked = p256_key(public_key).and_then(|key| {
        Ok(Verifier::new(MessageDigest::sha256(), &key)?.verify_oneshot(signature, message)?)
    });
    drop(openssl::error::ErrorStack::get());
    checked.unwrap_or(false)
}

/// Signs a message by ECDSA-P256-SHA256 (ASN.1) with a key as PKCS#8 DER.
///
/// # Errors
/// When it is no such key.
pub fn sign_p256(pkcs8: &Zeroizing<Vec<u8>>, message: &[u8]) -> Result<Vec<u8>, KeyError> {
    let key = PKey::private_key_from_pkcs8(pkcs8)?;
    Ok(Signer::new(MessageDigest::sha256(), &key)?.sign_oneshot_to_vec(message)?)
}

fn p256_key(public_key: &[u8]) -> Result<PKey<Public>, KeyError> {
    let key = PKey::public_key_from_der(public_key)?;
    if key.ec_key()?.group().curve_name() == Some(Nid::X9_62_PRIME256V1) {
        Ok(key)
    } else {
        Err(KeyError::Form("the key is not one of P-256"))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::derive::{p256, pkcs8};

    #[test]
    fn rfc_8032_vector() {
        let secret = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60";
        let secret = Secret::try_from(hex::decode(secret).unwrap().as_slice()).unwrap();
        let public = public_key(&secret).unwrap();
        assert_eq!(hex::encode(public), "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a");
        let signature = sign(&secret, b"").unwrap();
        assert!(hex::encode(signature).starts_with("e5564300c360ac729086e2cc806e828a"));
        assert!(verify(&public, b"", &signature));
        let mut other = signature;
        other[0] ^= 1;
        assert!(!verify(&public, b"", &other) && !verify(&public, b"x", &signature));
        assert!(!verify(&[0xff; 32], b"", &signature));
    }

    #[test]
    fn p256_signatures_are_by_the_key() {
        let scalar = Secret::from([0x11; 32]);
        let public = p256(&scalar).unwrap().public_key_to_der().unwrap();
        let signature = sign_p256(&pkcs8(&scalar).unwrap(), b"message").unwrap();
        assert!(verify_p256(&public, b"message", &signature));
        assert!(!verify_p256(&public, b"other", &signature) && !verify_p256(b"x", b"message", &signature));
        assert!(!verify_p256(&public, b"message", b""));
    }
}
