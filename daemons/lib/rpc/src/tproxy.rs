// SPDX-License-Identifier: Apache-2.0
//! Messages of `Tproxy`, the ingress; spoken over TLS.
//!
//! | method | who may call |
//! |---|---|
//! | RegisterCvm | a ready boot, with a certificate of tproxy's key service and the quote inside |
//! | List, GetInfo, GetMeta, AcmeInfo | anybody |
//!
//! RegisterCvm has two answers that do not fit each other: called as `Tproxy.RegisterCvm` (or without a service) it gives
//! [`RegisterCvmResponse`], called as `Gateway.RegisterCvm` it gives [`GatewayRegisterResponse`], which names several
//! servers.

use prost::Message;
use serde::{Deserialize, Serialize};

/// Arguments of RegisterCvm. Which app and instance registers is in the caller's evidence alone; what it wishes for its
/// ports comes from measured code over its attested connection.
#[derive(Clone, PartialEq, Eq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct RegisterCvmRequest {
    /// The caller's WireGuard public key, base64.
    #[prost(string, tag = "1")]
    pub client_public_key: String,
    /// Ports of the app that may be reached from outside; empty: all.
    #[prost(uint32, repeated, tag = "101")]
    pub allowed_ports: Vec<u32>,
    /// Ports of the app whose connections are to begin with a PROXY protocol v2 header.
    #[prost(uint32, repeated, tag = "102")]
    pub proxy_protocol_ports: Vec<u32>,
}

/// The tunnel of a registered instance, to one server.
#[derive(Clone, PartialEq, Eq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct WireGuardConfig {
    /// The server's public key, base64.
    #[prost(string, tag = "1")]
    pub server_public_key: String,
    /// The instance's address in the tunnel.
    #[prost(string, tag = "2")]
    pub client_ip: String,
    /// The server's address in the tunnel, from which all connections come.
    #[prost(string, tag = "3")]
    pub server_ip: String,
    /// Where the server listens for WireGuard, `host:port`.
    #[prost(string, tag = "4")]
    pub server_endpoint: String,
}

/// How an app is reached from outside.
#[derive(Clone, PartialEq, Eq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct AgentConfig {
    /// Port of the ingress.
    #[prost(uint32, tag = "1")]
    pub external_port: u32,
    /// Port of the guest agent in the CVM.
    #[prost(uint32, tag = "2")]
    pub internal_port: u32,
    /// Base domain: an app is `<id>.<domain>`.
    #[prost(string, tag = "3")]
    pub domain: String,
    /// Prefix of the TXT records of custom domains, e.g. `_dstack-app-address`.
    #[prost(string, tag = "4")]
    pub app_address_ns_prefix: String,
}

/// Answer of `Tproxy.RegisterCvm`.
#[derive(Clone, PartialEq, Eq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct RegisterCvmResponse {
    /// The tunnel.
    #[prost(message, optional, tag = "1")]
    pub wg: Option<WireGuardConfig>,
    /// How the app is reached.
    #[prost(message, optional, tag = "2")]
    pub tappd: Option<AgentConfig>,
}

/// A server of a tunnel.
#[derive(Clone, PartialEq, Eq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct WireGuardPeer {
    /// Public key, base64.
    #[prost(string, tag = "1")]
    pub pk: String,
    /// Address in the tunnel.
    #[prost(string, tag = "2")]
    pub ip: String,
    /// Where it listens for WireGuard, `host:port`.
    #[prost(string, tag = "3")]
    pub endpoint: String,
}

/// The tunnel of a registered instance, to several servers.
#[derive(Clone, PartialEq, Eq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct GatewayWireGuardConfig {
    /// The instance's address in the tunnel.
    #[prost(string, tag = "1")]
    pub client_ip: String,
    /// The servers.
    #[prost(message, repeated, tag = "2")]
    pub servers: Vec<WireGuardPeer>,
}

/// Answer of `Gateway.RegisterCvm`.
#[derive(Clone, PartialEq, Eq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct GatewayRegisterResponse {
    /// The tunnel.
    #[prost(message, optional, tag = "1")]
    pub wg: Option<GatewayWireGuardConfig>,
    /// How the app is reached.
    #[prost(message, optional, tag = "2")]
    pub agent: Option<AgentConfig>,
}

/// A registered instance.
#[derive(Clone, PartialEq, Eq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct HostInfo {
    /// Instance id, 40 hex.
    #[prost(string, tag = "1")]
    #[serde(alias = "id")]
    pub instance_id: String,
    /// Address in the tunnel.
    #[prost(string, tag = "2")]
    pub ip: String,
    /// App id, 40 hex.
    #[prost(string, tag = "3")]
    pub app_id: String,
    /// Base domain of the ingress.
    #[prost(string, tag = "4")]
    pub base_domain: String,
    /// Port of the ingress.
    #[prost(uint32, tag = "5")]
    pub port: u32,
    /// Last WireGuard handshake, Unix seconds; 0 when there was none.
    #[prost(uint64, tag = "6")]
    pub latest_handshake: u64,
}

