// SPDX-License-Identifier: Apache-2.0
//! The protocol of a user-space WireGuard daemon: lines `key=value`, an empty line at the end of a request and of a
//! reply. Keys are hex here. Source: <https://www.wireguard.com/xplatform/>.
//!
//! Requests are written from typed values alone, so that no value can bring a line of its own (known attack P27).

use super::{Net, PEERS_MAX, Peer, PeerStatus, PrivateKey, PublicKey};
use std::fmt::Write;
use zeroize::Zeroizing;

/// Asks for everything.
pub const GET: &str = "get=1\n\n";
/// Largest reply, bytes: the peers of a full interface.
pub const REPLY_MAX: usize = 64 * 1024 * 1024;
/// Longest line of a request, bytes: a private key.
const LINE_MAX: usize = 80;

/// What a daemon says of its interface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Device {
    /// UDP port; 0 before it has one.
    pub listen_port: u16,
    /// Whether it has a private key.
    pub has_key: bool,
    /// Its peers, in its order.
    pub peers: Vec<PeerStatus>,
}

/// Why a reply is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UapiError {
    /// The daemon refused: its errno.
    #[error("the user-space WireGuard daemon refused, errno {0}")]
    Refused(i64),
    /// Another form than that of the protocol.
    #[error("the reply of the user-space WireGuard daemon has no valid {0}")]
    Form(&'static str),
}

/// A request that changes the interface.
#[derive(Debug)]
pub struct Set(Zeroizing<String>);

impl Set {
    /// Begins a request with room for so many peers.
    #[must_use]
    pub fn new(peers: usize) -> Self {
        // Room from the start: a buffer that grows would leave the private key behind.
        let mut text = Zeroizing::new(String::with_capacity((peers.min(PEERS_MAX) + 4) * 4 * LINE_MAX));
        text.push_str("set=1\n");
        Self(text)
    }

    fn line(&mut self, key: &str, value: impl std::fmt::Display) {
        // A String takes all.
        let _ = writeln!(self.0, "{key}={value}");
    }

    /// Sets the private key, and the UDP port if one is given.
    pub fn device(&mut self, key: &PrivateKey, listen_port: Option<u16>) {
        let digits = Zeroizing::new(hex::encode(key.expose()));
        self.line("private_key", digits.as_str());
        if let Some(port) = listen_port {
            self.line("listen_port", port);
        }
    }

    /// Forgets all peers that are not named afterwards.
    pub fn replace_peers(&mut self) {
        self.line("replace_peers", "true");
    }

    /// Adds a peer, or makes a known one what is given.
    pub fn peer(&mut self, peer: &Peer) {
        self.line("public_key", hex::encode(peer.public_key.as_bytes()));
        if let Some(endpoint) = peer.endpoint {
            self.line("endpoint", endpoint);
        }
        self.line("persistent_keepalive_interval", peer.keepalive);
        self.line("replace_allowed_ips", "true");
        for net in &peer.allowed {
            self.line("allowed_ip", net.network());
        }
    }

    /// Removes a peer, if it is there.
    pub fn remove(&mut self, key: &PublicKey) {
        self.line("public_key", hex::encode(key.as_bytes()));
        self.line("update_only", "true");
        self.line("remove", "true");
    }

    /// The whole request.
    #[must_use]
    pub fn finish(mut self) -> Zeroizing<String> {
        self.0.push('\n');
        self.0
    }
}

/// Reads the reply to a [`Set`].
///
/// # Errors
/// [`UapiError`].
pub fn parse_set(reply: &[u8]) -> Result<(), UapiError> {
    lines(reply)?.try_for_each(|line| match line? {
        ("errno", value) => errno(value),
        _ => Err(UapiError::Form("line")),
    })
}

/// Reads the reply to [`GET`]. Keys that are not known are passed over; the private key is never kept.
///
/// # Errors
/// [`UapiError`] for the first line that is wrong.
pub fn parse_get(reply: &[u8]) -> Result<Device, UapiError> {
    let mut device = Device::default();
    for line in lines(reply)? {
        let (key, value) = line?;
        match key {
            "errno" => errno(value)?,
            "public_key" if device.peers.len() >= PEERS_MAX => {
                return Err(UapiError::Form("number of peers"));
            }
            "public_key" => device.peers.push(PeerStatus::new(public_key(value)?)),
            _ => match device.peers.last_mut() {
                Some(peer) => of_peer(peer, key, value)?,
                None => of_device(&mut device, key, value)?,
            },
        }
    }
    Ok(device)
}

fn of_device(device: &mut Device, key: &str, value: &str) -> Result<(), UapiError> {
    match key {
        "listen_port" => device.listen_port = number(value, "port")?,
        "private_key" => device.has_key = true,
        _ => {}
    }
    Ok(())
}

