// SPDX-License-Identifier: Apache-2.0
//! The shape of a VM, and how it is to be launched.

use crate::ids::{AppId, ComposeHash, ImageName, VmName};
use crate::limits::{DISK_MAX, DISK_MIN, MEMORY_MAX, MEMORY_MIN, PORTS_MAX, VCPUS_MAX};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use uuid::Uuid;

/// Transport protocol of a port mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

impl std::str::FromStr for Protocol {
    type Err = SpecError;
    fn from_str(text: &str) -> Result<Self, SpecError> {
        match text {
            "tcp" => Ok(Self::Tcp),
            "udp" => Ok(Self::Udp),
            _ => Err(SpecError::Protocol(text.chars().take(16).collect())),
        }
    }
}

/// A port of the host that leads to a port of the VM.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PortMapping {
    /// Transport protocol.
    pub protocol: Protocol,
    /// Address on the host to listen on.
    pub host_address: IpAddr,
    /// Port on the host.
    pub host_port: u16,
    /// Port in the VM.
    pub vm_port: u16,
}

impl fmt::Display for PortMapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (host, port) = (self.host_address, self.host_port);
        write!(f, "{}:{port}->{}/{}", bracketed(host), self.vm_port, self.protocol)
    }
}

fn bracketed(address: IpAddr) -> String {
    match address {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => format!("[{v6}]"),
    }
}

/// What a VM is; written once, changed only by resize and upgrade.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmSpec {
    /// Unique id on the wire.
    pub id: Uuid,
    /// Unique name on this host, also the unit's instance.
    pub name: VmName,
    /// The app's identity.
    pub app_id: AppId,
    /// Hash of the `app-compose.json` now in force.
    pub compose_hash: ComposeHash,
    /// Directory name of the image.
    pub image: ImageName,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Memory, bytes.
    pub memory: u64,
    /// Size of the data disk, bytes.
    pub disk: u64,
    /// Port mappings.
    #[serde(default)]
    pub ports: Vec<PortMapping>,
    /// Whether teepod starts it after a host reboot.
    #[serde(default)]
    pub autostart: bool,
    /// When it was created, seconds since 1970.
    #[serde(default)]
    pub created_at: u64,
}

/// Why a shape is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// Too few or too many vCPUs.
    #[error("{0} vCPUs are not possible: use 1 to {VCPUS_MAX}")]
    Vcpus(u32),
    /// Too little or too much memory, or not whole MiB.
    #[error("{0} bytes of memory are not possible: use whole MiB from 512 MiB to 4 TiB")]
    Memory(u64),
    /// Too small or too large a disk, or not whole MiB.
    #[error("a disk of {0} bytes is not possible: use whole MiB from 64 MiB to 64 TiB")]
    Disk(u64),
    /// Too many port mappings.
    #[error("{0} port mappings are too many: use at most {PORTS_MAX}")]
    TooManyPorts(usize),
    /// A port of 0 or a mapping twice.
    #[error("port mapping {0} is not possible: ports are 1 to 65535, and each host port is used once")]
    Port(String),
    /// Neither tcp nor udp.
    #[error("protocol {0:?} is not known: use tcp or udp")]
    Protocol(String),
}

impl VmSpec {
    /// Checks all quantities against the limits of [`crate::limits`].
    ///
    /// # Errors
    /// [`SpecError`] names the quantity and its range.
    pub fn check(&self) -> Result<(), SpecError> {
        check_shape(self.vcpus, self.memory, self.disk)?;
        check_ports(&self.ports)
    }
}

/// Checks vCPUs, memory (bytes) and disk (bytes).
///
/// # Errors
/// [`SpecError`] names the quantity and its range.
pub fn check_shape(vcpus: u32, memory: u64, disk: u64) -> Result<(), SpecError> {
    let mib = 1024 * 1024;
    if !(1..=VCPUS_MAX).contains(&vcpus) {
        return Err(SpecError::Vcpus(vcpus));
    }
    if !(MEMORY_MIN..=MEMORY_MAX).contains(&memory) || !memory.is_multiple_of(mib) {
        return Err(SpecError::Memory(memory));
    }
    if !(DISK_MIN..=DISK_MAX).contains(&disk) || !disk.is_multiple_of(mib) {
        return Err(SpecError::Disk(disk));
    }
    Ok(())
}

/// Checks that ports are real and each host port is used once.
///
/// # Errors
/// [`SpecError`] names the mapping.
pub fn check_ports(ports: &[PortMapping]) -> Result<(), SpecError> {
    if ports.len() > PORTS_MAX {
        return Err(SpecError::TooManyPorts(ports.len()));
    }
    for (index, port) in ports.iter().enumerate() {
        let same = |p: &PortMapping| p.protocol == port.protocol && p.host_port == port.host_port;
        if port.host_port == 0 || port.vm_port == 0 || ports.iter().take(index).any(same) {
            return Err(SpecError::Port(port.to_string()));
        }
    }
    Ok(())
}

