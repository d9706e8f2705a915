// SPDX-License-Identifier: Apache-2.0
//! `certbot.toml`: merged input -> validated settings.

mod input;

pub use input::Input;

use crate::caa::Foreign;
use crate::certificate::Leaf;
use crate::dns::rfc2136::Algorithm;
use crate::limits::{CERTIFICATES_MAX, NAMES_MAX, SERVERS_MAX};
use crate::names::{CertName, DnsName};
use dstack_service::config::ConfigError;
use input::{DnsInput, Rfc2136Input};
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;
use zeroize::Zeroizing;

/// Let's Encrypt, for tries: nobody trusts its certificates.
pub const STAGING: &str = "https://acme-staging-v02.api.letsencrypt.org/directory";
/// Let's Encrypt.
pub const PRODUCTION: &str = "https://acme-v02.api.letsencrypt.org/directory";

/// A certificate that is to be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// By what it is called: its first name, without `*.`.
    pub domain: DnsName,
    /// All its names.
    pub names: BTreeSet<CertName>,
}

impl Certificate {
    /// The names at which records are made, without doubles.
    #[must_use]
    pub fn bases(&self) -> BTreeSet<DnsName> {
        self.names.iter().map(|name| name.base.clone()).collect()
    }

    /// Whether a leaf is one of this certificate, maybe of before names were added or taken away: it has a name at the
    /// domain by which the certificate is called.
    #[must_use]
    pub fn has(&self, leaf: &Leaf) -> bool {
        let own = |name: &&CertName| name.base == self.domain;
        self.names.iter().filter(own).any(|name| leaf.names.contains(name))
    }
}

/// An authority.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthorityAt {
    /// URL of its directory.
    pub url: String,
    /// Authorities of its own TLS certificate, PEM; `None`: the system's.
    pub root: Option<PathBuf>,
}

/// Who changes records.
#[derive(Clone)]
pub enum Dns {
    /// The API of Cloudflare.
    Cloudflare {
        /// Where it is.
        base_url: String,
        /// Id of the zone; `None`: it is looked for.
        zone_id: Option<String>,
        /// A token from the file, as the original has it.
        token: Option<Zeroizing<String>>,
    },
    /// Dynamic updates.
    Rfc2136 {
        /// Who takes them.
        server: SocketAddr,
        /// Which zone; `None`: the server is asked.
        zone: Option<DnsName>,
        /// Name of the key.
        key_name: String,
        /// Its digest.
        algorithm: Algorithm,
    },
}

impl std::fmt::Debug for Dns {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Cloudflare { base_url, zone_id, .. } => f
                .debug_struct("Cloudflare")
                .field("base_url", base_url)
                .field("zone_id", zone_id)
                .finish_non_exhaustive(),
            Self::Rfc2136 { server, zone, key_name, algorithm } => f
                .debug_struct("Rfc2136")
                .field("server", server)
                .field("zone", zone)
                .field("key_name", key_name)
                .field("algorithm", algorithm)
                .finish(),
        }
    }
}

/// Validated settings.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where accounts and certificates are; `None`: where the program's user keeps its state.
    pub workdir: Option<PathBuf>,
    /// The authority.
    pub authority: AuthorityAt,
    /// Where the rehearsal orders; `None`: it orders nothing.
    pub rehearsal: Option<AuthorityAt>,
    /// Whether CAA records are kept as they are to be.
    pub auto_set_caa: bool,
    /// What happens to those of others.
    pub foreign_caa: Foreign,
    /// The authority's name in CAA records; `None`: what its directory says.
    pub issuer: Option<String>,
    /// The certificates, at least one.
    pub certificates: Vec<Certificate>,
    /// Days before the end at which one is renewed.
    pub renew_days_before: u32,
    /// Time that `renew` sleeps between two looks.
    pub renew_interval: Duration,
    /// Time for the authority to check DNS, and again to make the certificate.
    pub renew_timeout: Duration,
    /// Whether the key stays the same at a renewal.
    pub reuse_key: bool,
    /// Id of an external account.
    pub eab_key_id: Option<String>,
    /// Who changes records.
    pub dns: Dns,
    /// Time until every server shows a record.
    pub propagation: Duration,
    /// Servers to ask instead of those of the zone.
    pub servers: Vec<SocketAddr>,
    /// Resolver that is asked for those of the zone; `None`: the system's.
    pub resolver: Option<SocketAddr>,
}

