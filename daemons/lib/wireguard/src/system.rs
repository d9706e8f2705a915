// SPDX-License-Identifier: Apache-2.0
//! This machine's network: the kernel's WireGuard where there is one, else a user-space daemon.

use crate::change::{changes, check};
use crate::kernel::Kernel;
use crate::links::{Kind, Link, Links, Made};
use crate::user_space::UserSpace;
use crate::{BoxFuture, Error, InterfaceConfig, InterfaceName, InterfaceStatus, Peer, PublicKey, Wireguard};
use std::io;
use tokio::sync::OnceCell;

/// Directory of the user-space daemons' sockets, as they have it built in.
const SOCKETS: &str = "/run/wireguard";

/// WireGuard of this machine. Needs `CAP_NET_ADMIN`.
pub struct System {
    links: Links,
    kernel: OnceCell<Kernel>,
    user_space: UserSpace,
}

impl std::fmt::Debug for System {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("System")
    }
}

/// Who has an interface.
enum Access<'a> {
    Kernel(&'a Kernel),
    UserSpace(&'a UserSpace),
}

impl System {
    /// Opens netlink. Must be called inside a tokio runtime, in which it stays.
    ///
    /// # Errors
    /// The error of the socket.
    pub fn open() -> io::Result<Self> {
        let user_space = UserSpace(SOCKETS.into());
        Ok(Self { links: Links::open()?, kernel: OnceCell::new(), user_space })
    }

    /// The link, made if need be. A user-space daemon is asked only where the kernel says that it has no WireGuard.
    async fn link(&self, name: &InterfaceName) -> Result<Link, Error> {
        if let Some(link) = self.links.find(name).await? {
            return Ok(link);
        }
        if self.links.add(name).await? == Made::Unsupported {
            self.user_space.probe(name).await?;
        }
        self.links.find(name).await?.ok_or_else(|| Error::NoInterface(name.clone()))
    }

    async fn access(&self, name: &InterfaceName, link: Link) -> Result<Access<'_>, Error> {
        match link.kind {
            Kind::Wireguard => Ok(Access::Kernel(self.kernel.get_or_try_init(Kernel::open).await?)),
            Kind::Tun => Ok(Access::UserSpace(&self.user_space)),
            Kind::Other => Err(Error::Foreign(name.clone())),
        }
    }

    /// Who has the interface, which must be there.
    async fn known(&self, name: &InterfaceName) -> Result<Access<'_>, Error> {
        let link = self.links.find(name).await?.ok_or_else(|| Error::NoInterface(name.clone()))?;
        self.access(name, link).await
    }

    async fn make(&self, config: &InterfaceConfig) -> Result<(), Error> {
        let link = self.link(&config.name).await?;
        let (key, port) = (&config.private_key, config.listen_port);
        match self.access(&config.name, link).await? {
            Access::Kernel(kernel) => kernel.device(&config.name, key, port).await?,
            Access::UserSpace(daemon) => daemon.device(&config.name, key, port).await?,
        }
        self.links.configure(link, config).await
    }
}

impl Access<'_> {
    async fn update(
        &self,
        name: &InterfaceName,
        upsert: &[&Peer],
        remove: &[PublicKey],
    ) -> Result<(), Error> {
        match self {
            _ if upsert.is_empty() && remove.is_empty() => Ok(()),
            Self::Kernel(kernel) => kernel.update(name, upsert.iter().copied(), remove).await,
            Self::UserSpace(daemon) => daemon.update(name, upsert.iter().copied(), remove).await,
        }
    }

    async fn dump(&self, name: &InterfaceName) -> Result<InterfaceStatus, Error> {
        match self {
            Self::Kernel(kernel) => kernel.dump(name).await,
            Self::UserSpace(daemon) => daemon.dump(name).await,
        }
    }
}

impl Wireguard for System {
    fn ensure<'a>(&'a self, config: &'a InterfaceConfig) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(self.make(config))
    }

    fn set_peers<'a>(
        &'a self,
        name: &'a InterfaceName,
        peers: &'a [Peer],
    ) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            check(peers, &[])?;
            let access = self.known(name).await?;
            let current = access.dump(name).await?.peers;
            let changes = changes(&current, peers);
            access.update(name, &changes.upsert, &changes.remove).await
        })
    }

    fn update_peers<'a>(
        &'a self,
        name: &'a InterfaceName,
        upsert: &'a [Peer],
        remove: &'a [PublicKey],
    ) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            check(upsert, remove)?;
            let upsert: Vec<&Peer> = upsert.iter().collect();
            self.known(name).await?.update(name, &upsert, remove).await
        })
    }

    fn dump<'a>(&'a self, name: &'a InterfaceName) -> BoxFuture<'a, Result<InterfaceStatus, Error>> {
        Box::pin(async move { self.known(name).await?.dump(name).await })
    }

    fn delete<'a>(&'a self, name: &'a InterfaceName) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            match self.links.find(name).await? {
                Some(link) if link.kind == Kind::Other => Err(Error::Foreign(name.clone())),
                Some(link) => self.links.delete(link).await,
                None => Ok(()),
            }
        })
    }
}
