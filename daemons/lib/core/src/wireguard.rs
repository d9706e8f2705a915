// SPDX-License-Identifier: Apache-2.0
//! WireGuard's values: keys, networks, peers. Bytes and addresses, never text of a configuration (known attack P27).
//!
//! - [`uapi`]: the protocol of a user-space daemon

pub mod uapi;

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use zeroize::{Zeroize, ZeroizeOnDrop};

/// Longest name of an interface, bytes (`IFNAMSIZ` less its end).
pub const INTERFACE_NAME_MAX: usize = 15;
/// Most networks of one peer that is set.
pub const ALLOWED_MAX: usize = 64;
/// Most peers of one interface.
pub const PEERS_MAX: usize = 100_000;

/// Why a text is none of these values. It carries nothing of the text, which may be a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireguardError {
    /// Not a key.
    #[error("not a WireGuard key: use the base64 of 32 bytes, as `wg pubkey` prints it")]
    Key,
    /// Not a network.
    #[error("not a network: use ADDRESS/BITS, e.g. 10.4.0.0/16")]
    Net,
    /// Not the name of an interface.
    #[error(
        "not a name of an interface: use 1 to 15 of a-z, A-Z, 0-9, '.', '_' and '-', beginning with a letter"
    )]
    Interface,
}

/// The public key of a peer, 32 bytes; base64 as text.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// The bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl From<[u8; 32]> for PublicKey {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl FromStr for PublicKey {
    type Err = WireguardError;

    fn from_str(text: &str) -> Result<Self, WireguardError> {
        // 32 bytes have exactly 44 characters; the decoder refuses other padding and loose bits.
        if text.len() != 44 {
            return Err(WireguardError::Key);
        }
        let bytes = STANDARD.decode(text).map_err(|_| WireguardError::Key)?;
        bytes.try_into().map(Self).map_err(|_| WireguardError::Key)
    }
}

impl TryFrom<String> for PublicKey {
    type Error = WireguardError;
    fn try_from(text: String) -> Result<Self, WireguardError> {
        text.parse()
    }
}

impl From<PublicKey> for String {
    fn from(key: PublicKey) -> Self {
        key.to_string()
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

/// The private key of an interface, 32 bytes. Wiped when dropped, never printed.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct PrivateKey([u8; 32]);

impl PrivateKey {
    /// The bytes, for the kernel or the daemon that gets the key, and for its file.
    #[must_use]
    pub const fn expose(&self) -> &[u8; 32] {
        &self.0
    }
}

impl From<[u8; 32]> for PrivateKey {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(secret)")
    }
}

/// An address with its prefix: of an interface (`10.4.0.1/16`), of a route or of a peer (`10.4.0.7/32`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Net {
    address: IpAddr,
    prefix: u8,
}

impl Net {
    /// `None` when the prefix is longer than the address.
    #[must_use]
    pub fn new(address: IpAddr, prefix: u8) -> Option<Self> {
        (prefix <= bits(address)).then_some(Self { address, prefix })
    }

    /// Just this address.
    #[must_use]
    pub const fn host(address: IpAddr) -> Self {
        Self { address, prefix: bits(address) }
    }

    /// The address as given, with its host part.
    #[must_use]
    pub const fn address(&self) -> IpAddr {
        self.address
    }

    /// Bits of the prefix.
    #[must_use]
    pub const fn prefix(&self) -> u8 {
        self.prefix
    }

    /// The same without the host part, as routes and peers have it.
    #[must_use]
    pub fn network(&self) -> Self {
        let cut = |all: u32| all.saturating_sub(u32::from(self.prefix));
        let address = match self.address {
            IpAddr::V4(v4) => {
                let mask = u32::MAX.checked_shl(cut(32)).unwrap_or_default();
                Ipv4Addr::from_bits(v4.to_bits() & mask).into()
            }
            IpAddr::V6(v6) => {
                let mask = u128::MAX.checked_shl(cut(128)).unwrap_or_default();
                Ipv6Addr::from_bits(v6.to_bits() & mask).into()
            }
        };
        Self { address, prefix: self.prefix }
    }

