// SPDX-License-Identifier: Apache-2.0
//! The packets between teepod and a running dstack-vm.
//!
//! dstack-vm connects to teepod's `SOCK_SEQPACKET` socket (`vm` in `dstack-teepod.socket`), says [`FromVm::Hello`], and
//! reports its state; teepod asks for descriptors. One JSON object per packet, at most
//! [`crate::limits::HOME_PACKET_MAX`] bytes; descriptors travel beside it (`SCM_RIGHTS`). teepod knows which VM it is
//! by the peer's unit (`SO_PEERPIDFD`/`SO_PEERCRED`, `GetUnitByPID`), never by what the packet claims.
//!
//! A teepod of tomorrow meets a dstack-vm of today after every upgrade: fields are only added, unknown fields and
//! unknown `type`s are ignored, and [`PROTOCOL`] rises only when that is not enough.

use crate::ids::{InstanceId, VmName};
use crate::limits::HOME_PACKET_MAX;
use serde::{Deserialize, Serialize};

/// Where teepod listens for its VMs (`SOCK_SEQPACKET`); every VM's user may connect.
pub const SOCKET: &str = "/run/dstack/vm.sock";

/// Version of this protocol.
pub const PROTOCOL: u32 = 1;

/// What a VM is doing, as its dstack-vm sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Disks are being made, QEMU is not running yet.
    Starting,
    /// QEMU runs, the guest has not said READY.
    Booting,
    /// The guest's app is up.
    Running,
    /// The guest or the host shuts it down.
    Stopping,
    /// A word of a newer dstack-vm.
    #[serde(other)]
    Unknown,
}

/// What dstack-vm knows about its VM; sent whole at every change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// What it is doing.
    pub phase: Phase,
    /// Code of the boot stage ([`crate::boot::Stage`]), `firmware` before the guest speaks, empty when running.
    #[serde(default)]
    pub stage: String,
    /// Units done and units in all within the stage; 0, 0 when unknown.
    #[serde(default)]
    pub progress: (u32, u32),
    /// Code of the last failure ([`crate::boot::Failure`]), or a host-side sentence; empty when there is none.
    #[serde(default)]
    pub error: String,
    /// Code of what the boot waits for and keeps trying ([`crate::boot::Failure`]); empty when it goes on.
    #[serde(default)]
    pub waiting: String,
    /// The instance id that the guest reported: a claim.
    #[serde(default)]
    pub instance_id: Option<InstanceId>,
    /// Vsock CID in use.
    #[serde(default)]
    pub cid: Option<u32>,
    /// Process id of QEMU in dstack-vm's PID namespace; 0 before it runs.
    #[serde(default)]
    pub qemu_pid: u32,
    /// Milliseconds from dstack-vm's start to each stage it saw, in order: `[["qemu", 120], ["config", 9000], …]`.
    #[serde(default)]
    pub timeline: Vec<(String, u64)>,
}

/// A packet from dstack-vm.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum FromVm {
    /// First packet of a connection.
    Hello {
        /// [`PROTOCOL`] of the sender.
        protocol: u32,
        /// Which VM the sender says it is; teepod checks it against the peer's unit.
        vm: VmName,
        /// Version of the sender's program.
        build: String,
    },
    /// The VM's state has changed.
    Status(Status),
    /// Answer to [`ToVm::Connect`] or [`ToVm::Console`], with one descriptor beside it.
    Opened {
        /// Id of the request.
        id: u64,
    },
    /// The request failed.
    Failed {
        /// Id of the request.
        id: u64,
        /// One sentence.
        error: String,
    },
    /// A word of a newer dstack-vm.
    #[serde(other)]
    Unknown,
}

/// A packet to dstack-vm.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum ToVm {
    /// Open a stream to a vsock port of the guest and pass it back.
    Connect {
        /// Chosen by the sender, returned in the answer.
        id: u64,
        /// Port in the guest.
        port: u32,
    },
    /// Pass a two-way stream of the serial console back.
    Console {
        /// Chosen by the sender, returned in the answer.
        id: u64,
    },
    /// A word of a newer teepod.
    #[serde(other)]
    Unknown,
}

/// Why a packet is not one.
#[derive(Debug, thiserror::Error)]
pub enum PacketError {
    /// Larger than [`HOME_PACKET_MAX`].
    #[error("packet of {0} bytes is larger than {HOME_PACKET_MAX}")]
    TooLarge(usize),
    /// Not the JSON it should be.
    #[error("packet is not valid: {0}")]
    Json(#[from] serde_json::Error),
}

/// Parses one packet.
///
/// # Errors
/// [`PacketError`] when it is too large or not valid.
pub fn parse<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, PacketError> {
    if bytes.len() > HOME_PACKET_MAX {
        return Err(PacketError::TooLarge(bytes.len()));
    }
    Ok(serde_json::from_slice(bytes)?)
}

/// Formats one packet.
///
/// # Errors
/// [`PacketError`] when it would be too large for the peer.
pub fn format<T: Serialize>(packet: &T) -> Result<Vec<u8>, PacketError> {
    let bytes = serde_json::to_vec(packet)?;
    if bytes.len() > HOME_PACKET_MAX { Err(PacketError::TooLarge(bytes.len())) } else { Ok(bytes) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn newer_words_are_ignored_and_not_fatal() {
        assert_eq!(parse::<FromVm>(br#"{"type":"dance"}"#).unwrap(), FromVm::Unknown);
        assert_eq!(parse::<ToVm>(br#"{"type":"console","id":3,"new":1}"#).unwrap(), ToVm::Console { id: 3 });
        let status = parse::<FromVm>(br#"{"type":"status","phase":"hibernating"}"#).unwrap();
        assert!(matches!(status, FromVm::Status(Status { phase: Phase::Unknown, .. })));
        assert!(parse::<FromVm>(&vec![b' '; HOME_PACKET_MAX + 1]).is_err());
    }

    #[test]
    fn packets_survive() {
        let hello = FromVm::Hello { protocol: PROTOCOL, vm: "a".parse().unwrap(), build: "0.1.0".into() };
        assert_eq!(parse::<FromVm>(&format(&hello).unwrap()).unwrap(), hello);
    }
}
