// SPDX-License-Identifier: Apache-2.0
//! `tproxy.toml`: merged input -> validated settings.

mod input;

pub use input::Input;

use crate::pool::{Pool, Range};
use dstack_core::flow::Ktls;
use dstack_core::wireguard::{InterfaceName, Net};
use dstack_ra_rpc::pccs::Pccs;
use dstack_service::config::ConfigError;
use input::{ProxyInput, RecycleInput, TimeoutsInput, WgInput};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// Longest duration that can be set.
pub const DURATION_MAX: Duration = Duration::from_secs(365 * 86_400);
/// Longest prefix of TXT records.
const LABEL_MAX: usize = 63;

/// The tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tunnel {
    /// Name of the interface.
    pub interface: InterfaceName,
    /// Our address in it.
    pub ip: Ipv4Addr,
    /// The range of leases.
    pub range: Net,
    /// What is never leased.
    pub reserved: Vec<Net>,
    /// UDP port.
    pub listen_port: u16,
    /// Where guests reach that port, `host:port`.
    pub endpoint: String,
    /// Largest packet inside.
    pub mtu: u32,
}

/// Timeouts of proxied connections; `None` never ends them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// To connect to an instance.
    pub connect: Duration,
    /// For the client's hello, and its TLS handshake.
    pub handshake: Duration,
    /// Without a byte in either direction.
    pub idle: Option<Duration>,
    /// For a write that does not advance.
    pub write: Option<Duration>,
    /// To close, once both sides have said all.
    pub shutdown: Duration,
    /// Of a whole connection.
    pub total: Option<Duration>,
}

/// What clients see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proxy {
    /// Domain under which apps are, lower case.
    pub base_domain: String,
    /// Certificate chain for it, PEM.
    pub cert_chain: PathBuf,
    /// Its key, PEM.
    pub cert_key: PathBuf,
    /// Port at which clients reach the ingress.
    pub listen_port: u16,
    /// Port of the guest agent.
    pub tappd_port: u16,
    /// How many instances are connected to at once.
    pub connect_top_n: u32,
    /// Most connections to one app.
    pub connections_per_app: u32,
    /// When the kernel takes TLS over.
    pub ktls: Ktls,
    /// Prefix of the TXT records of custom domains.
    pub txt_prefix: String,
    /// DNS server to ask; `None`: the system's.
    pub resolver: Option<SocketAddr>,
    /// Timeouts.
    pub timeouts: Timeouts,
}

/// When silent instances are forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recycle {
    /// How often that is looked at.
    pub interval: Duration,
    /// After how much silence.
    pub timeout: Duration,
}

/// Validated settings.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The tunnel.
    pub tunnel: Tunnel,
    /// What clients see.
    pub proxy: Proxy,
    /// When silent instances are forgotten; `None`: never.
    pub recycle: Option<Recycle>,
    /// SubjectPublicKeyInfo (DER) of the key service whose apps may register; `None`: this host's.
    pub kms_public_key: Option<Vec<u8>>,
    /// The certificate of this host's certbot that is shown; `None`: the files, or the one of the domain without them.
    pub certbot_domain: Option<String>,
    /// A working directory of certbot that we may read, for auditors.
    pub certbot: Option<PathBuf>,
    /// Socket of the guest agent; there is none outside of a CVM.
    pub agent: PathBuf,
    /// Where collateral of genuine platforms is served.
    pub pccs: Pccs,
    /// Socket of the simulated TEE, which serves its collateral.
    pub quote_sim: PathBuf,
}

impl Settings {
    /// Checks the merged input; `None` as long as it names neither a domain nor an endpoint, as the shipped one does not.
    ///
    /// # Errors
    /// [`ConfigError::Rule`] names the key and what is allowed.
    pub fn from_input(input: Input) -> Result<Option<Self>, ConfigError> {
        let recycle = recycle(&input.recycle)?;
        let kms_public_key = public_key(&input.kms.public_key)?;
        let pccs = Pccs::parse(&input.collateral.pccs_url)
            .map_err(|e| ConfigError::rule("collateral.pccs_url", e.to_string()))?;
        let blank = input.proxy.base_domain.is_empty() && input.wg.endpoint.is_empty();
        let (tunnel, proxy) = (tunnel(input.wg, blank)?, proxy(input.proxy, blank)?);
        let settings = Self {
            tunnel,
            proxy,
            recycle,
            kms_public_key,
            certbot_domain: certbot_domain(&input.certbot.domain)?,
            agent: input.certbot.agent,
            certbot: Some(input.certbot.workdir).filter(|path| !path.as_os_str().is_empty()),
            pccs,
            quote_sim: input.collateral.quote_sim,
        };
        Ok((!blank).then_some(settings))
    }
}

