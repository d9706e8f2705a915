// SPDX-License-Identifier: Apache-2.0
//! QEMU's command line, as a pure function of how a VM is to be launched.
//!
//! Everything that a TDX guest measures is here: the same [`LaunchSpec`] gives the same machine. Nothing is appended to
//! the kernel's command line (trust rule T2), no option names a default that a version of QEMU may change, and paths
//! are quoted, so that no value can become another option.

use crate::spec::{LaunchSpec, Network, Platform, Vsock};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// `serial=` of the root image's device: `/dev/disk/by-id/virtio-dstack-root` in the guest.
pub const SERIAL_ROOT: &str = "dstack-root";
/// `serial=` of the hash tree's device.
pub const SERIAL_VERITY: &str = "dstack-verity";
/// `serial=` of the data disk.
pub const SERIAL_DATA: &str = "dstack-data";
/// `serial=` of the config disk.
pub const SERIAL_CONFIG: &str = "dstack-config";

/// passt's socket, in the private `/tmp` that the VM's unit and its network unit share (`JoinsNamespaceOf=`): there,
/// and hardly elsewhere, the AppArmor profile of Debian's passt lets it be.
pub const NET_SOCKET: &str = "/tmp/passt.sock";

/// What dstack-vm has prepared in this run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runtime {
    /// The data disk, qcow2.
    pub data_disk: PathBuf,
    /// Socket of the vhost-user vsock process, used with [`Vsock::User`].
    pub vsock_socket: PathBuf,
    /// passt's socket, used with [`Network::User`].
    pub net_socket: PathBuf,
    /// Descriptor, in QEMU, of the QMP stream.
    pub qmp_fd: i32,
    /// Descriptor, in QEMU, of the serial console's stream.
    pub serial_fd: i32,
    /// Descriptor, in QEMU, of the tap device, used with [`Network::Tap`].
    pub tap_fd: Option<i32>,
    /// QEMU's version, major and minor.
    pub version: (u32, u32),
}

/// Why there is no command line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QemuError {
    /// MRCONFIGID is not 96 hex digits.
    #[error("mr_config_id {0:?} is not 96 hexadecimal digits")]
    MrConfigId(String),
    /// TDX with the user-space vsock: its shared memory is not private memory.
    #[error("platform tdx needs the kernel's vhost-vsock; run `modprobe vhost_vsock` on the host")]
    TdxVsock,
    /// A tap network without its descriptor.
    #[error("the tap device is not open")]
    NoTap,
}

/// The oldest QEMU that this command line is for.
pub const VERSION_MIN: (u32, u32) = (7, 2);

/// Reads the version from the first line of `qemu-system-x86_64 --version`.
#[must_use]
pub fn version(text: &str) -> Option<(u32, u32)> {
    let number = text.lines().next()?.split(' ').skip_while(|word| *word != "version").nth(1)?;
    let mut parts = number.split('.').map(str::parse::<u32>);
    Some((parts.next()?.ok()?, parts.next()?.ok()?))
}

/// The MAC address of a VM: locally administered, and the same at every start.
#[must_use]
pub fn mac(id: Uuid) -> String {
    let hash = Sha256::digest(id.as_bytes());
    let mut text = String::from("52:54");
    hash.iter().take(4).for_each(|byte| text.push_str(&format!(":{byte:02x}")));
    text
}

/// QEMU's arguments, without the program.
///
/// # Errors
/// [`QemuError`] when the spec asks for what cannot be.
pub fn arguments(launch: &LaunchSpec, runtime: &Runtime) -> Result<Vec<String>, QemuError> {
    let mut args = Args { list: Vec::new(), tdx: launch.platform == Platform::Tdx };
    base(&mut args, launch);
    machine(&mut args, launch)?;
    boot(&mut args, launch);
    disks(&mut args, launch, runtime);
    network(&mut args, launch, runtime)?;
    vsock(&mut args, launch, runtime)?;
    small_devices(&mut args);
    channels(&mut args, runtime);
    Ok(args.list)
}

