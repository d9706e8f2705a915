// SPDX-License-Identifier: Apache-2.0
//! Who is registered: instances by their attested ids, with their keys and addresses. Pure.
//!
//! ```text
//! claim (app, instance, key)          from a verified quote, and the key the caller sent over that connection
//!   instance unknown      -> New      an address is leased
//!   key as before         -> Same     nothing changes
//!   another key           -> Rekeyed  the newest key wins (trust rule T21), at most REKEYS_MAX in REKEY_WINDOW
//!     and a replaced key came back    two run with one identity: clone alarm
//! ```

use crate::pool::Pool;
use dstack_core::ids::{AppId, InstanceId};
use dstack_core::wireguard::PublicKey;
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, VecDeque};
use std::net::Ipv4Addr;

/// Most keys that an instance may have within [`REKEY_WINDOW`]; a guest makes a new one at each boot.
pub const REKEYS_MAX: usize = 4;
/// The time for that, seconds.
pub const REKEY_WINDOW: u64 = 300;
/// How many replaced keys of an instance are remembered.
const REPLACED_MAX: usize = 8;
/// An instance with a handshake younger than this, in seconds, is online.
pub const ONLINE: u64 = 300;
/// Most instances: what one data plane takes.
pub const INSTANCES_MAX: usize = dstack_core::flow::INSTANCES_MAX;
/// Most ports of a list that an instance may send.
pub const PORTS_MAX: usize = dstack_core::flow::PORTS_MAX;

/// What an instance wishes for its ports; it says so over its attested connection.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Ports {
    /// Ports that may be reached; `None`: all.
    pub allowed: Option<Vec<u16>>,
    /// Ports whose connections begin with a PROXY protocol header.
    pub proxy_protocol: Vec<u16>,
}

/// A verified wish to register.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The measured app.
    pub app_id: AppId,
    /// The measured instance.
    pub instance_id: InstanceId,
    /// Its WireGuard key.
    pub public_key: PublicKey,
    /// What it wishes for its ports.
    pub ports: Ports,
}

/// A registered instance, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// Instance id.
    pub instance_id: InstanceId,
    /// App id.
    pub app_id: AppId,
    /// WireGuard key.
    pub public_key: PublicKey,
    /// Address in the tunnel.
    pub address: Ipv4Addr,
    /// When it was registered last with something new, Unix seconds.
    pub registered: u64,
    /// Whether the operator keeps new connections away from it.
    #[serde(default)]
    pub drained: bool,
    /// What it wishes for its ports.
    #[serde(default)]
    pub ports: Ports,
}

/// An instance, and what is known of it since the start.
#[derive(Debug, Clone)]
pub struct Entry {
    /// As it is stored.
    pub instance: Instance,
    /// Last handshake, Unix seconds.
    pub handshake: Option<u64>,
    /// When two were seen with its identity, Unix seconds.
    pub clone_alarm: Option<u64>,
    /// When it registered last, Unix seconds; the start for those of an earlier run.
    seen: u64,
    /// When it got its last keys.
    rekeyed: VecDeque<u64>,
    /// Keys it had.
    replaced: VecDeque<PublicKey>,
}

impl Entry {
    fn new(instance: Instance, seen: u64) -> Self {
        Self {
            instance,
            handshake: None,
            clone_alarm: None,
            seen,
            rekeyed: VecDeque::new(),
            replaced: VecDeque::new(),
        }
    }

    /// Whether it had a handshake lately.
    #[must_use]
    pub fn is_online(&self, now: u64) -> bool {
        self.handshake.is_some_and(|at| now.saturating_sub(at) < ONLINE)
    }

    /// When it was heard of last: by a handshake, or by its registration.
    #[must_use]
    pub fn last_sign(&self) -> u64 {
        self.handshake.unwrap_or(0).max(self.seen)
    }
}

