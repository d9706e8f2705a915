// SPDX-License-Identifier: Apache-2.0
//! What a host can run, as `dstack-vm probe` found out by running something.

use crate::spec::{Platform, Vsock};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The output of `dstack-vm probe`, one JSON object.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// QEMU's version, e.g. `10.0`; empty when QEMU does not run.
    pub qemu: String,
    /// QEMU runs guest code with KVM.
    pub kvm: bool,
    /// QEMU runs guest code without KVM.
    pub tcg: bool,
    /// KVM can run TDX guests.
    pub tdx: bool,
    /// The kernel serves vsock for guests; else a user-space process does.
    pub vhost_vsock: bool,
    /// For each of the above that is false, one sentence with the remedy.
    pub reasons: BTreeMap<String, String>,
    /// All of them in one line.
    pub reason: String,
}

impl Report {
    /// Notes a finding; an error is its reason.
    #[must_use]
    pub fn with(mut self, what: &str, finding: Result<(), String>) -> Self {
        let works = finding.is_ok();
        match what {
            "kvm" => self.kvm = works,
            "tcg" => self.tcg = works,
            "tdx" => self.tdx = works,
            _ => self.vhost_vsock = works,
        }
        if let Err(reason) = finding {
            let separator = if self.reason.is_empty() { "" } else { "; " };
            self.reason.push_str(&format!("{separator}no {what}: {reason}"));
            self.reasons.insert(what.to_owned(), reason);
        }
        self
    }

    /// The best platform that works.
    #[must_use]
    pub const fn platform(&self) -> Option<Platform> {
        match self {
            Self { tdx: true, .. } => Some(Platform::Tdx),
            Self { kvm: true, .. } => Some(Platform::Kvm),
            Self { tcg: true, .. } => Some(Platform::Tcg),
            _ => None,
        }
    }

    /// The way to speak with guests.
    #[must_use]
    pub const fn vsock(&self) -> Vsock {
        if self.vhost_vsock { Vsock::Kernel } else { Vsock::User }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_that_works() {
        let mut report = Report::default().with("kvm", Err("a".into())).with("tdx", Err("b".into()));
        assert_eq!((report.platform(), report.vsock()), (None, Vsock::User));
        assert_eq!(report.reason, "no kvm: a; no tdx: b");
        for (what, platform) in [("tcg", Platform::Tcg), ("kvm", Platform::Kvm), ("tdx", Platform::Tdx)] {
            report = report.with(what, Ok(()));
            assert_eq!(report.platform(), Some(platform));
        }
        assert_eq!(report.with("vhost_vsock", Ok(())).vsock(), Vsock::Kernel);
    }
}