struct Args {
    list: Vec<String>,
    tdx: bool,
}

impl Args {
    fn flag(&mut self, name: &str) {
        self.list.push(name.to_owned());
    }

    fn option(&mut self, name: &str, value: impl Into<String>) {
        self.list.push(name.to_owned());
        self.list.push(value.into());
    }

    /// A virtio device; in a TD it must not expect to reach the guest's memory except by the DMA rules.
    fn virtio(&mut self, device: &str) {
        let tdx = if self.tdx { ",disable-legacy=on,iommu_platform=on" } else { "" };
        self.option("-device", format!("{device}{tdx}"));
    }
}

/// A path as a value of QEMU's option syntax: commas are doubled.
fn quoted(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

fn base(args: &mut Args, launch: &LaunchSpec) {
    args.option("-name", format!("guest=dstack-{},debug-threads=on", launch.vm.name));
    args.flag("-nodefaults");
    args.flag("-no-user-config");
    args.flag("-nographic");
    args.option("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
    args.option("-action", "reboot=shutdown,panic=shutdown");
}

fn machine(args: &mut Args, launch: &LaunchSpec) -> Result<(), QemuError> {
    let mib = launch.vm.memory / (1024 * 1024);
    let mut machine = String::from("q35");
    if launch.platform != Platform::Tcg {
        machine.push_str(",kernel-irqchip=split,hpet=off");
    }
    if launch.platform == Platform::Tdx {
        machine.push_str(",confidential-guest-support=tdx");
        args.option("-object", tdx_object(launch)?);
    }
    if launch.vsock == Vsock::User {
        machine.push_str(",memory-backend=mem");
        args.option("-object", format!("memory-backend-memfd,id=mem,size={mib}M,share=on"));
    }
    args.option("-machine", machine);
    let (accel, cpu) = match launch.platform {
        Platform::Tdx | Platform::Kvm => ("kvm", "host"),
        // split-wx keeps the JIT's pages writable or executable, never both, as the unit's sandbox demands.
        // One thread for all vCPUs: with one each, a kernel that patches its code can meet a half-made change and
        // panic (one such panic was seen with QEMU 10 and Linux 7.3; the cause is inferred).
        Platform::Tcg => ("tcg,thread=single,split-wx=on", "max"),
    };
    args.option("-accel", accel);
    args.option("-cpu", cpu);
    let cpus = launch.vm.vcpus;
    args.option("-smp", format!("cpus={cpus},sockets=1,cores={cpus},threads=1"));
    args.option("-m", format!("{mib}M"));
    Ok(())
}

/// The TDX object, in JSON since its socket has parts. QEMU wants MRCONFIGID in base64, numbers of a vsock as strings.
fn tdx_object(launch: &LaunchSpec) -> Result<String, QemuError> {
    let wrong = || QemuError::MrConfigId(launch.mr_config_id.chars().take(100).collect());
    let id = hex::decode(&launch.mr_config_id).map_err(|_| wrong())?;
    if id.len() != 48 {
        return Err(wrong());
    }
    let mut object = format!(r#"{{"qom-type":"tdx-guest","id":"tdx","mrconfigid":"{}""#, base64(&id));
    if let Some(port) = launch.qgs_port {
        let socket = format!(r#"{{"type":"vsock","cid":"2","port":"{port}"}}"#);
        object.push_str(&format!(r#","quote-generation-socket":{socket}"#));
    }
    object.push('}');
    Ok(object)
}

/// Base64 of whole groups of three bytes, which MRCONFIGID is.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digit = |n: u32| DIGITS.get(n as usize & 63).map_or('=', |d| char::from(*d));
    let group = |c: &[u8]| c.iter().fold(0, |n, byte| n << 8 | u32::from(*byte));
    bytes.chunks_exact(3).map(group).flat_map(|n| [n >> 18, n >> 12, n >> 6, n].map(digit)).collect()
}

fn boot(args: &mut Args, launch: &LaunchSpec) {
    // -bios and -kernel take their whole argument as the path.
    args.option("-bios", launch.firmware.to_string_lossy());
    args.option("-kernel", launch.image_dir.join(&launch.uki).to_string_lossy());
}

fn disks(args: &mut Args, launch: &LaunchSpec, runtime: &Runtime) {
    read_only(args, "root", &launch.image_dir.join(&launch.root), SERIAL_ROOT);
    if let Some(verity) = &launch.verity {
        read_only(args, "verity", &launch.image_dir.join(verity), SERIAL_VERITY);
    }
    let file = quoted(&runtime.data_disk);
    args.option(
        "-blockdev",
        format!(
            "driver=qcow2,node-name=data,discard=unmap,file.driver=file,file.discard=unmap,file.filename={file}"
        ),
    );
    args.virtio(&format!("virtio-blk-pci,drive=data,serial={SERIAL_DATA}"));
    read_only(args, "config", &launch.config_disk, SERIAL_CONFIG);
}

fn read_only(args: &mut Args, node: &str, path: &Path, serial: &str) {
    let file = quoted(path);
    args.option(
        "-blockdev",
        format!("driver=raw,node-name={node},read-only=on,file.driver=file,file.filename={file}"),
    );
    args.virtio(&format!("virtio-blk-pci,drive={node},serial={serial}"));
}

fn network(args: &mut Args, launch: &LaunchSpec, runtime: &Runtime) -> Result<(), QemuError> {
    let backend = match &launch.network {
        Network::User => {
            let path = quoted(&runtime.net_socket);
            let again = reconnect(runtime.version);
            format!("stream,id=net,server=off,addr.type=unix,addr.path={path}{again}")
        }
        Network::Tap { .. } => format!("tap,id=net,fd={}", runtime.tap_fd.ok_or(QemuError::NoTap)?),
    };
    args.option("-netdev", backend);
    // No option ROM: the firmware never boots from the network.
    args.virtio(&format!("virtio-net-pci,netdev=net,mac={},romfile=", mac(launch.vm.id)));
    Ok(())
}

/// How to come back to a passt that was restarted, in the words of this version.
const fn reconnect(version: (u32, u32)) -> &'static str {
    match version {
        (10.., _) | (9, 2..) => ",reconnect-ms=1000",
        (8..=9, _) => ",reconnect=1",
        _ => "",
    }
}

fn vsock(args: &mut Args, launch: &LaunchSpec, runtime: &Runtime) -> Result<(), QemuError> {
    match (launch.vsock, launch.platform) {
        (Vsock::Kernel, _) => args.virtio(&format!("vhost-vsock-pci,guest-cid={}", launch.cid)),
        (Vsock::User, Platform::Tdx) => return Err(QemuError::TdxVsock),
        (Vsock::User, _) => {
            args.option("-chardev", format!("socket,id=vsock,path={}", quoted(&runtime.vsock_socket)));
            args.virtio("vhost-user-vsock-pci,chardev=vsock");
        }
    }
    Ok(())
}

fn small_devices(args: &mut Args) {
    args.option("-object", "rng-builtin,id=rng");
    args.virtio("virtio-rng-pci,rng=rng");
    args.option("-device", "pvpanic-pci");
}

fn channels(args: &mut Args, runtime: &Runtime) {
    args.option("-chardev", format!("socket,id=serial,fd={}", runtime.serial_fd));
    args.option("-serial", "chardev:serial");
    args.option("-chardev", format!("socket,id=qmp,fd={}", runtime.qmp_fd));
    args.option("-mon", "chardev=qmp,mode=control");
}

#[cfg(test)]
#[path = "qemu_tests.rs"]
mod tests;
