// SPDX-License-Identifier: Apache-2.0
//! The kernel's WireGuard, by generic netlink.
//!
//! Messages of this family hold the private key and would print it, so nothing of them is ever printed. Copies in
//! netlink's buffers are not wiped.

use crate::{Error, InterfaceName, InterfaceStatus, Net, Peer, PeerStatus, PrivateKey, PublicKey};
use futures_util::{Stream, StreamExt};
use netlink_packet_generic::GenlMessage;
use netlink_packet_generic::ctrl::{GenlCtrl, GenlCtrlCmd, nlas::GenlCtrlAttrs};
use netlink_packet_wireguard::{
    WireguardAddressFamily, WireguardAllowedIp, WireguardAllowedIpAttr, WireguardAttribute, WireguardCmd,
    WireguardMessage, WireguardPeer, WireguardPeerAttribute, WireguardPeerFlags,
};
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkMessage, NetlinkPayload,
    NetlinkSerializable,
};
use rtnetlink::proto::{ConnectionHandle, new_connection};
use rtnetlink::sys::{SocketAddr, protocols::NETLINK_GENERIC};
use std::fmt::Debug;
use std::io;

/// Most bytes of peers in one message: an attribute's length has 16 bits, and the library panics beyond.
const MESSAGE_MAX: usize = 32 * 1024;

/// The family `wireguard` of generic netlink. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Kernel {
    handle: ConnectionHandle<GenlMessage<WireguardMessage>>,
    family: u16,
}

impl Kernel {
    pub(crate) async fn open() -> Result<Self, Error> {
        let family = family().await?;
        let opened = new_connection::<GenlMessage<WireguardMessage>>(NETLINK_GENERIC);
        let (connection, handle, _) = opened.map_err(|error| Error::Netlink { what: "opening", error })?;
        tokio::spawn(connection);
        Ok(Self { handle, family })
    }

    pub(crate) async fn device(
        &self,
        name: &InterfaceName,
        key: &PrivateKey,
        port: Option<u16>,
    ) -> Result<(), Error> {
        let mut attributes = vec![WireguardAttribute::PrivateKey(*key.expose())];
        attributes.extend(port.map(WireguardAttribute::ListenPort));
        self.set(name, attributes).await
    }

    pub(crate) async fn update(
        &self,
        name: &InterfaceName,
        upsert: impl Iterator<Item = &Peer>,
        remove: &[PublicKey],
    ) -> Result<(), Error> {
        let removals = remove.iter().map(removal).collect();
        for peers in batches(removals).into_iter().chain(batches(upsert.map(peer).collect())) {
            self.set(name, vec![WireguardAttribute::Peers(peers)]).await?;
        }
        Ok(())
    }

    pub(crate) async fn dump(&self, name: &InterfaceName) -> Result<InterfaceStatus, Error> {
        let message = self.message(WireguardCmd::GetDevice, name, Vec::new(), NLM_F_REQUEST | NLM_F_DUMP);
        let mut answers = self.send(message)?;
        let mut status = InterfaceStatus::default();
        while let Some(answer) = answers.next().await {
            match answer.payload {
                NetlinkPayload::InnerMessage(message) => merge(&mut status, message.payload.attributes),
                payload => acknowledged(payload, "reading the peers", name)?,
            }
        }
        Ok(status)
    }

    async fn set(&self, name: &InterfaceName, attributes: Vec<WireguardAttribute>) -> Result<(), Error> {
        let message = self.message(WireguardCmd::SetDevice, name, attributes, NLM_F_REQUEST | NLM_F_ACK);
        let mut answers = self.send(message)?;
        while let Some(answer) = answers.next().await {
            acknowledged(answer.payload, "setting key or peers", name)?;
        }
        Ok(())
    }

