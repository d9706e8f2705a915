// SPDX-License-Identifier: Apache-2.0
//! dstack-ct-monitor: watches Certificate Transparency for certificates of our domains whose key nobody of ours has.
//!
//! - [`bus`], [`cli`]: thin adapters; arguments in, permission, engine call, error out
//! - [`daemon`], [`assemble`]: from settings to a running service
//! - [`engine`]: async, owns the state, works through traits ([`source::Source`], [`keys::Keys`])
//! - [`source`]: crt.sh, and logs read directly ([`source::log::Client`]: RFC 6962, static)
//! - [`alert`], [`certificate`], [`crtsh`], [`domain`], [`head`], [`merkle`], [`rfc6962`], [`settings`], [`tiles`]: pure
//! - files: [`store`]
//! - [`http`]: HTTPS by the system's authorities

pub mod alert;
pub mod assemble;
pub mod bus;
pub mod certificate;
pub mod cli;
pub mod crtsh;
pub mod daemon;
pub mod domain;
pub mod engine;
pub mod head;
pub mod http;
pub mod keys;
pub mod limits;
pub mod merkle;
pub mod rfc6962;
pub mod settings;
pub mod source;
pub mod store;
pub mod tiles;
