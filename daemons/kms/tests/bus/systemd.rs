// SPDX-License-Identifier: Apache-2.0
//! A systemd that seals as the test says. Its seal is a copy: what matters here is when it appears.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use tokio::sync::Notify;
use zbus::object_server::SignalEmitter;
use zbus::{Connection, OwnedObjectPath, interface};

const PATH: &str = "/org/freedesktop/systemd1";

/// What the seal unit does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seal {
    /// Seals and ends.
    Done,
    /// Fails without sealing.
    Fails,
    /// Does not begin.
    Hangs,
    /// Seals, and never says so.
    SealsAndHangs,
}

#[derive(Debug)]
pub struct Inner {
    pub seal: Mutex<Seal>,
    pub started: Mutex<Vec<String>>,
    /// After each start.
    pub called: Notify,
    unsealed: PathBuf,
    sealed: PathBuf,
}

/// The playing systemd.
#[derive(Debug)]
pub struct Systemd {
    pub inner: Arc<Inner>,
    _connection: Connection,
}

struct Manager(Arc<Inner>);

impl Manager {
    /// As dstack-kms-seal does: never replaces.
    fn seal(&self) -> bool {
        !self.0.sealed.exists() && std::fs::copy(&self.0.unsealed, &self.0.sealed).is_ok()
    }
}

#[interface(name = "org.freedesktop.systemd1.Manager")]
impl Manager {
    fn subscribe(&self) {}

    async fn start_unit(
        &self,
        name: String,
        _mode: String,
        #[zbus(signal_emitter)] emitter: SignalEmitter<'_>,
    ) -> OwnedObjectPath {
        let job = OwnedObjectPath::try_from(format!("{PATH}/job/1")).unwrap();
        self.0.started.lock().unwrap().push(name.clone());
        let seal = *self.0.seal.lock().unwrap();
        let result = match seal {
            Seal::Done if self.seal() => Some("done"),
            Seal::Done | Seal::Fails => Some("failed"),
            Seal::SealsAndHangs => {
                self.seal();
                None
            }
            Seal::Hangs => None,
        };
        if let Some(result) = result {
            let _ = Self::job_removed(&emitter, 1, job.clone(), &name, result).await;
        }
        self.0.called.notify_one();
        job
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
    pub async fn new(address: &str, unsealed: PathBuf, sealed: PathBuf) -> Self {
        let inner = Arc::new(Inner {
            seal: Mutex::new(Seal::Done),
            started: Mutex::default(),
            called: Notify::new(),
            unsealed,
            sealed,
        });
        let connection = zbus::conn::Builder::address(address)
            .serve_at(PATH, Manager(Arc::clone(&inner)))
            .name("org.freedesktop.systemd1")
            .build()
            .await
            .unwrap();
        Self { inner, _connection: connection }
    }
}
