// SPDX-License-Identifier: Apache-2.0
//! The key provider in force. `none` is the one this image has; another is one more [`Keys`].

use crate::inputs::Env;
use dstack_core::boot::Failure;
use dstack_core::compose::{AppCompose, KeyProvider};
use zeroize::Zeroizing;

/// How the data disk is to be treated.
#[derive(Debug)]
pub enum DiskKey {
    /// A fresh disk for this boot only (T24): the passphrase is forgotten with the guest.
    Ephemeral(Zeroizing<String>),
}

/// What a provider gives to one app.
pub trait Keys: std::fmt::Debug {
    /// The provider's name, as `key_provider` in app-compose spells it.
    fn provider(&self) -> &'static str;

    /// The passphrase of the data disk: 64 hex digits.
    ///
    /// # Errors
    /// [`Failure`] when there is none to be had.
    fn disk(&self) -> Result<DiskKey, Failure>;

    /// Opens the deployer's encrypted environment.
    ///
    /// # Errors
    /// [`Failure::EnvInvalid`]: an environment that cannot be opened never becomes an empty one (P05).
    fn open_env(&self, blob: &[u8]) -> Result<Env, Failure>;
}

/// Chooses the provider that the measured compose names.
///
/// # Errors
/// [`Failure::KeysUnsupported`] for providers this image does not have.
pub fn provider(compose: &AppCompose) -> Result<Box<dyn Keys>, Failure> {
    match compose.key_provider() {
        KeyProvider::None => Ok(Box::new(NoProvider)),
        KeyProvider::Kms | KeyProvider::Local => Err(Failure::KeysUnsupported),
    }
}

/// Key provider `none`.
#[derive(Debug)]
pub struct NoProvider;

impl Keys for NoProvider {
    fn provider(&self) -> &'static str {
        "none"
    }

    fn disk(&self) -> Result<DiskKey, Failure> {
        let mut key = Zeroizing::new([0; 32]);
        getrandom::fill(key.as_mut_slice()).map_err(|_| Failure::Internal)?;
        Ok(DiskKey::Ephemeral(Zeroizing::new(hex::encode(key.as_slice()))))
    }

    fn open_env(&self, _blob: &[u8]) -> Result<Env, Failure> {
        Err(Failure::EnvInvalid)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn t24_every_boot_has_another_disk_key() {
        let key = || match NoProvider.disk().unwrap() {
            DiskKey::Ephemeral(key) => key,
        };
        let (one, two) = (key(), key());
        assert_eq!(one.len(), 64);
        assert!(one.bytes().all(|b| b.is_ascii_hexdigit()));
        assert_ne!(one, two);
    }
}
