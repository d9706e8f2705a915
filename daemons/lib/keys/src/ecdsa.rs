// SPDX-License-Identifier: Apache-2.0
//! ECDSA-P256-SHA256 signatures of a certificate's key, in ASN.1.

use crate::KeyError;
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Public};
use openssl::sign::{Signer, Verifier};
use zeroize::Zeroizing;

/// Whether an ECDSA-P256-SHA256 signature (ASN.1) over a message is by this key (SubjectPublicKeyInfo, DER).
#[must_use]
pub fn verify(public_key: &[u8], message: &[u8], signature: &[u8]) -> bool {
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
pub fn sign(pkcs8: &Zeroizing<Vec<u8>>, message: &[u8]) -> Result<Vec<u8>, KeyError> {
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
    use crate::Secret;
    use crate::derive::{p256, pkcs8};

    #[test]
    fn signatures_are_by_the_key() {
        let scalar = Secret::from([0x11; 32]);
        let public = p256(&scalar).unwrap().public_key_to_der().unwrap();
        let signature = sign(&pkcs8(&scalar).unwrap(), b"message").unwrap();
        assert!(verify(&public, b"message", &signature));
        assert!(!verify(&public, b"other", &signature) && !verify(b"x", b"message", &signature));
        assert!(!verify(&public, b"message", b""));
    }
}
