// SPDX-License-Identifier: Apache-2.0
//! [`Units`] by systemd's D-Bus interface.

use crate::unit_jobs::UnitJobs;
use crate::units::{Limits, Pending, UnitError, Units, vm_of_path, vm_of_unit};
use crate::vm::UnitState;
use dstack_core::ids::VmName;
use dstack_service::api::systemd1::{ManagerProxy, ServiceProxy, UnitProxy};
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::{Semaphore, SemaphorePermit, mpsc};
use zbus::proxy::CacheProperties;
use zbus::{Connection, DBusError, MatchRule, Message, MessageStream, OwnedObjectPath, OwnedVariant};

const UNIT: &str = "org.freedesktop.systemd1.Unit";
const SIGKILL: i32 = 9;
/// Changes of any unit that may wait; the bus holds back the rest.
const QUEUE: std::num::NonZeroUsize = std::num::NonZeroUsize::MIN.saturating_add(255);

/// Calls that may wait for systemd at a time. The bus allows a connection 128 pending replies, and each call that
/// changes a unit waits for polkit, too.
const CALLS_MAX: usize = 64;

/// The one call that the shared interface lacks.
#[zbus::proxy(
    interface = "org.freedesktop.systemd1.Manager",
    default_service = "org.freedesktop.systemd1",
    default_path = "/org/freedesktop/systemd1"
)]
trait Lister {
    /// Name, description, load, active and sub state, followed unit, path, job id, type and path.
    #[allow(clippy::type_complexity)]
    fn list_units_by_patterns(
        &self,
        states: &[&str],
        patterns: &[&str],
    ) -> zbus::Result<
        Vec<(String, String, String, String, String, String, OwnedObjectPath, u32, String, OwnedObjectPath)>,
    >;
}

/// Two properties that the shared interface lacks.
#[zbus::proxy(interface = "org.freedesktop.systemd1.Unit", default_service = "org.freedesktop.systemd1")]
trait Times {
    #[zbus(property)]
    fn active_enter_timestamp(&self) -> zbus::Result<u64>;
    #[zbus(property)]
    fn inactive_enter_timestamp(&self) -> zbus::Result<u64>;
}

/// systemd on the system bus.
#[derive(Debug, Clone)]
pub struct Systemd {
    connection: Connection,
    manager: ManagerProxy<'static>,
    jobs: UnitJobs,
    calls: Arc<Semaphore>,
}

impl Systemd {
    /// A client that does not follow changes.
    ///
    /// # Errors
    /// When the connection is broken.
    pub async fn deaf(connection: &Connection) -> zbus::Result<Self> {
        let manager = ManagerProxy::builder(connection).cache_properties(CacheProperties::No).build().await?;
        let calls = Arc::new(Semaphore::new(CALLS_MAX));
        Ok(Self { connection: connection.clone(), manager, jobs: UnitJobs::default(), calls })
    }

    /// Connects, and follows the states of VMs' units into `changes`.
    ///
    /// # Errors
    /// When systemd is not on the bus.
    pub async fn new(
        connection: &Connection,
        changes: mpsc::UnboundedSender<(VmName, UnitState)>,
    ) -> zbus::Result<Self> {
        let this = Self::deaf(connection).await?;
        let rule = MatchRule::builder()
            .msg_type(zbus::message::Type::Signal)
            .sender("org.freedesktop.systemd1")
            .interface("org.freedesktop.DBus.Properties")
            .member("PropertiesChanged")
            .path_namespace("/org/freedesktop/systemd1/unit")
            .arg(0, UNIT)
            .build()?;
        let stream = MessageStream::for_match_rule(rule, connection, Some(QUEUE)).await?;
        this.jobs.follow(&this.manager).await?;
        this.manager.subscribe().await?;
        tokio::spawn(this.clone().follow(stream, changes));
        Ok(this)
    }