/// What a registration changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// The instance is new.
    New,
    /// Nothing that is stored.
    Same,
    /// What it wishes for its ports.
    Ports,
    /// Its key.
    Rekeyed {
        /// The key of before.
        old: PublicKey,
        /// Whether the new one had been replaced before.
        cloned: bool,
    },
}

/// Why a registration is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegisterError {
    /// Another instance has this key.
    #[error("the WireGuard key belongs to another instance; make a new one")]
    KeyTaken,
    /// The key is ours, or is no key.
    #[error("the WireGuard key is not usable; make a new one")]
    BadKey,
    /// The instance id is known as another app's.
    #[error("the instance is registered for another app")]
    OtherApp,
    /// Too many new keys.
    #[error(
        "the instance had {REKEYS_MAX} keys within {REKEY_WINDOW} s; keep one key for a whole boot, and try again later"
    )]
    TooOften,
    /// There is no free address.
    #[error("all addresses of the tunnel are leased; the operator may widen wg.client_ip_range")]
    Full,
    /// A list is too long.
    #[error("at most {PORTS_MAX} ports can be listed")]
    Ports,
}

/// All instances.
#[derive(Debug)]
pub struct Registry {
    own_key: PublicKey,
    pool: Pool,
    entries: HashMap<InstanceId, Entry>,
    by_key: HashMap<PublicKey, InstanceId>,
}

impl Registry {
    /// An empty registry of the server with this key.
    #[must_use]
    pub fn new(own_key: PublicKey, pool: Pool) -> Self {
        Self { own_key, pool, entries: HashMap::new(), by_key: HashMap::new() }
    }

    /// Takes over an instance of an earlier run; `false` when its address is not ours to lease any more, or its id, key
    /// or address is taken.
    pub fn restore(&mut self, instance: Instance, now: u64) -> bool {
        let taken = self.entries.contains_key(&instance.instance_id)
            || self.by_key.contains_key(&instance.public_key)
            || self.is_bad(&instance.public_key);
        if taken || !self.pool.claim(instance.address) {
            return false;
        }
        self.insert(Entry::new(instance, now));
        true
    }

    fn insert(&mut self, entry: Entry) {
        let id = entry.instance.instance_id;
        self.by_key.insert(entry.instance.public_key, id);
        self.entries.insert(id, entry);
    }

    fn is_bad(&self, key: &PublicKey) -> bool {
        *key == self.own_key || key.as_bytes().iter().all(|byte| *byte == 0)
    }

    /// Registers an instance whose evidence was verified.
    ///
    /// # Errors
    /// [`RegisterError`]; nothing has changed then.
    pub fn register(&mut self, claim: Claim, now: u64) -> Result<(Instance, Change), RegisterError> {
        let lists = [claim.ports.allowed.as_deref().unwrap_or_default(), &claim.ports.proxy_protocol];
        if lists.iter().any(|list| list.len() > PORTS_MAX) {
            return Err(RegisterError::Ports);
        }
        if self.is_bad(&claim.public_key) {
            return Err(RegisterError::BadKey);
        }
        if self.by_key.get(&claim.public_key).is_some_and(|holder| *holder != claim.instance_id) {
            return Err(RegisterError::KeyTaken);
        }
        match self.entries.get_mut(&claim.instance_id) {
            None => self.admit(claim, now),
            Some(entry) if entry.instance.app_id != claim.app_id => Err(RegisterError::OtherApp),
            Some(entry) => {
                let change = entry.renew(claim, now)?;
                let instance = entry.instance.clone();
                if let Change::Rekeyed { old, .. } = change {
                    self.by_key.remove(&old);
                    self.by_key.insert(instance.public_key, instance.instance_id);
                }
                Ok((instance, change))
            }
        }
    }