/// What the VM runs on; chosen by a probe that boots something, never by the existence of a device node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Platform {
    /// Intel TDX: the only one that protects the app from the host.
    Tdx,
    /// KVM without confidentiality.
    Kvm,
    /// Software emulation.
    Tcg,
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tdx => "tdx",
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        })
    }
}

/// How host and guest speak vsock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Vsock {
    /// The kernel's vhost-vsock.
    Kernel,
    /// A vhost-user process beside QEMU, reached by Unix sockets in the VM's runtime directory.
    User,
}

/// How the VM is connected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "mode", rename_all = "lowercase")]
pub enum Network {
    /// passt in its own unit, with the spec's port mappings.
    User,
    /// A persistent tap device of this name, owned by the VM's user.
    Tap {
        /// Name of the interface.
        device: String,
    },
}

/// Where `dstack-vm@.service` shows a VM its config disk: a read-only bind of the file in teepod's own directory, which
/// the VM's user cannot enter.
pub const CONFIG_DISK: &str = "/tmp/dstack-config.tar";

/// Version of [`LaunchSpec`] that this build writes.
pub const LAUNCH_VERSION: u32 = 1;

/// Everything dstack-vm needs to start a VM, written by teepod at each start as the credential `launch`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaunchSpec {
    /// [`LAUNCH_VERSION`].
    pub version: u32,
    /// The VM.
    pub vm: VmSpec,
    /// What it runs on.
    pub platform: Platform,
    /// How host and guest speak.
    pub vsock: Vsock,
    /// Leased context id.
    pub cid: u32,
    /// How it is connected.
    pub network: Network,
    /// QEMU's program.
    pub qemu: PathBuf,
    /// The vhost-user vsock program, used with [`Vsock::User`].
    pub vsock_program: PathBuf,
    /// Directory of the image.
    pub image_dir: PathBuf,
    /// UKI file name in `image_dir`.
    pub uki: String,
    /// Root image file name in `image_dir`.
    pub root: String,
    /// Hash tree file name in `image_dir`, when it is apart.
    #[serde(default)]
    pub verity: Option<String>,
    /// Firmware, an absolute path.
    pub firmware: PathBuf,
    /// The config disk, an absolute path as the VM's unit sees it: [`CONFIG_DISK`].
    pub config_disk: PathBuf,
    /// MRCONFIGID, 96 hex digits; used with [`Platform::Tdx`].
    pub mr_config_id: String,
    /// Vsock port of the host's quote generation service; used with [`Platform::Tdx`].
    #[serde(default)]
    pub qgs_port: Option<u32>,
    /// Seconds a guest may take to READY without making progress.
    pub progress_timeout: u64,
    /// Seconds a guest may take to READY in all.
    pub boot_timeout: u64,
    /// Seconds a guest may take to shut down.
    pub stop_timeout: u64,
}

/// MRCONFIGID version 1: `0x01 ‖ compose hash ‖ 15 zero bytes`, as 96 hex digits.
#[must_use]
pub fn mr_config_id(hash: &ComposeHash) -> String {
    format!("01{hash}{}", "00".repeat(15))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;

    fn port(host: u16, vm: u16) -> PortMapping {
        PortMapping {
            protocol: Protocol::Tcp,
            host_address: [127, 0, 0, 1].into(),
            host_port: host,
            vm_port: vm,
        }
    }

    #[test]
    fn shapes() {
        assert_eq!(check_shape(1, 512 * MIB, 64 * MIB), Ok(()));
        assert_eq!(check_shape(0, 512 * MIB, 64 * MIB), Err(SpecError::Vcpus(0)));
        assert_eq!(check_shape(257, 512 * MIB, 64 * MIB), Err(SpecError::Vcpus(257)));
        for memory in [0, 511 * MIB, 512 * MIB + 1, u64::MAX] {
            assert_eq!(check_shape(1, memory, 64 * MIB), Err(SpecError::Memory(memory)));
        }
        for disk in [0, 63 * MIB, 64 * MIB + 1, u64::MAX] {
            assert_eq!(check_shape(1, 512 * MIB, disk), Err(SpecError::Disk(disk)));
        }
    }

    #[test]
    fn ports() {
        assert_eq!(check_ports(&[port(80, 80), port(81, 80)]), Ok(()));
        assert_eq!(port(8080, 80).to_string(), "127.0.0.1:8080->80/tcp");
        for bad in [vec![port(0, 1)], vec![port(1, 0)], vec![port(5, 1), port(5, 2)]] {
            assert!(matches!(check_ports(&bad), Err(SpecError::Port(_))));
        }
        assert_eq!(check_ports(&vec![port(1, 1); 65]), Err(SpecError::TooManyPorts(65)));
    }

    #[test]
    fn mr_config_id_is_48_bytes() {
        let text = mr_config_id(&ComposeHash::of(b"{}"));
        assert_eq!(hex::decode(&text).unwrap().len(), 48);
        assert!(text.starts_with("0144136fa3"));
    }
}
