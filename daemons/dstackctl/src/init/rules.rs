// SPDX-License-Identifier: Apache-2.0
//! What each answer must be like. Everything here is pure.

use super::answers::{
    Acme, AnswerError, CLOUDFLARE, Certificate, Dns, LETSENCRYPT, LETSENCRYPT_STAGING, Ports, Wireguard,
};
use super::draft;
use crate::realm::Realm;
use dstack_core::wireguard::Net;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

/// Longest domain: `*.` and ids of apps go in front of it.
const DOMAIN_MAX: usize = 200;

fn wrong<T>(key: &'static str, reason: impl Into<String>) -> Result<T, AnswerError> {
    Err(AnswerError { key, reason: reason.into() })
}

/// The key service's domain beside the apps' one.
#[must_use]
pub fn suggested_kms(base_domain: &str) -> String {
    match base_domain.split_once('.') {
        Some((_, rest)) if rest.contains('.') => format!("kms.{rest}"),
        _ => format!("kms.{base_domain}"),
    }
}

pub(super) fn bracketed(address: &str) -> String {
    if address.contains(':') { format!("[{address}]") } else { address.to_owned() }
}

/// The domain of apps; `*.` in front is taken for what it means.
pub(super) fn base_domain(given: &str) -> Result<String, AnswerError> {
    if given.is_empty() {
        return wrong(
            "base_domain",
            "is missing; write the domain under which apps are to appear, such as \"apps.example.com\"",
        );
    }
    domain("base_domain", given.strip_prefix("*.").unwrap_or(given))
}

/// A domain of at least two labels of `[a-z0-9-]`.
pub(super) fn domain(key: &'static str, given: &str) -> Result<String, AnswerError> {
    let text = given.trim_end_matches('.').to_ascii_lowercase();
    let label = |l: &str| {
        let known = l.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        (1..=63).contains(&l.len()) && known && !l.starts_with('-') && !l.ends_with('-')
    };
    let good = text.len() <= DOMAIN_MAX && text.contains('.') && text.split('.').all(label);
    if good && text.parse::<IpAddr>().is_err() {
        return Ok(text);
    }
    wrong(
        key,
        format!(
            "{given:?} is no domain; write one of letters, digits and hyphens, such as \"apps.example.com\""
        ),
    )
}

/// The realm of root keys.
pub(super) fn realm(given: &str) -> Result<Realm, AnswerError> {
    match given {
        "intel" => Ok(Realm::Intel),
        "test" => Ok(Realm::Test),
        _ => wrong(
            "realm",
            format!(
                "{given:?} is not known; write \"intel\", or \"test\" where dstack-testroot is installed"
            ),
        ),
    }
}

/// A name or an address by which others reach this host (trust rule T19: guests reach no loopback address).
pub(super) fn address(given: &str) -> Result<String, AnswerError> {
    const KEY: &str = "address";
    let bare = given.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(given);
    if bare.is_empty() {
        return wrong(
            KEY,
            "is missing, and this host has no default route that would tell it; write the address at which guests and clients reach this host",
        );
    }
    if let Ok(ip) = bare.parse::<IpAddr>() {
        if ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() {
            return wrong(
                KEY,
                format!("no guest reaches {ip}; write an address of this host that others reach"),
            );
        }
        return Ok(ip.to_string());
    }
    match bare.to_ascii_lowercase() {
        name if name == "localhost" || name.ends_with(".localhost") => {
            wrong(KEY, format!("no guest reaches {name}; write an address of this host that others reach"))
        }
        name => domain(KEY, &name),
    }
}

pub(super) fn ports(given: &draft::Ports) -> Result<Ports, AnswerError> {
    let default = Ports::DEFAULT;
    let all = [
        ("ports.kms", given.kms.unwrap_or(default.kms)),
        ("ports.registration", given.registration.unwrap_or(default.registration)),
        ("ports.ingress", given.ingress.unwrap_or(default.ingress)),
        ("ports.passthrough", given.passthrough.unwrap_or(default.passthrough)),
        ("ports.teepod", given.teepod.unwrap_or(default.teepod)),
    ];
    let mut seen: Vec<(&str, u16)> = Vec::new();
    for (key, port) in all {
        if port == 0 {
            return wrong(key, "0 is no port; write 1 to 65535");
        }
        if let Some((other, _)) = seen.iter().find(|(_, taken)| *taken == port) {
            return wrong(key, format!("{port} is the port of {other}, too; write another one"));
        }
        seen.push((key, port));
    }
    let [kms, registration, ingress, passthrough, teepod] = all.map(|(_, port)| port);
    Ok(Ports { kms, registration, ingress, passthrough, teepod })
}

