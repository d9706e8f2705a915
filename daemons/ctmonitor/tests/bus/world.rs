// SPDX-License-Identifier: Apache-2.0
//! A private bus with a polkit, a certbot, and the real monitor on it.

use crate::certs::key_id;
use crate::crtsh::Crtsh;
use dstack_service::api::ctmonitor1::{Error, ManagerProxy, NAME};
use dstack_testing::bus::{self, PrivateBus};
use dstack_testing::polkit::Polkit;
use dstack_testing::process::Process;
use futures_util::StreamExt;
use rcgen::{KeyPair, PublicKeyData};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::time::Duration;
use zbus::proxy::CacheProperties;
use zbus::{Connection, interface};

pub const PATIENCE: Duration = Duration::from_secs(30);
pub const NAMES: [&str; 1] = ["*.apps.example.com"];
pub static OURS: LazyLock<KeyPair> = LazyLock::new(|| KeyPair::generate().unwrap());
pub static THEIRS: LazyLock<KeyPair> = LazyLock::new(|| KeyPair::generate().unwrap());

/// certbot, as far as its keys go.
struct Certbot;

#[interface(name = "org.dstack.certbot1.Manager")]
impl Certbot {
    fn historical_keys(&self, domain: String) -> Vec<Vec<u8>> {
        assert_eq!(domain, "", "all of them");
        vec![OURS.subject_public_key_info()]
    }
}

pub struct World {
    pub polkit: Polkit,
    pub manager: ManagerProxy<'static>,
    pub connection: Connection,
    pub address: String,
    pub crtsh: Crtsh,
    daemon: Option<Process>,
    _certbot: Option<Connection>,
    _bus: PrivateBus,
    dir: tempfile::TempDir,
}

impl World {
    /// A running monitor of apps.example.com that knows one key by its settings.
    pub async fn new() -> Self {
        let mut world = Self::stopped(false).await;
        world.configure(&format!("known_keys=['{}']", key_id(&OURS)));
        world.start().await;
        world
    }

    /// Everything but the monitor itself, and certbot where it is wanted.
    pub async fn stopped(certbot: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["state", "etc"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let bus = PrivateBus::start(dir.path());
        let address = bus.address.clone();
        let polkit = Polkit::new(&bus).await;
        let build = zbus::conn::Builder::address(address.as_str())
            .serve_at("/org/dstack/certbot1", Certbot)
            .name("org.dstack.certbot1")
            .build();
        let certbot = if certbot { Some(build.await.unwrap()) } else { None };
        let connection = bus.connect().await;
        let manager = ManagerProxy::builder(&connection).cache_properties(CacheProperties::No);
        let manager = manager.build().await.unwrap();
        let crtsh = Crtsh::start().await;
        Self { polkit, manager, connection, address, crtsh, daemon: None, _certbot: certbot, _bus: bus, dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn configure(&self, more: &str) {
        let text =
            format!("domains=['apps.example.com']\n{more}\n[crtsh]\nurl='{}'\n", self.crtsh.server.url);
        std::fs::write(self.path("etc/ct-monitor.toml"), text).unwrap();
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dstack-ct-monitor"));
        command
            .env("DBUS_SYSTEM_BUS_ADDRESS", &self.address)
            .env("STATE_DIRECTORY", self.path("state"))
            .env("CONFIGURATION_DIRECTORY", self.path("etc"))
            .env_remove("JOURNAL_STREAM")
            .stdin(Stdio::null());
        command
    }

    /// Starts the daemon as systemd would, and waits until it has its name.
    pub async fn start(&mut self) {
        self.daemon =
            Some(bus::start(&self.connection, NAME, PATIENCE, || self.command().spawn().unwrap()).await);
    }

    /// Starts it and waits for its end; tells what it said.
    pub fn start_and_fail(&self) -> String {
        let output = self.command().output().unwrap();
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// SIGKILL, as the kernel or an operator would.
    pub async fn kill(&mut self) {
        bus::kill(&self.connection, NAME, self.daemon.take()).await;
    }

    /// A check and its end.
    pub async fn check(&self) -> Result<String, Error> {
        let mut ended = self.manager.receive_job_removed().await.unwrap();
        let job = self.manager.check().await?;
        let end = async {
            loop {
                let signal = ended.next().await.unwrap();
                let args = signal.args().unwrap();
                if *args.job() == job {
                    break args.result().clone();
                }
            }
        };
        Ok(tokio::time::timeout(PATIENCE, end).await.expect("the check does not end"))
    }

    /// The timer's program: its exit code.
    pub async fn timer(&self) -> Option<i32> {
        self.spawn_timer().wait().await.unwrap().code()
    }

    /// The same, under way.
    pub fn spawn_timer(&self) -> tokio::process::Child {
        tokio::process::Command::from(self.command()).arg("--check").kill_on_drop(true).spawn().unwrap()
    }
}
