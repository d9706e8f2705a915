// SPDX-License-Identifier: Apache-2.0
//! Socket calls shared by the other modules.

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// Plain C data for which every bit pattern is a valid value.
///
/// # Safety
/// Only for types made of integers, without padding that matters and without niches.
pub(crate) unsafe trait Plain: Copy {}
// SAFETY: an integer.
unsafe impl Plain for libc::c_int {}
// SAFETY: a struct of integers.
unsafe impl Plain for libc::ucred {}

/// Reads a fixed-size socket option.
pub(crate) fn option<T: Plain>(fd: BorrowedFd<'_>, level: i32, name: i32) -> io::Result<T> {
    let mut value = MaybeUninit::<T>::zeroed();
    let mut len = socklen::<T>();
    // SAFETY: `value` is writable for `len` bytes and both outlive the call.
    let rc = unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, value.as_mut_ptr().cast(), &mut len) };
    if rc != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: zeroed before, and `Plain` makes every bit pattern valid.
    Ok(unsafe { value.assume_init() })
}

/// Sets a socket option to the bytes of its value.
pub(crate) fn set_option(fd: BorrowedFd<'_>, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
    let len = libc::socklen_t::try_from(value.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: `value` is readable for `len` bytes and outlives the call.
    let rc = unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, value.as_ptr().cast(), len) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `size_of::<T>()` as the kernel takes it; the types used here have a few dozen bytes.
#[allow(clippy::cast_possible_truncation)]
pub(crate) const fn socklen<T>() -> libc::socklen_t {
    size_of::<T>() as libc::socklen_t
}

/// Makes a descriptor non-blocking.
pub(crate) fn set_nonblocking(fd: impl AsFd) -> io::Result<()> {
    let flags = fcntl_getfl(&fd)?;
    Ok(fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?)
}
