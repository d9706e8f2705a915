// SPDX-License-Identifier: Apache-2.0
//! The guest's door to the TEE.
//!
//! - [`platform`]: what a TEE offers, and its errors
//! - [`tdx`]: Intel TDX by the kernel's report and measurement files
//! - [`simulated`]: the simulated TEE of the host, over vsock
//! - [`detect`]: which of them this machine is; no setting and no environment variable has a say
//! - [`log`]: the event log and RTMR3, which have one owner at a time
//!
//! Everything here blocks, for seconds at most; call it from a blocking task.

pub mod detect;
pub mod log;
pub mod platform;
pub mod simulated;
pub mod tdx;

pub use detect::{detect, detect_with};
pub use log::{Attested, EventLog, LogError};
pub use platform::{AttestError, Platform, Registers};
