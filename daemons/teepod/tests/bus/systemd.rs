// SPDX-License-Identifier: Apache-2.0
//! A systemd that starts nothing: units change state as the test says.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use tokio::sync::watch;
use zbus::object_server::SignalEmitter;
use zbus::{Connection, OwnedObjectPath, OwnedVariant, Variant, fdo, interface};

const PATH: &str = "/org/freedesktop/systemd1";

/// What a start does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Start {
    /// The unit becomes active.
    #[default]
    Ready,
    /// The job goes on until the test ends it by [`Systemd::set`].
    Wait,
    /// The unit fails with this `Result=`.
    Fail(&'static str),
    /// The call is refused.
    Refuse,
}

#[derive(Debug, Clone)]
struct Unit {
    active: &'static str,
    sub: &'static str,
    result: &'static str,
    job: Option<(u32, OwnedObjectPath)>,
    exported: bool,
}

#[derive(Debug, Default)]
struct Inner {
    units: HashMap<String, Unit>,
    starts: HashMap<String, Start>,
    pids: HashMap<u32, String>,
    calls: Vec<String>,
    properties: HashMap<String, HashMap<String, u64>>,
    jobs: u32,
}

/// The playing systemd.
#[derive(Debug, Clone)]
pub struct Systemd {
    inner: Arc<Mutex<Inner>>,
    called: watch::Sender<usize>,
    connection: Connection,
}

pub fn escape(unit: &str) -> String {
    format!("{PATH}/unit/{}", dstack_service::bus::path_element(unit))
}

impl Systemd {
    pub async fn new(address: &str) -> Self {
        let connection = zbus::conn::Builder::address(address).build().await.unwrap();
        let this =
            Self { inner: Arc::default(), called: watch::Sender::new(0), connection: connection.clone() };
        connection.object_server().at(PATH, Manager(this.clone())).await.unwrap();
        connection.request_name("org.freedesktop.systemd1").await.unwrap();
        this
    }

    /// What the next starts of a unit do.
    pub fn on_start(&self, unit: &str, start: Start) {
        self.inner.lock().unwrap().starts.insert(unit.to_owned(), start);
    }

    /// All calls so far, `Verb unit`.
    pub fn calls(&self) -> Vec<String> {
        self.inner.lock().unwrap().calls.clone()
    }

    /// Waits for a call.
    pub async fn wait_for(&self, call: &str) {
        let mut called = self.called.subscribe();
        let found = called.wait_for(|_| self.calls().iter().any(|c| c == call));
        let found = tokio::time::timeout(std::time::Duration::from_secs(10), found).await;
        assert!(found.is_ok(), "no call {call:?} among {:?}", self.calls());
    }

    pub fn forget_calls(&self) {
        self.inner.lock().unwrap().calls.clear();
    }

    /// A property that was set on a unit.
    pub fn property(&self, unit: &str, name: &str) -> Option<u64> {
        self.inner.lock().unwrap().properties.get(unit)?.get(name).copied()
    }

    /// Says which unit a process belongs to.
    pub fn set_pid(&self, pid: u32, unit: &str) {
        self.inner.lock().unwrap().pids.insert(pid, unit.to_owned());
    }

    /// A unit changes by itself; a job that runs on it ends.
    pub async fn set(&self, unit: &str, active: &'static str, sub: &'static str, result: &'static str) {
        self.load(unit).await;
        let job = {
            let mut inner = self.inner.lock().unwrap();
            let entry = inner.units.get_mut(unit).unwrap();
            (entry.active, entry.sub, entry.result) = (active, sub, result);
            if active.ends_with("ing") { None } else { entry.job.take() }
        };
        let changed =
            HashMap::from([("ActiveState", Variant::from(active)), ("SubState", Variant::from(sub))]);
        let emitter = SignalEmitter::new(&self.connection, escape(unit)).unwrap();
        let interface = zbus::names::InterfaceName::try_from("org.freedesktop.systemd1.Unit").unwrap();
        let none = std::borrow::Cow::Borrowed(&[][..]);
        fdo::Properties::properties_changed(&emitter, interface, changed, none).await.unwrap();
        if let Some((id, path)) = job {
            let word = match active {
                "failed" => "failed",
                _ => "done",
            };
            self.job_removed(id, path, unit, word).await;
        }
    }

    async fn job_removed(&self, id: u32, path: OwnedObjectPath, unit: &str, result: &str) {
        let emitter = SignalEmitter::new(&self.connection, PATH).unwrap();
        Manager::job_removed(&emitter, id, path, unit, result).await.unwrap();
    }

    async fn load(&self, unit: &str) {
        let new = {
            let mut inner = self.inner.lock().unwrap();
            let entry = inner.units.entry(unit.to_owned()).or_insert(Unit {
                active: "inactive",
                sub: "dead",
                result: "success",
                job: None,
                exported: false,
            });
            !std::mem::replace(&mut entry.exported, true)
        };
        if new {
            let server = self.connection.object_server();
            server.at(escape(unit), UnitObject(self.clone(), unit.to_owned())).await.unwrap();
            server.at(escape(unit), ServiceObject(self.clone(), unit.to_owned())).await.unwrap();
        }
    }

    fn unit(&self, unit: &str) -> Unit {
        self.inner.lock().unwrap().units[unit].clone()
    }

    fn call(&self, verb: &str, unit: &str) {
        self.inner.lock().unwrap().calls.push(format!("{verb} {unit}"));
        self.called.send_modify(|n| *n += 1);
    }

