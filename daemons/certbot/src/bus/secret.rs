// SPDX-License-Identifier: Apache-2.0
//! A text as a file in memory, which nobody can change; and who may have one.

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::fd::OwnedFd;

/// The user of the ingress.
pub const INGRESS: &str = "dstack-tproxy";

/// A sealed file in memory with these bytes, to be read from its start.
///
/// # Errors
/// Those of the kernel.
pub fn sealed(name: &str, bytes: &[u8]) -> io::Result<OwnedFd> {
    let mut file = File::from(memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
    file.write_all(bytes)?;
    file.rewind()?;
    fcntl_add_seals(&file, SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE)?;
    Ok(file.into())
}

/// The number of a user in the text of a passwd file. Pure.
#[must_use]
pub fn number(passwd: &str, name: &str) -> Option<u32> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let found = fields.next()? == name;
        fields.nth(1)?.parse().ok().filter(|_| found)
    })
}

/// Whether a user may have keys: the ingress may, and root, who can read the files anyway.
#[must_use]
pub fn may_have_keys(user: u32, passwd: &str) -> bool {
    user == 0 || number(passwd, INGRESS) == Some(user)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn what_is_handed_over_cannot_be_changed() {
        let mut file = File::from(sealed("key", b"secret").unwrap());
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "secret");
        assert!(file.write_all(b"x").is_err() && file.set_len(0).is_err());
    }

    #[test]
    fn only_the_ingress_and_root_may_have_keys() {
        let passwd = "root:x:0:0::/root:/bin/sh\nbad\nxdstack-tproxy:x:7:7::/:/\ndstack-tproxy:x:991:990::/:/sbin/nologin\n\
                      dstack-tproxy-flow:x:992:990::/:/sbin/nologin\n";
        for (user, may) in [(0, true), (991, true), (992, false), (7, false), (1000, false)] {
            assert_eq!(may_have_keys(user, passwd), may, "{user}");
        }
        assert!(!may_have_keys(991, ""));
    }
}
