// SPDX-License-Identifier: Apache-2.0
//! One VM in the engine: its record, what is observed of it, and its connection home.

use super::home::Home;
use crate::vm::{Observed, Record, State};
use dstack_core::ids::VmName;
use dstack_core::spec::PortMapping;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use tokio::sync::watch;

/// One VM.
#[derive(Debug)]
pub struct Vm {
    /// Its name.
    pub name: VmName,
    record: Mutex<Record>,
    observed: watch::Sender<Observed>,
    /// Held while a verb prepares files and talks to systemd, so that verbs of one VM do not mix.
    pub(super) busy: tokio::sync::Mutex<()>,
    home: Mutex<Option<Home>>,
    dirty: AtomicBool,
}

/// What can be seen of a VM.
#[derive(Debug, Clone, PartialEq)]
pub struct View {
    /// Its record.
    pub record: Record,
    /// What it is doing.
    pub state: State,
    /// What the boot is doing, in words.
    pub boot_progress: String,
    /// Why the boot failed, in words.
    pub boot_error: String,
    /// Instance id as the guest reported it, empty before.
    pub instance_id: String,
    /// Stages of the last boot and milliseconds since its start.
    pub timeline: Vec<(String, u64)>,
}

impl Vm {
    /// A VM of which nothing is observed yet.
    #[must_use]
    pub fn new(record: Record) -> Self {
        Self {
            name: record.spec.name.clone(),
            record: Mutex::new(record),
            observed: watch::Sender::default(),
            busy: tokio::sync::Mutex::default(),
            home: Mutex::default(),
            dirty: AtomicBool::new(false),
        }
    }

    /// Its record.
    #[must_use]
    pub fn record(&self) -> Record {
        self.record.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_record(&self, record: Record) {
        *self.record.lock().unwrap_or_else(PoisonError::into_inner) = record;
    }

    /// What is observed of it.
    #[must_use]
    pub fn observed(&self) -> Observed {
        self.observed.borrow().clone()
    }

    /// Its state.
    #[must_use]
    pub fn state(&self) -> State {
        self.observed.borrow().state()
    }

    /// Follows what is observed of it.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Observed> {
        self.observed.subscribe()
    }

    /// Changes what is observed; says whether it really changed.
    pub(super) fn observe(&self, change: impl FnOnce(&mut Observed)) -> bool {
        self.observed.send_if_modified(|observed| {
            let before = observed.clone();
            change(observed);
            *observed != before
        })
    }

    /// Marks it as changed; `false` when it was marked already.
    pub(super) fn mark_dirty(&self) -> bool {
        !self.dirty.swap(true, Ordering::AcqRel)
    }

    /// What can be seen of it; later changes are told of again.
    #[must_use]
    pub fn look(&self) -> View {
        self.dirty.store(false, Ordering::Release);
        self.view()
    }

    /// What can be seen of it.
    #[must_use]
    pub fn view(&self) -> View {
        let record = self.record();
        let observed = self.observed.borrow();
        let status = observed.status.as_ref();
        View {
            record,
            state: observed.state(),
            boot_progress: observed.boot_progress(),
            boot_error: observed.boot_error(),
            instance_id: status.and_then(|s| s.instance_id).map(|i| i.to_string()).unwrap_or_default(),
            timeline: status.map(|s| s.timeline.clone()).unwrap_or_default(),
        }
    }

    pub(super) fn home(&self) -> Option<Home> {
        self.home.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_home(&self, home: Option<Home>) {
        *self.home.lock().unwrap_or_else(PoisonError::into_inner) = home;
    }

    /// Forgets a connection, unless a newer one has taken its place.
    pub(super) fn drop_home(&self, serial: u64) -> bool {
        let mut home = self.home.lock().unwrap_or_else(PoisonError::into_inner);
        let mine = home.as_ref().is_some_and(|h| h.serial == serial);
        if mine {
            *home = None;
        }
        mine
    }
}

impl View {
    /// The row's word on the boot: its error, else its progress.
    #[must_use]
    pub fn boot(&self) -> &str {
        if self.boot_error.is_empty() { &self.boot_progress } else { &self.boot_error }
    }

    /// The unit's name.
    #[must_use]
    pub fn unit(&self) -> String {
        self.record.spec.name.unit()
    }

    /// Port mappings as they travel on the bus.
    #[must_use]
    pub fn ports(&self) -> Vec<(String, String, u16, u16)> {
        let row =
            |p: &PortMapping| (p.protocol.to_string(), p.host_address.to_string(), p.host_port, p.vm_port);
        self.record.spec.ports.iter().map(row).collect()
    }
}
