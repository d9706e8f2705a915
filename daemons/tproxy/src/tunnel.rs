// SPDX-License-Identifier: Apache-2.0
//! A tunnel that leads to this machine and nowhere else (trust rule T19).
//!
//! Whatever comes out of the interface and is not for this machine itself is refused by a routing rule: peers cannot
//! reach each other, nor any network behind the host, whatever its forwarding settings are. The rule is there before
//! the interface is; without it there is no interface.

use dstack_core::wireguard::{InterfaceName, Peer, PublicKey};
use dstack_wireguard::{BoxFuture, Error, InterfaceConfig, InterfaceStatus, Wireguard};
use rtnetlink::packet_route::rule::RuleAction;
use std::io;

/// Priority of the rule: after `local` (0), before `main` (32766) and whatever an operator adds before it.
const PRIORITY: u32 = 100;

/// WireGuard whose interfaces forward nothing.
#[derive(Debug)]
pub struct Guarded<W>(pub W);

impl<W: Wireguard> Wireguard for Guarded<W> {
    fn ensure<'a>(&'a self, config: &'a InterfaceConfig) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            let what = "forbidding to forward between instances";
            forbid(&config.name).await.map_err(|error| Error::Netlink { what, error })?;
            self.0.ensure(config).await
        })
    }

    fn set_peers<'a>(
        &'a self,
        name: &'a InterfaceName,
        peers: &'a [Peer],
    ) -> BoxFuture<'a, Result<(), Error>> {
        self.0.set_peers(name, peers)
    }

    fn update_peers<'a>(
        &'a self,
        name: &'a InterfaceName,
        upsert: &'a [Peer],
        remove: &'a [PublicKey],
    ) -> BoxFuture<'a, Result<(), Error>> {
        self.0.update_peers(name, upsert, remove)
    }

    fn dump<'a>(&'a self, name: &'a InterfaceName) -> BoxFuture<'a, Result<InterfaceStatus, Error>> {
        self.0.dump(name)
    }

    fn delete<'a>(&'a self, name: &'a InterfaceName) -> BoxFuture<'a, Result<(), Error>> {
        self.0.delete(name)
    }
}

/// Refuses to forward what comes out of an interface, which need not be there yet.
///
/// # Errors
/// The kernel's, e.g. without `CAP_NET_ADMIN`.
pub async fn forbid(name: &InterfaceName) -> io::Result<()> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    let worker = tokio::spawn(connection);
    let rule = || {
        let rule = handle.rule().add().input_interface(name.as_str()).table_id(0);
        rule.action(RuleAction::Prohibit).priority(PRIORITY)
    };
    let v4 = settled(rule().v4().execute().await);
    let v6 = settled(rule().v6().execute().await);
    worker.abort();
    v4?;
    // Without IPv6 there is nothing to forward by it.
    v6.or_else(|error| if is(&error, rustix::io::Errno::AFNOSUPPORT) { Ok(()) } else { Err(error) })
}

/// A rule that is there already is what was wished.
fn settled(result: Result<(), rtnetlink::Error>) -> io::Result<()> {
    let error = match result {
        Ok(()) => return Ok(()),
        Err(rtnetlink::Error::NetlinkError(message)) => message.to_io(),
        Err(other) => io::Error::other(other.to_string()),
    };
    if is(&error, rustix::io::Errno::EXIST) { Ok(()) } else { Err(error) }
}

fn is(error: &io::Error, errno: rustix::io::Errno) -> bool {
    error.raw_os_error() == Some(errno.raw_os_error())
}
