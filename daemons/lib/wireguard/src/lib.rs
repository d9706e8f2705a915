// SPDX-License-Identifier: Apache-2.0
//! WireGuard interfaces: by the kernel, or by a user-space daemon where the kernel has no WireGuard.
//!
//! Keys, addresses and peers are typed from end to end ([`dstack_core::wireguard`]); nothing is a text of a
//! configuration (known attack P27). Links, addresses and routes are set by route netlink in both cases.
//!
//! - [`Wireguard`]: what daemons use
//! - [`System`]: this machine's network
//! - [`change`]: from the peers that are to those that shall be; pure
//! - `memory`: an interface in memory, for tests (feature `testing`)

pub mod change;
mod kernel;
mod links;
#[cfg(feature = "testing")]
pub mod memory;
mod system;
mod user_space;

pub use dstack_core::wireguard::{InterfaceName, Net, Peer, PeerStatus, PrivateKey, PublicKey};
pub use system::System;

use dstack_core::wireguard::uapi::UapiError;
use std::io;
use std::pin::Pin;

/// A future behind a trait object.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// An interface as it is to be, without its peers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterfaceConfig {
    /// Its name.
    pub name: InterfaceName,
    /// Its private key.
    pub private_key: PrivateKey,
    /// Its UDP port; `None` leaves it the one that it has, or any.
    pub listen_port: Option<u16>,
    /// Its addresses; others that it has are taken away.
    pub addresses: Vec<Net>,
    /// Largest packet inside the tunnel, bytes; `None` leaves the default (1420).
    pub mtu: Option<u32>,
    /// Networks that are reached through it, beside those of its addresses; others are taken away.
    pub routes: Vec<Net>,
}

/// An interface as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InterfaceStatus {
    /// Its UDP port.
    pub listen_port: u16,
    /// Its peers.
    pub peers: Vec<PeerStatus>,
}

/// Why an interface is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody here has WireGuard.
    #[error(
        "this kernel has no WireGuard, and no user-space daemon answers ({error}): load the module wireguard, or \
         install wireguard-go and start dstack-wireguard@{name}.socket"
    )]
    Missing {
        /// The interface that was wanted.
        name: InterfaceName,
        /// Why the daemon's socket does not answer.
        error: io::Error,
    },
    /// There is no such interface (any more).
    #[error("there is no WireGuard interface {0}")]
    NoInterface(InterfaceName),
    /// An interface of that name is something else.
    #[error("the interface {0} is there and is no WireGuard interface: choose another name or delete it")]
    Foreign(InterfaceName),
    /// Too many peers, or networks of one.
    #[error("too many peers, or networks of one peer")]
    TooMany,
    /// The kernel refused.
    #[error("netlink, {what}: {error}")]
    Netlink {
        /// What was to be done.
        what: &'static str,
        /// The kernel's answer.
        error: io::Error,
    },
    /// The user-space daemon's socket failed.
    #[error("the user-space WireGuard daemon of {name}: {error}")]
    Socket {
        /// Its interface.
        name: InterfaceName,
        /// What failed.
        error: io::Error,
    },
    /// The user-space daemon refused.
    #[error("{name}: {error}")]
    Uapi {
        /// Its interface.
        name: InterfaceName,
        /// Its answer.
        error: UapiError,
    },
}

/// Whoever can make and change WireGuard interfaces. Every call may be repeated, and completes one that was cut off.
pub trait Wireguard: Send + Sync + std::fmt::Debug {
    /// Makes the interface, or makes one that is there what is given; its peers stay. It is up afterwards.
    fn ensure<'a>(&'a self, config: &'a InterfaceConfig) -> BoxFuture<'a, Result<(), Error>>;

    /// Makes these its only peers. Peers that stay keep their sessions.
    fn set_peers<'a>(
        &'a self,
        name: &'a InterfaceName,
        peers: &'a [Peer],
    ) -> BoxFuture<'a, Result<(), Error>>;

    /// Removes peers, then adds peers or makes known ones what is given. The cost follows the number of changes.
    fn update_peers<'a>(
        &'a self,
        name: &'a InterfaceName,
        upsert: &'a [Peer],
        remove: &'a [PublicKey],
    ) -> BoxFuture<'a, Result<(), Error>>;

    /// What is known of the interface and its peers.
    fn dump<'a>(&'a self, name: &'a InterfaceName) -> BoxFuture<'a, Result<InterfaceStatus, Error>>;

    /// Deletes the interface, if it is there.
    fn delete<'a>(&'a self, name: &'a InterfaceName) -> BoxFuture<'a, Result<(), Error>>;
}