    fn message(
        &self,
        cmd: WireguardCmd,
        name: &InterfaceName,
        attributes: Vec<WireguardAttribute>,
        flags: u16,
    ) -> NetlinkMessage<GenlMessage<WireguardMessage>> {
        let name = WireguardAttribute::IfName(name.as_str().to_owned());
        let attributes = std::iter::once(name).chain(attributes).collect();
        let mut message = GenlMessage::from_payload(WireguardMessage { cmd, attributes });
        message.set_resolved_family_id(self.family);
        finished(message, flags)
    }

    fn send(
        &self,
        message: NetlinkMessage<GenlMessage<WireguardMessage>>,
    ) -> Result<impl Stream<Item = NetlinkMessage<GenlMessage<WireguardMessage>>> + Unpin + use<>, Error>
    {
        self.handle.request(message, SocketAddr::new(0, 0)).map_err(|_| closed())
    }
}

/// The number that this kernel gave the family; it loads the module if there is one.
async fn family() -> Result<u16, Error> {
    let what = "finding WireGuard";
    let opened = new_connection::<GenlMessage<GenlCtrl>>(NETLINK_GENERIC);
    let (connection, handle, _) = opened.map_err(|error| Error::Netlink { what, error })?;
    tokio::spawn(connection);
    let nlas = vec![GenlCtrlAttrs::FamilyName("wireguard".to_owned())];
    let message = GenlMessage::from_payload(GenlCtrl { cmd: GenlCtrlCmd::GetFamily, nlas });
    let mut answers = handle
        .request(finished(message, NLM_F_REQUEST | NLM_F_ACK), SocketAddr::new(0, 0))
        .map_err(|_| closed())?;
    let mut family = None;
    while let Some(answer) = answers.next().await {
        match answer.payload {
            NetlinkPayload::InnerMessage(message) => {
                family = family.or(message.payload.nlas.into_iter().find_map(|attribute| match attribute {
                    GenlCtrlAttrs::FamilyId(id) => Some(id),
                    _ => None,
                }));
            }
            NetlinkPayload::Error(e) if e.code.is_some() => {
                return Err(Error::Netlink { what, error: e.to_io() });
            }
            _ => {}
        }
    }
    family.ok_or_else(|| Error::Netlink { what, error: io::ErrorKind::NotFound.into() })
}

fn finished<T: NetlinkSerializable + NetlinkDeserializable + Debug>(
    message: T,
    flags: u16,
) -> NetlinkMessage<T>
where
    NetlinkPayload<T>: From<T>,
{
    let mut message = NetlinkMessage::from(message);
    message.header.flags = flags;
    message.finalize();
    message
}

fn closed() -> Error {
    Error::Netlink { what: "sending", error: io::ErrorKind::BrokenPipe.into() }
}

/// An acknowledgement is an error without a code.
fn acknowledged<T>(
    payload: NetlinkPayload<T>,
    what: &'static str,
    name: &InterfaceName,
) -> Result<(), Error> {
    match payload {
        NetlinkPayload::Error(e) if e.code.is_some() => Err(match e.to_io() {
            error if error.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error()) => {
                Error::NoInterface(name.clone())
            }
            error => Error::Netlink { what, error },
        }),
        _ => Ok(()),
    }
}

/// Bytes that a peer takes in a message, rounded up.
fn size(peer: &WireguardPeer) -> usize {
    let nets = |attribute: &WireguardPeerAttribute| match attribute {
        WireguardPeerAttribute::AllowedIps(nets) => nets.len(),
        _ => 0,
    };
    128 + 48 * peer.0.iter().map(nets).sum::<usize>()
}

/// Peers in messages that are not too large.
fn batches(peers: Vec<WireguardPeer>) -> Vec<Vec<WireguardPeer>> {
    let (mut all, mut batch, mut bytes) = (Vec::new(), Vec::new(), 0);
    for peer in peers {
        let more = size(&peer);
        if bytes + more > MESSAGE_MAX && !batch.is_empty() {
            all.push(std::mem::take(&mut batch));
            bytes = 0;
        }
        bytes += more;
        batch.push(peer);
    }
    all.extend(Some(batch).filter(|batch| !batch.is_empty()));
    all
}