fn of_peer(peer: &mut PeerStatus, key: &str, value: &str) -> Result<(), UapiError> {
    match key {
        "endpoint" => peer.endpoint = Some(value.parse().map_err(|_| UapiError::Form("endpoint"))?),
        "allowed_ip" => peer.allowed.push(value.parse::<Net>().map_err(|_| UapiError::Form("network"))?),
        "persistent_keepalive_interval" => peer.keepalive = number(value, "interval")?,
        "rx_bytes" => peer.rx_bytes = number(value, "count")?,
        "tx_bytes" => peer.tx_bytes = number(value, "count")?,
        "last_handshake_time_sec" => {
            let seconds: u64 = number(value, "time")?;
            peer.last_handshake = (seconds != 0).then_some(seconds);
        }
        _ => {}
    }
    Ok(())
}

/// The lines up to the empty one, as keys and values; what does not end with one is cut off.
fn lines(reply: &[u8]) -> Result<impl Iterator<Item = Result<(&str, &str), UapiError>>, UapiError> {
    let text = std::str::from_utf8(reply).map_err(|_| UapiError::Form("text"))?;
    let whole = text.strip_suffix("\n\n").filter(|body| !body.contains("\n\n"));
    let body = whole.ok_or(UapiError::Form("end"))?;
    Ok(body.split('\n').map(|line| line.split_once('=').ok_or(UapiError::Form("line"))))
}

fn errno(value: &str) -> Result<(), UapiError> {
    match value.parse() {
        Ok(0) => Ok(()),
        Ok(errno) => Err(UapiError::Refused(errno)),
        Err(_) => Err(UapiError::Form("errno")),
    }
}

fn public_key(digits: &str) -> Result<PublicKey, UapiError> {
    let mut bytes = [0; 32];
    hex::decode_to_slice(digits, &mut bytes).map_err(|_| UapiError::Form("key"))?;
    Ok(bytes.into())
}

fn number<T: std::str::FromStr>(value: &str, what: &'static str) -> Result<T, UapiError> {
    value.parse().map_err(|_| UapiError::Form(what))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn peer() -> Peer {
        Peer {
            public_key: PublicKey::from([0xbb; 32]),
            endpoint: Some("[2001:db8::1]:51820".parse().unwrap()),
            allowed: vec!["10.4.0.7/16".parse().unwrap()],
            keepalive: 25,
        }
    }

    #[test]
    fn p27_a_request_has_the_lines_of_its_values_and_no_other() {
        let mut set = Set::new(2);
        set.device(&PrivateKey::from([0xaa; 32]), Some(51820));
        set.replace_peers();
        set.peer(&peer());
        set.remove(&PublicKey::from([0xcc; 32]));
        let (a, b, c) = ("aa".repeat(32), "bb".repeat(32), "cc".repeat(32));
        let expected = format!(
            "set=1\nprivate_key={a}\nlisten_port=51820\nreplace_peers=true\npublic_key={b}\n\
             endpoint=[2001:db8::1]:51820\npersistent_keepalive_interval=25\nreplace_allowed_ips=true\n\
             allowed_ip=10.4.0.0/16\npublic_key={c}\nupdate_only=true\nremove=true\n\n"
        );
        assert_eq!(*set.finish(), expected);
    }

    #[test]
    fn replies_are_read() {
        let key = "bb".repeat(32);
        let reply = format!(
            "private_key={0}\nlisten_port=51820\nfwmark=1\npublic_key={key}\npreshared_key={0}\nendpoint=192.0.2.1:9\n\
             allowed_ip=10.4.0.7/32\nallowed_ip=fd00::/64\nlast_handshake_time_sec=5\nlast_handshake_time_nsec=6\n\
             tx_bytes=7\nrx_bytes=8\nprotocol_version=1\npublic_key={1}\nlast_handshake_time_sec=0\nerrno=0\n\n",
            "aa".repeat(32),
            "cc".repeat(32)
        );
        let device = parse_get(reply.as_bytes()).unwrap();
        assert_eq!((device.listen_port, device.has_key, device.peers.len()), (51820, true, 2));
        let peer = &device.peers[0];
        assert_eq!((peer.last_handshake, peer.rx_bytes, peer.tx_bytes), (Some(5), 8, 7));
        assert_eq!((peer.endpoint, peer.allowed.len()), (Some("192.0.2.1:9".parse().unwrap()), 2));
        assert_eq!(device.peers[1], PeerStatus::new(PublicKey::from([0xcc; 32])));
        assert_eq!(parse_get(b"errno=0\n\n"), Ok(Device::default()));
    }

    #[test]
    fn errors_are_told() {
        assert_eq!(parse_set(b"errno=0\n\n"), Ok(()));
        assert_eq!(parse_set(b"errno=-22\n\n"), Err(UapiError::Refused(-22)));
        for (reply, what) in [
            (&b"errno=0\n"[..], "end"),
            (b"", "end"),
            (b"errno=0\n\nerrno=0\n\n", "end"),
            (b"errno=x\n\n", "errno"),
            (b"nonsense\n\n", "line"),
            (b"\xff\n\n", "text"),
            (b"listen_port=65536\n\n", "port"),
            (b"public_key=aa\n\n", "key"),
        ] {
            assert_eq!(parse_get(reply), Err(UapiError::Form(what)), "{reply:?}");
        }
    }
}
