// SPDX-License-Identifier: Apache-2.0
//! `ct-monitor.toml` as written, with its defaults.

use serde::Deserialize;
use std::path::PathBuf;

/// The file as written; every key has a default, unknown keys are refused.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Input {
    pub(super) domains: Vec<String>,
    pub(super) skip_expired: bool,
    pub(super) blind_after: String,
    pub(super) known_keys: Vec<String>,
    pub(super) crtsh: CrtshInput,
    pub(super) certbot: CertbotInput,
    pub(super) tproxy: Vec<TproxyInput>,
    pub(super) log: Vec<LogInput>,
    pub(super) collateral: CollateralInput,
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct CrtshInput {
    pub(super) enabled: bool,
    pub(super) url: String,
    pub(super) downloads_per_check: u32,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct CertbotInput {
    pub(super) enabled: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct TproxyInput {
    pub(super) uri: String,
    pub(super) kms_public_key: String,
    pub(super) app_id: String,
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct LogInput {
    pub(super) name: String,
    pub(super) kind: String,
    pub(super) url: String,
    pub(super) key: String,
    pub(super) origin: String,
    pub(super) start: Option<u64>,
    pub(super) entries_per_check: u64,
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct CollateralInput {
    pub(super) pccs_url: String,
    pub(super) quote_sim: PathBuf,
}

impl Default for Input {
    fn default() -> Self {
        Self {
            domains: Vec::new(),
            skip_expired: false,
            blind_after: "24h".into(),
            known_keys: Vec::new(),
            crtsh: CrtshInput::default(),
            certbot: CertbotInput::default(),
            tproxy: Vec::new(),
            log: Vec::new(),
            collateral: CollateralInput::default(),
        }
    }
}

impl Default for CrtshInput {
    fn default() -> Self {
        Self { enabled: true, url: "https://crt.sh".into(), downloads_per_check: 100 }
    }
}

impl Default for LogInput {
    fn default() -> Self {
        Self {
            name: String::new(),
            kind: String::new(),
            url: String::new(),
            key: String::new(),
            origin: String::new(),
            start: None,
            entries_per_check: 50_000,
        }
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
