// SPDX-License-Identifier: Apache-2.0
//! Attaching to a persistent tap device.

use std::fs::OpenOptions;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};

/// Attaches to the tap device `name`, which must exist and belong to this user; without packet information, with
/// virtio-net headers, as QEMU wants it.
///
/// # Errors
/// `InvalidInput` for a name over 15 bytes; `PermissionDenied` when the device belongs to another user; else the error
/// of opening `/dev/net/tun`.
#[allow(clippy::cast_possible_truncation)] // the flags are 16-bit constants of an int type
pub fn attach(name: &str) -> io::Result<OwnedFd> {
    let mut request = request(name)?;
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    let tun = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which `request` is, and it outlives the call.
    if unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(tun.into())
}

fn request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: an ifreq of zeros is valid: an empty name and an integer union.
    let mut request: libc::ifreq = unsafe { MaybeUninit::zeroed().assume_init() };
    if name.is_empty() || name.len() >= request.ifr_name.len() || name.contains('\0') {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "an interface name has 1 to 15 bytes"));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(request)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert!(request("dstack0").is_ok());
        for bad in ["", "sixteen-bytes-xx", "a\0b"] {
            assert_eq!(request(bad).err().unwrap().kind(), io::ErrorKind::InvalidInput, "{bad:?}");
        }
    }
}
