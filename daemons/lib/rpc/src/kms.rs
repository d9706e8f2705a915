// SPDX-License-Identifier: Apache-2.0
//! Messages of `KMS`, the key service; spoken over RA-TLS alone.
//!
//! | method | who may call |
//! |---|---|
//! | GetAppKey, DiskEpoch ([`crate::disk`]) | a boot whose log ends at `host-inputs` |
//! | SignCert | a boot that is ready |
//! | GetAppEnvEncryptPubKey, GetMeta, SubmitUpgrade, GetReleaseLog | anybody |
//! | GetKmsKey | another key service that the operator announced |

use prost::Message;
use serde::{Deserialize, Serialize};
use std::fmt;
use zeroize::Zeroize;

/// Version of `GetAppKey` that this crate speaks.
pub const API_VERSION: u32 = 1;

/// Arguments of GetAppKey. Everything that decides is in the caller's evidence.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct GetAppKeyRequest {
    /// [`API_VERSION`].
    #[prost(uint32, tag = "1")]
    pub api_version: u32,
    /// Shape of the VM, JSON text.
    #[prost(string, tag = "2")]
    pub vm_config: String,
    /// The exact bytes of the measured `app-compose.json`. Their hash must be the measured one; when it is the app's
    /// first, the key service learns from it who signs upgrades (trust rule T8). Guests always send it.
    #[prost(bytes = "vec", tag = "101")]
    #[serde(with = "crate::hexbytes")]
    pub app_compose: Vec<u8>,
}

/// Answer of GetAppKey. Secret; wiped when dropped, never printed. Take fields out by `std::mem::take`.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[prost(skip_debug)]
pub struct AppKeyResponse {
    /// Certificate of the key service's root CA, PEM.
    #[prost(string, tag = "1")]
    #[serde(default)]
    pub ca_cert: String,
    /// Key of the instance's disk, 32 bytes.
    #[prost(bytes = "vec", tag = "2")]
    #[serde(default, with = "crate::hexbytes")]
    pub disk_crypt_key: Vec<u8>,
    /// X25519 secret of the environment, 32 bytes.
    #[prost(bytes = "vec", tag = "3")]
    #[serde(default, with = "crate::hexbytes")]
    pub env_crypt_key: Vec<u8>,
    /// secp256k1 scalar of the app, 32 bytes.
    #[prost(bytes = "vec", tag = "4")]
    #[serde(default, with = "crate::hexbytes")]
    pub k256_key: Vec<u8>,
    /// The root key's signature over the app's public key, 65 bytes.
    #[prost(bytes = "vec", tag = "5")]
    #[serde(default, with = "crate::hexbytes")]
    pub k256_signature: Vec<u8>,
    /// The gateway's app id under its first name; equal to `gateway_app_id`.
    #[prost(string, tag = "6")]
    #[serde(default)]
    pub tproxy_app_id: String,
    /// App id of the gateway that the app may register with, 40 hex, or empty.
    #[prost(string, tag = "7")]
    #[serde(default)]
    pub gateway_app_id: String,
    /// The measured image hash, 32 bytes.
    #[prost(bytes = "vec", tag = "8")]
    #[serde(default, with = "crate::hexbytes")]
    pub os_image_hash: Vec<u8>,
}

impl fmt::Debug for AppKeyResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AppKeyResponse(secret)")
    }
}

impl Drop for AppKeyResponse {
    fn drop(&mut self) {
        self.disk_crypt_key.zeroize();
        self.env_crypt_key.zeroize();
        self.k256_key.zeroize();
    }
}

/// Arguments of SignCert.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct SignCertRequest {
    /// `dstack_core::csr::Csr`, encoded.
    #[prost(bytes = "vec", tag = "1")]
    #[serde(with = "crate::hexbytes")]
    pub csr: Vec<u8>,
    /// ECDSA-P256-SHA256 over `csr` by the key in it, ASN.1.
    #[prost(bytes = "vec", tag = "2")]
    #[serde(with = "crate::hexbytes")]
    pub signature: Vec<u8>,
}

/// Answer of SignCert.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct SignCertResponse {
    /// Leaf, app CA, root CA; PEM each.
    #[prost(string, repeated, tag = "1")]
    pub certificate_chain: Vec<String>,
}

