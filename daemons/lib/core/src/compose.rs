// SPDX-License-Identifier: Apache-2.0
//! `app-compose.json`: the measured description of an app.
//!
//! Its exact bytes are hashed, so it is parsed but never rewritten. Keys are those of the original's manifest versions
//! 1 to 3; unknown keys are allowed, since they are measured like the rest.

use crate::flow::PORTS_MAX;
use crate::ids::{ComposeHash, SignerKey};
use crate::limits::{ALLOWED_ENVS_MAX, APP_COMPOSE_MAX, KEY_PROVIDER_ID_MAX, UPGRADE_KEYS_MAX};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// What starts the app.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Runner {
    /// `docker compose up` with `docker_compose_file`.
    DockerCompose,
    /// `bash_script` as the app's main program.
    Bash,
}

/// Where the app's keys come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeyProvider {
    /// A key service that checks the quote.
    Kms,
    /// No keys: a fresh disk and fresh keys at each boot (T24).
    None,
    /// A local key provider on the host.
    Local,
}

/// What a data disk that is older than the last one does to the boot (T13); without it, nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rollback {
    /// The boot ends.
    Refuse,
    /// The boot goes on and says so.
    Warn,
}

/// A port of the app, as the ingress treats it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortRule {
    /// The port, not 0.
    pub port: u16,
    /// Whether its connections begin with a PROXY protocol v2 header.
    #[serde(default)]
    pub pp: bool,
}

/// Where the ingress lets clients in.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PortPolicy {
    /// Ports of which something is said; each once, at most [`PORTS_MAX`].
    pub ports: Vec<PortRule>,
    /// Whether no other port may be reached.
    pub restrict_mode: bool,
}

impl PortPolicy {
    /// The ports that may be reached; `None` means all.
    #[must_use]
    pub fn allowed(&self) -> Option<Vec<u16>> {
        self.restrict_mode.then(|| self.ports.iter().map(|rule| rule.port).collect())
    }

    /// The ports whose connections begin with a PROXY protocol header.
    #[must_use]
    pub fn proxy_protocol(&self) -> Vec<u16> {
        self.ports.iter().filter(|rule| rule.pp).map(|rule| rule.port).collect()
    }

    fn check(&self) -> Result<(), ComposeError> {
        let ports: BTreeSet<u16> = self.ports.iter().map(|rule| rule.port).collect();
        if ports.len() != self.ports.len() || ports.contains(&0) {
            return Err(ComposeError::Field("port_policy.ports must name ports from 1 to 65535, each once"));
        }
        if ports.len() > PORTS_MAX {
            return Err(ComposeError::Field("port_policy.ports has more than 64 ports"));
        }
        if self.restrict_mode && ports.is_empty() {
            return Err(ComposeError::Field(
                "port_policy.restrict_mode without ports would let nobody in: name the ports in port_policy.ports, \
                 or leave tproxy_enabled out",
            ));
        }
        Ok(())
    }
}

/// Login to a private registry.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DockerConfig {
    /// Registry host, empty for Docker's default.
    pub registry: String,
    /// User name; empty means no login.
    pub username: String,
    /// Name of the environment variable that holds the password or token.
    pub token_key: String,
}

