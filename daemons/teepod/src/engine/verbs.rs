// SPDX-License-Identifier: Apache-2.0
//! Start, stop, kill, restart, remove: jobs of systemd, followed until they end.

use super::vm::Vm;
use super::{Engine, Event};
use crate::launch::{host_files, launch};
use crate::units::{Limits, Pending, UnitError, remove_unit};
use crate::vm::state::Asked;
use crate::vm::{Record, State, UnitState};
use dstack_core::config_disk::File;
use dstack_core::ids::ComposeHash;
use dstack_core::spec::{PortMapping, Vsock};
use dstack_service::api::teepod1::Error;
use dstack_service::jobs::{Context, JobError};
use std::sync::Arc;
use std::time::Duration;

/// Threads of QEMU beside its vCPUs: I/O, vsock, its worker pool.
const EXTRA_TASKS: u64 = 256;

/// How often and how long a start waits for its ports.
const PORT_TRIES: u32 = 20;
const PORT_PAUSE: Duration = Duration::from_millis(100);

type Ended = Result<(), JobError<Error>>;

impl Engine {
    /// Starts a VM and waits until its app is up.
    ///
    /// # Errors
    /// `BootFailed` when it does not come up; a cancel stops it again.
    pub async fn start(&self, vm: &Arc<Vm>, context: &Context) -> Ended {
        let pending = self.begin(vm, false).await?;
        self.follow_boot(vm, context, pending).await
    }

    /// Stops a VM, then starts it.
    ///
    /// # Errors
    /// As [`Engine::start`].
    pub async fn restart(&self, vm: &Arc<Vm>, context: &Context) -> Ended {
        let pending = self.begin(vm, true).await?;
        self.follow_boot(vm, context, pending).await
    }

    async fn begin(&self, vm: &Vm, restart: bool) -> Result<Pending, Error> {
        let _busy = vm.busy.lock().await;
        let begun = self.enqueue(vm, restart).await;
        // Begun or refused, the promise of a start is kept: whoever asked is told.
        if vm.record().start_pending {
            self.update(vm, |r| r.start_pending = false).await?;
        }
        begun
    }

    async fn enqueue(&self, vm: &Vm, restart: bool) -> Result<Pending, Error> {
        let asked = AskedGuard::new(self, vm, Asked::Start);
        self.prepare(vm).await?;
        let unit = vm.name.unit();
        self.inner.units.reset_failed(&unit).await?;
        self.inner.units.limit(&unit, self.limits(&vm.record())).await?;
        let pending = match restart || vm.observed().is_lost() {
            true => self.inner.units.restart(&unit).await?,
            false => self.inner.units.start(&unit).await?,
        };
        asked.keep();
        Ok(pending)
    }

    fn limits(&self, record: &Record) -> Limits {
        let vcpus = u64::from(record.spec.vcpus);
        Limits {
            memory: record.spec.memory + self.inner.settings.memory_overhead,
            cpu_weight: (100 * vcpus).min(10_000),
            tasks: EXTRA_TASKS + vcpus,
        }
    }

    /// Writes what the VM's unit reads, with today's settings.
    async fn prepare(&self, vm: &Vm) -> Result<(), Error> {
        let ground = self.ground().await?;
        let mut record = vm.record();
        if record.removing {
            return Err(super::errors::no_such_vm(vm.name.as_str()));
        }
        if matches!(vm.observed().unit, UnitState::Inactive | UnitState::Failed(_)) {
            self.check_port_leases(&vm.name, &record.spec.ports)?;
            self.wait_for_ports(&record.spec.ports).await?;
            if ground.vsock == Vsock::Kernel && self.inner.host.cid_in_use(record.cid) {
                record.cid = self.another_cid()?;
            }
        }
        let (engine, mut written) = (self.clone(), record.clone());
        let written = self
            .blocking(move || {
                let store = &engine.inner.store;
                let image = engine.inner.images.get(&written.spec.image)?;
                let old = store.config(&written.spec.name)?;
                // The config disk decides: an upgrade that was cut short is in force or not, never half.
                written.spec.compose_hash =
                    ComposeHash::of(old.get(&File::AppCompose).map_or(&[], Vec::as_slice));
                let mut files = old.clone();
                let own = engine.inner.host.own_address();
                host_files(&mut files, &written, &engine.inner.settings, &image, own);
                if files != old {
                    store.save_config(&written.spec.name, &files)?;
                }
                store.save_launch(&launch(&written, &engine.inner.settings, &ground, &image))?;
                Ok::<Record, Error>(written)
            })
            .await??;
        if written != vm.record() {
            self.update(vm, |r| *r = written).await?;
        }
        Ok(())
    }

