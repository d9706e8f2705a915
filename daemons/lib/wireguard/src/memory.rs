// SPDX-License-Identifier: Apache-2.0
//! Interfaces in memory, for tests of daemons.

use crate::{
    BoxFuture, Error, InterfaceConfig, InterfaceName, InterfaceStatus, Net, Peer, PeerStatus, PublicKey,
    Wireguard,
};
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// WireGuard that exists in memory alone. No handshake happens unless a test says so.
#[derive(Debug, Default)]
pub struct Memory(Mutex<BTreeMap<InterfaceName, Interface>>);

/// One interface in memory.
#[derive(Debug, Clone)]
pub struct Interface {
    /// What was given last.
    pub config: InterfaceConfig,
    /// Its peers.
    pub peers: BTreeMap<PublicKey, PeerStatus>,
}

impl Memory {
    /// Looks at or changes an interface, or says that there is none.
    ///
    /// # Errors
    /// [`Error::NoInterface`].
    pub fn with<T>(&self, name: &InterfaceName, act: impl FnOnce(&mut Interface) -> T) -> Result<T, Error> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.get_mut(name).map(act).ok_or_else(|| Error::NoInterface(name.clone()))
    }

    /// A handshake with a peer at that time, seconds since 1970.
    ///
    /// # Errors
    /// [`Error::NoInterface`]; an unknown peer is passed over.
    pub fn handshake(&self, name: &InterfaceName, peer: &PublicKey, time: u64) -> Result<(), Error> {
        self.with(name, |interface| {
            if let Some(peer) = interface.peers.get_mut(peer) {
                peer.last_handshake = Some(time);
            }
        })
    }

    fn update(&self, name: &InterfaceName, upsert: &[Peer], remove: &[PublicKey]) -> Result<(), Error> {
        crate::change::check(upsert, remove)?;
        self.with(name, |interface| {
            interface.peers.retain(|key, _| !remove.contains(key));
            upsert.iter().for_each(|peer| set(&mut interface.peers, peer));
        })
    }
}

/// As WireGuard does it: a network that a peer gets is taken from whoever had it.
fn set(peers: &mut BTreeMap<PublicKey, PeerStatus>, peer: &Peer) {
    let allowed: Vec<Net> = peer.allowed.iter().map(Net::network).collect();
    peers.values_mut().for_each(|other| other.allowed.retain(|net| !allowed.contains(net)));
    let status = peers.entry(peer.public_key).or_insert_with(|| PeerStatus::new(peer.public_key));
    (status.allowed, status.keepalive) = (allowed, peer.keepalive);
    status.endpoint = peer.endpoint.or(status.endpoint);
}

impl Wireguard for Memory {
    fn ensure<'a>(&'a self, config: &'a InterfaceConfig) -> BoxFuture<'a, Result<(), Error>> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = || Interface { config: config.clone(), peers: BTreeMap::new() };
        all.entry(config.name.clone()).or_insert_with(fresh).config = config.clone();
        Box::pin(async { Ok(()) })
    }

    fn set_peers<'a>(
        &'a self,
        name: &'a InterfaceName,
        peers: &'a [Peer],
    ) -> BoxFuture<'a, Result<(), Error>> {
        let wanted = |key: &PublicKey| peers.iter().any(|peer| peer.public_key == *key);
        let kept = self.with(name, |interface| interface.peers.retain(|key, _| wanted(key)));
        let done = kept.and_then(|()| self.update(name, peers, &[]));
        Box::pin(async { done })
    }

    fn update_peers<'a>(
        &'a self,
        name: &'a InterfaceName,
        upsert: &'a [Peer],
        remove: &'a [PublicKey],
    ) -> BoxFuture<'a, Result<(), Error>> {
        let done = self.update(name, upsert, remove);
        Box::pin(async { done })
    }

    fn dump<'a>(&'a self, name: &'a InterfaceName) -> BoxFuture<'a, Result<InterfaceStatus, Error>> {
        let status = self.with(name, |interface| InterfaceStatus {
            listen_port: interface.config.listen_port.unwrap_or_default(),
            peers: interface.peers.values().cloned().collect(),
        });
        Box::pin(async { status })
    }

    fn delete<'a>(&'a self, name: &'a InterfaceName) -> BoxFuture<'a, Result<(), Error>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
        Box::pin(async { Ok(()) })
    }
}
