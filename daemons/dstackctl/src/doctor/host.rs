// SPDX-License-Identifier: Apache-2.0
//! What the machine itself offers: accelerator, programs, memory, disk.

use super::{Check, Config};
use crate::quantity::show_size;
use dstack_core::qemu_probe::Report;
use dstack_core::spec::Platform;
use std::path::Path;
use std::time::Duration;
use tokio::process::Command;

const PROBE: &str = "/usr/libexec/dstack/dstack-vm";
const VSOCK_PROGRAM: &str = "/usr/libexec/dstack/vhost-device-vsock";
const PASST: &str = "/usr/bin/passt";
/// The probe boots a tiny guest with each accelerator.
const PROBE_TIMEOUT: Duration = Duration::from_secs(60);
const GIB: u64 = 1 << 30;

/// Runs `dstack-vm probe`. `told` is the platform that teepod says, which counts for what VMs really run on.
pub async fn probe(config: &Config, told: Option<Platform>) -> (Vec<Check>, Option<Platform>) {
    match run_probe(config).await {
        Ok(report) => {
            let platform = told.or(report.platform());
            (findings(&report, platform), platform)
        }
        Err(check) => (vec![check], told),
    }
}

async fn run_probe(config: &Config) -> Result<Report, Check> {
    let bad = |message: String| {
        Check::bad("platform", message, "install it: apt install dstack-teepod qemu-system-x86")
    };
    let mut command = Command::new(PROBE);
    command.args(["probe", "--qemu"]).arg(&config.cvm.qemu_path).kill_on_drop(true);
    let output = tokio::time::timeout(PROBE_TIMEOUT, command.output()).await;
    let output = output.map_err(|_| bad(format!("{PROBE} probe does not end")))?;
    let output = output.map_err(|e| bad(format!("{PROBE} cannot be run: {e}")))?;
    serde_json::from_slice(&output.stdout).map_err(|e| bad(format!("{PROBE} probe has no answer: {e}")))
}

/// The checks of a probe's report.
#[must_use]
pub fn findings(report: &Report, platform: Option<Platform>) -> Vec<Check> {
    let reason = |what: &str| report.reasons.get(what).map(|r| format!(": {r}")).unwrap_or_default();
    let confidential = "for confidential VMs, use a host with Intel TDX, Linux 6.16 and QEMU 10.1, or newer";
    let accelerator = match platform {
        Some(Platform::Tdx) => Check::good("platform", "QEMU runs TDX guests"),
        Some(Platform::Kvm) => Check::warning(
            "platform",
            format!("QEMU runs guests on KVM, not on TDX{}", reason("tdx")),
            confidential,
        ),
        Some(Platform::Tcg) => Check::warning(
            "platform",
            format!("QEMU runs guests by software emulation only{}", reason("kvm")),
            format!("{confidential}; for fast ones, a host with KVM"),
        ),
        None => Check::bad(
            "platform",
            format!("QEMU runs no guest{}", reason("tcg")),
            "apt install qemu-system-x86; then see: journalctl -u dstack-teepod",
        ),
    };
    let vsock = match (report.vhost_vsock, Path::new(VSOCK_PROGRAM).exists()) {
        (true, _) => Check::good("vsock", "the kernel carries vsock between host and guests"),
        (false, true) => {
            let message = format!("a user-space process carries vsock{}", reason("vhost_vsock"));
            Check::warning("vsock", message, "modprobe vhost_vsock, where that is possible")
        }
        (false, false) => Check::bad(
            "vsock",
            format!("VMs cannot be started: neither vhost_vsock nor {VSOCK_PROGRAM} is there"),
            "modprobe vhost_vsock; or, where that is not possible: apt install --reinstall dstack-teepod",
        ),
    };
    let qemu = match report.qemu.as_str() {
        "" => Check::bad("QEMU", "QEMU does not run", "apt install qemu-system-x86"),
        version => Check::good("QEMU", format!("version {version}")),
    };
    vec![accelerator, vsock, qemu]
}