/// An app.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct AppId {
    /// App id, 20 bytes.
    #[prost(bytes = "vec", tag = "1")]
    #[serde(with = "crate::hexbytes")]
    pub app_id: Vec<u8>,
}

/// Answer of GetAppEnvEncryptPubKey.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct PublicKeyResponse {
    /// X25519 public key, 32 bytes.
    #[prost(bytes = "vec", tag = "1")]
    #[serde(with = "crate::hexbytes")]
    pub public_key: Vec<u8>,
    /// The root k256 key's signature over app id and key, 65 bytes.
    #[prost(bytes = "vec", tag = "2")]
    #[serde(with = "crate::hexbytes")]
    pub signature: Vec<u8>,
    /// Time of `signature_v1`, Unix seconds.
    #[prost(uint64, tag = "3")]
    pub timestamp: u64,
    /// The root k256 key's signature over app id, time and key, 65 bytes.
    #[prost(bytes = "vec", tag = "4")]
    #[serde(with = "crate::hexbytes")]
    pub signature_v1: Vec<u8>,
}

/// What was made at bootstrap.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct BootstrapInfo {
    /// SubjectPublicKeyInfo of the root CA, DER.
    #[prost(bytes = "vec", tag = "1")]
    #[serde(with = "crate::hexbytes")]
    pub ca_pubkey: Vec<u8>,
    /// Compressed root secp256k1 key.
    #[prost(bytes = "vec", tag = "2")]
    #[serde(with = "crate::hexbytes")]
    pub k256_pubkey: Vec<u8>,
    /// Quote over both keys; empty when the key service runs outside of a TEE.
    #[prost(bytes = "vec", tag = "3")]
    #[serde(with = "crate::hexbytes")]
    pub quote: Vec<u8>,
    /// Its event log, JSON.
    #[prost(bytes = "vec", tag = "4")]
    #[serde(with = "crate::hexbytes")]
    pub eventlog: Vec<u8>,
}

/// Answer of GetMeta.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct GetMetaResponse {
    /// Certificate of the root CA, PEM. Compare its public key, never its bytes: it is made anew at each start.
    #[prost(string, tag = "1")]
    pub ca_cert: String,
    /// Always false.
    #[prost(bool, tag = "2")]
    pub allow_any_upgrade: bool,
    /// Compressed root secp256k1 key.
    #[prost(bytes = "vec", tag = "3")]
    #[serde(with = "crate::hexbytes")]
    pub k256_pubkey: Vec<u8>,
    /// What was made at bootstrap.
    #[prost(message, optional, tag = "4")]
    pub bootstrap_info: Option<BootstrapInfo>,
    /// Whether images pass that people can log in to.
    #[prost(bool, tag = "5")]
    pub is_dev: bool,
    /// App id of the gateway, 40 hex.
    #[prost(string, optional, tag = "6")]
    pub gateway_app_id: Option<String>,
    /// `intel` or `test:<16 hex>` (trust rule T4).
    #[prost(string, tag = "101")]
    pub realm: String,
    /// `host` or `cvm` (trust rule T4).
    #[prost(string, tag = "102")]
    pub custody: String,
    /// SubjectPublicKeyInfo of the root CA, DER: what apps pin as `key_provider_id` (trust rule T3).
    #[prost(bytes = "vec", tag = "103")]
    #[serde(with = "crate::hexbytes")]
    pub ca_public_key: Vec<u8>,
    /// Domain that was given at bootstrap.
    #[prost(string, tag = "104")]
    pub domain: String,
}

/// Arguments of SubmitUpgrade.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct SubmitUpgradeRequest {
    /// `dstack_core::upgrade::Statement`, canonical bytes.
    #[prost(bytes = "vec", tag = "1")]
    #[serde(with = "crate::hexbytes")]
    pub statement: Vec<u8>,
    /// Ed25519 signature of one of the app's `upgrade_keys`.
    #[prost(bytes = "vec", tag = "2")]
    #[serde(with = "crate::hexbytes")]
    pub signature: Vec<u8>,
    /// The exact bytes of the app's first `app-compose.json`, needed when the key service has not seen it yet.
    #[prost(bytes = "vec", tag = "3")]
    #[serde(with = "crate::hexbytes")]
    pub first_compose: Vec<u8>,
}

