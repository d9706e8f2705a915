// SPDX-License-Identifier: Apache-2.0
//! Starts QEMU and what it needs beside it.

use crate::disk;
use crate::setup::{Place, SetupError};
use dstack_core::qemu::{self, Runtime, VERSION_MIN};
use dstack_core::spec::{LaunchSpec, Network, Vsock};
use dstack_sys::vsock::Guest;
use dstack_sys::{child, tap};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Time between two looks for the vsock process's socket.
const LOOK: Duration = Duration::from_millis(10);
/// Time in which the vsock process must listen.
const HELPER_MAX: Duration = Duration::from_secs(10);

/// A running QEMU and this process's ends of its channels.
#[derive(Debug)]
pub struct Hypervisor {
    /// QEMU.
    pub child: Child,
    /// Readable when QEMU has ended.
    pub pidfd: OwnedFd,
    /// The QMP stream, non-blocking.
    pub qmp: OwnedFd,
    /// The serial console's stream, non-blocking.
    pub serial: OwnedFd,
    /// QEMU's standard error, non-blocking.
    pub stderr: OwnedFd,
    /// How the guest is reached.
    pub guest: Guest,
    /// The vsock process and its pidfd, if there is one.
    pub vsock: Option<(Child, OwnedFd)>,
}

/// Prepares everything and starts QEMU.
///
/// # Errors
/// [`SetupError`] names what is missing or wrong, and the remedy.
pub fn start(launch: &LaunchSpec, place: &Place) -> Result<Hypervisor, SetupError> {
    let version = version(&launch.qemu)?;
    let tap = network(launch, place)?;
    let qemu_img = launch.qemu.with_file_name("qemu-img");
    let data_disk = disk::ensure(&qemu_img, &place.state, launch.vm.disk)?;
    let (guest, vsock) = vsock(launch, place)?;
    let (qmp, qmp_theirs) = channel()?;
    let (serial, serial_theirs) = channel()?;
    let runtime = Runtime {
        data_disk,
        vsock_socket: vsock_socket(place),
        net_socket: place.net.clone(),
        qmp_fd: qmp_theirs.as_raw_fd(),
        serial_fd: serial_theirs.as_raw_fd(),
        tap_fd: tap.as_ref().map(AsRawFd::as_raw_fd),
        version,
    };
    let arguments = qemu::arguments(launch, &runtime)?;
    let mut inherit = vec![qmp_theirs.as_fd(), serial_theirs.as_fd()];
    inherit.extend(tap.as_ref().map(AsFd::as_fd));
    let (child, stderr) = spawn(&launch.qemu, &arguments, &inherit)?;
    let pidfd = child::pidfd(&child).map_err(|e| SetupError::System("pidfd_open", e))?;
    Ok(Hypervisor { child, pidfd, qmp, serial, stderr, guest, vsock })
}