    fn admit(&mut self, claim: Claim, now: u64) -> Result<(Instance, Change), RegisterError> {
        if self.entries.len() >= INSTANCES_MAX {
            return Err(RegisterError::Full);
        }
        let address = self.pool.lease().ok_or(RegisterError::Full)?;
        let Claim { app_id, instance_id, public_key, ports } = claim;
        let instance =
            Instance { instance_id, app_id, public_key, address, registered: now, drained: false, ports };
        let mut entry = Entry::new(instance.clone(), now);
        entry.rekeyed.push_back(now);
        self.insert(entry);
        Ok((instance, Change::New))
    }

    /// Keeps new connections away from an instance, or no longer; `None` when there is none, otherwise whether that is a
    /// change.
    pub fn set_drained(&mut self, id: &InstanceId, drained: bool) -> Option<bool> {
        let instance = &mut self.entries.get_mut(id)?.instance;
        Some(std::mem::replace(&mut instance.drained, drained) != drained)
    }

    /// Forgets an instance; its address may be leased again.
    pub fn remove(&mut self, id: &InstanceId) -> Option<Instance> {
        let instance = self.entries.remove(id)?.instance;
        self.by_key.remove(&instance.public_key);
        self.pool.give_back(instance.address);
        Some(instance)
    }

    /// Forgets whoever gave no sign for longer than `timeout` seconds.
    pub fn recycle(&mut self, now: u64, timeout: u64) -> Vec<Instance> {
        let is_stale = |entry: &&Entry| now.saturating_sub(entry.last_sign()) > timeout;
        let stale: Vec<InstanceId> =
            self.entries.values().filter(is_stale).map(|e| e.instance.instance_id).collect();
        stale.iter().filter_map(|id| self.remove(id)).collect()
    }

    /// Notes when the holder of a key had its last handshake; gives its id when that is news.
    pub fn observe(&mut self, key: &PublicKey, handshake: Option<u64>) -> Option<InstanceId> {
        let id = self.by_key.get(key)?;
        let entry = self.entries.get_mut(id)?;
        let is_news = handshake.is_some() && entry.handshake != handshake;
        if is_news {
            entry.handshake = handshake;
        }
        is_news.then_some(*id)
    }

    /// The instance of this id.
    #[must_use]
    pub fn get(&self, id: &InstanceId) -> Option<&Entry> {
        self.entries.get(id)
    }

    /// Whether somebody has this key.
    #[must_use]
    pub fn has_key(&self, key: &PublicKey) -> bool {
        self.by_key.contains_key(key)
    }

    /// All instances, in no order.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

impl Entry {
    fn renew(&mut self, claim: Claim, now: u64) -> Result<Change, RegisterError> {
        let old = self.instance.public_key;
        if old != claim.public_key {
            let cloned = self.rekey(claim.public_key, now)?;
            self.instance.ports = claim.ports;
            self.seen = now;
            return Ok(Change::Rekeyed { old, cloned });
        }
        self.seen = now;
        if self.instance.ports == claim.ports {
            return Ok(Change::Same);
        }
        self.instance.ports = claim.ports;
        Ok(Change::Ports)
    }

    /// Takes another key; tells whether it had been replaced before.
    fn rekey(&mut self, key: PublicKey, now: u64) -> Result<bool, RegisterError> {
        self.rekeyed.retain(|at| now.saturating_sub(*at) < REKEY_WINDOW);
        if self.rekeyed.len() >= REKEYS_MAX {
            return Err(RegisterError::TooOften);
        }
        self.rekeyed.push_back(now);
        // Keys are made anew at each boot: one that comes back belongs to another machine that still runs.
        let cloned = self.replaced.contains(&key);
        self.clone_alarm = if cloned { Some(now) } else { self.clone_alarm };
        self.replaced.push_back(self.instance.public_key);
        if self.replaced.len() > REPLACED_MAX {
            self.replaced.pop_front();
        }
        self.instance.public_key = key;
        self.instance.registered = now;
        // Handshakes of the old key say nothing about the new one.
        self.handshake = None;
        Ok(cloned)
    }
}

#[cfg(test)]
#[path = "registry_tests.rs"]
mod tests;
