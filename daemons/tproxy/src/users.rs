// SPDX-License-Identifier: Apache-2.0
//! The numbers of system users, which systemd-sysusers writes into `/etc/passwd`.

use std::io;
use std::path::Path;

/// The user of the data planes.
pub const FLOW: &str = "dstack-tproxy-flow";

/// The number of a user in the text of a passwd file. Pure.
#[must_use]
pub fn number(passwd: &str, name: &str) -> Option<u32> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let found = fields.next()? == name;
        fields.nth(1)?.parse().ok().filter(|_| found)
    })
}

/// Users that may connect as data planes: that of the data planes, root, and whoever runs this.
///
/// # Errors
/// When the file cannot be read.
pub fn allowed(passwd: &Path) -> io::Result<Vec<u32>> {
    let flow = number(&std::fs::read_to_string(passwd)?, FLOW);
    let own = rustix::process::geteuid().as_raw();
    Ok([0, own].into_iter().chain(flow).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_by_their_whole_name() {
        let passwd = "root:x:0:0::/root:/bin/sh\nbad\nx-dstack-tproxy-flow:x:7:7::/:/\ndstack-tproxy-flow:x:991:990::/:/sbin/nologin\n";
        assert_eq!(number(passwd, FLOW), Some(991));
        assert_eq!(number(passwd, "root"), Some(0));
        assert_eq!(number(passwd, "dstack"), None);
        assert_eq!(number("dstack-tproxy-flow:x:many:1", FLOW), None);
    }
}
