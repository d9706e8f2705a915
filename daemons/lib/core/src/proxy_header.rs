// SPDX-License-Identifier: Apache-2.0
//! PROXY protocol version 2: who a proxied connection really comes from.
//!
//! Format: the HAProxy project's `proxy-protocol.txt`, section 2.2; command PROXY, TCP over IPv4 or IPv6, no TLVs.

use std::net::{IpAddr, SocketAddr};

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
const PROXY: u8 = 0x21;
const LOCAL: u8 = 0x20;
const TCP4: u8 = 0x11;
const TCP6: u8 = 0x21;

/// The header of a connection from `client` to `listener`; IPv4 addresses in IPv6 form become IPv4 again when both
/// are. Where the addresses are of two families, the header says that nothing is known.
#[must_use]
pub fn format(client: SocketAddr, listener: SocketAddr) -> Vec<u8> {
    let ports = [client.port().to_be_bytes(), listener.port().to_be_bytes()].concat();
    let (command, family, addresses) = match (client.ip().to_canonical(), listener.ip().to_canonical()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => (PROXY, TCP4, [from.octets(), to.octets()].concat()),
        (IpAddr::V6(from), IpAddr::V6(to)) => (PROXY, TCP6, [from.octets(), to.octets()].concat()),
        _ => return [SIGNATURE.as_slice(), &[LOCAL, 0, 0, 0]].concat(),
    };
    let length = u16::try_from(addresses.len() + ports.len()).unwrap_or_default().to_be_bytes();
    [SIGNATURE.as_slice(), &[command, family], &length, &addresses, &ports].concat()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn header(client: &str, listener: &str) -> String {
        hex::encode(format(client.parse().unwrap(), listener.parse().unwrap()))
    }

    #[test]
    fn both_families() {
        let start = "0d0a0d0a000d0a515549540a";
        assert_eq!(
            header("192.0.2.7:1000", "198.51.100.1:443"),
            format!("{start}2111000cc0000207c633640103e801bb")
        );
        assert_eq!(
            header("[2001:db8::1]:1", "[2001:db8::2]:2"),
            format!(
                "{start}21210024{0}0001{0}000200010002",
                "20010db8000000000000000000000000".get(..28).unwrap()
            )
        );
        let mapped = header("[::ffff:192.0.2.7]:1000", "[::ffff:198.51.100.1]:443");
        assert_eq!(mapped, header("192.0.2.7:1000", "198.51.100.1:443"));
        assert_eq!(header("192.0.2.7:1", "[2001:db8::2]:2"), format!("{start}20000000"));
    }
}
