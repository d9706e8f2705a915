// SPDX-License-Identifier: Apache-2.0
//! What a host can run, as `dstack-vm probe` found out by running something.

use crate::spec::{Platform, Vsock};
use serde::{Deserialize, Serialize};

/// Whether something works, and if not, why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// It works.
    pub works: bool,
    /// One sentence with the remedy; empty when it works.
    #[serde(default)]
    pub reason: String,
}

impl Finding {
    /// It works.
    #[must_use]
    pub const fn yes() -> Self {
        Self { works: true, reason: String::new() }
    }

    /// It does not work.
    pub fn no(reason: impl Into<String>) -> Self {
        Self { works: false, reason: reason.into() }
    }
}

/// The output of `dstack-vm probe`, one JSON object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// QEMU's version, e.g. `10.0`; empty when QEMU does not run.
    #[serde(default)]
    pub qemu: String,
    /// QEMU runs guest code with KVM.
    pub kvm: Finding,
    /// QEMU runs guest code without KVM.
    pub tcg: Finding,
    /// KVM can run TDX guests.
    pub tdx: Finding,
    /// The kernel serves vsock for guests; else a user-space process does.
    pub vhost_vsock: Finding,
}

impl Report {
    /// The best platform that works.
    #[must_use]
    pub const fn platform(&self) -> Option<Platform> {
        match self {
            Self { tdx: Finding { works: true, .. }, .. } => Some(Platform::Tdx),
            Self { kvm: Finding { works: true, .. }, .. } => Some(Platform::Kvm),
            Self { tcg: Finding { works: true, .. }, .. } => Some(Platform::Tcg),
            _ => None,
        }
    }

    /// The way to speak with guests.
    #[must_use]
    pub const fn vsock(&self) -> Vsock {
        if self.vhost_vsock.works { Vsock::Kernel } else { Vsock::User }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_that_works() {
        let no = || Finding::no("x");
        let mut report = Report { qemu: "10.0".into(), kvm: no(), tcg: no(), tdx: no(), vhost_vsock: no() };
        assert_eq!((report.platform(), report.vsock()), (None, Vsock::User));
        report.tcg = Finding::yes();
        assert_eq!(report.platform(), Some(Platform::Tcg));
        report.kvm = Finding::yes();
        assert_eq!(report.platform(), Some(Platform::Kvm));
        report.tdx = Finding::yes();
        report.vhost_vsock = Finding::yes();
        assert_eq!((report.platform(), report.vsock()), (Some(Platform::Tdx), Vsock::Kernel));
    }
}