    /// Whether the address is inside; an address of the other family never is.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.address.is_ipv4()
            && Self { address, prefix: self.prefix }.network() == self.network()
    }
}

const fn bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

impl FromStr for Net {
    type Err = WireguardError;

    fn from_str(text: &str) -> Result<Self, WireguardError> {
        let (address, prefix) = text.split_once('/').ok_or(WireguardError::Net)?;
        let address = address.parse().map_err(|_| WireguardError::Net)?;
        // `parse` alone would take a sign.
        let digits = !prefix.is_empty() && prefix.bytes().all(|b| b.is_ascii_digit());
        let prefix = prefix.parse().ok().filter(|_| digits).ok_or(WireguardError::Net)?;
        Self::new(address, prefix).ok_or(WireguardError::Net)
    }
}

impl TryFrom<String> for Net {
    type Error = WireguardError;
    fn try_from(text: String) -> Result<Self, WireguardError> {
        text.parse()
    }
}

impl From<Net> for String {
    fn from(net: Net) -> Self {
        net.to_string()
    }
}

impl fmt::Display for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// The name of an interface: 1 to 15 of `[a-zA-Z0-9._-]`, beginning with a letter, so that it is a file name too.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InterfaceName(Cow<'static, str>);

impl InterfaceName {
    /// A name that is part of the program, for constants: anything else does not compile there.
    #[must_use]
    pub const fn fixed(name: &'static str) -> Self {
        assert!(is_interface(name.as_bytes()), "not a name of an interface");
        Self(Cow::Borrowed(name))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for InterfaceName {
    type Err = WireguardError;

    fn from_str(text: &str) -> Result<Self, WireguardError> {
        let name = Cow::Owned(text.to_owned());
        if is_interface(text.as_bytes()) { Ok(Self(name)) } else { Err(WireguardError::Interface) }
    }
}

const fn is_interface(name: &[u8]) -> bool {
    let [first, rest @ ..] = name else { return false };
    let mut rest = rest;
    if !first.is_ascii_alphabetic() || name.len() > INTERFACE_NAME_MAX {
        return false;
    }
    while let [byte, more @ ..] = rest {
        if !(byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-')) {
            return false;
        }
        rest = more;
    }
    true
}

impl TryFrom<String> for InterfaceName {
    type Error = WireguardError;
    fn try_from(text: String) -> Result<Self, WireguardError> {
        text.parse()
    }
}

impl From<InterfaceName> for String {
    fn from(name: InterfaceName) -> Self {
        name.0.into_owned()
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A peer as it is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Who it is.
    pub public_key: PublicKey,
    /// Where it is; `None` leaves that to the packets it sends.
    pub endpoint: Option<SocketAddr>,
    /// The only inner addresses that it may send from and that are sent to it; at most [`ALLOWED_MAX`].
    pub allowed: Vec<Net>,
    /// Seconds between packets that keep the way to it open; 0 for none.
    pub keepalive: u16,
}

/// What is known of a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerStatus {
    /// Who it is.
    pub public_key: PublicKey,
    /// Where its last packet came from, or where it was said to be.
    pub endpoint: Option<SocketAddr>,
    /// Its inner addresses.
    pub allowed: Vec<Net>,
    /// Seconds between packets that keep the way to it open; 0 for none.
    pub keepalive: u16,
    /// Time of the last handshake, seconds since 1970; `None` before the first.
    pub last_handshake: Option<u64>,
    /// Bytes received from it.
    pub rx_bytes: u64,
    /// Bytes sent to it.
    pub tx_bytes: u64,
}

impl PeerStatus {
    /// A peer of which nothing is known yet.
    #[must_use]
    pub const fn new(public_key: PublicKey) -> Self {
        Self {
            public_key,
            endpoint: None,
            allowed: Vec::new(),
            keepalive: 0,
            last_handshake: None,
            rx_bytes: 0,
            tx_bytes: 0,
        }
    }
}

#[cfg(test)]
#[path = "wireguard_tests.rs"]
mod tests;
