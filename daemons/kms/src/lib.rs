// SPDX-License-Identifier: Apache-2.0
//! dstack-kms: keys for apps, after their quote was checked.
//!
//! - [`bus`], [`rpc`]: thin adapters; arguments in, permission, engine call, error out
//! - [`engine`]: async, owns the state, works through traits ([`vault::Vault`], [`webhook::Authorize`],
//!   [`onboard::Attest`])
//! - [`decide`], [`epoch`], [`forecast`], [`record`], [`settings`]: pure
//! - [`authority`]: certificates, composed from verdicts
//! - [`registry`], [`epoch_files`], [`release_log`], [`instances`]: files

pub mod authority;
pub mod bus;
pub mod daemon;
pub mod decide;
pub mod engine;
pub mod epoch;
pub mod epoch_files;
pub mod forecast;
pub mod instances;
pub mod onboard;
pub mod record;
pub mod registry;
pub mod release_log;
pub mod rpc;
pub mod seal;
pub mod settings;
pub mod vault;
pub mod webhook;
