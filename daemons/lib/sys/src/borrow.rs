// SPDX-License-Identifier: Apache-2.0
//! Safe descriptors of values that offer only a number.

use rustix::io::fcntl_dupfd_cloexec;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

/// Duplicates the descriptor of a foreign value (e.g. libsystemd's journal) so that it can be polled safely.
///
/// # Errors
/// Those of `fcntl(F_DUPFD_CLOEXEC)`, e.g. when the number is not open.
pub fn duplicate<T: AsRawFd + ?Sized>(value: &T) -> io::Result<OwnedFd> {
    let raw = value.as_raw_fd();
    if raw < 0 {
        return Err(io::Error::from(rustix::io::Errno::BADF));
    }
    // SAFETY: `raw` is not -1, and the borrow of `value`, which keeps the descriptor open, outlives this use of it.
    let borrowed = unsafe { BorrowedFd::borrow_raw(raw) };
    Ok(fcntl_dupfd_cloexec(borrowed, 0)?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::duplicate;

    #[test]
    fn a_duplicate_outlives_its_origin() {
        let (a, b) = std::os::unix::net::UnixStream::pair().unwrap();
        let copy = duplicate(&a).unwrap();
        drop(a);
        rustix::io::write(&copy, b"x").unwrap();
        assert_eq!(rustix::io::read(&b, &mut [0; 4]).unwrap(), 1);
        assert!(duplicate(&-1).is_err());
    }
}
