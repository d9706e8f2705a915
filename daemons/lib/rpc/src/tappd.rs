// SPDX-License-Identifier: Apache-2.0
//! Messages of `Tappd`, the older of the two services for containers; `/run/tappd.sock`, `/prpc/Tappd.<Method>`.

use crate::hexbytes::{self, absent};
use prost::Message;
use serde::{Deserialize, Serialize};

/// Arguments of DeriveKey.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct DeriveKeyArgs {
    /// What the key is derived from, beside the app's key.
    #[prost(string, tag = "1")]
    #[serde(deserialize_with = "absent::or_default")]
    pub path: String,
    /// Common name of the certificate.
    #[prost(string, tag = "2")]
    #[serde(deserialize_with = "absent::or_default")]
    pub subject: String,
    /// DNS names of the certificate.
    #[prost(string, repeated, tag = "3")]
    #[serde(deserialize_with = "absent::or_default")]
    pub alt_names: Vec<String>,
    /// Whether the certificate carries a quote.
    #[prost(bool, tag = "4")]
    #[serde(deserialize_with = "absent::or_default")]
    pub usage_ra_tls: bool,
    /// Whether it is for servers.
    #[prost(bool, tag = "5")]
    #[serde(deserialize_with = "absent::or_default")]
    pub usage_server_auth: bool,
    /// Whether it is for clients.
    #[prost(bool, tag = "6")]
    #[serde(deserialize_with = "absent::or_default")]
    pub usage_client_auth: bool,
    /// Whether the key comes from fresh random bytes instead of the app's key.
    #[prost(bool, tag = "7")]
    #[serde(deserialize_with = "absent::or_default")]
    pub random_seed: bool,
}

/// Answer of DeriveKey and of GetTlsKey.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct GetTlsKeyResponse {
    /// The P-256 key, PKCS#8 in PEM.
    #[prost(string, tag = "1")]
    pub key: String,
    /// Certificates in PEM, leaf first.
    #[prost(string, repeated, tag = "2")]
    pub certificate_chain: Vec<String>,
}

/// Arguments of TdxQuote.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct TdxQuoteArgs {
    /// What is to be quoted.
    #[prost(bytes = "vec", tag = "1")]
    #[serde(with = "hexbytes")]
    pub report_data: Vec<u8>,
    /// How it becomes 64 bytes; empty is `sha512`.
    #[prost(string, tag = "2")]
    #[serde(deserialize_with = "absent::or_default")]
    pub hash_algorithm: String,
    /// What is hashed before it and a colon; empty is `app-data`.
    #[prost(string, tag = "3")]
    #[serde(deserialize_with = "absent::or_default")]
    pub prefix: String,
}

/// Answer of TdxQuote and RawQuote.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct TdxQuoteResponse {
    /// The quote.
    #[prost(bytes = "vec", tag = "1")]
    #[serde(with = "hexbytes")]
    pub quote: Vec<u8>,
    /// The event log, JSON text.
    #[prost(string, tag = "2")]
    pub event_log: String,
    /// How the report data was made.
    #[prost(string, tag = "3")]
    pub hash_algorithm: String,
    /// `app-data`, or empty for `raw`; clients know no other.
    #[prost(string, tag = "4")]
    pub prefix: String,
}

/// Answer of DeriveK256Key.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct DeriveK256KeyResponse {
    /// The secp256k1 scalar.
    #[prost(bytes = "vec", tag = "1")]
    #[serde(with = "hexbytes")]
    pub k256_key: Vec<u8>,
    /// Signature of the app key over it, and of the key service over the app key.
    #[prost(bytes = "vec", repeated, tag = "2")]
    #[serde(with = "hexbytes::list")]
    pub k256_signature_chain: Vec<Vec<u8>>,
}
