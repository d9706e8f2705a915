// SPDX-License-Identifier: Apache-2.0
//! The arguments of `deploy` and `vm upgrade`: what makes an `app-compose.json`.

use crate::cli::Shape;
use clap::{ArgGroup, Args, ValueEnum, ValueHint};
use dstack_core::compose::Rollback;
use dstack_core::ids::{AppId, VmName};
use std::path::PathBuf;

/// Where an app's keys come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum KeyProvider {
    /// No key service: disk and keys are fresh at each boot
    None,
    /// A key service that checks the VM's quote
    Kms,
}

/// What starts the app.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Runner {
    /// docker compose up
    #[default]
    DockerCompose,
    /// A bash script as the main program
    Bash,
}

/// A port of the app for clients of the ingress, or the option's word for the opposite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IngressPort(pub Option<u16>);

impl IngressPort {
    fn or(word: &'static str, text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(0) | Err(_) if text != word => Err(format!("it is a port from 1 to 65535, or {word:?}")),
            port => Ok(Self(port.ok())),
        }
    }

    /// A port, or `all`.
    ///
    /// # Errors
    /// What it has to be.
    pub fn or_all(text: &str) -> Result<Self, String> {
        Self::or("all", text)
    }

    /// A port, or `none`.
    ///
    /// # Errors
    /// What it has to be.
    pub fn or_none(text: &str) -> Result<Self, String> {
        Self::or("none", text)
    }
}

/// What goes into `app-compose.json`, besides the compose file.
#[derive(Debug, Clone, Default, Args)]
pub struct Document {
    /// Pull from this registry over plain HTTP; may be repeated
    #[arg(long, alias = "insecure-registry", value_name = "HOST[:PORT]", help_heading = "What is measured")]
    pub registry_insecure: Vec<String>,
    /// Pull images of Docker Hub from this mirror; may be repeated
    #[arg(long, value_name = "URL", help_heading = "What is measured")]
    pub registry_mirror: Vec<String>,
    /// Log in to a private registry in the VM; needs --docker-token-key and a key service
    #[arg(
        long,
        value_name = "USER[@REGISTRY]",
        requires = "docker_token_key",
        help_heading = "What is measured"
    )]
    pub docker_login: Option<String>,
    /// Name of the secret that holds the registry's password or token
    #[arg(long, value_name = "NAME", requires = "docker_login", help_heading = "What is measured")]
    pub docker_token_key: Option<String>,
    /// Script that is sourced in the guest before the containers start
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = "What is measured")]
    pub pre_launch_script: Option<PathBuf>,
    /// What starts the app
    #[arg(long, value_enum, default_value_t, help_heading = "What is measured")]
    pub runner: Runner,
    /// Main script of runner bash; FILE is then left out
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = "What is measured")]
    pub script: Option<PathBuf>,
    /// Let anybody who reaches the VM read the containers' logs (default)
    #[arg(long, overrides_with = "no_public_logs", help_heading = "What is measured")]
    pub public_logs: bool,
    /// Keep the containers' logs inside the VM
    #[arg(long, help_heading = "What is measured")]
    pub no_public_logs: bool,
    /// Let anybody who reaches the VM read its load and containers (default)
    #[arg(long, overrides_with = "no_public_sysinfo", help_heading = "What is measured")]
    pub public_sysinfo: bool,
    /// Keep load and containers inside the VM
    #[arg(long, help_heading = "What is measured")]
    pub no_public_sysinfo: bool,
    /// Make the app reachable by name through the ingress; by default where the host has one and the app has keys
    #[arg(long, overrides_with = "no_tproxy", help_heading = "What is measured")]
    pub tproxy: bool,
    /// Keep the app away from the ingress
    #[arg(long, help_heading = "What is measured")]
    pub no_tproxy: bool,
    /// Let clients of the ingress reach only this port of the app; may be repeated. `all`, the default, allows each
    #[arg(long, value_name = "PORT", value_delimiter = ',', value_parser = IngressPort::or_all,
        conflicts_with = "no_tproxy", help_heading = "What is measured")]
    pub tproxy_port: Vec<IngressPort>,
    /// Begin the ingress's connections to this port with a PROXY protocol v2 header, which tells the app its client's
    /// address; may be repeated. `none` is the default
    #[arg(long, value_name = "PORT", value_delimiter = ',', value_parser = IngressPort::or_none,
        conflicts_with = "no_tproxy", help_heading = "What is measured")]
    pub proxy_protocol: Vec<IngressPort>,
    /// Pull exactly the images that the tags name now: write their digests into the compose file
    #[arg(long, conflicts_with = "allow_tags", help_heading = "What is measured")]
    pub pin: bool,
    /// Leave images by tag as they are, although another image may come at the next pull
    #[arg(long, help_heading = "What is measured")]
    pub allow_tags: bool,
    /// Where the app's keys come from; by default from the trusted key service, or from this host's, if there is one
    #[arg(long, value_enum, help_heading = "Keys and secrets")]
    pub key_provider: Option<KeyProvider>,
    /// Which trusted key service: its domain, its URL, or the beginning of its fingerprint; or `local`
    #[arg(long, value_name = "KMS", help_heading = "Keys and secrets")]
    pub kms: Option<String>,
    /// Secret for the containers; a NAME alone takes its value from the environment, which is safer: arguments are seen by
    /// every user of this machine
    #[arg(short = 'e', long = "env", value_name = "NAME[=VALUE]", help_heading = "Keys and secrets")]
    pub env: Vec<String>,
    /// Secrets from a file in the form of docker compose's .env; may be repeated
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = "Keys and secrets")]
    pub env_file: Vec<PathBuf>,
    /// Key that signs the secrets, instead of the one that is made at first use
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = "Keys and secrets")]
    pub env_signer: Option<PathBuf>,
    /// Only who holds this key may allow upgrades: 64 hex digits, or a PEM file; may be repeated
    #[arg(long, value_name = "KEY", help_heading = "Keys and secrets")]
    pub upgrade_key: Vec<String>,
    /// What the app does when the host puts back an older data disk; the key service remembers the last one
    #[arg(long, value_enum, value_name = "MODE", help_heading = "Keys and secrets")]
    pub rollback: Option<OlderDisk>,
}