pub(super) fn wireguard(given: &draft::Wireguard, address: &str) -> Result<Wireguard, AnswerError> {
    let port = given.port.unwrap_or(51820);
    if port == 0 {
        return wrong("wireguard.port", "0 is no port; write 1 to 65535");
    }
    let range = range(given.range.as_deref().unwrap_or("10.0.0.0/16"), address)?;
    let ip = match &given.ip {
        None => first(&range),
        Some(text) => text.parse().ok().filter(|ip| range.contains(IpAddr::V4(*ip))),
    };
    let Some(ip) = ip else {
        let reason = format!("{:?} is no address in {range}", given.ip.as_deref().unwrap_or_default());
        return wrong("wireguard.ip", reason);
    };
    let endpoint = match &given.endpoint {
        None => endpoint_at(address, port),
        Some(text) => endpoint(text)?,
    };
    Ok(Wireguard { port, endpoint, range, ip })
}

/// Where WireGuard is reached unless the answers say otherwise.
pub(super) fn endpoint_at(address: &str, port: u16) -> String {
    format!("{}:{port}", bracketed(address))
}

/// The first address behind the network's own.
pub(super) fn first(range: &Net) -> Option<Ipv4Addr> {
    match range.network().address() {
        IpAddr::V4(v4) => v4.to_bits().checked_add(1).map(Ipv4Addr::from_bits),
        IpAddr::V6(_) => None,
    }
}

pub(super) fn endpoint(text: &str) -> Result<String, AnswerError> {
    let parts = text.rsplit_once(':').filter(|(_, port)| port.parse::<u16>().is_ok_and(|p| p != 0));
    match parts {
        Some((host, port)) => address(host)
            .map(|host| format!("{}:{port}", bracketed(&host)))
            .map_err(|e| AnswerError { key: "wireguard.endpoint", ..e }),
        None => wrong(
            "wireguard.endpoint",
            format!("{text:?} is no HOST:PORT; write one such as \"198.51.100.7:51820\""),
        ),
    }
}

/// The network of the tunnel; a route to it must never hide this host's own address.
pub(super) fn range(text: &str, address: &str) -> Result<Net, AnswerError> {
    const KEY: &str = "wireguard.range";
    let net = text.parse::<Net>().ok().filter(|n| n.address().is_ipv4() && (8..=30).contains(&n.prefix()));
    let Some(net) = net.filter(|n| n.network() == *n) else {
        return wrong(
            KEY,
            format!(
                "{text:?} is no IPv4 network without host bits and with a prefix of 8 to 30; write one such as \"10.0.0.0/16\""
            ),
        );
    };
    if address.parse().is_ok_and(|ip| net.contains(ip)) {
        return wrong(
            KEY,
            format!(
                "{net} contains this host's own address {address}; write another one, such as \"10.88.0.0/16\""
            ),
        );
    }
    Ok(net)
}

pub(super) fn cids(given: &draft::Cid) -> Result<(u32, u32), AnswerError> {
    let (start, size) = (given.start.unwrap_or(1000), given.size.unwrap_or(1000));
    if start < 3 {
        return wrong("cid.start", format!("{start} is reserved; write 3 or more"));
    }
    if size == 0 || start.checked_add(size).is_none() {
        return wrong("cid.size", format!("{size} is not possible; write 1 to {}", u32::MAX - start));
    }
    Ok((start, size))
}

pub(super) fn certificate(given: &draft::Certificate) -> Result<Certificate, AnswerError> {
    match given.source.as_deref().unwrap_or("none") {
        "none" => Ok(Certificate::None),
        "files" => Ok(Certificate::Files {
            chain: needed_path("certificate.chain", given.chain.as_deref())?,
            key: needed_path("certificate.key", given.key.as_deref())?,
        }),
        "acme" => acme(given).map(|acme| Certificate::Acme(Box::new(acme))),
        other => wrong(
            "certificate.source",
            format!("{other:?} is not known; write \"acme\", \"files\" or \"none\""),
        ),
    }
}

fn acme(given: &draft::Certificate) -> Result<Acme, AnswerError> {
    let eab = match (some(&given.eab.key_id), &given.eab.key_file) {
        (Some(id), file) => Some((id, path("certificate.eab.key_file", file.as_deref())?)),
        (None, Some(_)) => {
            return wrong("certificate.eab.key_id", "is missing; write the id of the external account");
        }
        (None, None) => None,
    };
    Ok(Acme {
        url: acme_url(given.acme_url.as_deref().unwrap_or("letsencrypt"))?,
        root: path("certificate.acme_root", given.acme_root.as_deref())?,
        issuer: some(&given.acme_issuer).map(|name| domain("certificate.acme_issuer", &name)).transpose()?,
        eab,
        resolver: some(&given.dns.resolver)
            .map(|text| server("certificate.dns.resolver", &text).map(|a| a.to_string()))
            .transpose()?,
        dns: dns(&given.dns)?,
    })
}

fn some(text: &Option<String>) -> Option<String> {
    text.clone().filter(|text| !text.is_empty())
}

