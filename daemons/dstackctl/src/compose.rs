// SPDX-License-Identifier: Apache-2.0
//! Builds `app-compose.json`. Its bytes decide the app id, so the order of its keys is fixed: first those of the
//! original's page in its order, then the later ones.

use crate::cli_deploy::{Document, Runner};
use crate::errors::Failure;
use crate::pin;
use dstack_core::compose::{AppCompose, PortPolicy, Rollback};
use dstack_core::ids::SignerKey;
use dstack_core::limits::{APP_COMPOSE_MAX, VM_NAME_MAX};
use serde::{Deserialize, Serialize};
use std::io::Read;
use std::path::{Path, PathBuf};

/// A file that was read, with the name it gives to an app.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Input {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Name of the directory it lies in; empty for standard input.
    pub directory: String,
    /// How it was named, for errors.
    pub shown: String,
}

/// A finished `app-compose.json`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Built {
    /// The exact bytes.
    pub bytes: Vec<u8>,
    /// What they say.
    pub parsed: AppCompose,
    /// Images that are named by tag, so that another image may come at another pull.
    pub unpinned: Vec<String>,
}

/// Whom the app trusts; decided before the document is written, since it is measured with the rest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trust {
    /// The key service, hex SPKI of its CA (T3); `None`: no keys.
    pub key_provider_id: Option<String>,
    /// Names of the secrets that reach the app, sorted.
    pub allowed_envs: Vec<String>,
    /// Who sends them (T9).
    pub env_signer: Option<SignerKey>,
    /// Who allows upgrades (T8).
    pub upgrade_keys: Vec<SignerKey>,
    /// What an older data disk does (T13).
    pub rollback: Option<Rollback>,
    /// Whether its instances register with the ingress.
    pub tproxy: bool,
    /// Where the ingress lets clients in.
    pub port_policy: Option<PortPolicy>,
}

impl Trust {
    /// What a document says of it.
    #[must_use]
    pub fn of(document: &AppCompose) -> Self {
        let kms = document.key_provider() == dstack_core::compose::KeyProvider::Kms;
        Self {
            key_provider_id: kms.then(|| document.key_provider_id.clone()),
            allowed_envs: document.allowed_envs.clone().unwrap_or_default(),
            env_signer: document.env_signer,
            upgrade_keys: document.upgrade_keys.clone(),
            rollback: document.rollback,
            tproxy: document.tproxy_enabled,
            port_policy: document.port_policy.clone(),
        }
    }
}

/// Reads a file, or standard input for `-`; at most a little more than an `app-compose.json` may have.
///
/// # Errors
/// When it cannot be read.
pub fn read(path: &Path) -> Result<Input, Failure> {
    let cannot = |e: std::io::Error| Failure::new(format!("cannot read {}: {e}", path.display()));
    let limit = APP_COMPOSE_MAX as u64 + 1;
    let mut bytes = Vec::new();
    if path == Path::new("-") {
        std::io::stdin().lock().take(limit).read_to_end(&mut bytes).map_err(cannot)?;
        return Ok(Input { bytes, directory: String::new(), shown: "standard input".to_owned() });
    }
    let file = std::fs::File::open(path).map_err(cannot)?;
    file.take(limit).read_to_end(&mut bytes).map_err(cannot)?;
    let absolute = std::path::absolute(path).map_err(cannot)?;
    let directory = absolute.parent().and_then(Path::file_name).unwrap_or_default();
    let directory = directory.to_string_lossy().into_owned();
    Ok(Input { bytes, directory, shown: path.display().to_string() })
}

fn read_text(path: &Option<PathBuf>) -> Result<Option<String>, Failure> {
    let Some(path) = path else { return Ok(None) };
    let text = String::from_utf8(read(path)?.bytes);
    text.map(Some).map_err(|_| Failure::new(format!("{} is not UTF-8 text", path.display())))
}