/// What an older data disk does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OlderDisk {
    /// The app does not start
    Refuse,
    /// It starts, and says so
    Warn,
    /// Nobody looks
    Off,
}

impl OlderDisk {
    /// What goes into the document.
    #[must_use]
    pub const fn measured(self) -> Option<Rollback> {
        match self {
            Self::Refuse => Some(Rollback::Refuse),
            Self::Warn => Some(Rollback::Warn),
            Self::Off => None,
        }
    }
}

/// `deploy`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("what").required(true).multiple(true).args(["file", "script"]))]
#[command(after_help = "\
FILE is a docker-compose.yaml, from which app-compose.json is built, or an app-compose.json, used byte for byte; \
- reads standard input.

With a key service the app keeps its disk and keys, and can have secrets: they are encrypted on this machine, for this app \
alone. Its images are then pinned: the digest of each tag is asked for and measured, unless --allow-tags is given. Without \
one, nothing survives a restart of the VM.

The app's logs and load are public unless --no-public-logs and --no-public-sysinfo say otherwise: whoever reaches the \
VM, its host included, can read them.")]
pub struct Deploy {
    /// docker-compose.yaml or app-compose.json
    #[arg(value_hint = ValueHint::FilePath)]
    pub file: Option<PathBuf>,
    /// Name of the app and its VM; by default the compose project or the directory
    #[arg(short, long, value_name = "NAME")]
    pub name: Option<VmName>,
    /// Shape of the VM.
    #[command(flatten)]
    pub shape: Shape,
    /// What goes into app-compose.json.
    #[command(flatten)]
    pub document: Document,
    /// Join an app that exists already: its id
    #[arg(long, value_name = "HEX")]
    pub app_id: Option<AppId>,
    /// File handed to the app as it is, unmeasured and readable by the host
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub user_config: Option<PathBuf>,
    /// Start the VM when the host starts
    #[arg(long)]
    pub autostart: bool,
    /// Create the VM, but do not start it
    #[arg(long)]
    pub no_start: bool,
    /// Only print app-compose.json and the app id
    #[arg(long)]
    pub dry_run: bool,
}

/// `vm upgrade`.
#[derive(Debug, Args)]
#[command(after_help = "\
App id, disk and keys stay. What the old version says of its key service, of who sends secrets, of who allows upgrades \
and of older disks is carried over unless options say otherwise; so are the secrets, on the machine that sent them. The key service must \
allow the new version: dstackctl kms allow-upgrade, or dstackctl app sign-upgrade by the app's owner.")]
#[command(group = ArgGroup::new("what").required(true).multiple(true).args(["file", "script"]))]
pub struct Upgrade {
    /// Name or id of the VM
    pub name: String,
    /// docker-compose.yaml or app-compose.json
    #[arg(value_hint = ValueHint::FilePath)]
    pub file: Option<PathBuf>,
    /// What goes into app-compose.json.
    #[command(flatten)]
    pub document: Document,
    /// Take the app's secrets away
    #[arg(long, conflicts_with_all = ["env", "env_file"])]
    pub no_secrets: bool,
    /// Restart the VM at once
    #[arg(long)]
    pub restart: bool,
}