/// The parsed description.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppCompose {
    /// 1, 2 or 3.
    pub manifest_version: u32,
    /// The app's name, for people.
    pub name: String,
    /// What starts the app.
    pub runner: Runner,
    /// The compose file as YAML text.
    #[serde(default)]
    pub docker_compose_file: Option<String>,
    /// The main script for runner `bash`.
    #[serde(default)]
    pub bash_script: Option<String>,
    /// A script sourced before the containers start.
    #[serde(default)]
    pub pre_launch_script: Option<String>,
    /// Login to a private registry.
    #[serde(default)]
    pub docker_config: DockerConfig,
    /// Deprecated switches of manifest version 1.
    #[serde(default)]
    pub features: Vec<String>,
    /// Whether keys come from a kms.
    #[serde(default)]
    pub kms_enabled: bool,
    /// Whether the app is reached through tproxy.
    #[serde(default, alias = "gateway_enabled")]
    pub tproxy_enabled: bool,
    /// Which ports may be reached through tproxy; `None` means all.
    #[serde(default)]
    pub port_policy: Option<PortPolicy>,
    /// Whether anybody may read the containers' logs.
    #[serde(default)]
    pub public_logs: bool,
    /// Whether anybody may read the guest's load and containers.
    #[serde(default)]
    pub public_sysinfo: bool,
    /// Whether anybody may read the measurements.
    #[serde(default = "yes")]
    pub public_tcbinfo: bool,
    /// Overrides `kms_enabled`.
    #[serde(default)]
    pub key_provider: Option<KeyProvider>,
    /// The kms to trust, hex SPKI of its CA (T3).
    #[serde(default)]
    pub key_provider_id: String,
    /// Names of the secrets that reach the app; `None` lets all pass.
    #[serde(default)]
    pub allowed_envs: Option<Vec<String>>,
    /// Who signs the encrypted environment (T9); `None` takes it from anybody.
    #[serde(default)]
    pub env_signer: Option<SignerKey>,
    /// Whose signatures allow an upgrade (T8); empty leaves that to the key service's operator.
    #[serde(default)]
    pub upgrade_keys: Vec<SignerKey>,
    /// What happens with a data disk that was put back (T13).
    #[serde(default)]
    pub rollback: Option<Rollback>,
    /// Whether the boot waits for authenticated time before it asks for keys (T12).
    #[serde(default)]
    pub secure_time: bool,
    /// Whether all instances share an empty instance id.
    #[serde(default)]
    pub no_instance_id: bool,
    /// Registries that are spoken to over plain HTTP (T5: only the measured compose may say so).
    #[serde(default)]
    pub insecure_registries: Vec<String>,
    /// Mirrors of Docker's default registry (T5).
    #[serde(default)]
    pub registry_mirrors: Vec<String>,
    /// File system of the data disk; `ext4` is the only one here.
    #[serde(default)]
    pub storage_fs: Option<String>,
}

const fn yes() -> bool {
    true
}