    /// The VM's own passt ends a moment after it, and nothing tells when: a stop followed by a start must not fail.
    async fn wait_for_ports(&self, ports: &[PortMapping]) -> Result<(), Error> {
        for _ in 0..PORT_TRIES {
            match self.bind_ports(ports) {
                Err(Error::PortInUse(_)) => tokio::time::sleep(PORT_PAUSE).await,
                other => return other,
            }
        }
        self.bind_ports(ports)
    }

    async fn follow_boot(&self, vm: &Arc<Vm>, context: &Context, mut pending: Pending) -> Ended {
        let mut changes = vm.watch();
        let _asked = AskedGuard::new_unset(self, vm);
        loop {
            tell_progress(vm, context);
            tokio::select! {
                result = &mut pending => return self.booted(vm, &result.map_err(Error::from)?).await,
                () = context.canceled() => {
                    let stopping = self.inner.units.stop(&vm.name.unit()).await.map_err(Error::from)?;
                    stopping.await.map_err(Error::from)?;
                    self.refresh(vm).await?;
                    return Err(JobError::Canceled);
                }
                Ok(()) = changes.changed() => {}
            }
        }
    }

    async fn booted(&self, vm: &Arc<Vm>, result: &str) -> Ended {
        self.refresh(vm).await?;
        if result == "done" {
            return Ok(());
        }
        Err(boot_failed(vm, result).into())
    }

    /// Shuts a VM down in order; a VM that is down already is no error.
    ///
    /// # Errors
    /// `UnitFailed` when systemd refuses or fails.
    pub async fn stop(&self, vm: &Arc<Vm>, context: &Context) -> Ended {
        context.stage("asking the guest to shut down", -1.0);
        let pending = {
            let _busy = vm.busy.lock().await;
            let asked = AskedGuard::new(self, vm, Asked::Stop);
            let pending = self.inner.units.stop(&vm.name.unit()).await.map_err(Error::from)?;
            if vm.observed().unit.is_up() {
                asked.keep();
            }
            if vm.record().start_pending {
                self.update(vm, |r| r.start_pending = false).await?;
            }
            pending
        };
        let _asked = AskedGuard::new_unset(self, vm);
        let result = pending.await.map_err(Error::from)?;
        self.refresh(vm).await?;
        if result == "done" || vm.state().is_down() {
            return Ok(());
        }
        let unit = vm.name.unit();
        Err(Error::UnitFailed(format!("{unit} did not stop ({result}); see `journalctl -u {unit}`")).into())
    }