    async fn enqueue(&self, verb: &str, unit: &str) -> fdo::Result<OwnedObjectPath> {
        self.load(unit).await;
        let (id, path, start, old) = {
            let mut inner = self.inner.lock().unwrap();
            inner.jobs += 1;
            let path = OwnedObjectPath::try_from(format!("{PATH}/job/{}", inner.jobs)).unwrap();
            let job = (inner.jobs, path.clone());
            let start = inner.starts.get(unit).cloned().unwrap_or_default();
            let old = inner.units.get_mut(unit).unwrap().job.replace(job.clone());
            (job.0, path, start, old)
        };
        self.call(verb, unit);
        if let Some((id, path)) = old {
            self.job_removed(id, path, unit, "canceled").await;
        }
        let _ = id;
        if verb != "Stop" && start == Start::Refuse {
            return Err(fdo::Error::AccessDenied("not this unit".into()));
        }
        let (this, unit, verb) = (self.clone(), unit.to_owned(), verb.to_owned());
        tokio::spawn(async move {
            match (verb.as_str(), start) {
                ("Stop", _) => this.set(&unit, "inactive", "dead", "success").await,
                (_, Start::Ready) if unit.starts_with("dstack-vm-remove@") => {
                    this.set(&unit, "inactive", "dead", "success").await;
                }
                (_, Start::Ready) => {
                    this.set(&unit, "activating", "start", "success").await;
                    this.set(&unit, "active", "running", "success").await;
                }
                (_, Start::Wait) => this.set(&unit, "activating", "start", "success").await,
                (_, Start::Fail(result)) => {
                    this.set(&unit, "activating", "start", "success").await;
                    this.set(&unit, "failed", "failed", result).await;
                }
                (_, Start::Refuse) => {}
            }
        });
        Ok(path)
    }
}

struct Manager(Systemd);

type Row = (String, String, String, String, String, String, OwnedObjectPath, u32, String, OwnedObjectPath);

#[interface(name = "org.freedesktop.systemd1.Manager")]
impl Manager {
    async fn start_unit(&self, name: &str, _mode: &str) -> fdo::Result<OwnedObjectPath> {
        self.0.enqueue("Start", name).await
    }

    async fn stop_unit(&self, name: &str, _mode: &str) -> fdo::Result<OwnedObjectPath> {
        self.0.enqueue("Stop", name).await
    }

    async fn restart_unit(&self, name: &str, _mode: &str) -> fdo::Result<OwnedObjectPath> {
        self.0.enqueue("Restart", name).await
    }

    fn kill_unit(&self, name: &str, whom: &str, signal: i32) {
        self.0.call(&format!("Kill {whom} {signal}"), name);
    }

    fn reset_failed_unit(&self, name: &str) {
        self.0.call("ResetFailed", name);
    }

    fn set_unit_properties(&self, name: &str, _runtime: bool, properties: Vec<(String, OwnedVariant)>) {
        let numbers = properties.into_iter().filter_map(|(k, v)| Some((k, u64::try_from(v).ok()?)));
        let mut inner = self.0.inner.lock().unwrap();
        inner.properties.entry(name.to_owned()).or_default().extend(numbers);
    }

    async fn load_unit(&self, name: &str) -> OwnedObjectPath {
        self.0.load(name).await;
        OwnedObjectPath::try_from(escape(name)).unwrap()
    }

    #[zbus(name = "GetUnitByPID")]
    fn get_unit_by_pid(&self, pid: u32) -> fdo::Result<OwnedObjectPath> {
        let unit = self.0.inner.lock().unwrap().pids.get(&pid).cloned();
        let unit = unit.ok_or_else(|| fdo::Error::Failed("no unit".into()))?;
        Ok(OwnedObjectPath::try_from(escape(&unit)).unwrap())
    }

    fn list_units_by_patterns(&self, _states: Vec<String>, patterns: Vec<String>) -> Vec<Row> {
        assert_eq!(patterns, ["dstack-vm@*.service"]);
        let none = || OwnedObjectPath::try_from("/").unwrap();
        let inner = self.0.inner.lock().unwrap();
        let units = inner.units.iter().filter(|(name, _)| name.starts_with("dstack-vm@"));
        units
            .map(|(name, unit)| {
                let path = OwnedObjectPath::try_from(escape(name)).unwrap();
                let (active, sub) = (unit.active.to_owned(), unit.sub.to_owned());
                let (load, none_text) = ("loaded".to_owned(), String::new());
                (
                    name.clone(),
                    String::new(),
                    load,
                    active,
                    sub,
                    none_text.clone(),
                    path,
                    0,
                    none_text,
                    none(),
                )
            })
            .collect()
    }

    fn subscribe(&self) {}

    #[zbus(signal)]
    async fn job_removed(
        emitter: &SignalEmitter<'_>,
        id: u32,
        job: OwnedObjectPath,
        unit: &str,
        result: &str,
    ) -> zbus::Result<()>;
}

struct UnitObject(Systemd, String);

#[interface(name = "org.freedesktop.systemd1.Unit")]
impl UnitObject {
    #[zbus(property)]
    fn id(&self) -> String {
        self.1.clone()
    }

    #[zbus(property)]
    fn active_state(&self) -> String {
        self.0.unit(&self.1).active.to_owned()
    }

    #[zbus(property)]
    fn active_enter_timestamp(&self) -> u64 {
        1
    }

    #[zbus(property)]
    fn inactive_enter_timestamp(&self) -> u64 {
        0
    }

    #[zbus(property)]
    fn sub_state(&self) -> String {
        self.0.unit(&self.1).sub.to_owned()
    }
}

struct ServiceObject(Systemd, String);

#[interface(name = "org.freedesktop.systemd1.Service")]
impl ServiceObject {
    #[zbus(property)]
    fn result(&self) -> String {
        self.0.unit(&self.1).result.to_owned()
    }
}