/// Why bytes are not a usable `app-compose.json`.
#[derive(Debug, thiserror::Error)]
pub enum ComposeError {
    /// Larger than [`APP_COMPOSE_MAX`].
    #[error(
        "app-compose.json of {0} bytes is larger than {APP_COMPOSE_MAX}; keep files out of the compose file"
    )]
    TooLarge(usize),
    /// Not the JSON it should be.
    #[error("app-compose.json is not valid: {0}")]
    Json(#[from] serde_json::Error),
    /// A key is missing or has a value that cannot work.
    #[error("app-compose.json: {0}")]
    Field(&'static str),
    /// The compose file inside is not YAML.
    #[error("docker_compose_file is not valid YAML: {0}")]
    Yaml(String),
    /// The compose file inside is YAML but no compose file.
    #[error("docker_compose_file: {0}")]
    ComposeFile(&'static str),
}

impl AppCompose {
    /// Parses and checks the exact bytes of `app-compose.json`.
    ///
    /// # Errors
    /// [`ComposeError`] says which key is wrong and what it needs.
    pub fn parse(bytes: &[u8]) -> Result<Self, ComposeError> {
        if bytes.len() > APP_COMPOSE_MAX {
            return Err(ComposeError::TooLarge(bytes.len()));
        }
        // serde would also take an array of the fields in order, which nobody reads as the same text.
        if bytes.iter().find(|b| !b.is_ascii_whitespace()) != Some(&b'{') {
            return Err(ComposeError::Field("must be a JSON object"));
        }
        let compose: Self = serde_json::from_slice(bytes)?;
        compose.check()?;
        Ok(compose)
    }

    /// The provider in force.
    #[must_use]
    pub fn key_provider(&self) -> KeyProvider {
        let kms = self.kms_enabled || self.features.iter().any(|f| f == "kms");
        self.key_provider.unwrap_or(if kms { KeyProvider::Kms } else { KeyProvider::None })
    }

    /// A promise that the app asks for and guests of this version do not keep; they refuse such an app.
    #[must_use]
    pub const fn unsupported(&self) -> Option<&'static str> {
        if self.secure_time { Some("authenticated time (secure_time)") } else { None }
    }

    /// Whether the app wants to be reached through tproxy.
    #[must_use]
    pub fn wants_tproxy(&self) -> bool {
        self.tproxy_enabled || self.features.iter().any(|f| f == "tproxy-net")
    }

    /// The SubjectPublicKeyInfo (DER) of the key service to trust (T3); empty when there is none.
    #[must_use]
    pub fn key_provider_spki(&self) -> Vec<u8> {
        hex::decode(&self.key_provider_id).unwrap_or_default()
    }

    /// Keys that decide whom the app trusts.
    fn check_trust(&self) -> Result<(), ComposeError> {
        let id = &self.key_provider_id;
        if id.len() > KEY_PROVIDER_ID_MAX || hex::decode(id).is_err() {
            return Err(ComposeError::Field("key_provider_id must be the hex SPKI of the kms's CA key"));
        }
        if id.is_empty() && self.key_provider() == KeyProvider::Kms {
            return Err(ComposeError::Field(
                "key_provider kms needs key_provider_id, the hex SPKI of the kms's CA key (`dstackctl kms status` \
                 shows it, `dstackctl deploy` writes it): without it the host could choose the kms",
            ));
        }
        if self.allowed_envs.as_ref().is_some_and(|names| names.len() > ALLOWED_ENVS_MAX) {
            return Err(ComposeError::Field("allowed_envs has more names than an environment may have"));
        }
        if self.upgrade_keys.len() > UPGRADE_KEYS_MAX {
            return Err(ComposeError::Field("upgrade_keys has more than 16 keys"));
        }
        Ok(())
    }

    /// Rollback protection is the key service's memory of an instance's disk, so there must be one of each (T13).
    fn check_rollback(&self) -> Result<(), ComposeError> {
        match self.rollback {
            Some(_) if self.key_provider() != KeyProvider::Kms => Err(ComposeError::Field(
                "rollback protection (rollback) needs key_provider kms: without a key service nobody remembers the disk, \
                 and it is new at each boot; remove rollback, or deploy with a key service",
            )),
            Some(_) if self.no_instance_id => Err(ComposeError::Field(
                "rollback protection (rollback) needs instance ids: with no_instance_id nobody can tell the disks of the \
                 app's instances apart; remove one of the two",
            )),
            _ => Ok(()),
        }
    }

    fn check(&self) -> Result<(), ComposeError> {
        if !(1..=3).contains(&self.manifest_version) {
            return Err(ComposeError::Field("manifest_version must be 1, 2 or 3"));
        }
        if self.name.is_empty() || self.name.len() > 128 {
            return Err(ComposeError::Field("name must have 1 to 128 characters"));
        }
        if self.storage_fs.as_deref().is_some_and(|fs| fs != "ext4") {
            return Err(ComposeError::Field("storage_fs must be \"ext4\""));
        }
        self.check_trust()?;
        self.check_rollback()?;
        self.port_policy.as_ref().map_or(Ok(()), PortPolicy::check)?;
        match (self.runner, &self.docker_compose_file, &self.bash_script) {
            (Runner::DockerCompose, Some(text), _) => check_compose_file(text),
            (Runner::DockerCompose, None, _) => {
                Err(ComposeError::Field("runner docker-compose needs docker_compose_file"))
            }
            (Runner::Bash, _, Some(script)) if !script.is_empty() => Ok(()),
            (Runner::Bash, ..) => Err(ComposeError::Field("runner bash needs bash_script")),
        }
    }
}

/// Only what is needed to know that docker compose has something to start.
#[derive(Deserialize)]
struct ComposeFile {
    services: Option<std::collections::BTreeMap<String, serde_json::Value>>,
}

/// Checks that a text is a compose file with at least one service.
///
/// # Errors
/// [`ComposeError::Yaml`] with line and column, or [`ComposeError::ComposeFile`].
pub fn check_compose_file(text: &str) -> Result<(), ComposeError> {
    let file: ComposeFile = serde_saphyr::from_str(text).map_err(|e| ComposeError::Yaml(e.to_string()))?;
    match file.services {
        Some(services) if !services.is_empty() => Ok(()),
        _ => Err(ComposeError::ComposeFile(
            "has no services; a compose file needs at least one under `services:`",
        )),
    }
}

/// Hash of the exact bytes: what RTMR3 and MRCONFIGID carry.
#[must_use]
pub fn hash(bytes: &[u8]) -> ComposeHash {
    ComposeHash::of(bytes)
}

#[cfg(test)]
#[path = "compose_tests.rs"]
mod tests;
