// SPDX-License-Identifier: Apache-2.0
//! Ed25519 signatures of an app's owner: upgrades (T8) and environments (T9).

use crate::{KeyError, Secret};
use dstack_core::ids::SignerKey;
use openssl::pkey::{Id, PKey};
use openssl::sign::{Signer, Verifier};

/// A signature.
pub type Signature = [u8; 64];

/// The public key of a secret.
///
/// # Errors
/// When the library refuses.
pub fn public_key(secret: &Secret) -> Result<SignerKey, KeyError> {
    let raw = PKey::private_key_from_raw_bytes(secret.expose(), Id::ED25519)?.raw_public_key()?;
    <[u8; 32]>::try_from(raw.as_slice())
        .map(SignerKey::from)
        .map_err(|_| KeyError::Form("an Ed25519 public key has 32 bytes"))
}

/// Signs a message.
///
/// # Errors
/// When the library refuses.
pub fn sign(secret: &Secret, message: &[u8]) -> Result<Signature, KeyError> {
    let key = PKey::private_key_from_raw_bytes(secret.expose(), Id::ED25519)?;
    let signature = Signer::new_without_digest(&key)?.sign_oneshot_to_vec(message)?;
    signature.as_slice().try_into().map_err(|_| KeyError::Form("an Ed25519 signature has 64 bytes"))
}

/// Whether a key signed a message.
///
/// # Errors
/// When the library refuses the key; a wrong signature is `false`.
pub fn verify(key: &SignerKey, message: &[u8], signature: &Signature) -> Result<bool, KeyError> {
    let key = PKey::public_key_from_raw_bytes(key.as_bytes(), Id::ED25519)?;
    let good = Verifier::new_without_digest(&key)?.verify_oneshot(signature, message);
    // The library reports some malformed signatures as errors: they are no signatures either.
    Ok(good.unwrap_or(false))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 8032, section 7.1, test 2.
    #[test]
    fn published_vector() {
        let secret = hex::decode("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb").unwrap();
        let secret = Secret::try_from(secret.as_slice()).unwrap();
        let key = public_key(&secret).unwrap();
        assert_eq!(key.to_string(), "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c");
        let signature = sign(&secret, &[0x72]).unwrap();
        let expected = "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da\
                        085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00";
        assert_eq!(hex::encode(signature), expected);
        assert!(verify(&key, &[0x72], &signature).unwrap());
        assert!(!verify(&key, &[0x73], &signature).unwrap());
        for at in 0..64 {
            let mut other = signature;
            other[at] ^= 1;
            assert!(!verify(&key, &[0x72], &other).unwrap(), "{at}");
        }
        assert!(!verify(&key, &[0x72], &[0xff; 64]).unwrap());
    }
}
