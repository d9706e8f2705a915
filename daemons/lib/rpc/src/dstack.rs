// SPDX-License-Identifier: Apache-2.0
//! Messages of `DstackGuest`, the newer of the two services for containers; `/run/dstack.sock`, `/<Method>`.

use crate::hexbytes::{self, absent};
use prost::Message;
use serde::{Deserialize, Serialize};

/// Arguments of GetTlsKey.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct GetTlsKeyArgs {
    /// Common name of the certificate.
    #[prost(string, tag = "1")]
    #[serde(deserialize_with = "absent::or_default")]
    pub subject: String,
    /// DNS names of the certificate.
    #[prost(string, repeated, tag = "2")]
    #[serde(deserialize_with = "absent::or_default")]
    pub alt_names: Vec<String>,
    /// Whether the certificate carries a quote.
    #[prost(bool, tag = "3")]
    #[serde(deserialize_with = "absent::or_default")]
    pub usage_ra_tls: bool,
    /// Whether it is for servers.
    #[prost(bool, tag = "4")]
    #[serde(deserialize_with = "absent::or_default")]
    pub usage_server_auth: bool,
    /// Whether it is for clients.
    #[prost(bool, tag = "5")]
    #[serde(deserialize_with = "absent::or_default")]
    pub usage_client_auth: bool,
    /// Start of the certificate's life, seconds since 1970.
    #[prost(uint64, optional, tag = "6")]
    pub not_before: Option<u64>,
    /// End of it.
    #[prost(uint64, optional, tag = "7")]
    pub not_after: Option<u64>,
    /// Whether the certificate carries the app's id.
    #[prost(bool, tag = "8")]
    #[serde(deserialize_with = "absent::or_default")]
    pub with_app_info: bool,
}

/// Arguments of GetKey.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct GetKeyArgs {
    /// What the key is derived from, beside the app's key.
    #[prost(string, tag = "1")]
    #[serde(deserialize_with = "absent::or_default")]
    pub path: String,
    /// What it is for; signed with it, and without influence on it.
    #[prost(string, tag = "2")]
    #[serde(deserialize_with = "absent::or_default")]
    pub purpose: String,
    /// `secp256k1` (also `k256` and nothing) or `ed25519`.
    #[prost(string, tag = "3")]
    #[serde(deserialize_with = "absent::or_default")]
    pub algorithm: String,
}

/// Answer of GetKey.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct GetKeyResponse {
    /// The secret, 32 bytes.
    #[prost(bytes = "vec", tag = "1")]
    #[serde(with = "hexbytes")]
    pub key: Vec<u8>,
    /// Signature of the app key over it, and of the key service over the app key.
    #[prost(bytes = "vec", repeated, tag = "2")]
    #[serde(with = "hexbytes::list")]
    pub signature_chain: Vec<Vec<u8>>,
}

/// Arguments of GetQuote, Attest and RawQuote.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct RawQuoteArgs {
    /// Report data, at most 64 bytes.
    #[prost(bytes = "vec", tag = "1")]
    #[serde(with = "hexbytes")]
    pub report_data: Vec<u8>,
}

/// Answer of GetQuote.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct GetQuoteResponse {
    /// The quote.
    #[prost(bytes = "vec", tag = "1")]
    #[serde(with = "hexbytes")]
    pub quote: Vec<u8>,
    /// The event log, JSON text.
    #[prost(string, tag = "2")]
    pub event_log: String,
    /// The 64 bytes that were quoted.
    #[prost(bytes = "vec", tag = "3")]
    #[serde(with = "hexbytes")]
    pub report_data: Vec<u8>,
    /// The VM's shape as the host claims it, JSON text.
    #[prost(string, tag = "4")]
    pub vm_config: String,
}

/// Answer of Attest.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct AttestResponse {
    /// Quote, event log, report data and VM shape in one blob.
    #[prost(bytes = "vec", tag = "1")]
    #[serde(with = "hexbytes")]
    pub attestation: Vec<u8>,
}

/// Arguments of EmitEvent.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct EmitEventArgs {
    /// Name of the event.
    #[prost(string, tag = "1")]
    #[serde(deserialize_with = "absent::or_default")]
    pub event: String,
    /// Its payload.
    #[prost(bytes = "vec", tag = "2")]
    #[serde(with = "hexbytes")]
    pub payload: Vec<u8>,
}