/// Where the certificate of the ingress comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The files of `proxy.cert_chain` and `proxy.cert_key`.
    Files,
    /// This host's certbot, by the name of its certificate.
    Certbot(String),
}

impl Settings {
    /// Where the certificate comes from now: certbot when it is named, or when there is no file.
    #[must_use]
    pub fn source(&self) -> Source {
        match &self.certbot_domain {
            Some(domain) => Source::Certbot(domain.clone()),
            None if self.proxy.cert_chain.exists() => Source::Files,
            None => Source::Certbot(self.proxy.base_domain.clone()),
        }
    }
}

impl Tunnel {
    /// Our address with the prefix of the range, as the interface has it.
    #[must_use]
    pub fn address(&self) -> Option<Net> {
        Net::new(self.ip.into(), self.range.prefix())
    }

    /// The addresses to lease; `None` for a range of IPv6, which settings never have.
    #[must_use]
    pub fn pool(&self) -> Option<Pool> {
        let reserved = self.reserved.iter().map(Range::of).collect::<Option<_>>()?;
        Some(Pool::new(Range::of(&self.range)?, self.ip, reserved))
    }
}

fn tunnel(input: WgInput, blank: bool) -> Result<Tunnel, ConfigError> {
    let key = |name: &str| format!("wg.{name}");
    let range = net(&key("client_ip_range"), &input.client_ip_range)?;
    let ip: Ipv4Addr = input
        .ip
        .parse()
        .map_err(|_| ConfigError::rule(key("ip"), "must be an IPv4 address, e.g. \"10.0.0.1\""))?;
    if !range.contains(IpAddr::V4(ip)) || !(8..=30).contains(&range.prefix()) {
        return Err(ConfigError::rule(
            key("client_ip_range"),
            "must contain wg.ip and have a prefix of 8 to 30 bits",
        ));
    }
    if input.listen_port == 0 || !(1280..=65_535).contains(&input.mtu) {
        return Err(ConfigError::rule("wg", "listen_port must be 1 to 65535 and mtu 1280 to 65535"));
    }
    if !blank && !is_endpoint(&input.endpoint) {
        let hint = "must be host:port at which guests reach wg.listen_port, e.g. \"192.0.2.1:51820\"";
        return Err(ConfigError::rule(key("endpoint"), hint));
    }
    Ok(Tunnel {
        interface: input
            .interface
            .parse()
            .map_err(|e| ConfigError::rule(key("interface"), format!("{e}")))?,
        ip,
        range,
        reserved: input
            .reserved_net
            .iter()
            .map(|n| net(&key("reserved_net"), n))
            .collect::<Result<_, _>>()?,
        listen_port: input.listen_port,
        endpoint: input.endpoint,
        mtu: input.mtu,
    })
}

fn certbot_domain(text: &str) -> Result<Option<String>, ConfigError> {
    let domain = text.strip_prefix("*.").unwrap_or(text).trim_end_matches('.').to_ascii_lowercase();
    match domain.is_empty() || is_domain(&domain) {
        true => Ok(Some(domain).filter(|domain| !domain.is_empty())),
        false => Err(ConfigError::rule("certbot.domain", "must be a name of a certificate in certbot.toml")),
    }
}

fn net(key: &str, text: &str) -> Result<Net, ConfigError> {
    let net: Net = text.parse().map_err(|e| ConfigError::rule(key, format!("{e}")))?;
    if net.network() != net || Range::of(&net).is_none() {
        return Err(ConfigError::rule(
            key,
            "must be an IPv4 network without host bits, e.g. \"10.0.0.0/16\"",
        ));
    }
    Ok(net)
}

fn is_endpoint(text: &str) -> bool {
    let known = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b':' | b'[' | b']');
    let parts = text.rsplit_once(':');
    parts.is_some_and(|(host, port)| {
        !host.is_empty() && host.bytes().all(known) && port.parse::<u16>().is_ok_and(|port| port != 0)
    })
}

