// SPDX-License-Identifier: Apache-2.0
//! What the connected data planes have told.

use dstack_core::flow::{Counters, INSTANCES_MAX, InstanceStats, Stats};
use dstack_core::ids::InstanceId;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// A data plane.
#[derive(Debug, Clone, Default)]
pub struct Plane {
    /// Generation, the instance name of its unit.
    pub generation: u64,
    /// Its process.
    pub pid: u32,
    /// Whether its last connection has ended.
    pub drained: bool,
    /// What it counts.
    pub counters: Counters,
    instances: HashMap<InstanceId, InstanceStats>,
}

/// All data planes.
#[derive(Debug)]
pub struct Flows {
    planes: Mutex<BTreeMap<u64, Plane>>,
    /// Totals of data planes that have gone.
    gone: Mutex<Counters>,
    next: Mutex<u64>,
    connected: watch::Sender<usize>,
}

impl Default for Flows {
    fn default() -> Self {
        Self {
            planes: Mutex::default(),
            gone: Mutex::default(),
            next: Mutex::default(),
            connected: watch::channel(0).0,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Flows {
    /// A data plane has said hello; gives its number here.
    pub fn join(&self, generation: u64, pid: u32) -> u64 {
        let number = {
            let mut next = lock(&self.next);
            *next += 1;
            *next
        };
        let plane = Plane { generation, pid, ..Plane::default() };
        lock(&self.planes).insert(number, plane);
        self.connected.send_modify(|count| *count += 1);
        number
    }

    /// It has told what it counts.
    pub fn count(&self, number: u64, stats: Stats) {
        if let Some(plane) = lock(&self.planes).get_mut(&number) {
            plane.counters = stats.counters;
            let room = INSTANCES_MAX.saturating_sub(plane.instances.len());
            plane.instances.extend(stats.instances.into_iter().take(room).map(|i| (i.instance, i)));
        }
    }

    /// An instance is not registered any more.
    pub fn forget(&self, id: &InstanceId) {
        for plane in lock(&self.planes).values_mut() {
            plane.instances.remove(id);
        }
    }

    /// Its last connection has ended.
    pub fn drained(&self, number: u64) {
        if let Some(plane) = lock(&self.planes).get_mut(&number) {
            plane.drained = true;
        }
    }

    /// Its connection has ended.
    pub fn leave(&self, number: u64) {
        if let Some(plane) = lock(&self.planes).remove(&number) {
            // It may come back and count on from where it was; only one that is drained is gone for good.
            if plane.drained {
                lock(&self.gone).add(&Counters { open: 0, half_open: 0, ..plane.counters });
            }
            self.connected.send_modify(|count| *count = count.saturating_sub(1));
        }
    }

    /// All that are connected.
    #[must_use]
    pub fn planes(&self) -> Vec<Plane> {
        lock(&self.planes).values().cloned().collect()
    }

    /// How many are connected, as it changes.
    #[must_use]
    pub fn connected(&self) -> watch::Receiver<usize> {
        self.connected.subscribe()
    }

    /// Numbers of all, with those that have drained.
    #[must_use]
    pub fn total(&self) -> Counters {
        let mut total = *lock(&self.gone);
        lock(&self.planes).values().for_each(|plane| total.add(&plane.counters));
        total
    }

    /// Numbers of one instance: connected, failed, open.
    #[must_use]
    pub fn of(&self, id: &InstanceId) -> (u64, u64, u64) {
        let planes = lock(&self.planes);
        let found = planes.values().filter_map(|plane| plane.instances.get(id));
        found.fold((0, 0, 0), |(connected, failed, open), i| {
            (connected + i.connected, failed + i.failed, open + i.open)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_outlive_a_drained_data_plane_and_gauges_do_not() {
        let flows = Flows::default();
        let (old, new) = (flows.join(1, 10), flows.join(2, 11));
        let counters = |accepted, open| Counters { accepted, open, ..Counters::default() };
        let id: InstanceId = [1; 20].into();
        let instance = InstanceStats { instance: id, connected: 2, failed: 1, open: 1 };
        flows.count(old, Stats { counters: counters(5, 2), instances: vec![instance] });
        flows.count(new, Stats { counters: counters(7, 1), instances: vec![instance] });
        assert_eq!((flows.total().accepted, flows.total().open), (12, 3));
        assert_eq!(flows.of(&id), (4, 2, 2));
        flows.drained(old);
        flows.leave(old);
        flows.leave(old);
        assert_eq!((flows.total().accepted, flows.total().open), (12, 1));
        assert_eq!((flows.planes().len(), *flows.connected().borrow()), (1, 1));
        flows.leave(new);
        assert_eq!(flows.total().accepted, 5, "it comes back with its numbers");
    }
}
