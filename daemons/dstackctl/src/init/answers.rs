// SPDX-License-Identifier: Apache-2.0
//! Answers that hold together: the draft, checked key by key.

use super::draft::{self, Draft};
use super::rules::{
    address, base_domain, bracketed, certificate, cids, domain, endpoint_at, first, ports, realm,
    suggested_kms, wireguard,
};
use crate::realm::Realm;
use dstack_core::wireguard::Net;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

/// Directory of Let's Encrypt.
pub const LETSENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";
/// Its directory for tries, whose certificates nobody trusts.
pub const LETSENCRYPT_STAGING: &str = "https://acme-staging-v02.api.letsencrypt.org/directory";
/// Where Cloudflare's API is.
pub const CLOUDFLARE: &str = "https://api.cloudflare.com/client/v4";

/// A wrong or missing answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {reason}")]
pub struct AnswerError {
    /// The key of the file, such as `ports.kms`.
    pub key: &'static str,
    /// What is wrong, and what to write.
    pub reason: String,
}

/// Checked answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answers {
    /// Domain under which apps appear, lower case.
    pub base_domain: String,
    /// Domain of the key service, lower case.
    pub kms_domain: String,
    /// Realm that root keys are to be of; by default the one that the machine suggests.
    pub realm: Option<Realm>,
    /// Where guests and clients reach this host: a name, or an address without brackets.
    pub address: String,
    /// TCP ports.
    pub ports: Ports,
    /// The tunnel.
    pub wireguard: Wireguard,
    /// First context id.
    pub cid_start: u32,
    /// Number of context ids.
    pub cid_size: u32,
    /// The certificate of the ingress.
    pub certificate: Certificate,
}

/// TCP ports, all different.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    /// The key service.
    pub kms: u16,
    /// Registration of instances.
    pub registration: u16,
    /// TLS of clients.
    pub ingress: u16,
    /// TLS of clients that is passed through.
    pub passthrough: u16,
    /// teepod's web port.
    pub teepod: u16,
}

impl Ports {
    /// As the units have them.
    pub const DEFAULT: Self =
        Self { kms: 9043, registration: 9070, ingress: 9443, passthrough: 9008, teepod: 9080 };
}

/// The tunnel to apps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wireguard {
    /// UDP port.
    pub port: u16,
    /// Where guests reach it, `host:port`.
    pub endpoint: String,
    /// IPv4 network without host bits.
    pub range: Net,
    /// The ingress's own address in it.
    pub ip: Ipv4Addr,
}

/// Where the certificate comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Certificate {
    /// Later.
    None,
    /// The operator keeps it there.
    Files {
        /// Chain, PEM.
        chain: PathBuf,
        /// Private key, PEM.
        key: PathBuf,
    },
    /// dstack-certbot orders it.
    Acme(Box<Acme>),
}

/// An order by ACME.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acme {
    /// Directory.
    pub url: String,
    /// Who signs the authority's own TLS certificate.
    pub root: Option<PathBuf>,
    /// Its name in CAA records; by default what its directory says.
    pub issuer: Option<String>,
    /// External account: its id and the file with its key.
    pub eab: Option<(String, Option<PathBuf>)>,
    /// Resolver that is asked for the servers of the zone.
    pub resolver: Option<String>,
    /// Who changes DNS.
    pub dns: Dns,
}

/// Who changes DNS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dns {
    /// Cloudflare's API.
    Cloudflare {
        /// Id of the zone.
        zone_id: Option<String>,
        /// File with the token.
        token_file: Option<PathBuf>,
        /// Where the API is.
        base_url: String,
    },
    /// Dynamic updates.
    Rfc2136 {
        /// Server.
        server: SocketAddr,
        /// Zone.
        zone: Option<String>,
        /// Name of the TSIG key.
        key_name: String,
        /// Its digest.
        algorithm: String,
        /// File with the key.
        key_file: Option<PathBuf>,
    },
}

/// What is taken where nothing is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Defaults {
    /// This host's address by its default route.
    pub address: Option<IpAddr>,
}

