// SPDX-License-Identifier: Apache-2.0
//! Descriptors that systemd passed to this process (`LISTEN_FDS`, `LISTEN_FDNAMES`).

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

static TAKEN: AtomicBool = AtomicBool::new(false);

/// An inherited descriptor and its `FileDescriptorName=` (systemd's default is the socket unit's name).
#[derive(Debug)]
pub struct Inherited {
    /// The name; `unknown` when systemd gave none.
    pub name: String,
    /// The descriptor, close-on-exec. Its blocking mode is as the unit made it: non-blocking only with `NonBlocking=`.
    pub fd: OwnedFd,
}

/// Takes all inherited descriptors, in the order of the socket units. Empty when not socket-activated.
///
/// # Errors
/// `AlreadyExists` when they were taken before; `InvalidInput` for malformed variables.
pub fn take() -> io::Result<Vec<Inherited>> {
    if TAKEN.swap(true, Ordering::SeqCst) {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "inherited descriptors were taken before"));
    }
    let inherited = sd_notify::listen_fds_with_names()?;
    Ok(inherited
        .map(|(raw, name)| {
            // SAFETY: systemd passed this number for us alone (LISTEN_PID was compared), `listen_fds` has set
            // close-on-exec on it, which fails for a closed one, and TAKEN lets us come here once per process.
            Inherited { name, fd: unsafe { OwnedFd::from_raw_fd(raw) } }
        })
        .collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_once_and_empty_without_activation() {
        assert!(take().unwrap().is_empty());
        assert_eq!(take().unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    }
}