/// Files that VMs need.
#[must_use]
pub fn files(config: &Config) -> Vec<Check> {
    let file = |name, path: &Path, remedy: &str| {
        if path.is_file() {
            Check::good(name, path.display().to_string())
        } else {
            Check::bad(name, format!("{} is missing", path.display()), remedy)
        }
    };
    vec![
        file("firmware", &config.cvm.firmware, "apt install ovmf, or set cvm.firmware in teepod.toml"),
        file("network", Path::new(PASST), "apt install passt"),
    ]
}

/// Memory and disk.
#[must_use]
pub fn resources() -> Vec<Check> {
    let memory = std::fs::read_to_string("/proc/meminfo").ok().and_then(|t| available_memory(&t));
    let disk = ["/var/lib/dstack", "/var/lib"].into_iter().find_map(|p| rustix::fs::statvfs(p).ok());
    let disk = disk.map(|s| s.f_bavail.saturating_mul(s.f_frsize));
    vec![memory_check(memory), disk_check(disk)]
}

/// `MemAvailable` of `/proc/meminfo`, bytes.
fn available_memory(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
}

fn memory_check(available: Option<u64>) -> Check {
    let remedy = "stop what is not needed, or give VMs less with --memory";
    match available {
        None => Check::warning("memory", "/proc/meminfo cannot be read", remedy),
        Some(bytes) if bytes < GIB => Check::bad(
            "memory",
            format!("only {} are available; a VM needs at least 1 GiB", show_size(bytes)),
            remedy,
        ),
        Some(bytes) if bytes < 3 * GIB => {
            Check::warning("memory", format!("{} are available: one small VM", show_size(bytes)), remedy)
        }
        Some(bytes) => Check::good("memory", format!("{} available", show_size(bytes))),
    }
}

fn disk_check(free: Option<u64>) -> Check {
    let remedy = "make room in /var/lib, or mount a larger disk at /var/lib/dstack and /var/lib/private";
    match free {
        None => Check::warning("disk", "the free space of /var/lib is not known", remedy),
        Some(bytes) if bytes < GIB => {
            Check::bad("disk", format!("only {} are free in /var/lib", show_size(bytes)), remedy)
        }
        Some(bytes) if bytes < 10 * GIB => Check::warning(
            "disk",
            format!("{} are free in /var/lib: little for VM disks", show_size(bytes)),
            remedy,
        ),
        Some(bytes) => Check::good("disk", format!("{} free in /var/lib", show_size(bytes))),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;

    fn report(kvm: bool, tcg: bool, tdx: bool) -> Report {
        let finding = |works| if works { Ok(()) } else { Err("do this".to_owned()) };
        let report = Report { qemu: "10.0".into(), ..Report::default() };
        let report = report.with("kvm", finding(kvm)).with("tcg", finding(tcg)).with("tdx", finding(tdx));
        report.with("vhost_vsock", Ok(()))
    }

    #[test]
    fn platforms() {
        for (found, status) in [
            (report(true, true, true), Status::Good),
            (report(true, true, false), Status::Warning),
            (report(false, true, false), Status::Warning),
            (report(false, false, false), Status::Bad),
        ] {
            let checks = findings(&found, found.platform());
            let check = checks.first().map(|c| (c.status, c.remedy.is_some()));
            assert_eq!(check, Some((status, status != Status::Good)), "{found:?}");
        }
    }

    #[test]
    fn memory_and_disk() {
        assert_eq!(available_memory("MemTotal: 9 kB\nMemAvailable:   2048 kB\n"), Some(2 << 20));
        assert_eq!(available_memory("nothing"), None);
        for (bytes, status) in [
            (None, Status::Warning),
            (Some(0), Status::Bad),
            (Some(2 * GIB), Status::Warning),
            (Some(64 * GIB), Status::Good),
        ] {
            assert_eq!((memory_check(bytes).status, disk_check(bytes).status), (status, status), "{bytes:?}");
        }
    }
}