/// Arguments of GetReleaseLog.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct GetReleaseLogRequest {
    /// App id, 20 bytes.
    #[prost(bytes = "vec", tag = "1")]
    #[serde(with = "crate::hexbytes")]
    pub app_id: Vec<u8>,
    /// Entries with a number above this; 0 for all.
    #[prost(uint64, tag = "2")]
    pub after: u64,
    /// Most entries; 0 for as many as fit.
    #[prost(uint32, tag = "3")]
    pub limit: u32,
}

/// Answer of GetReleaseLog (trust rule T23).
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct GetReleaseLogResponse {
    /// The app's entries, each the exact JSON text that is hashed.
    #[prost(string, repeated, tag = "1")]
    pub entries: Vec<String>,
    /// Number of the newest entry of all apps.
    #[prost(uint64, tag = "2")]
    pub head_seq: u64,
    /// Hash of the newest entry, 32 bytes.
    #[prost(bytes = "vec", tag = "3")]
    #[serde(with = "crate::hexbytes")]
    pub head_hash: Vec<u8>,
    /// The root k256 key's signature over `dstack-release-log-v1` ‖ number (8, big-endian) ‖ hash, 65 bytes.
    #[prost(bytes = "vec", tag = "4")]
    #[serde(with = "crate::hexbytes")]
    pub head_signature: Vec<u8>,
    /// Whether there is more after the last entry.
    #[prost(bool, tag = "5")]
    pub more: bool,
}

/// One pair of root keys. Secret; wiped when dropped, never printed.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[prost(skip_debug)]
pub struct KmsKeys {
    /// P-256 scalar of the root CA, 32 bytes.
    #[prost(bytes = "vec", tag = "1")]
    #[serde(default, with = "crate::hexbytes")]
    pub ca_key: Vec<u8>,
    /// secp256k1 scalar, 32 bytes.
    #[prost(bytes = "vec", tag = "2")]
    #[serde(default, with = "crate::hexbytes")]
    pub k256_key: Vec<u8>,
}

impl fmt::Debug for KmsKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KmsKeys(secret)")
    }
}

impl Drop for KmsKeys {
    fn drop(&mut self) {
        self.ca_key.zeroize();
        self.k256_key.zeroize();
    }
}

/// Arguments of GetKmsKey.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct GetKmsKeyRequest {
    /// Realm of the caller; the keys stay within one.
    #[prost(string, tag = "1")]
    pub realm: String,
    /// Custody of the caller.
    #[prost(string, tag = "2")]
    pub custody: String,
}

/// Answer of GetKmsKey. The field numbers leave out the original's shared authority (known attack P21).
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct GetKmsKeyResponse {
    /// The root keys.
    #[prost(message, repeated, tag = "2")]
    pub keys: Vec<KmsKeys>,
    /// Realm of the keys.
    #[prost(string, tag = "101")]
    pub realm: String,
    /// Custody of the keys: it only ever gets worse.
    #[prost(string, tag = "102")]
    pub custody: String,
    /// Domain that was given at bootstrap.
    #[prost(string, tag = "103")]
    pub domain: String,
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::field_reassign_with_default)]
mod tests {
    use super::*;
    use crate::wire::{Format, decode, encode};

    #[test]
    fn secrets_are_never_printed() {
        let mut keys = AppKeyResponse::default();
        keys.disk_crypt_key = vec![0xab; 32];
        assert!(!format!("{keys:?}").contains("171"));
        assert!(!format!("{:?}", KmsKeys { ca_key: vec![0xab; 32], k256_key: Vec::new() }).contains("171"));
    }

    #[test]
    fn both_formats_carry_the_same() {
        let mut keys = AppKeyResponse::default();
        (keys.k256_key, keys.gateway_app_id) = (vec![1; 32], "any".to_owned());
        for format in [Format::Json, Format::Protobuf] {
            let bytes = encode(format, &keys).unwrap();
            assert_eq!(decode::<AppKeyResponse>(format, &bytes).unwrap(), keys);
        }
        let meta: GetMetaResponse = decode(Format::Json, b"{\"realm\":\"intel\"}").unwrap();
        assert_eq!((meta.realm.as_str(), meta.bootstrap_info), ("intel", None));
    }
}
