// SPDX-License-Identifier: Apache-2.0
//! Which instances an id leads to.
//!
//! A table is immutable and looked up without a lock; a change makes the next one, which shares what connections refer
//! to. Ids are matched as instances first, then as apps.

use dstack_core::flow::{Instance, InstanceStats};
use dstack_core::ids::{AppId, InstanceId};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use crate::wheel::{Tick, ticks};

/// Most instances that are tried for one connection.
pub const CANDIDATES_MAX: usize = 16;
/// How long an instance that failed is tried last, milliseconds; doubled by each failure in a row.
const SHUN_MS: u64 = 2_000;
/// Most doublings.
const SHUN_DOUBLINGS: u32 = 5;

/// What connections of one app share.
#[derive(Debug, Default)]
pub struct App {
    open: AtomicU32,
}

/// What connections to one instance share; it outlives the tables it is in.
#[derive(Debug, Default)]
pub struct Health {
    connected: AtomicU64,
    failed: AtomicU64,
    open: AtomicU64,
    /// Failures since the last success.
    streak: AtomicU32,
    /// It is tried last until then.
    shunned: AtomicU32,
}

/// An instance in a table.
#[derive(Debug)]
pub struct Entry {
    /// What control said.
    pub instance: Instance,
    app: Arc<App>,
    health: Arc<Health>,
}

/// Why no instance takes a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Neither an instance nor an app has this id.
    Unknown,
    /// All its instances are draining.
    NoInstance,
    /// The policy of its instances does not allow the port.
    Port,
    /// The app has as many connections as it may.
    Full,
}

/// Instances and apps by id.
#[derive(Debug, Default)]
pub struct Table {
    instances: HashMap<InstanceId, Arc<Entry>>,
    /// Newest handshake first.
    apps: HashMap<AppId, Vec<Arc<Entry>>>,
}

impl Table {
    /// A table of just these instances; what connections share is kept from the table before.
    #[must_use]
    pub fn of(instances: Vec<Instance>, before: &Self) -> Self {
        let mut table = Self::default();
        let mut apps: HashMap<AppId, Arc<App>> = HashMap::new();
        for instance in instances {
            let app = apps.entry(instance.app_id).or_insert_with(|| before.app(instance.app_id));
            let entry = before.entry(instance, Arc::clone(app));
            table.instances.insert(entry.instance.instance_id, entry);
        }
        table.sort();
        table
    }

    /// This table with some instances changed.
    #[must_use]
    pub fn changed(&self, upsert: Vec<Instance>, remove: &[InstanceId]) -> Self {
        let mut table = Self { instances: self.instances.clone(), apps: HashMap::new() };
        for id in remove {
            table.instances.remove(id);
        }
        let mut apps: HashMap<AppId, Arc<App>> = HashMap::new();
        for instance in upsert {
            let app = apps.entry(instance.app_id).or_insert_with(|| self.app(instance.app_id));
            let entry = self.entry(instance, Arc::clone(app));
            table.instances.insert(entry.instance.instance_id, entry);
        }
        table.sort();
        table
    }

    /// This table with an instance that gets no new connections.
    #[must_use]
    pub fn drained(&self, id: InstanceId) -> Option<Self> {
        let entry = self.instances.get(&id)?;
        Some(self.changed(vec![Instance { draining: true, ..entry.instance.clone() }], &[]))
    }

    fn app(&self, id: AppId) -> Arc<App> {
        let known = self.apps.get(&id).and_then(|entries| entries.first());
        known.map(|entry| Arc::clone(&entry.app)).unwrap_or_default()
    }

    fn entry(&self, instance: Instance, app: Arc<App>) -> Arc<Entry> {
        let known = self.instances.get(&instance.instance_id);
        // Another address is another machine: what was seen of the old one says nothing.
        let same = known.filter(|entry| entry.instance.address == instance.address);
        let health = same.map(|entry| Arc::clone(&entry.health)).unwrap_or_default();
        Arc::new(Entry { instance, app, health })
    }