fn spawn(
    qemu: &Path,
    arguments: &[String],
    inherit: &[BorrowedFd<'_>],
) -> Result<(Child, OwnedFd), SetupError> {
    let mut command = Command::new(qemu);
    command.args(arguments).env_clear();
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child =
        child::spawn(&mut command, inherit).map_err(|e| SetupError::Program(qemu.to_owned(), e))?;
    let gone = || SetupError::System("standard error", io::ErrorKind::NotFound.into());
    let stderr = OwnedFd::from(child.stderr.take().ok_or_else(gone)?);
    nonblocking(&stderr)?;
    Ok((child, stderr))
}

fn nonblocking(fd: &OwnedFd) -> Result<(), SetupError> {
    rustix::io::ioctl_fionbio(fd, true).map_err(|e| SetupError::System("ioctl", e.into()))
}

/// A stream whose first end is ours, non-blocking.
fn channel() -> Result<(OwnedFd, OwnedFd), SetupError> {
    let (ours, theirs) = UnixStream::pair().map_err(|e| SetupError::System("socketpair", e))?;
    ours.set_nonblocking(true).map_err(|e| SetupError::System("socketpair", e))?;
    Ok((ours.into(), theirs.into()))
}

/// Checks that passt is there, or attaches to the tap device.
fn network(launch: &LaunchSpec, place: &Place) -> Result<Option<OwnedFd>, SetupError> {
    match &launch.network {
        // Only a network unit that is up shares its /tmp, so that the file is enough. QEMU would wait for ever.
        Network::User if place.net.exists() => Ok(None),
        Network::User => Err(SetupError::Network(launch.vm.name.clone())),
        Network::Tap { device } => {
            tap::attach(device).map(Some).map_err(|e| SetupError::Tap(device.clone(), e))
        }
    }
}

/// QEMU's version; it decides on the names of options.
fn version(qemu: &Path) -> Result<(u32, u32), SetupError> {
    let mut command = Command::new(qemu);
    command.arg("--version").env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let output = child::spawn(&mut command, &[]).and_then(Child::wait_with_output);
    let output = output.map_err(|e| SetupError::Program(qemu.to_owned(), e))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let wrong = || SetupError::Version(qemu.to_owned(), text.chars().take(80).collect());
    qemu::version(&text).filter(|version| *version >= VERSION_MIN).ok_or_else(wrong)
}

fn vsock_socket(place: &Place) -> PathBuf {
    place.runtime.join("vhost-vsock.sock")
}

type Helper = Option<(Child, OwnedFd)>;

/// How the guest is reached; starts the vsock process where the kernel has no vhost-vsock.
fn vsock(launch: &LaunchSpec, place: &Place) -> Result<(Guest, Helper), SetupError> {
    if launch.vsock == Vsock::Kernel {
        return Ok((Guest::Kernel(launch.cid), None));
    }
    let (socket, uds) = (vsock_socket(place), place.runtime.join("vsock.sock"));
    let mut command = Command::new(&launch.vsock_program);
    command
        .arg("--guest-cid")
        .arg(launch.cid.to_string())
        .arg("--socket")
        .arg(&socket)
        .arg("--uds-path")
        .arg(&uds);
    command.env_clear().stdin(Stdio::null()).stdout(Stdio::null());
    let program = || launch.vsock_program.clone();
    let child = child::spawn(&mut command, &[]).map_err(|e| SetupError::Program(program(), e))?;
    let pidfd = child::pidfd(&child).map_err(|e| SetupError::System("pidfd_open", e))?;
    await_listening(&socket, &pidfd).map_err(|why| SetupError::Helper(program(), why))?;
    Ok((Guest::User(uds), Some((child, pidfd))))
}

/// Waits until the socket listens. It must not be connected to: the process serves one connection, and that is QEMU's.
fn await_listening(socket: &Path, pidfd: &OwnedFd) -> Result<(), String> {
    let begun = Instant::now();
    while begun.elapsed() < HELPER_MAX {
        let table = std::fs::read_to_string("/proc/self/net/unix").map_err(|e| e.to_string())?;
        if listening(&table, &socket.to_string_lossy()) {
            return Ok(());
        }
        let look = Timespec::try_from(LOOK).ok();
        match poll(&mut [PollFd::new(pidfd, PollFlags::IN)], look.as_ref()) {
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => return Err("it has ended; its message is above".to_owned()),
            Err(e) => return Err(e.to_string()),
        }
    }
    Err(format!("it does not listen on {} after {} s", socket.display(), HELPER_MAX.as_secs()))
}

/// Whether `/proc/net/unix` has a listening stream socket (flag `__SO_ACCEPTCON`) of this path.
fn listening(table: &str, path: &str) -> bool {
    table.lines().any(|line| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        words.get(3) == Some(&"00010000") && words.get(7) == Some(&path)
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn a_listening_socket_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let mut sleeper = Command::new("sleep").arg("60").spawn().unwrap();
        let pidfd = child::pidfd(&sleeper).unwrap();
        let table = || std::fs::read_to_string("/proc/self/net/unix").unwrap();
        assert!(!listening(&table(), path.to_str().unwrap()));
        let _listener = UnixListener::bind(&path).unwrap();
        assert!(listening(&table(), path.to_str().unwrap()));
        assert_eq!(await_listening(&path, &pidfd), Ok(()));
        sleeper.kill().unwrap();
        assert!(await_listening(&dir.path().join("t"), &pidfd).unwrap_err().contains("has ended"));
        sleeper.wait().unwrap();
    }

    #[test]
    fn versions_are_asked_for() {
        assert!(matches!(version(Path::new("/nonexistent")), Err(SetupError::Program(..))));
        assert!(matches!(version(Path::new("/bin/true")), Err(SetupError::Version(..))));
    }
}
