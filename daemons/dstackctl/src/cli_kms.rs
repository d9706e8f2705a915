// SPDX-License-Identifier: Apache-2.0
//! The arguments of `kms` and `app`.

use crate::quantity::parse_duration;
use crate::realm::Realm;
use crate::trust::parse_fingerprint;
use clap::{Args, Subcommand, ValueHint};
use dstack_core::ids::{AppId, ComposeHash, InstanceId};
use std::path::PathBuf;
use std::time::Duration;

/// What can be done with key services.
#[derive(Debug, Subcommand)]
pub enum KmsCommand {
    /// Show this host's key service, and those that you trust
    Status,
    /// Make the root keys of this host's key service, once
    Bootstrap(Bootstrap),
    /// Check a key service over the network, and trust it from now on
    Trust(Trust),
    /// Trust a key service no longer
    Untrust(Kms),
    /// Let a version of an app have the app's keys
    AllowUpgrade(Upgrade),
    /// Take that back
    RevokeUpgrade(Upgrade),
    /// List the versions of an app that may have its keys
    Upgrades(App),
    /// Hand in an upgrade that the app's owner has signed
    SubmitUpgrade(Submit),
    /// Show every release and denial of an app's keys
    ReleaseLog(ReleaseLog),
    /// Let any data disk of an instance pass once, after a backup was put back
    ForgetDisk(Disk),
    /// Show which instances will be refused their keys, and when
    Forecast,
    /// Let another key service fetch the root keys, once
    AllowPeer(Peer),
    /// Fetch the root keys of another key service, instead of making some
    Onboard(Onboard),
}

/// `kms bootstrap`.
#[derive(Debug, Args)]
pub struct Bootstrap {
    /// Domain of the installation, such as kms.example.com
    pub domain: String,
    /// The realm that the keys are to be of, for good, when it is not the one that this machine suggests
    #[arg(long, value_name = "REALM")]
    pub realm: Option<Realm>,
}

/// `kms trust`.
#[derive(Debug, Args)]
pub struct Trust {
    /// Where it is, such as https://kms.example.com:9043
    #[arg(value_hint = ValueHint::Url)]
    pub url: String,
    /// The fingerprint it must have; nothing is asked then
    #[arg(long, value_name = "HEX", value_parser = parse_fingerprint)]
    pub fingerprint: Option<String>,
    /// Trust what is found without being asked
    #[arg(short, long)]
    pub yes: bool,
    /// Use it when no other is asked for
    #[arg(long)]
    pub default: bool,
    /// Trust it for all users of this machine, in /etc/dstack/trust
    #[arg(long)]
    pub system: bool,
}

/// A trusted key service.
#[derive(Debug, Args)]
pub struct Kms {
    /// Its domain, its URL, or the beginning of its fingerprint
    pub kms: String,
}

/// An app.
#[derive(Debug, Args)]
pub struct App {
    /// App id
    pub app: AppId,
}

/// A version of an app.
#[derive(Debug, Args)]
pub struct Upgrade {
    /// App id
    pub app: AppId,
    /// Hash of its app-compose.json: 64 hex digits, or the first 40
    #[arg(value_parser = parse_hash)]
    pub hash: String,
}

/// `kms forget-disk`.
#[derive(Debug, Args)]
pub struct Disk {
    /// App id
    pub app: AppId,
    /// Instance id
    pub instance: InstanceId,
}

/// `kms submit-upgrade`.
#[derive(Debug, Args)]
pub struct Submit {
    /// What `dstackctl app sign-upgrade` wrote
    #[arg(value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// Hand it to this trusted key service over the network, instead of this host's
    #[arg(long, value_name = "KMS")]
    pub kms: Option<String>,
}

/// `kms release-log`.
#[derive(Debug, Args)]
pub struct ReleaseLog {
    /// App id
    pub app: AppId,
    /// Only entries with a number above this
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub after: u64,
    /// At most this many entries; 0 for as many as fit
    #[arg(short = 'n', long, default_value_t = 0, value_name = "N")]
    pub limit: u32,
    /// Ask this trusted key service over the network, instead of this host's
    #[arg(long, value_name = "KMS")]
    pub kms: Option<String>,
}

/// `kms allow-peer`.
#[derive(Debug, Args)]
pub struct Peer {
    /// Measurement of the other key service
    pub measurement: String,
    /// How long it may
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = parse_duration)]
    pub ttl: Duration,
}

/// `kms onboard`.
#[derive(Debug, Args)]
pub struct Onboard {
    /// The key service to copy, such as https://kms.example.com:9043
    #[arg(value_hint = ValueHint::Url)]
    pub url: String,
    /// The fingerprint it must have; nothing is asked then
    #[arg(long, value_name = "HEX", value_parser = parse_fingerprint)]
    pub fingerprint: Option<String>,
    /// Take what is found without being asked
    #[arg(short, long)]
    pub yes: bool,
}

/// What an app's owner does with keys of their own.
#[derive(Debug, Subcommand)]
pub enum AppCommand {
    /// Make a key that signs upgrades, for deploy --upgrade-key
    Keygen(Keygen),
    /// Sign a version of an app, for the key service
    SignUpgrade(SignUpgrade),
    /// Show what a key, a signed upgrade or an app-compose.json says
    Show(Show),
}

/// `app keygen`.
#[derive(Debug, Args)]
pub struct Keygen {
    /// Where the private key goes; the public one beside it, with .pub behind
    #[arg(short, long, value_name = "FILE", default_value = "owner.pem", value_hint = ValueHint::FilePath)]
    pub output: PathBuf,
}

/// `app sign-upgrade`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("version").required(true).args(["compose", "hash"]))]
pub struct SignUpgrade {
    /// The owner's private key
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub key: PathBuf,
    /// App id
    #[arg(long, value_name = "ID")]
    pub app: AppId,
    /// The new app-compose.json
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub compose: Option<PathBuf>,
    /// The hash of the new app-compose.json, 64 hex digits
    #[arg(long, value_name = "HASH")]
    pub hash: Option<ComposeHash>,
    /// Number of the statement: above all before it
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub seq: u64,
    /// The version gets keys until then: 30d (from now), 2030-01-31T12:00:00Z, or seconds since 1970
    #[arg(long, value_name = "TIME")]
    pub not_after: Option<String>,
    /// Revoke all statements with a number below this, and the first version with them
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub revoke_below: u64,
    /// The app's first app-compose.json, for a key service that has not seen the app yet
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub first_compose: Option<PathBuf>,
    /// Where the signed statement goes; by default to standard output
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub output: Option<PathBuf>,
}

/// `app show`.
#[derive(Debug, Args)]
pub struct Show {
    /// PEM key, signed upgrade or app-compose.json
    #[arg(value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
}

/// A compose hash, whole or its first 40 digits.
fn parse_hash(text: &str) -> Result<String, String> {
    let digits = text.strip_prefix("0x").unwrap_or(text).to_ascii_lowercase();
    let fits = matches!(digits.len(), 40 | 64) && digits.bytes().all(|b| b.is_ascii_hexdigit());
    if fits {
        Ok(digits)
    } else {
        Err("use the 64 hexadecimal digits of a compose hash, or its first 40".to_owned())
    }
}
