// SPDX-License-Identifier: Apache-2.0
//! From a quote to a verdict: the one verifier of dstack.
//!
//! [`verify`] takes evidence, the trust roots, a policy and the time, and gives a [`Verdict`] that says under which
//! root the quote stands, what it measures, and every rule that failed with its reason. The simulated TEE goes through
//! the very same code under a root of its own, and its label is in every verdict.
//!
//! - [`certificate`]: evidence inside X.509
//! - [`signature`]: by whom a certificate is signed
//! - [`evidence`]: what a peer presents, with limits
//! - [`roots`]: labelled trust roots and the realm they make
//! - [`policy`], [`dropins`]: rules, as drop-in files
//! - [`verdict`]: the result
//! - [`verify`]: the steps, in their order

pub mod certificate;
mod crypto;
pub mod dropins;
pub mod evidence;
pub mod policy;
pub mod roots;
pub mod signature;
pub mod verdict;
mod verify;

pub use evidence::Evidence;
pub use policy::Policy;
pub use roots::{Label, Roots};
pub use verdict::{Failure, Rule, Verdict};
pub use verify::{Expect, VerifyError, verify};