fn proxy(input: ProxyInput, blank: bool) -> Result<Proxy, ConfigError> {
    let key = |name: &str| format!("proxy.{name}");
    let base_domain = input.base_domain.trim_end_matches('.').to_ascii_lowercase();
    if !blank && !is_domain(&base_domain) {
        let hint = "must be the domain under which apps are, e.g. \"apps.example.com\"";
        return Err(ConfigError::rule(key("base_domain"), hint));
    }
    if input.listen_port == 0 || input.tappd_port == 0 {
        return Err(ConfigError::rule("proxy", "listen_port and tappd_port must be 1 to 65535"));
    }
    if !(1..=16).contains(&input.connect_top_n) || input.connections_per_app == 0 {
        let hint = "connect_top_n must be 1 to 16, and connections_per_app at least 1";
        return Err(ConfigError::rule("proxy", hint));
    }
    let prefix = input.app_address_ns_prefix;
    if !is_domain(&prefix) {
        return Err(ConfigError::rule(
            key("app_address_ns_prefix"),
            "must be a label, e.g. \"_dstack-app-address\"",
        ));
    }
    Ok(Proxy {
        base_domain,
        cert_chain: input.cert_chain,
        cert_key: input.cert_key,
        listen_port: input.listen_port,
        tappd_port: input.tappd_port,
        connect_top_n: input.connect_top_n,
        connections_per_app: input.connections_per_app,
        ktls: input.ktls,
        txt_prefix: prefix,
        resolver: resolver(&input.resolver)?,
        timeouts: timeouts(&input.timeouts)?,
    })
}

/// Labels of 1 to 63 of `[a-zA-Z0-9_-]`, 253 bytes in all.
fn is_domain(text: &str) -> bool {
    let known = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    let label = |label: &str| (1..=LABEL_MAX).contains(&label.len()) && label.bytes().all(known);
    text.len() <= 253 && text.split('.').all(label)
}

fn resolver(text: &str) -> Result<Option<SocketAddr>, ConfigError> {
    if text.is_empty() {
        return Ok(None);
    }
    let address = text.parse().or_else(|_| text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 53)));
    let hint = "must be the address of a DNS server, with a port if it is not 53";
    address.map(Some).map_err(|_| ConfigError::rule("proxy.resolver", hint))
}

fn timeouts(input: &TimeoutsInput) -> Result<Timeouts, ConfigError> {
    let key = |name: &str| format!("proxy.timeouts.{name}");
    let some = |name: &str, text: &str| {
        duration(&key(name), text)?.ok_or_else(|| ConfigError::rule(key(name), "cannot be never"))
    };
    let data =
        |name: &str, text: &str| Ok(duration(&key(name), text)?.filter(|_| input.data_timeout_enabled));
    Ok(Timeouts {
        connect: some("connect", &input.connect)?,
        handshake: some("handshake", &input.handshake)?,
        idle: data("idle", &input.idle)?,
        write: data("write", &input.write)?,
        shutdown: some("shutdown", &input.shutdown)?,
        total: duration(&key("total"), &input.total)?,
    })
}

fn recycle(input: &RecycleInput) -> Result<Option<Recycle>, ConfigError> {
    let interval = duration("recycle.interval", &input.interval)?;
    let timeout = duration("recycle.timeout", &input.timeout)?;
    let both = interval.zip(timeout).filter(|_| input.enabled);
    if both.is_some_and(|(_, timeout)| timeout < Duration::from_secs(600)) {
        return Err(ConfigError::rule("recycle.timeout", "must be at least 10m"));
    }
    Ok(both.map(|(interval, timeout)| Recycle { interval, timeout }))
}

fn public_key(text: &str) -> Result<Option<Vec<u8>>, ConfigError> {
    if text.is_empty() {
        return Ok(None);
    }
    let hint =
        "must be the hex SubjectPublicKeyInfo of the key service's root CA; `dstackctl kms status` shows it";
    let bytes = hex::decode(text).ok().filter(|bytes| bytes.first() == Some(&0x30));
    bytes.map(Some).ok_or_else(|| ConfigError::rule("kms.public_key", hint))
}

/// An integer with a unit of s, m, h or d, at least one second and at most a year; or `never`.
fn duration(key: &str, text: &str) -> Result<Option<Duration>, ConfigError> {
    if text == "never" {
        return Ok(None);
    }
    let units = [('s', 1), ('m', 60), ('h', 3600), ('d', 86_400)];
    let parsed = units.into_iter().find_map(|(unit, seconds)| {
        let digits = text.strip_suffix(unit).filter(|d| d.bytes().all(|b| b.is_ascii_digit()))?;
        digits.parse::<u64>().ok()?.checked_mul(seconds).map(Duration::from_secs)
    });
    let fits = |d: &Duration| !d.is_zero() && *d <= DURATION_MAX;
    let hint = "must be a whole number of s, m, h or d, e.g. \"10m\", or \"never\"";
    parsed.filter(fits).map(Some).ok_or_else(|| ConfigError::rule(key, hint))
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
