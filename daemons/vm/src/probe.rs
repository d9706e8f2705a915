// SPDX-License-Identifier: Apache-2.0
//! Finds out what this host can run by running something: `/dev/kvm` may exist and yet not run a kernel.

use dstack_core::qemu;
use dstack_core::qemu_probe::Report;
use dstack_sys::child;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

const QEMU: &str = "/usr/bin/qemu-system-x86_64";
/// Time in which the tiny guest must report; it takes 0.2 s under TCG.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Least QEMU that can run a TDX guest.
const TDX_QEMU: (u32, u32) = (10, 1);

/// Size of the firmware image: the last 64 KiB below 4 GiB, where the processor starts.
const FIRMWARE_SIZE: usize = 0x1_0000;
/// Where [`CODE`] lies in it.
const CODE_AT: usize = 0xf000;
/// `jmp CODE_AT`, at the reset vector 0xfff0.
const RESET: [u8; 3] = [0xe9, 0x0d, 0xf0];
/// What QEMU exits with when the code has written 0x2a to the debug port: `0x2a << 1 | 1`.
const PROOF: i32 = 85;

/// A tiny guest that does what kernels do first, and what half-working accelerators stumble over: protected mode,
/// paging, long mode, the floating-point unit and SSE, `cpuid`; then it writes 0x2a to port 0xf4.
#[rustfmt::skip]
const CODE: [u8; 206] = [
    // 16 bit: cli; cld; lgdt cs:[0xf0c8]; cr0 |= 1; jmp 0x08:0xff019
    0xfa, 0xfc, 0x2e, 0x66, 0x0f, 0x01, 0x16, 0xc8, 0xf0,
    0x0f, 0x20, 0xc0, 0x0c, 0x01, 0x0f, 0x22, 0xc0,
    0x66, 0xea, 0x19, 0xf0, 0x0f, 0x00, 0x08, 0x00,
    // 32 bit: ds = 0x10; page tables at 0x1000, 0x2000, 0x3000 map the first 2 MiB
    0x66, 0xb8, 0x10, 0x00, 0x8e, 0xd8,
    0xc7, 0x05, 0x00, 0x10, 0x00, 0x00, 0x03, 0x20, 0x00, 0x00,
    0xc7, 0x05, 0x00, 0x20, 0x00, 0x00, 0x03, 0x30, 0x00, 0x00,
    0xc7, 0x05, 0x00, 0x30, 0x00, 0x00, 0x83, 0x00, 0x00, 0x00,
    // cr4.PAE; cr3 = 0x1000; EFER.LME; cr0.PG; jmp 0x18:0xff06b
    0x0f, 0x20, 0xe0, 0x0c, 0x20, 0x0f, 0x22, 0xe0,
    0xb8, 0x00, 0x10, 0x00, 0x00, 0x0f, 0x22, 0xd8,
    0xb9, 0x80, 0x00, 0x00, 0xc0, 0x0f, 0x32, 0x80, 0xcc, 0x01, 0x0f, 0x30,
    0x0f, 0x20, 0xc0, 0x0d, 0x00, 0x00, 0x00, 0x80, 0x0f, 0x22, 0xc0,
    0xea, 0x6b, 0xf0, 0x0f, 0x00, 0x18, 0x00,
    // 64 bit: cr4.OSFXSR and OSXMMEXCPT; finit; movups [0x4000], xmm0; fxsave [0x5000]
    0x0f, 0x20, 0xe0, 0x66, 0x0d, 0x00, 0x06, 0x0f, 0x22, 0xe0, 0x9b, 0xdb, 0xe3,
    0x0f, 0x11, 0x04, 0x25, 0x00, 0x40, 0x00, 0x00,
    0x0f, 0xae, 0x04, 0x25, 0x00, 0x50, 0x00, 0x00,
    // eax = 0; cpuid; rax = 0x1234567800000000 >> 32; if it is 0x12345678: out 0xf4, 0x2a; hlt
    0x31, 0xc0, 0x0f, 0xa2,
    0x48, 0xb8, 0x00, 0x00, 0x00, 0x00, 0x78, 0x56, 0x34, 0x12, 0x48, 0xc1, 0xe8, 0x20,
    0x3d, 0x78, 0x56, 0x34, 0x12, 0x75, 0x04, 0xb0, 0x2a, 0xe6, 0xf4, 0xf4, 0xeb, 0xfd,
    // descriptors: none, code 32, data, code 64; their size and address 0xff0a8
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
    0xff, 0xff, 0x00, 0x00, 0x00, 0x9b, 0xcf, 0x00,
    0xff, 0xff, 0x00, 0x00, 0x00, 0x93, 0xcf, 0x00,
    0xff, 0xff, 0x00, 0x00, 0x00, 0x9b, 0xaf, 0x00,
    0x1f, 0x00, 0xa8, 0xf0, 0x0f, 0x00,
];

