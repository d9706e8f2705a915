// SPDX-License-Identifier: Apache-2.0
//! `/run/dstack-network/state.json`: the registrations of this boot, for the next run and for the guest agent. It holds
//! no secret and no text of a server but its domain.

use super::register::{Miss, MissKind};
use super::tunnel::Tunnel;
use crate::outputs::{self, Output};
use dstack_core::kms_address::Address;
use dstack_wireguard::InterfaceStatus;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use zeroize::Zeroizing;

/// Version of the format.
const VERSION: u32 = 1;

/// What is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    version: u32,
    /// One for each tproxy that registered us.
    pub tunnels: Vec<Tunnel>,
    /// By tproxy: why the last attempt failed.
    #[serde(default)]
    pub missed: BTreeMap<String, MissKind>,
}

impl Default for State {
    fn default() -> Self {
        Self { version: VERSION, tunnels: Vec::new(), missed: BTreeMap::new() }
    }
}

impl State {
    /// What an earlier run kept. Whatever cannot be read is made anew by registering: nothing is lost with it.
    #[must_use]
    pub fn read(path: &Path) -> Self {
        let kept = std::fs::read(path).ok().and_then(|bytes| serde_json::from_slice::<Self>(&bytes).ok());
        kept.filter(|state| state.version == VERSION).unwrap_or_default()
    }

    /// Writes it, whole or not at all.
    ///
    /// # Errors
    /// Of the file.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let bytes = Zeroizing::new(serde_json::to_vec(self)?);
        outputs::write(&Output { path: path.to_owned(), mode: 0o644, bytes })
    }

    /// Whether this tproxy is to be asked now.
    #[must_use]
    pub fn is_due(&self, tproxy: &Address, status: &InterfaceStatus, now: u64) -> bool {
        let name = tproxy.to_string();
        let Some(tunnel) = self.tunnels.iter().find(|tunnel| tunnel.tproxy == name) else { return true };
        let of = |key| status.peers.iter().find(|peer| peer.public_key == key);
        let peers: Vec<_> = tunnel.servers.iter().map(|server| of(server.public_key)).collect();
        // A server that is not set up, e.g. after a kill, or since somebody deleted the interface.
        let missing = peers.iter().all(Option::is_none);
        let newest = peers.into_iter().flatten().filter_map(|peer| peer.last_handshake).max();
        missing || tunnel.is_stale(newest, now)
    }

    /// A registration, in place of the one that the tproxy had given before.
    pub fn put(&mut self, tunnel: Tunnel) {
        self.missed.remove(&tunnel.tproxy);
        match self.tunnels.iter_mut().find(|known| known.tproxy == tunnel.tproxy) {
            Some(known) => *known = tunnel,
            None => self.tunnels.push(tunnel),
        }
    }

    /// A failed attempt: one line in the guest's journal whenever the kind changes. What it had given stays in force.
    pub fn missed(&mut self, tproxy: &Address, miss: &Miss) {
        if self.missed.insert(tproxy.to_string(), miss.kind) != Some(miss.kind) {
            println!("<4>{} ({tproxy}): {}", miss.kind.sentence(), miss.detail);
        }
    }
}