    /// Ends a VM at once.
    ///
    /// # Errors
    /// `UnitFailed` when systemd refuses or fails.
    pub async fn kill(&self, vm: &Arc<Vm>) -> Result<(), Error> {
        let _busy = vm.busy.lock().await;
        let unit = vm.name.unit();
        // Stopped first, or else systemd would take the kill for a crash and start it again.
        let pending = self.inner.units.stop(&unit).await?;
        match self.inner.units.kill(&unit).await {
            // Nothing runs any more.
            Ok(()) | Err(UnitError::Unknown(_) | UnitError::Failed { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        pending.await?;
        self.inner.units.reset_failed(&unit).await?;
        self.refresh(vm).await?;
        if vm.record().start_pending {
            self.update(vm, |r| r.start_pending = false).await?;
        }
        Ok(())
    }

    /// Removes a stopped VM with its disk.
    ///
    /// # Errors
    /// `VmRunning`, or `UnitFailed` when its state cannot be removed; it can be tried again then.
    pub async fn remove(&self, vm: &Arc<Vm>, context: &Context) -> Ended {
        let _busy = vm.busy.lock().await;
        self.refresh(vm).await?;
        self.check_down(vm)?;
        context.stage("removing disk and state", -1.0);
        // From here on a killed teepod finishes the removal at its next start.
        self.update(vm, |r| (r.removing, r.start_pending) = (true, false)).await?;
        self.finish_removal(vm).await?;
        Ok(())
    }

    /// Passes when nothing of a VM runs.
    ///
    /// # Errors
    /// `VmRunning`.
    pub fn check_down(&self, vm: &Vm) -> Result<(), Error> {
        let (name, state) = (&vm.name, vm.state());
        if state.is_down() {
            return Ok(());
        }
        let word = state.word();
        Err(Error::VmRunning(format!("VM {name} is {word}; stop it first (`dstackctl vm stop {name}`)")))
    }

    /// Removes the VM's own state by its unit, then teepod's.
    pub(super) async fn finish_removal(&self, vm: &Vm) -> Result<(), Error> {
        let unit = remove_unit(&vm.name);
        self.inner.units.reset_failed(&vm.name.unit()).await?;
        let result = self.inner.units.start(&unit).await?.await?;
        if result != "done" {
            return Err(Error::UnitFailed(format!(
                "the disk of VM {} was not removed ({result}); see `journalctl -u {unit}`, then try again",
                vm.name
            )));
        }
        let (store, name) = (self.inner.store.clone(), vm.name.clone());
        self.blocking(move || store.remove(&name)).await??;
        let id = vm.record().spec.id;
        {
            let mut table = self.table();
            table.vms.remove(&vm.name);
            table.ids.remove(&id);
        }
        self.tell(Event::Removed(vm.name.clone()));
        Ok(())
    }
}

fn tell_progress(vm: &Vm, context: &Context) {
    let observed = vm.observed();
    let words = observed.boot_progress();
    if !words.is_empty() {
        context.stage(words, observed.fraction());
    }
}

/// What systemd's result and the guest's last word mean to whoever waited.
fn boot_failed(vm: &Vm, result: &str) -> Error {
    let unit = vm.name.unit();
    let observed = vm.observed();
    let said = observed.boot_error();
    let why = match (said.is_empty(), result, observed.state()) {
        (false, ..) => said,
        (true, "canceled", _) => "it was stopped before it was up".to_owned(),
        (true, "timeout", _) => "it did not become ready in time".to_owned(),
        (true, "dependency", _) => "its network unit did not start".to_owned(),
        (true, _, State::Failed(reason)) => reason.to_string(),
        (true, other, _) => format!("systemd's job ended with {other:?}"),
    };
    Error::BootFailed(format!("VM {} did not come up: {why}; see `journalctl -u {unit}`", vm.name))
}

/// Marks a VM as asked for a verb until systemd has begun, or until the verb failed before that.
struct AskedGuard<'a> {
    engine: &'a Engine,
    vm: &'a Vm,
    clear: bool,
}

impl<'a> AskedGuard<'a> {
    fn new(engine: &'a Engine, vm: &'a Vm, asked: Asked) -> Self {
        engine.observe(vm, |o| o.asked = Some(asked));
        Self { engine, vm, clear: true }
    }

    /// Clears at its end whatever mark is there then.
    fn new_unset(engine: &'a Engine, vm: &'a Vm) -> Self {
        Self { engine, vm, clear: true }
    }

    fn keep(mut self) {
        self.clear = false;
    }
}

impl Drop for AskedGuard<'_> {
    fn drop(&mut self) {
        if self.clear {
            self.engine.observe(self.vm, |o| o.asked = None);
        }
    }
}