fn rule<T>(key: &str, reason: impl Into<String>) -> Result<T, ConfigError> {
    Err(ConfigError::rule(key, reason))
}

fn some(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

impl Settings {
    /// Checks the merged input; `None` as long as it names no domain, as the shipped one does not.
    ///
    /// # Errors
    /// [`ConfigError::Rule`] names the key and what is allowed.
    pub fn from_input(input: Input) -> Result<Option<Self>, ConfigError> {
        let certificates = certificates(&input)?;
        if certificates.is_empty() {
            return Ok(None);
        }
        let within = |key: &str, value: u64, (least, most): (u64, u64)| match (least..=most).contains(&value)
        {
            true => Ok(Duration::from_secs(value)),
            false => rule(key, format!("must be {least} to {most} seconds")),
        };
        if !(1..=365).contains(&input.renew_days_before) {
            return rule("renew_days_before", "must be 1 to 365 days");
        }
        let authority = authority("acme_url", &input.acme_url, input.acme_root)?;
        Ok(Some(Self {
            rehearsal: rehearsal(&authority, input.rehearsal)?,
            workdir: input.workdir,
            authority,
            auto_set_caa: input.auto_set_caa,
            foreign_caa: input.foreign_caa,
            issuer: some(input.issuer),
            certificates,
            renew_days_before: input.renew_days_before,
            renew_interval: within("renew_interval", input.renew_interval, (60, 7 * 86_400))?,
            renew_timeout: within("renew_timeout", input.renew_timeout, (1, 3_600))?,
            reuse_key: input.reuse_key,
            eab_key_id: some(input.eab.key_id),
            dns: dns(input.dns, input.cf_api_token, input.cf_zone_id)?,
            propagation: within("propagation.timeout", input.propagation.timeout, (1, 3_600))?,
            servers: servers(&input.propagation.servers)?,
            resolver: optional("propagation.resolver", &input.propagation.resolver)?,
        }))
    }
}

fn certificates(input: &Input) -> Result<Vec<Certificate>, ConfigError> {
    let first = Some(vec![input.domain.clone()]).filter(|_| !input.domain.is_empty());
    let all: Vec<Vec<String>> =
        first.into_iter().chain(input.certificate.iter().map(|c| c.names.clone())).collect();
    if all.len() > CERTIFICATES_MAX {
        return rule("certificate", format!("must be at most {CERTIFICATES_MAX}"));
    }
    let found = all.into_iter().map(|names| certificate(&names)).collect::<Result<Vec<_>, _>>()?;
    let domains: BTreeSet<&DnsName> = found.iter().map(|c| &c.domain).collect();
    if domains.len() != found.len() {
        return rule(
            "certificate.names",
            "two certificates begin with the same name; put all names into one of them",
        );
    }
    Ok(found)
}

fn certificate(names: &[String]) -> Result<Certificate, ConfigError> {
    let parsed = names.iter().map(|n| n.parse::<CertName>()).collect::<Result<Vec<_>, _>>();
    let parsed = parsed.map_err(|e| ConfigError::rule("domain", e.to_string()))?;
    let first = parsed.first().ok_or_else(|| ConfigError::rule("certificate.names", "must have a name"))?;
    if parsed.len() > NAMES_MAX {
        return rule("certificate.names", format!("must be at most {NAMES_MAX}"));
    }
    Ok(Certificate { domain: first.base.clone(), names: parsed.iter().cloned().collect() })
}

fn authority(key: &str, url: &str, root: PathBuf) -> Result<AuthorityAt, ConfigError> {
    if !url.starts_with("https://") || url.parse::<http::Uri>().is_err() {
        return rule(key, format!("must be the https URL of an ACME directory, e.g. {PRODUCTION:?}"));
    }
    Ok(AuthorityAt { url: url.to_owned(), root: Some(root).filter(|p| !p.as_os_str().is_empty()) })
}

/// With Let's Encrypt the rehearsal is at its staging environment; with others, where the configuration says.
fn rehearsal(
    authority: &AuthorityAt,
    input: input::RehearsalInput,
) -> Result<Option<AuthorityAt>, ConfigError> {
    match input.acme_url.as_str() {
        "" if [STAGING, PRODUCTION].contains(&authority.url.as_str()) => {
            Ok(Some(AuthorityAt { url: STAGING.to_owned(), root: authority.root.clone() }))
        }
        "" => Ok(None),
        url => self::authority("rehearsal.acme_url", url, input.acme_root).map(Some),
    }
}

fn dns(input: DnsInput, token: String, zone_id: String) -> Result<Dns, ConfigError> {
    let is_old = !token.is_empty() || !zone_id.is_empty();
    match input.provider.as_str() {
        "rfc2136" => rfc2136(input.rfc2136),
        "cloudflare" => cloudflare(&input.cloudflare.base_url, token, zone_id),
        "" if is_old => cloudflare(&input.cloudflare.base_url, token, zone_id),
        _ => rule("dns.provider", "must be \"cloudflare\" or \"rfc2136\""),
    }
}

fn cloudflare(base_url: &str, token: String, zone_id: String) -> Result<Dns, ConfigError> {
    let uri = base_url.parse::<http::Uri>().ok();
    let scheme = uri.as_ref().and_then(http::Uri::scheme_str).unwrap_or_default();
    let host = uri.as_ref().and_then(http::Uri::host).unwrap_or_default();
    // The token goes there: in clear only to this machine.
    if scheme != "https" && !(scheme == "http" && ["127.0.0.1", "[::1]", "localhost"].contains(&host)) {
        return rule("dns.cloudflare.base_url", "must be an https URL, or an http URL of this machine");
    }
    if !zone_id.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return rule(
            "cf_zone_id",
            "must be the id of a zone, 32 hex digits; the overview page of the zone shows it",
        );
    }
    Ok(Dns::Cloudflare {
        base_url: base_url.to_owned(),
        zone_id: some(zone_id),
        token: some(token).map(Zeroizing::new),
    })
}