    /// Reads signals and waits for nothing else; what must be asked for is asked by a task of its own.
    async fn follow(self, mut stream: MessageStream, changes: mpsc::UnboundedSender<(VmName, UnitState)>) {
        let (failures, failed) = mpsc::unbounded_channel();
        tokio::spawn(self.ask(failed, changes.clone()));
        while let Some(message) = stream.next().await {
            let Some((vm, change)) = message.ok().as_ref().and_then(changed) else { continue };
            let told = match change {
                // `Result` belongs to another interface, so it is asked for.
                Some((active, _)) if active == "failed" => failures.send(vm).is_ok(),
                Some((active, sub)) => changes.send((vm, UnitState::parse(&active, &sub, ""))).is_ok(),
                None => continue,
            };
            if !told {
                return;
            }
        }
    }

    async fn ask(
        self,
        mut failed: mpsc::UnboundedReceiver<VmName>,
        changes: mpsc::UnboundedSender<(VmName, UnitState)>,
    ) {
        while let Some(vm) = failed.recv().await {
            match self.state(&vm).await {
                Ok(state) => drop(changes.send((vm, state))),
                Err(error) => tracing::warn!(DSTACK_VM = vm.as_str(), "{error}"),
            }
        }
    }

    /// A place among the pending calls, given back when dropped. The semaphore is never closed.
    async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        self.calls.acquire().await.ok()
    }

    async fn unit(&self, path: &OwnedObjectPath) -> zbus::Result<UnitProxy<'static>> {
        UnitProxy::builder(&self.connection)
            .path(path.clone())
            .cache_properties(CacheProperties::No)
            .build()
            .await
    }

    async fn read_state(&self, unit: &str) -> zbus::Result<UnitState> {
        let _turn = self.turn().await;
        let path = self.manager.load_unit(unit).await?;
        let proxy = self.unit(&path).await?;
        let (active, sub) = (proxy.active_state().await?, proxy.sub_state().await?);
        let result = if active == "failed" { self.result(&path).await? } else { String::new() };
        Ok(UnitState::parse(&active, &sub, &result))
    }

    async fn read_times(&self, unit: &str) -> zbus::Result<(u64, u64)> {
        let _turn = self.turn().await;
        let path = self.manager.load_unit(unit).await?;
        let proxy = TimesProxy::builder(&self.connection)
            .path(path)
            .cache_properties(CacheProperties::No)
            .build()
            .await?;
        Ok((proxy.active_enter_timestamp().await?, proxy.inactive_enter_timestamp().await?))
    }

    async fn result(&self, path: &OwnedObjectPath) -> zbus::Result<String> {
        let service = ServiceProxy::builder(&self.connection)
            .path(path.clone())
            .cache_properties(CacheProperties::No)
            .build()
            .await?;
        service.result().await
    }

    async fn enqueue(&self, unit: &str, verb: Verb) -> Result<Pending, UnitError> {
        let failed = |e| error(unit, e);
        let _turn = self.turn().await;
        let call = self.jobs.call();
        let job = match verb {
            Verb::Start => self.manager.start_unit(unit, "replace").await,
            Verb::Stop => self.manager.stop_unit(unit, "replace").await,
            Verb::Restart => self.manager.restart_unit(unit, "replace").await,
        }
        .map_err(failed)?;
        let (unit, ended) = (unit.to_owned(), call.returned(job));
        Ok(Box::pin(async move {
            let lost =
                |_| UnitError::Failed { unit, message: "the connection to the bus was lost".to_owned() };
            ended.await.map_err(lost)
        }))
    }
}

#[derive(Clone, Copy)]
enum Verb {
    Start,
    Stop,
    Restart,
}

/// The VM and the new `ActiveState` and `SubState` of a signal; no pair when neither has changed.
fn changed(message: &Message) -> Option<(VmName, Option<(String, String)>)> {
    let vm = vm_of_path(message.header().path()?.as_str())?;
    let body = message.body();
    let (_, mut properties, _) =
        body.deserialize::<(String, HashMap<String, OwnedVariant>, Vec<String>)>().ok()?;
    let mut text = |name: &str| properties.remove(name).and_then(|v| String::try_from(v).ok());
    let states = text("ActiveState").zip(text("SubState"));
    Some((vm, states))
}

