// SPDX-License-Identifier: Apache-2.0
//! Who is at the other end of a Unix socket, as the kernel recorded it at `connect(2)`.

use crate::socket::option;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};

/// Since Linux 6.5; not in every libc crate.
const SO_PEERPIDFD: i32 = 77;

/// Credentials of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Credentials {
    /// Process id; `None` when the peer lives in a PID namespace that this process cannot see.
    pub pid: Option<u32>,
    /// User id, as this user namespace sees it.
    pub uid: u32,
    /// Group id, as this user namespace sees it.
    pub gid: u32,
}

/// The peer of a connected Unix socket (stream or seqpacket).
///
/// # Errors
/// The error of `getsockopt(2)`.
pub fn credentials(fd: BorrowedFd<'_>) -> io::Result<Credentials> {
    let raw: libc::ucred = option(fd, libc::SOL_SOCKET, libc::SO_PEERCRED)?;
    let pid = u32::try_from(raw.pid).ok().filter(|pid| *pid != 0);
    Ok(Credentials { pid, uid: raw.uid, gid: raw.gid })
}

/// A pidfd of the peer: unlike a number it cannot come to mean another process. On kernels before 6.5 it is opened by
/// the number, so the caller compares the process afterwards.
///
/// # Errors
/// `NotFound` when the peer is gone or not visible, else the error of the system call.
pub fn pidfd(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    match option::<libc::c_int>(fd, libc::SOL_SOCKET, SO_PEERPIDFD) {
        // SAFETY: the kernel has just opened this descriptor for us (close-on-exec), nobody else owns it.
        Ok(raw) if raw >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(raw) }),
        _ => pidfd_by_number(fd),
    }
}

fn pidfd_by_number(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let gone = || io::Error::new(io::ErrorKind::NotFound, "the peer's process is not visible");
    let number = credentials(fd)?.pid.and_then(|pid| i32::try_from(pid).ok()).ok_or_else(gone)?;
    let pid = Pid::from_raw(number).ok_or_else(gone)?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_pair_is_at_both_ends() {
        let (a, _b) = UnixStream::pair().unwrap();
        let peer = credentials(a.as_fd()).unwrap();
        assert_eq!(peer.pid, Some(std::process::id()));
        assert_eq!(peer.uid, rustix::process::getuid().as_raw());
        assert!(pidfd(a.as_fd()).is_ok());
        assert!(pidfd_by_number(a.as_fd()).is_ok());
    }
}
