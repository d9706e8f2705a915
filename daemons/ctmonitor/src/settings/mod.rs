// SPDX-License-Identifier: Apache-2.0
//! `ct-monitor.toml`: merged input -> validated settings.

mod input;

pub use input::Input;

use crate::certificate::KeyId;
use crate::domain::Domain;
use crate::head::LogKey;
use crate::http::Base;
use crate::keys::TPROXY_PORT;
use crate::limits::{DOMAINS_MAX, KEYS_MAX, LOGS_MAX, TPROXIES_MAX};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use dstack_core::ids::AppId;
use dstack_core::kms_address::Address;
use dstack_ra_rpc::pccs::Pccs;
use dstack_service::config::ConfigError;
use input::{LogInput, TproxyInput};
use std::collections::BTreeSet;
use std::path::PathBuf;

/// crt.sh, or what speaks as it does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Crtsh {
    /// Where it is.
    pub base: Base,
    /// Most certificates that are downloaded in a check, for each domain.
    pub downloads: usize,
}

/// An ingress that knows our keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tproxy {
    /// Where its RPC is.
    pub address: Address,
    /// The key service that must have issued its certificate, SPKI DER; `None`: this host's.
    pub kms_public_key: Option<Vec<u8>>,
    /// The app id that it must have; `None`: any gateway of that key service.
    pub app: Option<AppId>,
}

/// How a log is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogKind {
    /// By the calls of RFC 6962.
    Rfc6962,
    /// By checkpoints with this origin, and tiles.
    Static(String),
}

/// A log.
#[derive(Debug, Clone)]
pub struct Log {
    /// Its name.
    pub name: String,
    /// How it is read.
    pub kind: LogKind,
    /// Where it is.
    pub base: Base,
    /// Its key.
    pub key: LogKey,
    /// The first entry to look at; `None`: those from now on.
    pub start: Option<u64>,
    /// Most entries of a check.
    pub entries: u64,
}

/// Validated settings.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What is watched.
    pub domains: Vec<Domain>,
    /// Whether expired certificates are skipped.
    pub skip_expired: bool,
    /// After how many seconds without success an alert says so.
    pub blind_after: u64,
    /// Keys of ours, beside those that are asked for.
    pub known_keys: BTreeSet<KeyId>,
    /// crt.sh.
    pub crtsh: Option<Crtsh>,
    /// Whether certbot of this host is asked for keys.
    pub certbot: bool,
    /// Ingresses that are asked for keys.
    pub tproxies: Vec<Tproxy>,
    /// Logs that are read.
    pub logs: Vec<Log>,
    /// Where collateral of genuine platforms is served.
    pub pccs: Pccs,
    /// Socket of the simulated TEE, which serves its collateral.
    pub quote_sim: PathBuf,
}

impl Settings {
    /// Checks the merged input; `None` as long as it names no domain, as the shipped one does not.
    ///
    /// # Errors
    /// [`ConfigError::Rule`] names the key and what is allowed.
    pub fn from_input(input: Input) -> Result<Option<Self>, ConfigError> {
        let rule = |key: &str, reason: String| ConfigError::rule(key, reason);
        let blank = input.domains.is_empty();
        let settings = Self {
            domains: domains(&input.domains)?,
            skip_expired: input.skip_expired,
            blind_after: hours(&input.blind_after)?,
            known_keys: known_keys(&input.known_keys)?,
            crtsh: crtsh(&input)?,
            certbot: input.certbot.enabled,
            tproxies: list("tproxy", &input.tproxy, TPROXIES_MAX, tproxy)?,
            logs: list("log", &input.log, LOGS_MAX, log)?,
            pccs: Pccs::parse(&input.collateral.pccs_url)
                .map_err(|e| rule("collateral.pccs_url", e.to_string()))?,
            quote_sim: input.collateral.quote_sim,
        };
        if blank {
            return Ok(None);
        }
        settings.complete().map(Some)
    }

    /// Whether there is somebody to ask for keys, and somewhere to look.
    fn complete(self) -> Result<Self, ConfigError> {
        if !self.certbot && self.tproxies.is_empty() && self.known_keys.is_empty() {
            let hint =
                "nobody says which keys are ours: add a [[tproxy]], set certbot.enabled, or list known_keys";
            return Err(ConfigError::rule("tproxy", hint));
        }
        if self.crtsh.is_none() && self.logs.is_empty() {
            return Err(ConfigError::rule(
                "crtsh.enabled",
                "there is no source: enable crt.sh, or add a [[log]]",
            ));
        }
        let names: BTreeSet<&str> = self.logs.iter().map(|log| log.name.as_str()).collect();
        if names.len() < self.logs.len() {
            return Err(ConfigError::rule("log.name", "two logs have one name"));
        }
        Ok(self)
    }
}

fn domains(texts: &[String]) -> Result<Vec<Domain>, ConfigError> {
    let rule = |reason: String| ConfigError::rule("domains", reason);
    if texts.len() > DOMAINS_MAX {
        return Err(rule(format!("must be at most {DOMAINS_MAX}")));
    }
    let parsed: Result<BTreeSet<Domain>, _> = texts.iter().map(|text| text.parse()).collect();
    Ok(parsed.map_err(|e: crate::domain::DomainError| rule(e.to_string()))?.into_iter().collect())
}

