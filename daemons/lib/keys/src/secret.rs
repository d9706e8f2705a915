// SPDX-License-Identifier: Apache-2.0
//! Secret bytes: wiped when dropped, compared in constant time, never printed.

use crate::KeyError;
use zeroize::{Zeroize, ZeroizeOnDrop};

/// 32 secret bytes.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Secret([u8; 32]);

impl Secret {
    /// Fresh random bytes.
    ///
    /// # Errors
    /// When the library has no randomness.
    pub fn random() -> Result<Self, KeyError> {
        let mut bytes = [0; 32];
        openssl::rand::rand_priv_bytes(&mut bytes)?;
        Ok(Self(bytes))
    }

    /// The bytes; do not copy them.
    #[must_use]
    pub const fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    /// The bytes as lower-case hex text, e.g. a LUKS passphrase.
    #[must_use]
    pub fn expose_hex(&self) -> zeroize::Zeroizing<String> {
        zeroize::Zeroizing::new(hex::encode(self.0))
    }
}

impl From<[u8; 32]> for Secret {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl TryFrom<&[u8]> for Secret {
    type Error = KeyError;
    fn try_from(bytes: &[u8]) -> Result<Self, KeyError> {
        bytes.try_into().map(Self).map_err(|_| KeyError::Form("a secret has exactly 32 bytes"))
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        openssl::memcmp::eq(&self.0, &other.0)
    }
}

impl Eq for Secret {}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p02_a_secret_is_never_printed() {
        let secret = Secret::from([0xab; 32]);
        assert_eq!(format!("{secret:?}"), "Secret");
        assert_ne!(Secret::random().unwrap(), Secret::random().unwrap());
        assert!(Secret::try_from(&[0; 31][..]).is_err());
    }
}
