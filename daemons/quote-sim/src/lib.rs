// SPDX-License-Identifier: Apache-2.0
//! The simulated TEE: TDX version 4 quotes under a test root of this host.
//!
//! A quote made here goes through the very same verifier as a real one, and passes it only where the test root's
//! certificate is trusted by name. The guest never holds a key of this crate, and cannot choose its own measurements.
//!
//! - [`pki`]: the test root and what hangs off it, made once at install
//! - [`quote`]: a TD report's fields and the quote over them
//! - [`collateral`]: what a provisioning certificate cache would serve
//! - [`launched`]: the registers of a VM at launch
//! - [`measurer`]: what images measure, each computed once
//! - [`pccs`]: collateral over HTTP
//! - [`registry`]: the registers of the VMs that run
//! - [`identity`]: which VM a caller is
//! - [`server`]: answers to guests
//! - [`store`]: the test root on disk
//! - [`daemon`]: start order and main loop of the program

pub mod collateral;
pub mod daemon;
mod der;
pub mod identity;
pub mod launched;
pub mod measurer;
pub mod pccs;
pub mod pki;
pub mod quote;
pub mod registry;
pub mod server;
pub mod store;

/// Why the simulated TEE cannot do something.
#[derive(Debug, thiserror::Error)]
pub enum SimError {
    /// A certificate or revocation list could not be made.
    #[error("the test root cannot sign: {0}")]
    Certificate(#[from] rcgen::Error),
    /// A stored key is damaged.
    #[error("a key of the test root is damaged; remove it and install dstack-testroot again")]
    Key,
    /// A time outside what certificates can say.
    #[error("the clock is outside the years 1970 to 9999")]
    Time,
}