fn rfc2136(input: Rfc2136Input) -> Result<Dns, ConfigError> {
    let key = |name: &str| format!("dns.rfc2136.{name}");
    let algorithm = match input.algorithm.as_str() {
        "hmac-sha256" => Algorithm::Sha256,
        "hmac-sha384" => Algorithm::Sha384,
        "hmac-sha512" => Algorithm::Sha512,
        _ => return rule(&key("algorithm"), "must be \"hmac-sha256\", \"hmac-sha384\" or \"hmac-sha512\""),
    };
    let server = optional(&key("server"), &input.server)?;
    let server = server.ok_or_else(|| {
        ConfigError::rule(key("server"), "must be the address of the server that takes updates")
    })?;
    if input.key_name.is_empty() {
        return rule(&key("key_name"), "must be the name of the TSIG key, as the server has it");
    }
    let zone = match input.zone.as_str() {
        "" => None,
        zone => Some(zone.parse().map_err(|e| ConfigError::rule(key("zone"), format!("{e}")))?),
    };
    Ok(Dns::Rfc2136 { server, zone, key_name: input.key_name, algorithm })
}

fn servers(texts: &[String]) -> Result<Vec<SocketAddr>, ConfigError> {
    let key = "propagation.servers";
    if texts.len() > SERVERS_MAX {
        return rule(key, format!("must be at most {SERVERS_MAX}"));
    }
    let found = texts.iter().map(|text| optional(key, text)).collect::<Result<Vec<_>, _>>()?;
    found
        .into_iter()
        .map(|server| server.ok_or_else(|| ConfigError::rule(key, "must not be empty")))
        .collect()
}

fn optional(key: &str, text: &str) -> Result<Option<SocketAddr>, ConfigError> {
    if text.is_empty() {
        return Ok(None);
    }
    let address = text.parse().or_else(|_| text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 53)));
    let hint = "must be the address of a DNS server, with a port if it is not 53";
    address.map(Some).map_err(|_| ConfigError::rule(key, hint))
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