/// Answer of List.
#[derive(Clone, PartialEq, Eq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct ListResponse {
    /// All registered instances.
    #[prost(message, repeated, tag = "1")]
    pub hosts: Vec<HostInfo>,
}

/// Arguments of GetInfo.
#[derive(Clone, PartialEq, Eq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct GetInfoRequest {
    /// Instance id, 40 hex.
    #[prost(string, tag = "1")]
    pub id: String,
}

/// Answer of GetInfo.
#[derive(Clone, PartialEq, Eq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct GetInfoResponse {
    /// Whether there is such an instance.
    #[prost(bool, tag = "1")]
    pub found: bool,
    /// The instance.
    #[prost(message, optional, tag = "2")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub info: Option<HostInfo>,
}

/// Answer of AcmeInfo.
#[derive(Clone, PartialEq, Eq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct AcmeInfoResponse {
    /// The ACME account, as the CAA record names it; empty when certificates do not come by ACME.
    #[prost(string, tag = "1")]
    pub account_uri: String,
    /// SubjectPublicKeyInfo (DER) of every certificate that was in use, without doubles, sorted.
    #[prost(bytes = "vec", repeated, tag = "2")]
    #[serde(with = "crate::hexbytes::list")]
    pub hist_keys: Vec<Vec<u8>>,
    /// In a CVM: the guest agent's quote of the account, JSON text as GetQuote gives it. Its report data are SHA-512 of
    /// `acme-account:` and the URI. Empty elsewhere.
    #[prost(string, tag = "3")]
    #[serde(skip_serializing_if = "String::is_empty")]
    pub account_quote: String,
}

/// Answer of GetMeta.
#[derive(Clone, PartialEq, Eq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct GetMetaResponse {
    /// Registered instances.
    #[prost(uint32, tag = "1")]
    pub registered: u32,
    /// Those with a handshake in the last 300 seconds.
    #[prost(uint32, tag = "2")]
    pub online: u32,
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Bytes made by hand from the field numbers of the original's protocol.
    #[test]
    fn bytes_are_the_originals() {
        let wg = WireGuardConfig {
            server_public_key: "K".into(),
            client_ip: "C".into(),
            server_ip: "S".into(),
            server_endpoint: "E".into(),
        };
        let tappd =
            AgentConfig { external_port: 443, internal_port: 8090, domain: "D".into(), ..Default::default() };
        let old = RegisterCvmResponse { wg: Some(wg), tappd: Some(tappd.clone()) }.encode_to_vec();
        let agent = b"\x12\x09\x08\xbb\x03\x10\x9a\x3f\x1a\x01D";
        assert_eq!(old, [b"\x0a\x0c\x0a\x01K\x12\x01C\x1a\x01S\x22\x01E".as_slice(), agent].concat());
        let server = WireGuardPeer { pk: "K".into(), ip: "S".into(), endpoint: "E".into() };
        let wg = GatewayWireGuardConfig { client_ip: "C".into(), servers: vec![server] };
        let new = GatewayRegisterResponse { wg: Some(wg), agent: Some(tappd) }.encode_to_vec();
        let expected = b"\x0a\x0e\x0a\x01C\x12\x09\x0a\x01K\x12\x01S\x1a\x01E".as_slice();
        assert_eq!(new, [expected, agent].concat());
        let meta = GetMetaResponse { registered: 3, online: 2 };
        assert_eq!(meta.encode_to_vec(), b"\x08\x03\x10\x02");
        let acme = AcmeInfoResponse {
            account_uri: "A".into(),
            hist_keys: vec![vec![1], vec![2]],
            account_quote: String::new(),
        };
        assert_eq!(acme.encode_to_vec(), b"\x0a\x01A\x12\x01\x01\x12\x01\x02");
        assert_eq!(
            serde_json::to_value(&acme).unwrap(),
            serde_json::json!({"account_uri": "A", "hist_keys": ["01", "02"]})
        );
    }

    #[test]
    fn both_names_of_an_instance_are_read() {
        for text in [r#"{"id":"x","ip":"10.0.0.2"}"#, r#"{"instance_id":"x","ip":"10.0.0.2"}"#] {
            let info: HostInfo = serde_json::from_str(text).unwrap();
            assert_eq!((info.instance_id.as_str(), info.ip.as_str()), ("x", "10.0.0.2"));
        }
        let none = serde_json::to_string(&GetInfoResponse::default()).unwrap();
        assert_eq!(none, r#"{"found":false}"#);
    }
}