/// Arguments of Sign.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct SignArgs {
    /// `ed25519`, `secp256k1` or `secp256k1_prehashed`.
    #[prost(string, tag = "1")]
    #[serde(deserialize_with = "absent::or_default")]
    pub algorithm: String,
    /// What is to be signed.
    #[prost(bytes = "vec", tag = "2")]
    #[serde(with = "hexbytes")]
    pub data: Vec<u8>,
}

/// Answer of Sign.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct SignResponse {
    /// The signature: 64 bytes, for secp256k1 a recovery id more.
    #[prost(bytes = "vec", tag = "1")]
    #[serde(with = "hexbytes")]
    pub signature: Vec<u8>,
    /// The signature, that of the app key over the public key, and that of the key service over the app key.
    #[prost(bytes = "vec", repeated, tag = "2")]
    #[serde(with = "hexbytes::list")]
    pub signature_chain: Vec<Vec<u8>>,
    /// The public key: 32 bytes, or 33 in compressed form.
    #[prost(bytes = "vec", tag = "3")]
    #[serde(with = "hexbytes")]
    pub public_key: Vec<u8>,
}

/// Arguments of Verify.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct VerifyArgs {
    /// `ed25519`, `secp256k1` or `secp256k1_prehashed`.
    #[prost(string, tag = "1")]
    #[serde(deserialize_with = "absent::or_default")]
    pub algorithm: String,
    /// What was signed.
    #[prost(bytes = "vec", tag = "2")]
    #[serde(with = "hexbytes")]
    pub data: Vec<u8>,
    /// The signature.
    #[prost(bytes = "vec", tag = "3")]
    #[serde(with = "hexbytes")]
    pub signature: Vec<u8>,
    /// The public key.
    #[prost(bytes = "vec", tag = "4")]
    #[serde(with = "hexbytes")]
    pub public_key: Vec<u8>,
}

/// Answer of Verify.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct VerifyResponse {
    /// Whether the signature is good.
    #[prost(bool, tag = "1")]
    pub valid: bool,
}

/// Answer of Info.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct AppInfo {
    /// App id, 20 bytes.
    #[prost(bytes = "vec", tag = "1")]
    #[serde(with = "hexbytes")]
    pub app_id: Vec<u8>,
    /// Instance id, 20 bytes or none.
    #[prost(bytes = "vec", tag = "2")]
    #[serde(with = "hexbytes")]
    pub instance_id: Vec<u8>,
    /// A certificate of this instance with its quote, PEM; empty while there is none.
    #[prost(string, tag = "3")]
    pub app_cert: String,
    /// Measurements, JSON text.
    #[prost(string, tag = "4")]
    pub tcb_info: String,
    /// The app's name.
    #[prost(string, tag = "5")]
    pub app_name: String,
    /// Whether logs are public.
    #[prost(bool, tag = "6")]
    pub public_logs: bool,
    /// Whether load and containers are public.
    #[prost(bool, tag = "7")]
    pub public_sysinfo: bool,
    /// SHA-256 of the platform's id.
    #[prost(bytes = "vec", tag = "8")]
    #[serde(with = "hexbytes")]
    pub device_id: Vec<u8>,
    /// SHA-256 over all registers.
    #[prost(bytes = "vec", tag = "9")]
    #[serde(with = "hexbytes")]
    pub mr_aggregated: Vec<u8>,
    /// Hash of the image.
    #[prost(bytes = "vec", tag = "10")]
    #[serde(with = "hexbytes")]
    pub os_image_hash: Vec<u8>,
    /// Name and id of the key provider, JSON text.
    #[prost(string, tag = "12")]
    pub key_provider_info: String,
    /// SHA-256 of app-compose.json.
    #[prost(bytes = "vec", tag = "13")]
    #[serde(with = "hexbytes")]
    pub compose_hash: Vec<u8>,
    /// The VM's shape as the host claims it, JSON text.
    #[prost(string, tag = "14")]
    pub vm_config: String,
    /// Maker of the machine, always empty here.
    #[prost(string, tag = "15")]
    pub cloud_vendor: String,
    /// Product of the maker, always empty here.
    #[prost(string, tag = "16")]
    pub cloud_product: String,
}