pub(super) fn acme_url(text: &str) -> Result<String, AnswerError> {
    match text {
        "letsencrypt" => Ok(LETSENCRYPT.into()),
        "letsencrypt-staging" => Ok(LETSENCRYPT_STAGING.into()),
        url if url.strip_prefix("https://").is_some_and(is_url_rest) => Ok(url.to_owned()),
        _ => wrong(
            "certificate.acme_url",
            format!(
                "{text:?} is no https URL of an ACME directory; write one, or \"letsencrypt\" or \"letsencrypt-staging\""
            ),
        ),
    }
}

fn is_url_rest(rest: &str) -> bool {
    rest.len() <= 2000
        && !rest.is_empty()
        && !rest.starts_with('/')
        && rest.bytes().all(|b| b.is_ascii_graphic())
}

fn path(key: &'static str, text: Option<&str>) -> Result<Option<PathBuf>, AnswerError> {
    match text {
        None | Some("") => Ok(None),
        Some(text) if text.starts_with('/') && !text.chars().any(char::is_control) => Ok(Some(text.into())),
        Some(text) => wrong(key, format!("{text:?} is no absolute path")),
    }
}

pub(super) fn needed_path(key: &'static str, text: Option<&str>) -> Result<PathBuf, AnswerError> {
    match path(key, text)? {
        Some(path) => Ok(path),
        None => wrong(key, "is missing; write the absolute path of the PEM file"),
    }
}

fn dns(given: &draft::Dns) -> Result<Dns, AnswerError> {
    match given.provider.as_deref().unwrap_or_default() {
        "cloudflare" => cloudflare(&given.cloudflare),
        "rfc2136" => rfc2136(&given.rfc2136),
        "" => wrong("certificate.dns.provider", "is missing; write \"cloudflare\" or \"rfc2136\""),
        other => wrong(
            "certificate.dns.provider",
            format!("{other:?} is not known; write \"cloudflare\" or \"rfc2136\""),
        ),
    }
}

fn cloudflare(given: &draft::Cloudflare) -> Result<Dns, AnswerError> {
    let base_url = some(&given.base_url).unwrap_or_else(|| CLOUDFLARE.to_owned());
    // The token goes there: in clear only to this machine.
    let local = ["http://127.0.0.1", "http://localhost", "http://[::1]"];
    let is_local = local.iter().any(|l| base_url.strip_prefix(l).is_some_and(|r| r.starts_with([':', '/'])));
    if base_url.contains('@') || !is_local && !base_url.strip_prefix("https://").is_some_and(is_url_rest) {
        return wrong("certificate.dns.cloudflare.base_url", format!("{base_url:?} is no https URL"));
    }
    Ok(Dns::Cloudflare {
        zone_id: some(&given.zone_id).map(|id| zone_id(&id)).transpose()?,
        token_file: path("certificate.dns.cloudflare.token_file", given.token_file.as_deref())?,
        base_url,
    })
}

pub(super) fn zone_id(id: &str) -> Result<String, AnswerError> {
    if id.len() <= 64 && id.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return Ok(id.to_owned());
    }
    wrong(
        "certificate.dns.cloudflare.zone_id",
        format!("{id:?} is no id of a zone; the zone's overview page at Cloudflare shows it, 32 hex digits"),
    )
}

fn rfc2136(given: &draft::Rfc2136) -> Result<Dns, AnswerError> {
    let algorithm = some(&given.algorithm).unwrap_or_else(|| "hmac-sha256".into());
    if !["hmac-sha256", "hmac-sha384", "hmac-sha512"].contains(&algorithm.as_str()) {
        return wrong(
            "certificate.dns.rfc2136.algorithm",
            format!("{algorithm:?} is not known; write \"hmac-sha256\", \"hmac-sha384\" or \"hmac-sha512\""),
        );
    }
    let zone = some(&given.zone).map(|zone| domain("certificate.dns.rfc2136.zone", &zone)).transpose()?;
    Ok(Dns::Rfc2136 {
        server: server("certificate.dns.rfc2136.server", given.server.as_deref().unwrap_or_default())?,
        zone,
        key_name: key_name(given.key_name.as_deref().unwrap_or_default())?,
        algorithm,
        key_file: path("certificate.dns.rfc2136.key_file", given.key_file.as_deref())?,
    })
}

pub(super) fn server(key: &'static str, text: &str) -> Result<SocketAddr, AnswerError> {
    let parsed = text.parse().or_else(|_| text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 53)));
    parsed.or_else(|_| {
        wrong(
            key,
            format!(
                "{text:?} is no address of a DNS server; write one such as \"192.0.2.1\" or \"192.0.2.1:53\""
            ),
        )
    })
}

pub(super) fn key_name(text: &str) -> Result<String, AnswerError> {
    let known = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    if (1..=253).contains(&text.len()) && text.bytes().all(known) {
        return Ok(text.to_owned());
    }
    wrong(
        "certificate.dns.rfc2136.key_name",
        format!("{text:?} is no name of a TSIG key; write it as the server has it"),
    )
}
