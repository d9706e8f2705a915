// SPDX-License-Identifier: Apache-2.0
//! A systemd whose data planes are names in a list.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use tokio::sync::Notify;
use zbus::object_server::SignalEmitter;
use zbus::{Connection, OwnedObjectPath, interface};

const PATH: &str = "/org/freedesktop/systemd1";

type Row = (String, String, String, String, String, String, OwnedObjectPath, u32, String, OwnedObjectPath);

/// What the test turns and looks at.
#[derive(Debug, Default)]
pub struct Inner {
    pub running: Vec<String>,
    pub said: Vec<String>,
    pub fails: bool,
    pub subscribed: BTreeSet<String>,
}

#[derive(Debug)]
pub struct Systemd {
    pub inner: Arc<Mutex<Inner>>,
    /// After each start.
    pub started: Arc<Notify>,
    _connection: Connection,
}

#[derive(Debug, zbus::DBusError)]
#[zbus(prefix = "org.freedesktop.systemd1")]
enum Refused {
    #[zbus(error)]
    Bus(zbus::Error),
    AlreadySubscribed(String),
}

struct Manager(Arc<Mutex<Inner>>, Arc<Notify>);

fn job() -> OwnedObjectPath {
    OwnedObjectPath::try_from(format!("{PATH}/job/1")).unwrap()
}

#[interface(name = "org.freedesktop.systemd1.Manager")]
impl Manager {
    /// Once for each connection, as systemd has it.
    fn subscribe(&self, #[zbus(header)] header: zbus::message::Header<'_>) -> Result<(), Refused> {
        let sender = header.sender().unwrap().to_string();
        if self.0.lock().unwrap().subscribed.insert(sender) {
            return Ok(());
        }
        Err(Refused::AlreadySubscribed("Client is already subscribed.".into()))
    }

    fn list_units_by_patterns(&self, _states: Vec<String>, patterns: Vec<String>) -> Vec<Row> {
        assert_eq!(patterns, ["dstack-tproxy-flow@*.service"]);
        let row = |name: &String| {
            let text = String::new;
            (name.clone(), text(), text(), "active".into(), "running".into(), text(), job(), 0, text(), job())
        };
        self.0.lock().unwrap().running.iter().map(row).collect()
    }

    async fn start_unit(
        &self,
        name: String,
        _mode: String,
        #[zbus(signal_emitter)] emitter: SignalEmitter<'_>,
    ) -> OwnedObjectPath {
        let fails = {
            let mut inner = self.0.lock().unwrap();
            inner.said.push(format!("start {name}"));
            if !inner.fails {
                inner.running.push(name.clone());
            }
            inner.fails
        };
        let result = if fails { "failed" } else { "done" };
        Self::job_removed(&emitter, 1, job(), &name, result).await.unwrap();
        self.1.notify_one();
        job()
    }

    fn stop_unit(&self, name: String, _mode: String) -> OwnedObjectPath {
        let mut inner = self.0.lock().unwrap();
        inner.said.push(format!("stop {name}"));
        inner.running.retain(|unit| *unit != name);
        job()
    }

    #[zbus(signal)]
    async fn job_removed(
        emitter: &SignalEmitter<'_>,
        id: u32,
        job: OwnedObjectPath,
        unit: &str,
        result: &str,
    ) -> zbus::Result<()>;
}

impl Systemd {
    pub async fn new(address: &str) -> Self {
        let (inner, started) = (Arc::<Mutex<Inner>>::default(), Arc::<Notify>::default());
        let connection = zbus::conn::Builder::address(address)
            .serve_at(PATH, Manager(Arc::clone(&inner), Arc::clone(&started)))
            .name("org.freedesktop.systemd1")
            .build()
            .await
            .unwrap();
        Self { inner, started, _connection: connection }
    }

    pub fn said(&self) -> Vec<String> {
        self.inner.lock().unwrap().said.clone()
    }
}
