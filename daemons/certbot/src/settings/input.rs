// SPDX-License-Identifier: Apache-2.0
//! `certbot.toml` as written, with its defaults. Keys at the top have the names of the original.

use crate::caa::Foreign;
use serde::Deserialize;
use std::path::PathBuf;

/// The file as written; every key has a default, unknown keys are refused.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Input {
    pub(super) workdir: Option<PathBuf>,
    pub(super) acme_url: String,
    pub(super) acme_root: PathBuf,
    pub(super) cf_api_token: String,
    pub(super) cf_zone_id: String,
    pub(super) auto_set_caa: bool,
    pub(super) foreign_caa: Foreign,
    pub(super) issuer: String,
    pub(super) domain: String,
    pub(super) renew_interval: u64,
    pub(super) renew_days_before: u32,
    pub(super) renew_timeout: u64,
    pub(super) reuse_key: bool,
    pub(super) certificate: Vec<CertificateInput>,
    pub(super) eab: EabInput,
    pub(super) dns: DnsInput,
    pub(super) propagation: PropagationInput,
    pub(super) rehearsal: RehearsalInput,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct CertificateInput {
    pub(super) names: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct EabInput {
    pub(super) key_id: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct DnsInput {
    pub(super) provider: String,
    pub(super) cloudflare: CloudflareInput,
    pub(super) rfc2136: Rfc2136Input,
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct CloudflareInput {
    pub(super) base_url: String,
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Rfc2136Input {
    pub(super) server: String,
    pub(super) zone: String,
    pub(super) key_name: String,
    pub(super) algorithm: String,
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct PropagationInput {
    pub(super) timeout: u64,
    pub(super) servers: Vec<String>,
    pub(super) resolver: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RehearsalInput {
    pub(super) acme_url: String,
    pub(super) acme_root: PathBuf,
}

impl Default for Input {
    fn default() -> Self {
        Self {
            workdir: None,
            acme_url: super::STAGING.into(),
            acme_root: PathBuf::new(),
            cf_api_token: String::new(),
            cf_zone_id: String::new(),
            auto_set_caa: true,
            foreign_caa: Foreign::default(),
            issuer: String::new(),
            domain: String::new(),
            renew_interval: 3600,
            renew_days_before: 10,
            renew_timeout: 120,
            reuse_key: false,
            certificate: Vec::new(),
            eab: EabInput::default(),
            dns: DnsInput::default(),
            propagation: PropagationInput::default(),
            rehearsal: RehearsalInput::default(),
        }
    }
}

impl Default for CloudflareInput {
    fn default() -> Self {
        Self { base_url: crate::dns::cloudflare::BASE.into() }
    }
}

impl Default for Rfc2136Input {
    fn default() -> Self {
        Self {
            server: String::new(),
            zone: String::new(),
            key_name: String::new(),
            algorithm: "hmac-sha256".into(),
        }
    }
}

impl Default for PropagationInput {
    fn default() -> Self {
        Self { timeout: 120, servers: Vec::new(), resolver: String::new() }
    }
}