impl Answers {
    /// Checks a draft.
    ///
    /// # Errors
    /// The first wrong or missing key, with what to write.
    pub fn check(draft: &Draft, defaults: &Defaults) -> Result<Self, AnswerError> {
        let base_domain = base_domain(draft.base_domain.as_deref().unwrap_or_default())?;
        let suggested = suggested_kms(&base_domain);
        let kms_domain = domain("kms_domain", draft.kms_domain.as_deref().unwrap_or(&suggested))?;
        let realm = draft.realm.as_deref().filter(|text| !text.is_empty()).map(realm).transpose()?;
        let found = defaults.address.map(|a| a.to_string()).unwrap_or_default();
        let address = address(draft.address.as_deref().unwrap_or(&found))?;
        let ports = ports(&draft.ports)?;
        let wireguard = wireguard(&draft.wireguard, &address)?;
        let (cid_start, cid_size) = cids(&draft.cid)?;
        let certificate = certificate(&draft.certificate)?;
        Ok(Self {
            base_domain,
            kms_domain,
            realm,
            address,
            ports,
            wireguard,
            cid_start,
            cid_size,
            certificate,
        })
    }

    /// The same as a draft, with all defaults spelled out but those that follow from another answer.
    #[must_use]
    pub fn to_draft(&self) -> Draft {
        Draft {
            base_domain: Some(self.base_domain.clone()),
            kms_domain: Some(self.kms_domain.clone()),
            realm: self.realm.map(|realm| realm.text().to_owned()),
            address: Some(self.address.clone()),
            ports: draft::Ports {
                kms: Some(self.ports.kms),
                registration: Some(self.ports.registration),
                ingress: Some(self.ports.ingress),
                passthrough: Some(self.ports.passthrough),
                teepod: Some(self.ports.teepod),
            },
            wireguard: self.wireguard.to_draft(&self.address),
            cid: draft::Cid { start: Some(self.cid_start), size: Some(self.cid_size) },
            certificate: self.certificate.to_draft(),
        }
    }

    /// The address as it stands in URLs and endpoints.
    #[must_use]
    pub fn host(&self) -> String {
        bracketed(&self.address)
    }

    /// The order by ACME, if there is to be one.
    #[must_use]
    pub const fn acme(&self) -> Option<&Acme> {
        match &self.certificate {
            Certificate::Acme(acme) => Some(acme),
            _ => None,
        }
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

impl Wireguard {
    fn to_draft(&self, address: &str) -> draft::Wireguard {
        let usual = endpoint_at(address, self.port);
        draft::Wireguard {
            port: Some(self.port),
            endpoint: Some(self.endpoint.clone()).filter(|e| *e != usual),
            range: Some(self.range.to_string()),
            ip: Some(self.ip).filter(|ip| first(&self.range) != Some(*ip)).map(|ip| ip.to_string()),
        }
    }
}

impl Certificate {
    fn to_draft(&self) -> draft::Certificate {
        let source = |source: &str| draft::Certificate { source: Some(source.into()), ..Default::default() };
        match self {
            Self::None => source("none"),
            Self::Files { chain, key } => {
                draft::Certificate { chain: Some(text(chain)), key: Some(text(key)), ..source("files") }
            }
            Self::Acme(acme) => draft::Certificate {
                acme_url: Some(acme.url.clone()),
                acme_root: acme.root.as_deref().map(text),
                acme_issuer: acme.issuer.clone(),
                eab: acme.eab.as_ref().map_or_else(draft::Eab::default, |(id, file)| draft::Eab {
                    key_id: Some(id.clone()),
                    key_file: file.as_deref().map(text),
                }),
                dns: draft::Dns { resolver: acme.resolver.clone(), ..acme.dns.to_draft() },
                ..source("acme")
            },
        }
    }
}

impl Dns {
    fn to_draft(&self) -> draft::Dns {
        match self {
            Self::Cloudflare { zone_id, token_file, base_url } => draft::Dns {
                provider: Some("cloudflare".into()),
                cloudflare: draft::Cloudflare {
                    zone_id: zone_id.clone(),
                    token_file: token_file.as_deref().map(text),
                    base_url: Some(base_url.clone()),
                },
                ..draft::Dns::default()
            },
            Self::Rfc2136 { server, zone, key_name, algorithm, key_file } => draft::Dns {
                provider: Some("rfc2136".into()),
                rfc2136: draft::Rfc2136 {
                    server: Some(server.to_string()),
                    zone: zone.clone(),
                    key_name: Some(key_name.clone()),
                    algorithm: Some(algorithm.clone()),
                    key_file: key_file.as_deref().map(text),
                },
                ..draft::Dns::default()
            },
        }
    }
}

#[cfg(test)]
#[path = "answers_tests.rs"]
mod tests;
