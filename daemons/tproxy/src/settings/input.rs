// SPDX-License-Identifier: Apache-2.0
//! `tproxy.toml` as written, with its defaults.

use dstack_core::flow::Ktls;
use serde::Deserialize;
use std::path::PathBuf;

/// The file as written; every key has a default, unknown keys are refused.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Input {
    pub(super) wg: WgInput,
    pub(super) proxy: ProxyInput,
    pub(super) recycle: RecycleInput,
    pub(super) kms: KmsInput,
    pub(super) certbot: CertbotInput,
    pub(super) collateral: CollateralInput,
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct WgInput {
    pub(super) interface: String,
    pub(super) ip: String,
    pub(super) client_ip_range: String,
    pub(super) reserved_net: Vec<String>,
    pub(super) listen_port: u16,
    pub(super) endpoint: String,
    pub(super) mtu: u32,
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct ProxyInput {
    pub(super) base_domain: String,
    pub(super) cert_chain: PathBuf,
    pub(super) cert_key: PathBuf,
    pub(super) listen_port: u16,
    pub(super) tappd_port: u16,
    pub(super) connect_top_n: u32,
    pub(super) connections_per_app: u32,
    pub(super) ktls: Ktls,
    pub(super) app_address_ns_prefix: String,
    pub(super) resolver: String,
    pub(super) timeouts: TimeoutsInput,
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct TimeoutsInput {
    pub(super) connect: String,
    pub(super) handshake: String,
    pub(super) data_timeout_enabled: bool,
    pub(super) idle: String,
    pub(super) write: String,
    pub(super) shutdown: String,
    pub(super) total: String,
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RecycleInput {
    pub(super) enabled: bool,
    pub(super) interval: String,
    pub(super) timeout: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct KmsInput {
    pub(super) public_key: String,
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct CertbotInput {
    pub(super) domain: String,
    pub(super) workdir: PathBuf,
    pub(super) agent: PathBuf,
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct CollateralInput {
    pub(super) pccs_url: String,
    pub(super) quote_sim: PathBuf,
}

impl Default for CertbotInput {
    fn default() -> Self {
        Self { domain: String::new(), workdir: PathBuf::new(), agent: "/run/dstack.sock".into() }
    }
}

impl Default for WgInput {
    fn default() -> Self {
        Self {
            interface: "dstack-wg0".into(),
            ip: "10.0.0.1".into(),
            client_ip_range: "10.0.0.0/16".into(),
            reserved_net: Vec::new(),
            listen_port: 51820,
            endpoint: String::new(),
            mtu: 1420,
        }
    }
}

impl Default for ProxyInput {
    fn default() -> Self {
        Self {
            base_domain: String::new(),
            cert_chain: "/etc/dstack/certs/cert.pem".into(),
            cert_key: "/etc/dstack/certs/key.pem".into(),
            listen_port: 9443,
            tappd_port: 8090,
            connect_top_n: 3,
            connections_per_app: 10_000,
            ktls: Ktls::Auto,
            app_address_ns_prefix: "_dstack-app-address".into(),
            resolver: String::new(),
            timeouts: TimeoutsInput::default(),
        }
    }
}

impl Default for TimeoutsInput {
    fn default() -> Self {
        Self {
            connect: "5s".into(),
            handshake: "5s".into(),
            data_timeout_enabled: true,
            idle: "10m".into(),
            write: "1m".into(),
            shutdown: "5s".into(),
            total: "5h".into(),
        }
    }
}

impl Default for RecycleInput {
    fn default() -> Self {
        Self { enabled: true, interval: "5m".into(), timeout: "10h".into() }
    }
}

impl Default for CollateralInput {
    fn default() -> Self {
        Self {
            pccs_url: "https://api.trustedservices.intel.com/tdx/certification/v4".into(),
            quote_sim: "/run/dstack/quote-sim.sock".into(),
        }
    }
}
