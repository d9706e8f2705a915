// SPDX-License-Identifier: Apache-2.0
//! Signals as a descriptor for a poll loop.

use rustix::io::Errno;
use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// `SIGTERM`.
pub const TERM: i32 = libc::SIGTERM;
/// `SIGINT`.
pub const INT: i32 = libc::SIGINT;
/// `SIGHUP`.
pub const HUP: i32 = libc::SIGHUP;

/// `SIGRTMIN+4`, by which machined asks a machine's leader to power off.
#[must_use]
pub fn power_off() -> i32 {
    libc::SIGRTMIN() + 4
}

/// Signals that no longer interrupt this process but arrive here.
#[derive(Debug)]
pub struct Signals(OwnedFd);

impl Signals {
    /// Blocks `signals` for this thread and those it starts later (so call it first), and opens a descriptor, non-
    /// blocking, where they arrive. Children started by [`crate::child::spawn`] have none blocked.
    ///
    /// # Errors
    /// `InvalidInput` for a number that is no signal; the error of `sigprocmask(2)` or `signalfd(2)`.
    pub fn block(signals: &[i32]) -> io::Result<Self> {
        let set = set_of(signals)?;
        // SAFETY: `set` is initialised and outlives the calls; the old set is not wanted.
        let rc = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) };
        if rc != 0 {
            return Err(io::Error::from_raw_os_error(rc));
        }
        // SAFETY: `set` is initialised; -1 asks for a new descriptor.
        let fd = unsafe { libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just opened this descriptor for us.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// The next pending signal's number, if there is one.
    ///
    /// # Errors
    /// The error of `read(2)`.
    pub fn next(&self) -> io::Result<Option<i32>> {
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        match rustix::io::read(&self.0, &mut info) {
            // ssi_signo is the first field, a native-endian u32.
            Ok(_) => {
                Ok(info.first_chunk().map(|n| u32::from_ne_bytes(*n)).and_then(|n| i32::try_from(n).ok()))
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Signals {
    fn as_raw_fd(&self) -> i32 {
        self.0.as_raw_fd()
    }
}

fn set_of(signals: &[i32]) -> io::Result<libc::sigset_t> {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initialises the whole set.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    for signal in signals {
        // SAFETY: the set is initialised; sigaddset checks the number.
        if unsafe { libc::sigaddset(set.as_mut_ptr(), *signal) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    // SAFETY: initialised above.
    Ok(unsafe { set.assume_init() })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn blocked_signals_arrive() {
        let signals = Signals::block(&[libc::SIGUSR1, power_off()]).unwrap();
        assert_eq!(signals.next().unwrap(), None);
        // SAFETY: raise delivers to this very thread, which has both blocked.
        unsafe { libc::raise(power_off()) };
        assert_eq!(signals.next().unwrap(), Some(power_off()));
        assert_eq!(signals.next().unwrap(), None);
        assert!(Signals::block(&[999]).is_err());
    }
}