/// Builds the document from what the user gave. `name` is the app's name, if one is given.
///
/// # Errors
/// A wrong file or option, with what it needs.
pub fn build(
    input: Option<&Input>,
    name: Option<&str>,
    options: &Document,
    trust: &Trust,
) -> Result<Built, Failure> {
    let bytes = match input {
        Some(input) if input.is_document() => {
            refuse_changes(options)?;
            input.bytes.clone()
        }
        _ => from_parts(input, name, options, trust)?,
    };
    let shown = input.map(|i| format!("{}: ", i.shown)).unwrap_or_default();
    let parsed = AppCompose::parse(&bytes).map_err(|e| Failure::new(format!("{shown}{e}")))?;
    if let Some(what) = parsed.unsupported() {
        return Err(Failure::new(format!(
            "{shown}the app asks for {what}, which guests of this version do not give and therefore refuse; leave it out"
        )));
    }
    let unpinned = parsed.docker_compose_file.as_deref().map(pin::unpinned).unwrap_or_default();
    Ok(Built { bytes, parsed, unpinned })
}

impl Input {
    /// Whether this is an `app-compose.json` already: a JSON object with a manifest version.
    #[must_use]
    pub fn is_document(&self) -> bool {
        let object: Result<serde_json::Map<String, serde_json::Value>, _> =
            serde_json::from_slice(&self.bytes);
        object.is_ok_and(|o| o.contains_key("manifest_version") || o.contains_key("docker_compose_file"))
    }
}

/// The document in the order that decides its hash.
#[derive(Serialize)]
struct Ordered<'a> {
    manifest_version: u32,
    name: &'a str,
    runner: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    docker_compose_file: Option<&'a str>,
    docker_config: DockerConfig<'a>,
    kms_enabled: bool,
    tproxy_enabled: bool,
    public_logs: bool,
    public_sysinfo: bool,
    key_provider: &'static str,
    allowed_envs: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    bash_script: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pre_launch_script: Option<String>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    insecure_registries: &'a [String],
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    registry_mirrors: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    key_provider_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    env_signer: Option<SignerKey>,
    #[serde(skip_serializing_if = "<[SignerKey]>::is_empty")]
    upgrade_keys: &'a [SignerKey],
    #[serde(skip_serializing_if = "Option::is_none")]
    rollback: Option<Rollback>,
    #[serde(skip_serializing_if = "Option::is_none")]
    port_policy: Option<&'a PortPolicy>,
}

/// `{}` without a login.
#[derive(Serialize, Default)]
struct DockerConfig<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    registry: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    username: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_key: Option<&'a str>,
}

/// The token of a login is a secret: it must be one that reaches the app.
fn docker_config<'a>(options: &'a Document, trust: &Trust) -> Result<DockerConfig<'a>, Failure> {
    let (Some(login), Some(key)) = (&options.docker_login, &options.docker_token_key) else {
        return Ok(DockerConfig::default());
    };
    if !trust.allowed_envs.contains(key) {
        return Err(Failure::usage(format!("--docker-token-key {key} names no secret of the app")).hint(
            format!(
                "give the token as a secret: --env {key}, with {key} in the environment, or --env-file FILE"
            ),
        ));
    }
    let (username, registry) = login.rsplit_once('@').map_or((login.as_str(), None), |(u, r)| (u, Some(r)));
    Ok(DockerConfig { registry, username: Some(username), token_key: Some(key) })
}