/// Whether something works; if not, why and what to do.
type Finding = Result<(), String>;

/// `dstack-vm probe`: prints a [`Report`]; exit status 0 when any accelerator works.
pub fn main(args: &[&str]) -> ExitCode {
    let (mut qemu, mut accels) = (QEMU, vec!["kvm", "tcg"]);
    let mut rest = args;
    while let [flag, value, more @ ..] = rest {
        match (*flag, *value) {
            ("--qemu", path) => qemu = path,
            ("--accel", "kvm") => accels = vec!["kvm"],
            ("--accel", "tcg") => accels = vec!["tcg"],
            _ => break,
        }
        rest = more;
    }
    if !rest.is_empty() {
        eprintln!("dstack-vm probe: {} is not understood; see dstack-vm --help", rest.join(" "));
        return ExitCode::from(64);
    }
    let report = probe(Path::new(qemu), &accels);
    // A report of plain strings and booleans always has a format.
    println!("{}", serde_json::to_string(&report).unwrap_or_default());
    if report.platform().is_some() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Tries what `accels` names.
#[must_use]
pub fn probe(qemu: &Path, accels: &[&str]) -> Report {
    let version = version(qemu);
    let try_accel = |accel: &str| match &version {
        _ if !accels.contains(&accel) => Err("not tried".to_owned()),
        Err(e) => Err(e.clone()),
        Ok(_) if accel == "kvm" => kvm(qemu),
        Ok(_) => run(qemu, accel, "max"),
    };
    let (kvm, tcg) = (try_accel("kvm"), try_accel("tcg"));
    let tdx = tdx(&kvm, version.as_ref().ok().copied());
    let qemu = version.map(|(major, minor)| format!("{major}.{minor}")).unwrap_or_default();
    let vsock = openable("/dev/vhost-vsock", "modprobe vhost_vsock");
    let report = Report { qemu, ..Report::default() };
    report.with("tdx", tdx).with("kvm", kvm).with("tcg", tcg).with("vhost_vsock", vsock)
}

fn version(qemu: &Path) -> Result<(u32, u32), String> {
    let mut command = Command::new(qemu);
    command.arg("--version").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let output = child::spawn(&mut command, &[]).and_then(Child::wait_with_output);
    let output = output.map_err(|e| format!("{}: {e}; install qemu-system-x86", qemu.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    qemu::version(&text).ok_or_else(|| format!("{} does not tell its version", qemu.display()))
}

fn kvm(qemu: &Path) -> Finding {
    let device =
        openable("/dev/kvm", "modprobe kvm_intel or kvm_amd, and enable virtualization in the firmware");
    device.and_then(|()| run(qemu, "kvm", "host"))
}

fn openable(path: &str, remedy: &str) -> Finding {
    match OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => Ok(()),
        Err(e) => Err(format!("{path}: {e}; {remedy}")),
    }
}

fn tdx(kvm: &Finding, version: Option<(u32, u32)>) -> Finding {
    let parameter = std::fs::read_to_string("/sys/module/kvm_intel/parameters/tdx").unwrap_or_default();
    let kernel = "the kernel has TDX off; use Linux 6.16 or later with kvm_intel.tdx=1, and enable TDX in the firmware";
    match version {
        _ if kvm.is_err() => Err("KVM does not work".to_owned()),
        _ if parameter.trim() != "Y" => Err(kernel.to_owned()),
        Some(version) if version < TDX_QEMU => {
            Err("QEMU is older than 10.1; install it from backports".to_owned())
        }
        _ => Ok(()),
    }
}

/// Runs the tiny guest.
fn run(qemu: &Path, accel: &str, cpu: &str) -> Finding {
    try_run(qemu, accel, cpu).unwrap_or_else(|e| Err(format!("{}: {e}", qemu.display())))
}

fn try_run(qemu: &Path, accel: &str, cpu: &str) -> io::Result<Finding> {
    let firmware = firmware()?;
    let accel_value = if accel == "tcg" { "tcg,thread=single,split-wx=on" } else { accel };
    let mut command = Command::new(qemu);
    command.args(["-nodefaults", "-no-user-config", "-nographic", "-machine", "q35", "-m", "16M"]);
    command.args(["-accel", accel_value, "-cpu", cpu, "-device", "isa-debug-exit,iobase=0xf4,iosize=1"]);
    command.arg("-bios").arg(format!("/proc/self/fd/{}", firmware.as_raw_fd()));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = child::spawn(&mut command, &[firmware.as_fd()])?;
    let words = last_words(&mut child)?;
    let status = child.wait()?;
    Ok(match (status.code(), words) {
        (Some(PROOF), _) => Ok(()),
        (_, Some(words)) => Err(format!("{accel} does not run guest code: {words}")),
        (_, None) => Err(format!("{accel} does not run guest code: no answer from a tiny guest")),
    })
}

fn firmware() -> io::Result<File> {
    let mut image = vec![0xf4; FIRMWARE_SIZE]; // hlt
    image.iter_mut().skip(CODE_AT).zip(CODE).for_each(|(to, from)| *to = from);
    image.iter_mut().skip(0xfff0).zip(RESET).for_each(|(to, from)| *to = from);
    let mut file = File::from(memfd_create("firmware", MemfdFlags::CLOEXEC)?);
    file.write_all(&image)?;
    Ok(file)
}

/// The first line of standard error. QEMU stays after a KVM error, so it is killed then, and at the timeout.
fn last_words(child: &mut Child) -> io::Result<Option<String>> {
    let Some(mut stderr) = child.stderr.take() else { return Ok(None) };
    let pidfd: OwnedFd = child::pidfd(child)?;
    let begun = Instant::now();
    let mut text = Vec::new();
    while let Some(left) = TIMEOUT.checked_sub(begun.elapsed()) {
        let mut fds = [PollFd::new(&stderr, PollFlags::IN), PollFd::new(&pidfd, PollFlags::IN)];
        poll(&mut fds, Timespec::try_from(left).ok().as_ref())?;
        let [output, ended] = fds.map(|fd| !fd.revents().is_empty());
        let mut chunk = [0; 1024];
        let count = if output { stderr.read(&mut chunk)? } else { 0 };
        text.extend_from_slice(chunk.get(..count).unwrap_or_default());
        if ended && count == 0 || text.windows(18).any(|w| w == b"KVM internal error") {
            break;
        }
    }
    child.kill()?;
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().map(|l| l.rsplit_once("qemu-system-x86_64: ").map_or(l, |(_, rest)| rest)).next();
    Ok(line.filter(|l| !l.is_empty()).map(|l| l.chars().take(200).collect()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn fake(dir: &Path, script: &str) -> std::path::PathBuf {
        let path = dir.join("qemu");
        let version = "[ \"$1\" = --version ] && { echo QEMU emulator version 10.0.1; exit 0; }";
        std::fs::write(&path, format!("#!/bin/bash\n{version}\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    fn only_the_proof_counts() {
        let dir = tempfile::tempdir().unwrap();
        let cases = [
            ("exit 85", true, ""),
            ("exit 0", false, "no answer from a tiny guest"),
            ("echo 'qemu-system-x86_64: Could not access KVM' >&2; exit 1", false, "Could not access KVM"),
            (
                "echo 'KVM internal error. Suberror: 1' >&2; exec sleep 60",
                false,
                "KVM internal error. Suberror: 1",
            ),
        ];
        for (script, works, words) in cases {
            let report = probe(&fake(dir.path(), script), &["tcg"]);
            assert_eq!(report.tcg, works, "{script}");
            assert!(report.reasons.get("tcg").is_none_or(|r| r.ends_with(words)), "{report:?}");
            assert_eq!((report.reasons["kvm"].as_str(), report.tdx), ("not tried", false));
            assert_eq!(report.qemu, "10.0");
        }
        let report = probe(Path::new("/nonexistent"), &["kvm", "tcg"]);
        assert!(!report.tcg && report.reason.contains("install qemu-system-x86"), "{report:?}");
    }

    #[test]
    fn the_firmware_begins_at_the_reset_vector() {
        let mut file = firmware().unwrap();
        std::io::Seek::rewind(&mut file).unwrap();
        let mut image = Vec::new();
        file.read_to_end(&mut image).unwrap();
        assert_eq!(image.len(), FIRMWARE_SIZE);
        // The jump is relative to the instruction after it.
        let distance = i16::from_le_bytes([RESET[1], RESET[2]]);
        assert_eq!(0xfff3 + i32::from(distance), i32::try_from(CODE_AT).unwrap());
        assert_eq!(image.get(CODE_AT), Some(&0xfa));
    }
}
