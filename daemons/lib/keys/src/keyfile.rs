// SPDX-License-Identifier: Apache-2.0
//! Ed25519 keys of an app's owner as PEM text, as `openssl genpkey -algorithm ed25519` writes them.

use crate::{KeyError, Secret};
use dstack_core::ids::SignerKey;
use openssl::pkey::{Id, PKey};
use zeroize::Zeroizing;

const NO_SECRET: KeyError =
    KeyError::Form("not an unencrypted Ed25519 private key in PEM; `dstackctl app keygen` makes one");
const NO_PUBLIC: KeyError = KeyError::Form("not an Ed25519 public key: use 64 hexadecimal digits or PEM");

/// A secret as PKCS#8 PEM.
///
/// # Errors
/// When the library refuses.
pub fn to_pem(secret: &Secret) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    let key = PKey::private_key_from_raw_bytes(secret.expose(), Id::ED25519)?;
    Ok(Zeroizing::new(key.private_key_to_pem_pkcs8()?))
}

/// The secret of a PEM text.
///
/// # Errors
/// [`KeyError::Form`] for another kind of key, and for an encrypted one: nobody is asked for its passphrase.
pub fn from_pem(pem: &[u8]) -> Result<Secret, KeyError> {
    let key = PKey::private_key_from_pem_callback(pem, |_| Ok(0)).map_err(|_| NO_SECRET)?;
    if key.id() != Id::ED25519 {
        return Err(NO_SECRET);
    }
    Secret::try_from(Zeroizing::new(key.raw_private_key()?).as_slice())
}

/// A public key as PEM.
///
/// # Errors
/// When the library refuses.
pub fn public_to_pem(key: &SignerKey) -> Result<Vec<u8>, KeyError> {
    Ok(PKey::public_key_from_raw_bytes(key.as_bytes(), Id::ED25519)?.public_key_to_pem()?)
}

/// The public key of a PEM text.
///
/// # Errors
/// [`KeyError::Form`] for another kind of key.
pub fn public_from_pem(pem: &[u8]) -> Result<SignerKey, KeyError> {
    let key = PKey::public_key_from_pem(pem).map_err(|_| NO_PUBLIC)?;
    if key.id() != Id::ED25519 {
        return Err(NO_PUBLIC);
    }
    <[u8; 32]>::try_from(key.raw_public_key()?.as_slice()).map(SignerKey::from).map_err(|_| NO_PUBLIC)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 8410, section 10.3 and 10.1.
    const PRIVATE: &str = "-----BEGIN PRIVATE KEY-----\n\
        MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n-----END PRIVATE KEY-----\n";
    const PUBLIC: &str = "-----BEGIN PUBLIC KEY-----\n\
        MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n";

    #[test]
    fn published_texts() {
        let secret = from_pem(PRIVATE.as_bytes()).unwrap();
        assert_eq!(
            hex::encode(secret.expose()),
            "d4ee72dbf913584ad5b6d8f1f769f8ad3afe7c28cbf1d4fbe097a88f44755842"
        );
        assert_eq!(to_pem(&secret).unwrap().as_slice(), PRIVATE.as_bytes());
        let public = public_from_pem(PUBLIC.as_bytes()).unwrap();
        assert_eq!(public_to_pem(&public).unwrap(), PUBLIC.as_bytes());
        let private = PKey::private_key_from_raw_bytes(secret.expose(), Id::ED25519).unwrap();
        assert_eq!(private.raw_public_key().unwrap(), public.as_bytes());
    }

    #[test]
    fn what_is_no_such_key_is_refused() {
        let rsa = openssl::rsa::Rsa::generate(2048).unwrap();
        let x25519 = PKey::generate_x25519().unwrap().private_key_to_pem_pkcs8().unwrap();
        let cipher = openssl::symm::Cipher::aes_256_cbc();
        let ed25519 = PKey::generate_ed25519().unwrap();
        let locked = ed25519.private_key_to_pem_pkcs8_passphrase(cipher, b"word").unwrap();
        for bad in [&b""[..], b"x", &rsa.private_key_to_pem().unwrap(), &x25519, &locked, PUBLIC.as_bytes()] {
            let error = from_pem(bad).unwrap_err().to_string();
            assert!(error.contains("dstackctl app keygen"), "{error}");
        }
        for bad in [&b""[..], &rsa.public_key_to_pem().unwrap(), PRIVATE.as_bytes()] {
            assert!(public_from_pem(bad).is_err());
        }
    }
}