/// A whole number of h or d, 1 hour to 30 days, in seconds.
fn hours(text: &str) -> Result<u64, ConfigError> {
    let units = [('h', 3600), ('d', 86_400)];
    let parsed = units.into_iter().find_map(|(unit, seconds)| {
        let digits = text.strip_suffix(unit).filter(|d| d.bytes().all(|b| b.is_ascii_digit()))?;
        digits.parse::<u64>().ok()?.checked_mul(seconds)
    });
    let hint = "must be a whole number of h or d, from \"1h\" to \"30d\"";
    parsed.filter(|s| (3600..=30 * 86_400).contains(s)).ok_or_else(|| ConfigError::rule("blind_after", hint))
}

/// Parses the digests of public keys of the settings or the command line.
///
/// # Errors
/// [`ConfigError::Rule`].
pub fn known_keys(texts: &[String]) -> Result<BTreeSet<KeyId>, ConfigError> {
    let hint = "each must be the SHA-256 of a SubjectPublicKeyInfo, 64 hex digits";
    let keys: Option<BTreeSet<KeyId>> = texts.iter().map(|text| KeyId::from_hex(text)).collect();
    keys.filter(|keys| keys.len() <= KEYS_MAX).ok_or_else(|| ConfigError::rule("known_keys", hint))
}

fn crtsh(input: &Input) -> Result<Option<Crtsh>, ConfigError> {
    let base = Base::parse(&input.crtsh.url).map_err(|e| ConfigError::rule("crtsh.url", e.to_string()))?;
    if !(1..=10_000).contains(&input.crtsh.downloads_per_check) {
        return Err(ConfigError::rule("crtsh.downloads_per_check", "must be 1 to 10000"));
    }
    let downloads = usize::try_from(input.crtsh.downloads_per_check).unwrap_or(usize::MAX);
    Ok(input.crtsh.enabled.then_some(Crtsh { base, downloads }))
}

fn list<I, T>(
    key: &str,
    inputs: &[I],
    max: usize,
    parse: impl Fn(&I) -> Result<T, ConfigError>,
) -> Result<Vec<T>, ConfigError> {
    if inputs.len() > max {
        return Err(ConfigError::rule(key, format!("must be at most {max}")));
    }
    inputs.iter().map(parse).collect()
}

/// Parses where an ingress is.
///
/// # Errors
/// [`ConfigError::Rule`].
pub fn tproxy_address(uri: &str) -> Result<Address, ConfigError> {
    let hint = format!("must be https://HOST[:PORT][/prpc]; the port is {TPROXY_PORT} if it is left out");
    Address::parse_with(uri, TPROXY_PORT).ok_or_else(|| ConfigError::rule("tproxy.uri", hint))
}

/// Parses the key of a key service, empty for this host's.
///
/// # Errors
/// [`ConfigError::Rule`].
pub fn kms_public_key(text: &str) -> Result<Option<Vec<u8>>, ConfigError> {
    if text.is_empty() {
        return Ok(None);
    }
    let bytes = hex::decode(text).ok().filter(|bytes| bytes.first() == Some(&0x30));
    let hint =
        "must be the hex SubjectPublicKeyInfo of the key service's root CA; `dstackctl kms status` shows it";
    bytes.map(Some).ok_or_else(|| ConfigError::rule("tproxy.kms_public_key", hint))
}

/// Parses an app id, empty for any.
///
/// # Errors
/// [`ConfigError::Rule`].
pub fn app_id(text: &str) -> Result<Option<AppId>, ConfigError> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|e| ConfigError::rule("tproxy.app_id", format!("{e}")))
}

fn tproxy(input: &TproxyInput) -> Result<Tproxy, ConfigError> {
    Ok(Tproxy {
        address: tproxy_address(&input.uri)?,
        kms_public_key: kms_public_key(&input.kms_public_key)?,
        app: app_id(&input.app_id)?,
    })
}

fn log(input: &LogInput) -> Result<Log, ConfigError> {
    let rule = |key: &str, reason: String| ConfigError::rule(format!("log.{key}"), reason);
    let plain = |b: u8| b.is_ascii_graphic() || b == b' ';
    if !(1..=64).contains(&input.name.len()) || !input.name.bytes().all(plain) {
        return Err(rule("name", "must be 1 to 64 printable characters".to_owned()));
    }
    let base = Base::parse(&input.url).map_err(|e| rule("url", e.to_string()))?;
    let der = BASE64_STANDARD.decode(&input.key).map_err(|_| rule("key", "must be base64".to_owned()))?;
    let key = LogKey::from_der(&der).map_err(|e| rule("key", e.to_string()))?;
    let kind = match input.kind.as_str() {
        "rfc6962" => LogKind::Rfc6962,
        "static" if input.origin.is_empty() => LogKind::Static(base.schemeless()),
        "static" => LogKind::Static(input.origin.clone()),
        _ => return Err(rule("kind", "must be \"rfc6962\" or \"static\"".to_owned())),
    };
    if !(1..=10_000_000).contains(&input.entries_per_check) {
        return Err(rule("entries_per_check", "must be 1 to 10000000".to_owned()));
    }
    let (name, entries) = (input.name.clone(), input.entries_per_check);
    Ok(Log { name, kind, base, key, start: input.start, entries })
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
