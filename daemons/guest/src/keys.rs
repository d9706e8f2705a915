// SPDX-License-Identifier: Apache-2.0
//! The keys of one boot, from whoever the measured compose file names, and how they survive a restart of the boot agent.
//!
//! They may be asked for once: evidence for the key service ends at `host-inputs` (T7). So they are kept in memory
//! (`/run`, 0600) from before the next event is extended until the boot agent is done.

use crate::disk::{self, DiskKey};
use crate::inputs::Inputs;
use crate::layout::Layout;
use crate::outputs::{self, Output};
use dstack_keys::handover::{AppKeys, Provider, VERSION, optional_hex};
use dstack_keys::{KeyError, Secret, derive};
use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose};
use serde::{Deserialize, Serialize};
use std::time::{Duration, UNIX_EPOCH};
use std::{fs, io};
use zeroize::Zeroizing;

/// Largest file of kept keys, bytes.
const KEPT_MAX: usize = 128 * 1024;
/// Life of a throw-away CA; it ends with the boot.
const EPHEMERAL_LIFE: Duration = Duration::from_secs(2 * 365 * 86_400);

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// A key operation.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The throw-away CA.
    #[error("the throw-away CA cannot be made: {0}")]
    Ca(#[from] rcgen::Error),
    /// The kept keys cannot be read or written.
    #[error("cannot keep the keys of this boot: {0}")]
    Kept(io::Error),
    /// The kept keys are damaged.
    #[error("the kept keys of this boot are damaged; restart the VM")]
    Damaged,
}

/// Everything the boot needs of its keys.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootKeys {
    /// What the guest agent gets.
    pub app: AppKeys,
    /// Of the data disk; without one it is ephemeral.
    #[serde(with = "optional_hex")]
    pub disk: Option<Secret>,
    /// Of the encrypted environment.
    #[serde(with = "optional_hex")]
    pub env: Option<Secret>,
    /// Whose root keys it trusts: `host`, `cvm`, or empty.
    pub custody: String,
}

impl BootKeys {
    /// How the data disk is to be treated.
    #[must_use]
    pub fn disk(&self, inputs: &Inputs) -> DiskKey {
        let id = inputs.instance_id.map_or(*inputs.app_id.as_bytes(), |id| *id.as_bytes());
        match &self.disk {
            Some(key) => DiskKey::Persistent { key: key.clone(), label: disk::label(&id) },
            None => DiskKey::Ephemeral,
        }
    }

    /// Keys that live as long as the boot (T24); `now` is seconds since 1970.
    ///
    /// # Errors
    /// [`KeysError`].
    pub fn ephemeral(inputs: &Inputs, now: u64) -> Result<Self, KeysError> {
        let (scalar, ca_cert) = throw_away_ca(now)?;
        let app = AppKeys {
            version: VERSION,
            provider: Provider::None,
            provider_id: String::new(),
            kms_urls: Vec::new(),
            ca_cert,
            ca_key: Some(scalar),
            k256_key: Secret::random()?,
            k256_signature: String::new(),
            gateway_app_id: String::new(),
            os_image_hash: inputs.hints.os_image_hash.map(|h| h.to_string()).unwrap_or_default(),
            vm_config: inputs.hints.vm_config.clone(),
        };
        Ok(Self { app, disk: None, env: None, custody: String::new() })
    }

    /// Keeps them for another run in this boot.
    ///
    /// # Errors
    /// [`KeysError::Kept`].
    pub fn keep(&self, layout: &Layout) -> Result<(), KeysError> {
        let mut bytes = Zeroizing::new(Vec::with_capacity(KEPT_MAX));
        serde_json::to_writer(&mut *bytes, self).map_err(|e| KeysError::Kept(e.into()))?;
        let output = Output { path: layout.boot_keys(), mode: 0o600, bytes };
        outputs::write_all(layout, &[output]).map_err(KeysError::Kept)
    }

    /// What an earlier run of this boot kept.
    ///
    /// # Errors
    /// [`KeysError`]; unreadable is not absent.
    pub fn kept(layout: &Layout) -> Result<Option<Self>, KeysError> {
        match fs::read(layout.boot_keys()).map(Zeroizing::new) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|_| KeysError::Damaged),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(KeysError::Kept(e)),
        }
    }

    /// Forgets what was kept.
    ///
    /// # Errors
    /// [`KeysError::Kept`].
    pub fn forget(layout: &Layout) -> Result<(), KeysError> {
        match fs::remove_file(layout.boot_keys()) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(KeysError::Kept(e)),
            _ => Ok(()),
        }
    }
}

/// A CA whose name says what it is worth: every chain from it is marked (T24).
fn throw_away_ca(now: u64) -> Result<(Secret, String), KeysError> {
    let scalar = scalar()?;
    let key = KeyPair::try_from(derive::pkcs8(&scalar)?.as_slice())?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "dstack");
    params.distinguished_name.push(DnType::CommonName, "dstack ephemeral app CA (no key service)");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let now = UNIX_EPOCH + Duration::from_secs(now);
    params.not_before = (now - Duration::from_secs(3600)).into();
    params.not_after = (now + EPHEMERAL_LIFE).into();
    Ok((scalar, params.self_signed(&key)?.pem()))
}

/// Random bytes that are a scalar of P-256; all but one in 2^32 are.
fn scalar() -> Result<Secret, KeyError> {
    loop {
        let secret = Secret::random()?;
        match derive::p256(&secret) {
            Ok(_) => return Ok(secret),
            Err(KeyError::NotAKey) => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
#[path = "keys_tests.rs"]
mod tests;
