// SPDX-License-Identifier: Apache-2.0
//! What teepod remembers about a VM.

use dstack_core::spec::VmSpec;
use serde::{Deserialize, Serialize};

/// Version of [`Record`] that this build writes.
pub const VERSION: u32 = 1;

/// A VM's record, one file per VM. Everything else (disks, console, readiness) belongs to the VM's unit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// What the VM is.
    #[serde(flatten)]
    pub spec: VmSpec,
    /// Its leased context id.
    pub cid: u32,
    /// Whether its start was promised and has not reached systemd yet; a new teepod keeps the promise.
    #[serde(default)]
    pub start_pending: bool,
    /// Whether its removal has begun; a new teepod finishes it.
    #[serde(default)]
    pub removing: bool,
}
