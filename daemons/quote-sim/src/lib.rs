// SPDX-License-Identifier: Apache-2.0
//! The simulated TEE: TDX version 4 quotes under a test root of this host.
//!
//! A quote made here goes through the very same verifier as a real one, and passes it only where the test root's
//! certificate is trusted by name. The guest never holds a key of this crate, and cannot choose its own measurements.
//!
//! - [`pki`]: the test root and what hangs off it, made once at install
//! - [`quote`]: a TD report's fields and the quote over them
//! - [`collateral`]: what a provisioning certificate cache would serve

pub mod collateral;
mod der;
pub mod pki;
pub mod quote;

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
