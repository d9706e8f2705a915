// SPDX-License-Identifier: Apache-2.0
//! Links, addresses and routes, by route netlink.

use crate::{Error, InterfaceConfig, InterfaceName, Net};
use futures_util::TryStreamExt;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope,
};
use rtnetlink::{Handle, LinkUnspec, LinkWireguard, RouteMessageBuilder};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Route netlink of this network namespace. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Links(Handle);

/// A link that is there.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Link {
    pub(crate) index: u32,
    /// Whether the kernel's WireGuard made it; else by a tun device of a user-space daemon, or something else.
    pub(crate) kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Wireguard,
    Tun,
    Other,
}

/// What came of making a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Made {
    Yes,
    /// Somebody was faster.
    Exists,
    /// This kernel has no WireGuard.
    Unsupported,
}

impl Links {
    pub(crate) fn open() -> io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        Ok(Self(handle))
    }

    pub(crate) async fn find(&self, name: &InterfaceName) -> Result<Option<Link>, Error> {
        let mut found = Box::pin(self.0.link().get().match_name(name.as_str()).execute());
        match found.try_next().await {
            Ok(link) => Ok(link.map(|link| Link { index: link.header.index, kind: kind(&link) })),
            Err(error) if is(&error, Errno::NODEV) => Ok(None),
            Err(error) => Err(failed("finding the interface", error)),
        }
    }

    /// Makes a WireGuard link of the kernel.
    pub(crate) async fn add(&self, name: &InterfaceName) -> Result<Made, Error> {
        match self.0.link().add(LinkWireguard::new(name.as_str()).build()).execute().await {
            Ok(()) => Ok(Made::Yes),
            Err(error) if is(&error, Errno::EXIST) => Ok(Made::Exists),
            Err(error) if is(&error, Errno::OPNOTSUPP) => Ok(Made::Unsupported),
            Err(error) => Err(failed("making the interface", error)),
        }
    }

    pub(crate) async fn delete(&self, link: Link) -> Result<(), Error> {
        match self.0.link().del(link.index).execute().await {
            Err(error) if !is(&error, Errno::NODEV) => Err(failed("deleting the interface", error)),
            _ => Ok(()),
        }
    }

    /// Brings the link up with these addresses and routes, and no others of ours.
    pub(crate) async fn configure(&self, link: Link, config: &InterfaceConfig) -> Result<(), Error> {
        let set = LinkUnspec::new_with_index(link.index).up();
        let set = if let Some(mtu) = config.mtu { set.mtu(mtu) } else { set };
        let done = self.0.link().set(set.build()).execute().await;
        done.map_err(|e| failed("bringing the interface up", e))?;
        self.addresses(link, &config.addresses).await?;
        self.routes(link, &config.routes).await
    }

    async fn addresses(&self, link: Link, wanted: &[Net]) -> Result<(), Error> {
        let mut there = BTreeSet::new();
        let all = self.0.address().get().set_link_index_filter(link.index).execute();
        let all: Vec<AddressMessage> = all.try_collect().await.map_err(|e| failed("reading addresses", e))?;
        for message in all {
            match address(&message) {
                Some(net) if wanted.contains(&net) => drop(there.insert(net)),
                // The kernel's own link-local one harms nobody and would come back.
                Some(net) if is_link_local(net.address()) => {}
                _ => {
                    let done = self.0.address().del(message).execute().await;
                    done.map_err(|e| failed("removing an address", e))?;
                }
            }
        }
        for net in wanted.iter().filter(|net| !there.contains(net)) {
            let added = self.0.address().add(link.index, net.address(), net.prefix()).replace();
            added.execute().await.map_err(|e| failed("adding an address", e))?;
        }
        Ok(())
    }

    async fn routes(&self, link: Link, wanted: &[Net]) -> Result<(), Error> {
        let wanted: BTreeSet<Net> = wanted.iter().map(Net::network).collect();
        for v4 in [true, false] {
            let filter = if v4 {
                RouteMessageBuilder::<Ipv4Addr>::new().build()
            } else {
                RouteMessageBuilder::<Ipv6Addr>::new().build()
            };
            let all = self.0.route().get(filter).execute();
            let all: Vec<RouteMessage> = all.try_collect().await.map_err(|e| failed("reading routes", e))?;
            let stale = |route: &RouteMessage| {
                ours(route, link) && !destination(route).is_some_and(|net| wanted.contains(&net))
            };
            for route in all.into_iter().filter(stale) {
                let done = self.0.route().del(route).execute().await;
                done.map_err(|e| failed("removing a route", e))?;
            }
        }
        for net in wanted {
            let added = self.0.route().add(route(link, net)).replace().execute().await;
            added.map_err(|e| failed("adding a route", e))?;
        }
        Ok(())
    }
}

fn kind(link: &LinkMessage) -> Kind {
    let infos = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => Some(infos),
        _ => None,
    });
    let kind = infos.into_iter().flatten().find_map(|info| match info {
        LinkInfo::Kind(kind) => Some(kind),
        _ => None,
    });
    match kind {
        Some(InfoKind::Wireguard) => Kind::Wireguard,
        Some(InfoKind::Tun) => Kind::Tun,
        _ => Kind::Other,
    }
}

/// An interface's own address. The peer's of a point-to-point link is `Address`, the own one then `Local`.
fn address(message: &AddressMessage) -> Option<Net> {
    let own = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    let any = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Address(address) => Some(*address),
        _ => None,
    });
    Net::new(own.or(any)?, message.header.prefix_len)
}

const fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

/// A route of the main table through the link that the kernel did not make by itself.
fn ours(route: &RouteMessage, link: Link) -> bool {
    let out =
        route.attributes.iter().any(|a| matches!(a, RouteAttribute::Oif(index) if *index == link.index));
    let main = route.header.table == RouteHeader::RT_TABLE_MAIN;
    let own = !matches!(route.header.protocol, RouteProtocol::Kernel | RouteProtocol::Ra);
    out && main && own
}

fn destination(route: &RouteMessage) -> Option<Net> {
    let address = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(v4)) => Some(IpAddr::V4(*v4)),
        RouteAttribute::Destination(RouteAddress::Inet6(v6)) => Some(IpAddr::V6(*v6)),
        _ => None,
    });
    Net::new(address?, route.header.destination_prefix_length)
}

fn route(link: Link, net: Net) -> RouteMessage {
    match net.address() {
        IpAddr::V4(v4) => RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(v4, net.prefix())
            .output_interface(link.index)
            .scope(RouteScope::Link)
            .build(),
        IpAddr::V6(v6) => RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(v6, net.prefix())
            .output_interface(link.index)
            .build(),
    }
}

fn is(error: &rtnetlink::Error, errno: Errno) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(e) if e.raw_code() == -errno.raw_os_error())
}

/// The kernel's error alone: the text of a message may carry what was sent.
fn failed(what: &'static str, error: rtnetlink::Error) -> Error {
    let error = match error {
        rtnetlink::Error::NetlinkError(e) => e.to_io(),
        _ => io::Error::other("the kernel's answer is not understood"),
    };
    Error::Netlink { what, error }
}