fn from_parts(
    input: Option<&Input>,
    name: Option<&str>,
    options: &Document,
    trust: &Trust,
) -> Result<Vec<u8>, Failure> {
    let text = input.map(|i| std::str::from_utf8(&i.bytes)).transpose();
    let text = text.map_err(|_| Failure::new("the compose file is not UTF-8 text"))?;
    let derived = name.map(str::to_owned).or_else(|| derive_name(text, input)).ok_or_else(|| {
        Failure::usage("the app has no name: give one with --name, or with `name:` in the compose file")
    })?;
    let script = read_text(&options.script)?;
    match (options.runner, text, &script) {
        (Runner::DockerCompose, None, _) => return Err(Failure::usage("give a docker-compose.yaml")),
        (Runner::DockerCompose, _, Some(_)) => return Err(Failure::usage("--script needs --runner bash")),
        (Runner::Bash, _, None) => return Err(Failure::usage("--runner bash needs --script")),
        (Runner::Bash, Some(_), _) => {
            return Err(Failure::usage("--runner bash takes no compose file, only --script"));
        }
        _ => {}
    }
    let document = Ordered {
        manifest_version: 2,
        name: &derived,
        runner: if options.runner == Runner::Bash { "bash" } else { "docker-compose" },
        docker_compose_file: text,
        docker_config: docker_config(options, trust)?,
        kms_enabled: trust.key_provider_id.is_some(),
        tproxy_enabled: trust.tproxy,
        public_logs: !options.no_public_logs,
        public_sysinfo: !options.no_public_sysinfo,
        key_provider: if trust.key_provider_id.is_some() { "kms" } else { "none" },
        allowed_envs: &trust.allowed_envs,
        bash_script: script,
        pre_launch_script: read_text(&options.pre_launch_script)?,
        insecure_registries: &options.registry_insecure,
        registry_mirrors: &options.registry_mirror,
        key_provider_id: trust.key_provider_id.as_deref(),
        env_signer: trust.env_signer,
        upgrade_keys: &trust.upgrade_keys,
        rollback: trust.rollback,
        port_policy: trust.port_policy.as_ref(),
    };
    serde_json::to_vec(&document).map_err(|e| Failure::new(format!("cannot write app-compose.json: {e}")))
}

/// What this command reads of a compose file.
#[derive(Deserialize)]
struct ComposeFile {
    name: Option<String>,
}

fn derive_name(text: Option<&str>, input: Option<&Input>) -> Option<String> {
    let file: Option<ComposeFile> = text.and_then(|t| serde_saphyr::from_str(t).ok());
    let name = file.and_then(|f| f.name).or_else(|| input.map(|i| i.directory.clone()))?;
    let name = valid_name(&name);
    (!name.is_empty()).then_some(name)
}

/// The nearest valid VM name: lower case, other characters as single dashes, cut to its limit; may be empty.
#[must_use]
pub fn valid_name(text: &str) -> String {
    let mut name = String::new();
    for c in text.chars().map(|c| c.to_ascii_lowercase()) {
        match c {
            'a'..='z' | '0'..='9' => name.push(c),
            _ if name.is_empty() || name.ends_with('-') => {}
            _ => name.push('-'),
        }
    }
    name.truncate(VM_NAME_MAX);
    name.trim_end_matches('-').to_owned()
}

/// An `app-compose.json` is used byte for byte: options that would change it are a mistake.
fn refuse_changes(options: &Document) -> Result<(), Failure> {
    let given = [
        ("--registry-insecure", !options.registry_insecure.is_empty()),
        ("--registry-mirror", !options.registry_mirror.is_empty()),
        ("--pre-launch-script", options.pre_launch_script.is_some()),
        ("--runner", options.runner != Runner::DockerCompose),
        ("--script", options.script.is_some()),
        ("--public-logs", options.public_logs),
        ("--no-public-logs", options.no_public_logs),
        ("--public-sysinfo", options.public_sysinfo),
        ("--no-public-sysinfo", options.no_public_sysinfo),
        ("--tproxy", options.tproxy),
        ("--no-tproxy", options.no_tproxy),
        ("--tproxy-port", !options.tproxy_port.is_empty()),
        ("--proxy-protocol", !options.proxy_protocol.is_empty()),
        ("--pin", options.pin),
        ("--key-provider", options.key_provider.is_some()),
        ("--kms", options.kms.is_some()),
        ("--docker-login", options.docker_login.is_some()),
        ("--upgrade-key", !options.upgrade_key.is_empty()),
        ("--rollback", options.rollback.is_some()),
    ];
    match given.into_iter().find(|(_, set)| *set) {
        None => Ok(()),
        Some((option, _)) => Err(Failure::usage(format!(
            "the file is an app-compose.json, which is used byte for byte: {option} cannot change it"
        ))
        .hint("edit the file, or give the docker-compose.yaml instead")),
    }
}

#[cfg(test)]
#[path = "compose_tests.rs"]
mod tests;
