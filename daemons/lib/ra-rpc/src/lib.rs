// SPDX-License-Identifier: Apache-2.0
//! pRPC over RA-TLS.
//!
//! TLS 1.3 proves that the peer holds the key of its certificate; then, before a byte of a request is read or sent, the
//! evidence inside is judged by `dstack_ra_tls::verify`. A [`Peer`] comes from that judgement alone, and a handler never
//! sees a certificate.
//!
//! - [`tls`]: identities and configurations of both sides
//! - [`peer`]: rules for a peer, and what is known about it afterwards
//! - [`collateral`]: collateral by platform, cached on disk, usable offline
//! - [`floor`]: what was verified never falls
//! - [`pccs`]: collateral over HTTP, as Intel and its caches serve it
//! - [`server`]: the bounded accept loop
//! - [`client`]: one call to a judged server

pub mod client;
pub mod collateral;
pub mod floor;
pub mod pccs;
pub mod peer;
pub mod server;
pub mod tls;

pub use client::{ConnectError, Connection, connect};
pub use collateral::{Cache, Fetch, PlatformId};
pub use pccs::Pccs;
pub use peer::{Anchor, Peer, PeerError, Rules, Shown, Side, Verifier};
pub use server::{Refusals, Server, Session, serve};
pub use tls::Identity;
