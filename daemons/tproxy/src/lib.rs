// SPDX-License-Identifier: Apache-2.0
//! dstack-tproxy: the control plane of the ingress. Traffic itself is the data plane's, dstack-tproxy-flow.
//!
//! - [`bus`], [`rpc`], [`http`], [`session`]: thin adapters; arguments in, permission, engine call, error out
//! - [`engine`]: async, owns the state, works through traits (`dstack_wireguard::Wireguard`, [`names::Lookup`],
//!   [`issuer::Issuer`], [`units::Units`])
//! - [`registry`], [`pool`], [`claim`], [`settings`], [`page`]: pure
//! - [`journal`], [`key`], [`certificates`], [`acme`], [`history`]: files
//! - [`control`]: reloading, and what the daemon says of itself
//! - [`peers`]: the instances as WireGuard peers
//! - [`tunnel`]: a tunnel that forwards nothing
//! - [`dns`]: TXT records
//! - [`certbot`]: the certificate and what auditors may know, from this host's certbot

pub mod acme;
pub mod bus;
pub mod certbot;
pub mod certificates;
pub mod claim;
pub mod control;
pub mod daemon;
pub mod dns;
pub mod engine;
pub mod history;
pub mod http;
pub mod issuer;
pub mod journal;
pub mod key;
pub mod names;
pub mod page;
pub mod peers;
pub mod pool;
pub mod quoted;
pub mod registry;
pub mod rpc;
pub mod session;
pub mod settings;
pub mod tunnel;
pub mod units;
pub mod users;