fn error(unit: &str, error: zbus::Error) -> UnitError {
    let unit = unit.to_owned();
    let (name, message) = match &error {
        zbus::Error::MethodError(name, message, _) => (name.to_string(), message.clone()),
        zbus::Error::FDO(fdo) => (fdo.name().to_string(), fdo.description().map(str::to_owned)),
        _ => (String::new(), Some(error.to_string())),
    };
    match name.as_str() {
        "org.freedesktop.systemd1.NoSuchUnit" => UnitError::Unknown(unit),
        "org.freedesktop.DBus.Error.AccessDenied"
        | "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired" => UnitError::Denied(unit),
        _ => UnitError::Failed { unit, message: message.unwrap_or(name) },
    }
}

impl Units for Systemd {
    fn start<'a>(&'a self, unit: &'a str) -> BoxFuture<'a, Result<Pending, UnitError>> {
        Box::pin(self.enqueue(unit, Verb::Start))
    }

    fn stop<'a>(&'a self, unit: &'a str) -> BoxFuture<'a, Result<Pending, UnitError>> {
        Box::pin(self.enqueue(unit, Verb::Stop))
    }

    fn restart<'a>(&'a self, unit: &'a str) -> BoxFuture<'a, Result<Pending, UnitError>> {
        Box::pin(self.enqueue(unit, Verb::Restart))
    }

    fn kill<'a>(&'a self, unit: &'a str) -> BoxFuture<'a, Result<(), UnitError>> {
        Box::pin(async move {
            let _turn = self.turn().await;
            self.manager.kill_unit(unit, "all", SIGKILL).await.map_err(|e| error(unit, e))
        })
    }

    fn reset_failed<'a>(&'a self, unit: &'a str) -> BoxFuture<'a, Result<(), UnitError>> {
        Box::pin(async move {
            let _turn = self.turn().await;
            match self.manager.reset_failed_unit(unit).await.map_err(|e| error(unit, e)) {
                // A unit that is not loaded has no failure.
                Err(UnitError::Unknown(_)) => Ok(()),
                other => other,
            }
        })
    }

    fn limit<'a>(&'a self, unit: &'a str, limits: Limits) -> BoxFuture<'a, Result<(), UnitError>> {
        Box::pin(async move {
            let properties = [
                ("MemoryMax", limits.memory.into()),
                ("CPUWeight", limits.cpu_weight.into()),
                ("TasksMax", limits.tasks.into()),
            ];
            let _turn = self.turn().await;
            self.manager.set_unit_properties(unit, true, &properties).await.map_err(|e| error(unit, e))
        })
    }

    fn state<'a>(&'a self, vm: &'a VmName) -> BoxFuture<'a, Result<UnitState, UnitError>> {
        Box::pin(async move {
            let unit = vm.unit();
            self.read_state(&unit).await.map_err(|e| error(&unit, e))
        })
    }

    fn times<'a>(&'a self, vm: &'a VmName) -> BoxFuture<'a, Result<(u64, u64), UnitError>> {
        Box::pin(async move {
            let unit = vm.unit();
            self.read_times(&unit).await.map_err(|e| error(&unit, e))
        })
    }

    fn states(&self) -> BoxFuture<'_, Result<Vec<(VmName, UnitState)>, UnitError>> {
        Box::pin(async move {
            let all = "dstack-vm@*.service";
            let lister = ListerProxy::new(&self.connection).await.map_err(|e| error(all, e))?;
            let units = lister.list_units_by_patterns(&[], &[all]).await.map_err(|e| error(all, e))?;
            let mut states = Vec::with_capacity(units.len());
            for (unit, _, _, active, sub, _, path, ..) in units {
                let Some(vm) = vm_of_unit(&unit) else { continue };
                let result = match active.as_str() {
                    "failed" => self.result(&path).await.map_err(|e| error(&unit, e))?,
                    _ => String::new(),
                };
                states.push((vm, UnitState::parse(&active, &sub, &result)));
            }
            Ok(states)
        })
    }

    fn vm_of(&self, pid: u32) -> BoxFuture<'_, Result<Option<VmName>, UnitError>> {
        Box::pin(async move {
            let path = self.manager.get_unit_by_pid(pid).await.map_err(|e| error("a process", e))?;
            Ok(vm_of_path(path.as_str()))
        })
    }
}