    fn sort(&mut self) {
        for entry in self.instances.values() {
            self.apps.entry(entry.instance.app_id).or_default().push(Arc::clone(entry));
        }
        let newest =
            |entry: &Arc<Entry>| (std::cmp::Reverse(entry.instance.handshake), entry.instance.instance_id);
        self.apps.values_mut().for_each(|entries| entries.sort_unstable_by_key(newest));
    }

    /// How many instances there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.instances.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.instances.is_empty()
    }

    /// The instances to try for an id and port, the best first.
    ///
    /// # Errors
    /// [`Refusal`] when there is none.
    pub fn pick(&self, id: AppId, port: u16, most: u32, now: Tick) -> Result<Vec<Arc<Entry>>, Refusal> {
        let one = self.instances.get(&InstanceId::from(*id.as_bytes()));
        let all = match one {
            Some(entry) => std::slice::from_ref(entry),
            None => self.apps.get(&id).map(Vec::as_slice).ok_or(Refusal::Unknown)?,
        };
        let mut alive = all.iter().filter(|entry| !entry.instance.draining).peekable();
        let first = alive.peek().ok_or(Refusal::NoInstance)?;
        if first.app.open.load(Relaxed) >= most {
            return Err(Refusal::Full);
        }
        let allowed = alive.filter(|entry| entry.instance.allows(port));
        let (well, ill): (Vec<_>, Vec<_>) = allowed.cloned().partition(|entry| !entry.is_shunned(now));
        let mut picked = well;
        picked.extend(ill);
        picked.truncate(CANDIDATES_MAX);
        if picked.is_empty() { Err(Refusal::Port) } else { Ok(picked) }
    }

    /// What happened to each instance with any news.
    #[must_use]
    pub fn stats(&self) -> Vec<InstanceStats> {
        let all = self.instances.values().map(|entry| entry.stats());
        all.filter(|stats| stats.connected + stats.failed + stats.open > 0).collect()
    }
}

impl Entry {
    fn is_shunned(&self, now: Tick) -> bool {
        self.health.shunned.load(Relaxed) > now
    }

    fn stats(&self) -> InstanceStats {
        InstanceStats {
            instance: self.instance.instance_id,
            connected: self.health.connected.load(Relaxed),
            failed: self.health.failed.load(Relaxed),
            open: self.health.open.load(Relaxed),
        }
    }

    /// An attempt to reach it failed.
    pub fn failed(&self, now: Tick) {
        let streak = self.health.streak.fetch_add(1, Relaxed).min(SHUN_DOUBLINGS);
        self.health.failed.fetch_add(1, Relaxed);
        self.health.shunned.store(now.saturating_add(ticks(SHUN_MS << streak)), Relaxed);
    }

    /// It was reached; the connection counts until the lease is dropped.
    #[must_use]
    pub fn connected(&self) -> InstanceLease {
        self.health.connected.fetch_add(1, Relaxed);
        self.health.open.fetch_add(1, Relaxed);
        self.health.streak.store(0, Relaxed);
        self.health.shunned.store(0, Relaxed);
        InstanceLease(Arc::clone(&self.health))
    }

    /// Counts a connection to its app until the lease is dropped.
    ///
    /// # Errors
    /// [`Refusal::Full`] when the app has so many.
    pub fn lease(&self, most: u32) -> Result<AppLease, Refusal> {
        let lease = AppLease(Arc::clone(&self.app));
        if lease.0.open.fetch_add(1, Relaxed) >= most { Err(Refusal::Full) } else { Ok(lease) }
    }
}

/// A connection that counts for its app.
#[derive(Debug)]
pub struct AppLease(Arc<App>);

impl Drop for AppLease {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Relaxed);
    }
}

/// A connection that counts for its instance.
#[derive(Debug)]
pub struct InstanceLease(Arc<Health>);

impl Drop for InstanceLease {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
