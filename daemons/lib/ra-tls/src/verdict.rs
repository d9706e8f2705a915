// SPDX-License-Identifier: Apache-2.0
//! The result of a verification: what is proven, and every rule that failed.

use crate::roots::Label;
use dstack_core::event_log::{Digest, Event, Trusted};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

/// The registers of a TD.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Measurements {
    /// MRTD: initial contents, the firmware.
    pub mr_td: Digest,
    /// RTMR0 to RTMR3.
    pub rtmr: [Digest; 4],
    /// MRCONFIGID: chosen by the host at launch.
    pub mr_config_id: Digest,
    /// MROWNER.
    pub mr_owner: Digest,
    /// MROWNERCONFIG.
    pub mr_owner_config: Digest,
}

impl Measurements {
    /// SHA-256 over all registers; MRCONFIGID, MROWNER and MROWNERCONFIG count when one of them is not zero.
    #[must_use]
    pub fn aggregated(&self) -> [u8; 32] {
        let extra = [self.mr_config_id, self.mr_owner, self.mr_owner_config];
        let mut hash = Sha256::new();
        hash.update(self.mr_td);
        self.rtmr.iter().for_each(|r| hash.update(r));
        if extra.iter().flatten().any(|b| *b != 0) {
            extra.iter().for_each(|r| hash.update(r));
        }
        hash.finalize().into()
    }
}

/// A rule of the verifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rule {
    /// Debugging is off.
    Debug,
    /// The TDX module is Intel's.
    Module,
    /// No service TD is bound.
    ServiceTd,
    /// The TCB status passes.
    TcbStatus,
    /// No refused advisory applies.
    Advisory,
    /// The TCB evaluation is recent enough.
    Evaluation,
    /// The device passes.
    Device,
    /// The event log is well formed and its digests are its events'.
    EventLog,
    /// The log gives the quoted registers.
    Replay,
    /// The trusted prefix is the sequence it must be.
    Grammar,
    /// The boot had come as far as it must.
    Milestone,
    /// MRCONFIGID is that of the compose hash.
    ConfigId,
    /// The image and its registers pass.
    Image,
    /// The report data is the expected.
    ReportData,
}

/// A rule that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// Which.
    pub rule: Rule,
    /// Why, in a sentence.
    pub reason: String,
}

/// What a verification found. The quote's signature is good, or there would be no verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The root that the quote stands under.
    pub root: Label,
    /// Converged TCB status of platform, module and quoting enclave.
    pub tcb_status: String,
    /// Advisories that apply.
    pub advisories: Vec<String>,
    /// Number of the TCB evaluation.
    pub evaluation_number: u32,
    /// When the first part of the collateral expires, seconds since 1970.
    pub collateral_expires: u64,
    /// Newest issue date in the collateral, seconds since 1970: the time is at least this (trust rule T12).
    pub not_earlier_than: u64,
    /// Registers.
    pub measurements: Measurements,
    /// Report data.
    pub report_data: [u8; 64],
    /// SHA-256 of the platform's id in the quote header.
    pub device_id: [u8; 32],
    /// Platform provisioning id.
    pub ppid: Vec<u8>,
    /// The trusted prefix; `None` when it is not well formed.
    pub boot: Option<Trusted>,
    /// All events of the log whose digests are right.
    pub events: Vec<Event>,
    /// Whether the image's registers were compared with known ones, or only recorded.
    pub image_compared: bool,
    /// Exceptions that the policy made, such as grace.
    pub exceptions: Vec<String>,
    /// Every rule that failed, in the order of the checks.
    pub failures: Vec<Failure>,
}

impl Verdict {
    /// Whether every rule was met.
    #[must_use]
    pub const fn passed(&self) -> bool {
        self.failures.is_empty()
    }

    /// The failures as one sentence, for logs and errors; empty when there are none.
    #[must_use]
    pub fn reasons(&self) -> String {
        self.failures.iter().map(|f| f.reason.as_str()).collect::<Vec<_>>().join("; ")
    }

    pub(crate) fn fail(&mut self, rule: Rule, reason: impl Into<String>) {
        self.failures.push(Failure { rule, reason: reason.into() });
    }
}
