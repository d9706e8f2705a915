// SPDX-License-Identifier: Apache-2.0
//! What the data plane is told: settings, certificates, instances.

use crate::ids::{AppId, InstanceId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use zeroize::Zeroizing;

/// Settings of the data plane. Names and defaults as in `tproxy.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Domains under which names carry ids ([`crate::sni`]), in lower case; may be empty.
    pub base_domains: Vec<String>,
    /// How long things may take.
    pub timeouts: Timeouts,
    /// How many instances of an app are tried at once; 0 means all.
    pub connect_top_n: u32,
    /// Port of the guest agent, where a bare id leads by plain HTTP.
    pub tappd_port: u16,
    /// Most connections to one app at a time, in all its instances.
    pub connections_per_app: u32,
    /// Most connections that have not reached an app yet; beyond it the oldest is closed.
    pub half_open: u32,
    /// Whether instances may ask for PROXY protocol headers ([`Instance::proxy_protocol`]).
    pub proxy_protocol: bool,
    /// When the kernel takes TLS over.
    pub ktls: Ktls,
}

/// When the kernel takes over the TLS of a connection that ends here, once much has gone over it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ktls {
    /// When it can, and can do all that clients may ask for.
    #[default]
    Auto,
    /// Also TLS 1.3 by a kernel that cannot change keys: a client that changes them loses its connection.
    Always,
    /// Never.
    Off,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            base_domains: Vec::new(),
            timeouts: Timeouts::default(),
            connect_top_n: 3,
            tappd_port: 8090,
            connections_per_app: 10_000,
            half_open: 32_768,
            proxy_protocol: true,
            ktls: Ktls::Auto,
        }
    }
}

/// How long things may take, milliseconds; `null` for those that may take for ever.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Timeouts {
    /// Connecting to an instance.
    pub connect: u64,
    /// From accepting a client until its ClientHello or HTTP head is whole, and again until TLS is set up.
    pub handshake: u64,
    /// Neither side sends anything.
    pub idle: Option<u64>,
    /// One side takes nothing of what the other has sent, and all buffers between them are full.
    pub write: Option<u64>,
    /// Closing, once both sides have said all.
    pub shutdown: u64,
    /// The whole connection.
    pub total: Option<u64>,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: 5_000,
            handshake: 5_000,
            idle: Some(600_000),
            write: Some(60_000),
            shutdown: 5_000,
            total: Some(5 * 3_600_000),
        }
    }
}

/// Text that is erased when dropped, and never printed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// The text.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(Zeroizing::new(text))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// A certificate and its key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// Names it is for, in lower case; `*.` stands for one label.
    pub names: Vec<String>,
    /// Certificates in PEM, the leaf first.
    pub chain: String,
    /// Private key in PEM (PKCS#8, SEC1 or PKCS#1): P-256, P-384, Ed25519 or RSA.
    pub key: Secret,
}

/// A registered instance: the only addresses that are ever dialled are these.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// Its id, from verified evidence.
    pub instance_id: InstanceId,
    /// Its app's id, from verified evidence.
    pub app_id: AppId,
    /// Its address in the WireGuard network.
    pub address: IpAddr,
    /// Newest WireGuard handshake, Unix seconds; `None` when there was none.
    #[serde(default)]
    pub handshake: Option<u64>,
    /// Ports that may be reached; `None` means all.
    #[serde(default)]
    pub port_policy: Option<BTreeSet<u16>>,
    /// Ports whose connections begin with a PROXY protocol v2 header.
    #[serde(default)]
    pub proxy_protocol: BTreeSet<u16>,
    /// It gets no new connections.
    #[serde(default)]
    pub draining: bool,
}

impl Instance {
    /// Whether a port of it may be reached.
    #[must_use]
    pub fn allows(&self, port: u16) -> bool {
        self.port_policy.as_ref().is_none_or(|ports| ports.contains(&port))
    }
}
