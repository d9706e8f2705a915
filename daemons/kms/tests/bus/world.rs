// SPDX-License-Identifier: Apache-2.0
//! A private bus with a systemd, a polkit, and the real key service on it.

use crate::systemd::Systemd;
use dstack_service::api::kms1::{ManagerProxy, NAME};
use dstack_testing::bus::{self, PrivateBus};
use dstack_testing::polkit::Polkit;
use dstack_testing::process::Process;
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use zbus::Connection;
use zbus::proxy::CacheProperties;

const PATIENCE: Duration = Duration::from_secs(10);

pub struct World {
    pub systemd: Systemd,
    pub polkit: Polkit,
    pub manager: ManagerProxy<'static>,
    pub connection: Connection,
    pub address: String,
    listener: TcpListener,
    pub kms: Option<Process>,
    _bus: PrivateBus,
    dir: tempfile::TempDir,
}

impl World {
    pub async fn new() -> Self {
        let mut world = Self::without_kms().await;
        world.start().await;
        world
    }

    pub async fn without_kms() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["state", "cache", "etc", "credentials"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let bus = PrivateBus::start(dir.path());
        let address = bus.address.clone();
        let (unsealed, sealed) = (dir.path().join("run/kmsroot.new"), dir.path().join("credentials/kmsroot"));
        let systemd = Systemd::new(&address, unsealed, sealed).await;
        let polkit = Polkit::new(&bus).await;
        let connection = bus.connect().await;
        let manager = ManagerProxy::builder(&connection).cache_properties(CacheProperties::No);
        let manager = manager.build().await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        rustix::io::fcntl_setfd(&listener, rustix::io::FdFlags::empty()).unwrap();
        Self { systemd, polkit, manager, connection, address, listener, kms: None, _bus: bus, dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn sealed(&self) -> bool {
        self.path("credentials/kmsroot").exists()
    }

    fn spawn(&self) -> Child {
        let script = format!("export LISTEN_PID=$$; exec \"$@\" 3<&{}", self.listener.as_raw_fd());
        // systemd makes this directory anew for each start.
        drop(std::fs::remove_dir_all(self.path("run")));
        std::fs::create_dir(self.path("run")).unwrap();
        Command::new("bash")
            .args(["-c", &script, "bash", env!("CARGO_BIN_EXE_dstack-kms")])
            .env("LISTEN_FDS", "1")
            .env("LISTEN_FDNAMES", "kms")
            .env("DBUS_SYSTEM_BUS_ADDRESS", &self.address)
            .env("STATE_DIRECTORY", self.path("state"))
            .env("RUNTIME_DIRECTORY", self.path("run"))
            .env("CACHE_DIRECTORY", self.path("cache"))
            .env("CREDENTIALS_DIRECTORY", self.path("credentials"))
            .env("CONFIGURATION_DIRECTORY", self.path("etc"))
            .stdin(Stdio::null())
            .spawn()
            .unwrap()
    }

    /// Starts the daemon as systemd would, and waits until it has its name.
    pub async fn start(&mut self) {
        self.kms = Some(bus::start(&self.connection, NAME, PATIENCE, || self.spawn()).await);
    }

    /// Starts it and waits for its end; gives what it said.
    pub fn start_and_fail(&self) -> bool {
        !Process(self.spawn()).0.wait().unwrap().success()
    }

    /// SIGKILL, as the kernel or an operator would.
    pub async fn kill(&mut self) {
        bus::kill(&self.connection, NAME, self.kms.take()).await;
    }
}
