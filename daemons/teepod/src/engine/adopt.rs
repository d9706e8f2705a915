// SPDX-License-Identifier: Apache-2.0
//! What a new teepod does with what an earlier one left: adopt what runs, finish what was begun, sweep the rest.

use super::vm::Vm;
use super::{Engine, errors};
use crate::vm::UnitState;
use dstack_core::ids::VmName;
use dstack_service::api::teepod1::Error;
use dstack_service::jobs::{Context, JobError};
use dstack_service::logging::message_id;
use dstack_service::state;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

const VERSION: u32 = 1;
/// VMs that boot at the same time after a host reboot.
const PARALLEL_BOOTS: usize = 4;

/// Which boot of the host teepod last ran in.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Seen {
    boot_id: String,
}

/// What is to be done once teepod is ready.
#[derive(Debug, Default)]
pub struct Unfinished {
    starts: Vec<Arc<Vm>>,
    removals: Vec<Arc<Vm>>,
}

impl Engine {
    /// Reads all VMs and takes over those that run.
    ///
    /// # Errors
    /// When the state directory or systemd cannot be read; a single unreadable VM is only logged.
    pub async fn adopt(&self) -> Result<Unfinished, Error> {
        let engine = self.clone();
        let found = self
            .blocking(move || {
                if let Err(error) = engine.inner.images.sweep() {
                    tracing::warn!("left-overs of an image import cannot be removed: {error}");
                }
                engine.inner.store.load()
            })
            .await??;
        if found.swept > 0 {
            tracing::info!("removed {} unfinished VM(s) of an earlier run", found.swept);
        }
        for (name, error) in found.unreadable {
            let (vm, error) = (name.as_str().to_owned(), error.to_string());
            tracing::error!(MESSAGE_ID = message_id::STATE_UNREADABLE, DSTACK_VM = vm, "VM {name}: {error}");
            self.table().unreadable.insert(name, error);
        }
        let vms: Vec<Arc<Vm>> = found.records.into_iter().map(|r| Arc::new(Vm::new(r))).collect();
        vms.iter().for_each(|vm| self.insert(vm));
        self.take_over(&vms).await?;
        let rebooted = self.host_rebooted();
        Ok(sort(vms, rebooted))
    }

    async fn take_over(&self, vms: &[Arc<Vm>]) -> Result<(), Error> {
        let mut states: BTreeMap<VmName, UnitState> = self.inner.units.states().await?.into_iter().collect();
        for vm in vms {
            let state = states.remove(&vm.name).unwrap_or_default();
            if state.is_up() {
                let name = vm.name.as_str();
                tracing::info!(
                    MESSAGE_ID = message_id::VM_ADOPTED,
                    DSTACK_VM = name,
                    "adopted running VM {name}"
                );
            }
            self.apply(vm, state);
        }
        for (name, _) in states.iter().filter(|(_, state)| state.is_up()) {
            let unit = name.unit();
            tracing::warn!(
                DSTACK_VM = name.as_str(),
                "{unit} runs, but teepod knows no such VM; `systemctl stop {unit}` ends it"
            );
        }
        Ok(())
    }

    /// Whether this is the first run since the host booted; remembers that it was.
    fn host_rebooted(&self) -> bool {
        let path = self.inner.state.join("boot.json");
        let boot_id = self.inner.host.boot_id().unwrap_or_default();
        let seen = state::load::<Seen>(&path, VERSION).unwrap_or_else(|error| {
            tracing::warn!("{error}");
            None
        });
        let now = Seen { boot_id };
        if seen.as_ref() == Some(&now) {
            return false;
        }
        if let Err(error) = state::store(&path, VERSION, &now) {
            tracing::warn!("{error}");
        }
        true
    }

    /// Keeps the promises of an earlier run; to be called when teepod is ready.
    pub fn finish(&self, unfinished: Unfinished) {
        for vm in unfinished.removals {
            let engine = self.clone();
            tokio::spawn(async move {
                let _busy = vm.busy.lock().await;
                log(&vm, "removal", engine.finish_removal(&vm).await);
            });
        }
        let slots = Arc::new(tokio::sync::Semaphore::new(PARALLEL_BOOTS));
        for vm in unfinished.starts {
            let (engine, slots) = (self.clone(), Arc::clone(&slots));
            tokio::spawn(async move {
                let _slot = slots.acquire().await;
                let context = Context::detached("start-vm", vm.name.as_str());
                let started = match engine.start(&vm, &context).await {
                    Err(JobError::Failed(error)) => Err(error),
                    Ok(()) | Err(JobError::Canceled) => Ok(()),
                };
                log(&vm, "start", started);
            });
        }
    }

    /// Takes over a change of a VM's unit, whoever made it.
    pub fn unit_changed(&self, name: &VmName, state: UnitState) {
        let Some(vm) = self.table().vms.get(name).cloned() else { return };
        let before = vm.state();
        self.apply(&vm, state);
        let after = vm.state();
        if before == after {
            return;
        }
        let (name, app) = (vm.name.as_str(), vm.record().spec.app_id.to_string());
        tracing::info!(DSTACK_VM = name, DSTACK_APP = app, "VM {name} is {}", after.word());
        if let crate::vm::State::Failed(reason) = &after {
            let unit = vm.name.unit();
            // Without words of the VM's own, that is the reason once more.
            let said = Some(vm.observed().boot_error()).filter(|s| *s != reason.to_string());
            let why = said.map_or_else(|| reason.to_string(), |said| format!("{reason}; {said}"));
            tracing::error!(
                MESSAGE_ID = message_id::VM_BOOT_FAILED,
                DSTACK_VM = name,
                DSTACK_APP = app,
                "VM {name} failed: {why} (`journalctl -u {unit}`)"
            );
        }
    }
}

/// Which VMs are to be removed, and which to be started.
fn sort(vms: Vec<Arc<Vm>>, rebooted: bool) -> Unfinished {
    let mut unfinished = Unfinished::default();
    for vm in vms {
        let record = vm.record();
        let down = !vm.observed().unit.is_up();
        if record.removing {
            unfinished.removals.push(vm);
        } else if down && (record.start_pending || (rebooted && record.spec.autostart)) {
            unfinished.starts.push(vm);
        }
    }
    unfinished
}

fn log(vm: &Vm, what: &str, result: Result<(), Error>) {
    let name = vm.name.as_str();
    match result {
        Ok(()) => tracing::info!(DSTACK_VM = name, "the {what} of VM {name} is finished"),
        Err(error) => tracing::error!(DSTACK_VM = name, "the {what} of VM {name} failed: {error}"),
    }
}

/// Kept here so that the names of unreadable VMs are listed in one place.
impl Engine {
    /// Names of VMs whose state cannot be read, with the reason.
    #[must_use]
    pub fn unreadable(&self) -> Vec<(VmName, String)> {
        self.table()
            .unreadable
            .iter()
            .map(|(n, r)| (n.clone(), errors::unreadable(n, r).to_string()))
            .collect()
    }
}
