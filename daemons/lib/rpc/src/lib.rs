// SPDX-License-Identifier: Apache-2.0
//! pRPC: methods called by HTTP with JSON or protobuf bodies, over Unix sockets, TCP and vsock; no TLS.
//!
//! - [`wire`]: formats, paths, bodies and errors, as pure functions
//! - [`service`]: a [`service::Service`] as an axum router
//! - [`listener`]: listeners and streams from descriptors that systemd or a peer passed
//! - [`server`]: the bounded accept loop
//! - [`client`]: one call over one stream
//! - [`teepod`], [`guest`], [`worker`], [`tappd`], [`dstack`], [`kms`], [`disk`], [`tproxy`]: the messages, with their
//!   protobuf numbers
//!
//! A call is `POST <base>/<Service>.<Method>` or `<base>/<Method>`. The body is JSON when the query has `json`, the
//! content type is `application/json`, or the request is a GET (whose arguments are its query); protobuf otherwise.

pub mod client;
pub mod disk;
pub mod dstack;
pub mod guest;
pub mod hexbytes;
pub mod kms;
pub mod limits;
pub mod listener;
pub mod server;
pub mod service;
pub mod tappd;
pub mod teepod;
pub mod tproxy;
pub mod wire;
pub mod worker;

pub use client::ClientError;
pub use listener::{Listener, Peer, Stream};
pub use server::{ServeOptions, serve};
pub use service::{Call, Service, router};
pub use wire::{Format, RpcError};
