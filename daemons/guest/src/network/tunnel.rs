// SPDX-License-Identifier: Apache-2.0
//! What registrations make of the interface: one interface and key for all, one peer for each server, and for each peer
//! just the one address of its server. What a server sent is checked here, into types (known attack P27).

use dstack_core::kms_address::Address;
use dstack_core::registrations::DOMAIN_MAX;
use dstack_rpc::tproxy::AgentConfig;
use dstack_wireguard::{InterfaceConfig, InterfaceName, Net, Peer, PrivateKey, PublicKey};
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};

/// Most servers of one tproxy; further ones are passed over.
pub const SERVERS_MAX: usize = 8;
/// Seconds between packets that keep the way to a server open, through whatever translates addresses between.
const KEEPALIVE: u16 = 25;
/// Age of the last handshake at which a tunnel counts as broken, seconds: WireGuard makes a new one every two minutes.
const STALE: u64 = 180;
/// Age at which a registration is made anew in any case, seconds, well before a tproxy forgets it.
const REFRESH: u64 = 3600;

/// The part of an answer that is not valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("its {0} is not valid")]
pub struct AnswerError(pub &'static str);

/// A server as the answer says, with its endpoint looked up.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// Public key, base64.
    pub public_key: String,
    /// Address in the tunnel.
    pub ip: String,
    /// Where it listens for WireGuard.
    pub endpoint: SocketAddr,
}

/// A checked server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Server {
    /// Its key.
    pub public_key: PublicKey,
    /// Its address in the tunnel, from which all connections to the app come.
    pub ip: IpAddr,
    /// Where it listens for WireGuard.
    pub endpoint: SocketAddr,
}

/// One registration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tunnel {
    /// `host:port` of the tproxy.
    pub tproxy: String,
    /// When it was made, seconds since 1970.
    pub registered_at: u64,
    /// Our address in the tunnel.
    pub client_ip: IpAddr,
    /// Its servers.
    pub servers: Vec<Server>,
    /// Base domain under which the app is reached; may be empty.
    pub domain: String,
    /// Port of the ingress.
    pub external_port: u32,
}

impl Tunnel {
    /// Checks an answer.
    ///
    /// # Errors
    /// [`AnswerError`].
    pub fn new(
        tproxy: &Address,
        client_ip: &str,
        servers: &[Resolved],
        agent: &AgentConfig,
        now: u64,
    ) -> Result<Self, AnswerError> {
        let client_ip = inner(client_ip).ok_or(AnswerError("client_ip"))?;
        let servers = servers.iter().map(|server| check(server, client_ip)).collect::<Result<Vec<_>, _>>()?;
        if servers.is_empty() {
            return Err(AnswerError("list of servers"));
        }
        let good = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
        if agent.domain.len() > DOMAIN_MAX || !agent.domain.bytes().all(good) {
            return Err(AnswerError("domain"));
        }
        Ok(Self {
            tproxy: tproxy.to_string(),
            registered_at: now,
            client_ip,
            servers,
            domain: agent.domain.clone(),
            external_port: agent.external_port,
        })
    }

    /// Whether it must be made anew: `newest` is the last handshake with any of its servers.
    #[must_use]
    pub fn is_stale(&self, newest: Option<u64>, now: u64) -> bool {
        let Some(age) = now.checked_sub(self.registered_at) else { return true };
        // Right after a registration there may be no handshake yet.
        let quiet = newest.map_or(age, |handshake| age.min(now.saturating_sub(handshake)));
        age >= REFRESH || quiet >= STALE
    }
}

fn check(server: &Resolved, client_ip: IpAddr) -> Result<Server, AnswerError> {
    let public_key = server.public_key.parse().map_err(|_| AnswerError("server key"))?;
    let ip = inner(&server.ip).filter(|ip| *ip != client_ip && ip.is_ipv4() == client_ip.is_ipv4());
    let ip = ip.ok_or(AnswerError("server address"))?;
    let outer = server.endpoint.ip();
    if server.endpoint.port() == 0 || outer.is_unspecified() || outer.is_multicast() || outer.is_loopback() {
        return Err(AnswerError("endpoint"));
    }
    Ok(Server { public_key, ip, endpoint: server.endpoint })
}

/// An address inside a tunnel. Only private ones: no answer may lead the traffic for a public address into the tunnel.
/// And none of those that Docker gives to containers (172.16.0.0/12, 192.168.0.0/16): a route for one address would win
/// over the container's own.
fn inner(text: &str) -> Option<IpAddr> {
    let ip: IpAddr = text.parse().ok()?;
    let private = match ip {
        IpAddr::V4(v4) => {
            let [a, b, ..] = v4.octets();
            a == 10 || (a == 100 && (64..128).contains(&b))
        }
        IpAddr::V6(v6) => v6.is_unique_local(),
    };
    private.then_some(ip)
}

/// The interface.
pub const INTERFACE: InterfaceName = InterfaceName::fixed("dstack-wg0");

/// The interface and its peers.
#[derive(Debug, PartialEq, Eq)]
pub struct Plan {
    /// The interface.
    pub interface: InterfaceConfig,
    /// Its peers.
    pub peers: Vec<Peer>,
    /// Addresses of servers that an earlier tproxy has already, or that are ours.
    pub left_out: Vec<IpAddr>,
}

/// What all registrations together make.
///
/// A server may send from its one address and is sent what is for it, and nothing else goes through the interface in
/// either direction: that is the whole of `allowed`, and WireGuard enforces it by the sender's key.
#[must_use]
pub fn plan(key: &PrivateKey, tunnels: &[Tunnel]) -> Plan {
    let ours: Vec<IpAddr> = tunnels.iter().map(|tunnel| tunnel.client_ip).collect();
    let (mut peers, mut left_out): (Vec<Peer>, Vec<IpAddr>) = (Vec::new(), Vec::new());
    for server in tunnels.iter().flat_map(|tunnel| &tunnel.servers) {
        let net = Net::host(server.ip);
        let known = peers.iter().position(|peer| peer.public_key == server.public_key);
        let taken = peers.iter().any(|peer| peer.allowed.contains(&net));
        match known.and_then(|at| peers.get_mut(at)) {
            Some(peer) if peer.allowed.contains(&net) => {}
            _ if taken || ours.contains(&server.ip) => left_out.push(server.ip),
            Some(peer) => peer.allowed.push(net),
            None => peers.push(Peer {
                public_key: server.public_key,
                endpoint: Some(server.endpoint),
                allowed: vec![net],
                keepalive: KEEPALIVE,
            }),
        }
    }
    let mut addresses: Vec<Net> = ours.into_iter().map(Net::host).collect();
    addresses.sort_unstable();
    addresses.dedup();
    let routes = peers.iter().flat_map(|peer| peer.allowed.iter().copied()).collect();
    let interface = InterfaceConfig {
        name: INTERFACE,
        private_key: key.clone(),
        listen_port: None,
        addresses,
        mtu: None,
        routes,
    };
    Plan { interface, peers, left_out }
}

#[cfg(test)]
#[path = "tunnel_tests.rs"]
mod tests;
