// SPDX-License-Identifier: Apache-2.0
//! The guest's command line for its TEE: filters from standard input to standard output.
//!
//! - [`args`]: sub-commands and switches
//! - [`run`]: what each does
//! - [`report`]: a TD report from registers
//! - [`certificates`]: attested certificates as PEM files

pub mod args;
pub mod certificates;
pub mod report;
pub mod run;

pub use args::Args;
pub use run::{CtlError, World, run};