/// Removing a peer that is not there is no error with these flags.
fn removal(key: &PublicKey) -> WireguardPeer {
    WireguardPeer(vec![
        WireguardPeerAttribute::PublicKey(*key.as_bytes()),
        WireguardPeerAttribute::Flags(WireguardPeerFlags::RemoveMe | WireguardPeerFlags::UpdateOnly),
    ])
}

fn peer(peer: &Peer) -> WireguardPeer {
    let mut attributes = vec![
        WireguardPeerAttribute::PublicKey(*peer.public_key.as_bytes()),
        WireguardPeerAttribute::Flags(WireguardPeerFlags::ReplaceAllowedIps),
    ];
    attributes.extend(peer.endpoint.map(WireguardPeerAttribute::Endpoint));
    attributes.push(WireguardPeerAttribute::PersistentKeepalive(peer.keepalive));
    attributes.push(WireguardPeerAttribute::AllowedIps(peer.allowed.iter().map(allowed).collect()));
    WireguardPeer(attributes)
}

fn allowed(net: &Net) -> WireguardAllowedIp {
    let net = net.network();
    let family =
        if net.address().is_ipv4() { WireguardAddressFamily::Ipv4 } else { WireguardAddressFamily::Ipv6 };
    WireguardAllowedIp(vec![
        WireguardAllowedIpAttr::Family(family),
        WireguardAllowedIpAttr::IpAddr(net.address()),
        WireguardAllowedIpAttr::Cidr(net.prefix()),
    ])
}

/// Adds one message of a dump. A peer with many networks goes on in the next message.
fn merge(status: &mut InterfaceStatus, attributes: Vec<WireguardAttribute>) {
    for attribute in attributes {
        match attribute {
            WireguardAttribute::ListenPort(port) => status.listen_port = port,
            WireguardAttribute::Peers(peers) => {
                for peer in peers.into_iter().filter_map(read_peer) {
                    match status.peers.last_mut().filter(|last| last.public_key == peer.public_key) {
                        Some(last) => last.allowed.extend(peer.allowed),
                        None => status.peers.push(peer),
                    }
                }
            }
            _ => {}
        }
    }
}

fn read_peer(peer: WireguardPeer) -> Option<PeerStatus> {
    let key = peer.0.iter().find_map(|attribute| match attribute {
        WireguardPeerAttribute::PublicKey(key) => Some(PublicKey::from(*key)),
        _ => None,
    })?;
    let mut status = PeerStatus::new(key);
    for attribute in peer.0 {
        match attribute {
            WireguardPeerAttribute::Endpoint(endpoint) => status.endpoint = Some(endpoint),
            WireguardPeerAttribute::PersistentKeepalive(seconds) => status.keepalive = seconds,
            WireguardPeerAttribute::LastHandshake(time) => {
                status.last_handshake = u64::try_from(time.seconds).ok().filter(|seconds| *seconds != 0);
            }
            WireguardPeerAttribute::RxBytes(bytes) => status.rx_bytes = bytes,
            WireguardPeerAttribute::TxBytes(bytes) => status.tx_bytes = bytes,
            WireguardPeerAttribute::AllowedIps(nets) => {
                status.allowed.extend(nets.iter().filter_map(read_net))
            }
            _ => {}
        }
    }
    Some(status)
}

fn read_net(net: &WireguardAllowedIp) -> Option<Net> {
    let address = net.0.iter().find_map(|attribute| match attribute {
        WireguardAllowedIpAttr::IpAddr(address) => Some(*address),
        _ => None,
    })?;
    let prefix = net.0.iter().find_map(|attribute| match attribute {
        WireguardAllowedIpAttr::Cidr(prefix) => Some(*prefix),
        _ => None,
    })?;
    Net::new(address, prefix)
}

#[cfg(test)]
#[path = "kernel_tests.rs"]
mod tests;
