// SPDX-License-Identifier: Apache-2.0
//! Targets of WireGuard's values and of the protocol of its user-space daemons.

use dstack_core::wireguard::{InterfaceName, Net, PublicKey, uapi as protocol};

/// Keys, networks and names of interfaces are read back from their own text.
pub fn wireguard(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(key) = text.parse::<PublicKey>() {
        assert_eq!(key.to_string(), text, "one text per key");
    }
    if let Ok(net) = text.parse::<Net>() {
        assert_eq!(net.to_string().parse(), Ok(net));
        assert!(net.contains(net.address()) && net.network().network() == net.network(), "{net}");
    }
    if let Ok(name) = text.parse::<InterfaceName>() {
        assert!(!name.as_str().contains(['/', '\n', '%', '\0']), "{name}");
    }
}

/// Samples of [`values`].
#[must_use]
pub fn wireguard_samples() -> Vec<Vec<u8>> {
    let key = PublicKey::from([7; 32]).to_string();
    [key.as_str(), "10.4.0.1/16", "fd00::1/64", "dstack-wg0"].map(|text| text.as_bytes().to_vec()).to_vec()
}

/// Replies of a user-space daemon: every peer was named.
pub fn wireguard_uapi(bytes: &[u8]) {
    let _ = protocol::parse_set(bytes);
    if let Ok(device) = protocol::parse_get(bytes) {
        let named = bytes.windows(11).filter(|w| *w == b"public_key=").count();
        assert!(device.peers.len() <= named, "a peer that nobody named");
        assert!(device.peers.iter().all(|peer| peer.last_handshake != Some(0)));
    }
}

/// Samples of [`uapi`].
#[must_use]
pub fn wireguard_uapi_samples() -> Vec<Vec<u8>> {
    let key = "ab".repeat(32);
    let peer = format!(
        "public_key={key}\nendpoint=192.0.2.1:9\nallowed_ip=10.4.0.7/32\nlast_handshake_time_sec=5\n"
    );
    let reply = format!("private_key={key}\nlisten_port=51820\n{peer}rx_bytes=7\ntx_bytes=8\nerrno=0\n\n");
    vec![reply.into_bytes(), b"errno=-1\n\n".to_vec()]
}
