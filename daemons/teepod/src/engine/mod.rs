// SPDX-License-Identifier: Apache-2.0
//! The engine: owns all VMs, and works through the traits [`Units`] and [`Host`].

pub mod adopt;
pub mod change;
pub mod create;
pub mod errors;
pub mod ground;
pub mod guest;
pub mod home;
pub mod image;
pub mod observe;
pub mod verbs;
pub mod vm;

use crate::host::Host;
use crate::images::Images;
use crate::launch::Ground;
use crate::settings::Settings;
use crate::store::Store;
use crate::units::Units;
use crate::vm::Record;
use dstack_core::ids::VmName;
use dstack_core::spec::PortMapping;
use dstack_service::api::teepod1::Error;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{mpsc, watch};
use uuid::Uuid;
use vm::Vm;

/// What has changed, for the bus.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A VM has appeared.
    New(VmName),
    /// Something of a VM has changed.
    Changed(VmName),
    /// A VM is gone.
    Removed(VmName),
    /// It is known what VMs run on.
    Ground,
}

/// The engine; cheap to clone.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

struct Inner {
    settings: Settings,
    state: PathBuf,
    store: Store,
    images: Images,
    units: Arc<dyn Units>,
    host: Arc<dyn Host>,
    table: Mutex<Table>,
    ground: watch::Sender<Option<Ground>>,
    events: mpsc::UnboundedSender<Event>,
}

/// All VMs, and what is taken by those that are being created.
#[derive(Default)]
struct Table {
    vms: BTreeMap<VmName, Arc<Vm>>,
    ids: BTreeMap<Uuid, VmName>,
    reserved: BTreeMap<VmName, Lease>,
    /// Names whose state cannot be read; nothing is done to them.
    unreadable: BTreeMap<VmName, String>,
}

/// What a VM that is being created holds.
#[derive(Debug, Clone)]
struct Lease {
    cid: u32,
    ports: Vec<PortMapping>,
}

/// What the engine works with.
pub struct Parts {
    /// Validated settings.
    pub settings: Settings,
    /// teepod's state directory.
    pub state: PathBuf,
    /// systemd.
    pub units: Arc<dyn Units>,
    /// The host.
    pub host: Arc<dyn Host>,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("state", &self.inner.state).finish_non_exhaustive()
    }
}

impl Engine {
    /// An engine without VMs yet, see [`Engine::adopt`]; the receiver tells of changes.
    #[must_use]
    pub fn new(parts: Parts) -> (Self, mpsc::UnboundedReceiver<Event>) {
        let (events, receiver) = mpsc::unbounded_channel();
        let store = Store::new(&parts.state);
        let images = Images::new(&parts.settings.image_path);
        let inner = Inner {
            settings: parts.settings,
            state: parts.state,
            store,
            images,
            units: parts.units,
            host: parts.host,
            table: Mutex::default(),
            ground: watch::Sender::new(None),
            events,
        };
        (Self { inner: Arc::new(inner) }, receiver)
    }

    /// The settings in force.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.inner.settings
    }

    /// teepod's state directory.
    #[must_use]
    pub fn state_directory(&self) -> &Path {
        &self.inner.state
    }

    /// All VMs, by name.
    #[must_use]
    pub fn vms(&self) -> Vec<Arc<Vm>> {
        self.table().vms.values().cloned().collect()
    }

    /// A VM by name or id.
    ///
    /// # Errors
    /// `NoSuchVm`, `StateUnreadable`, or `InvalidArgument` when the text can be neither.
    pub fn get(&self, text: &str) -> Result<Arc<Vm>, Error> {
        let table = self.table();
        let name = match Uuid::try_parse(text) {
            Ok(id) => table.ids.get(&id).cloned().ok_or_else(|| errors::no_such_vm(text))?,
            Err(_) => text.parse::<VmName>().map_err(|e| Error::InvalidArgument(e.to_string()))?,
        };
        if let Some(reason) = table.unreadable.get(&name) {
            return Err(errors::unreadable(&name, reason));
        }
        table.vms.get(&name).cloned().ok_or_else(|| errors::no_such_vm(text))
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // Every change of the table is a single insertion or removal, so it is whole even after a panic.
        self.inner.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, event: Event) {
        // Without a receiver the daemon is ending.
        drop(self.inner.events.send(event));
    }

    /// Applies a change to what is observed of a VM, and tells the bus once until it has looked.
    fn observe(&self, vm: &Vm, change: impl FnOnce(&mut crate::vm::Observed)) {
        if vm.observe(change) && vm.mark_dirty() {
            self.tell(Event::Changed(vm.name.clone()));
        }
    }

    /// Writes a VM's changed record and tells the bus.
    async fn update(&self, vm: &Vm, change: impl FnOnce(&mut Record)) -> Result<(), Error> {
        let mut record = vm.record();
        change(&mut record);
        let (store, saved) = (self.inner.store.clone(), record.clone());
        self.blocking(move || store.save(&saved)).await??;
        vm.set_record(record);
        if vm.mark_dirty() {
            self.tell(Event::Changed(vm.name.clone()));
        }
        Ok(())
    }

    /// Runs file work beside the event loop.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Error> {
        tokio::task::spawn_blocking(work).await.map_err(|e| errors::internal(&e))
    }
}
