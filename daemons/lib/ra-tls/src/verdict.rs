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

    /// `mr_image` of the original: SHA-256 over MRTD, RTMR1 and RTMR2, what an image measures in any shape.
    #[must_use]
    pub fn image(&self) -> [u8; 32] {
        let [_, rtmr1, rtmr2, _] = self.rtmr;
        Sha256::digest([self.mr_td, rtmr1, rtmr2].as_flattened()).into()
    }

    /// `mr_system` of the original: SHA-256 over MRTD, RTMR0 to RTMR2, and [`key_provider`] of the boot.
    #[must_use]
    pub fn system(&self, key_provider: [u8; 32]) -> [u8; 32] {
        let [rtmr0, rtmr1, rtmr2, _] = self.rtmr;
        let registers = [self.mr_td, rtmr0, rtmr1, rtmr2];
        Sha256::new().chain_update(registers.as_flattened()).chain_update(key_provider).finalize().into()
    }
}

/// `mr_key_provider` of the original: SHA-256 of the payload of the event `key-provider`, 32 zeros before that event.
#[must_use]
pub fn key_provider(payload: Option<&[u8]>) -> [u8; 32] {
    payload.map_or([0; 32], |payload| Sha256::digest(payload).into())
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
    /// Until when the platform passes by grace, seconds since 1970; `None` when it needs none (trust rule T22).
    pub grace_until: Option<u64>,
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Each digest was computed apart, by sha256sum over the bytes.
    #[test]
    fn digests_over_registers_are_the_originals() {
        let registers = Measurements {
            mr_td: [1; 48],
            rtmr: [[2; 48], [3; 48], [4; 48], [5; 48]],
            mr_config_id: [0; 48],
            mr_owner: [0; 48],
            mr_owner_config: [0; 48],
        };
        assert_eq!(
            hex::encode(registers.image()),
            "f9aa5fad4ffa53815ea7d57c706950417a0c88b347d03150416de171e4f8da62"
        );
        assert_eq!(
            hex::encode(registers.system(key_provider(None))),
            "277dd3f55ca5f00d78b6df04104ca9e04ad17b871128e38808abc9f6b86faf31"
        );
        assert_eq!(
            hex::encode(registers.system(key_provider(Some(b"{}")))),
            "7c0456711236f3fe838aebe212e2ada6ea8f110d5f1ef57aaab6e693f80f6ebe"
        );
        assert_eq!(
            hex::encode(registers.aggregated()),
            "f19f6a13a1f3a6bf9607fa8435673eb843a03be87c19eb8bb0b8f585921851bd"
        );
    }
}
