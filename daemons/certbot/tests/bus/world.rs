// SPDX-License-Identifier: Apache-2.0
//! A private bus with a polkit, and the real daemon on it.

use crate::servers::{self, SECRET, free_port};
use dstack_service::api::certbot1::{ManagerProxy, NAME};
use dstack_testing::bus::{self, PrivateBus};
use dstack_testing::polkit::Polkit;
use dstack_testing::process::Process;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Duration;
use zbus::Connection;
use zbus::proxy::CacheProperties;

const PATIENCE: Duration = Duration::from_secs(20);

pub struct World {
    pub polkit: Polkit,
    pub manager: ManagerProxy<'static>,
    pub connection: Connection,
    pub address: String,
    pub dns: u16,
    daemon: Option<Process>,
    _servers: [Process; 2],
    _bus: PrivateBus,
    dir: tempfile::TempDir,
}

impl World {
    /// With a configuration that works.
    pub async fn new() -> Self {
        let mut world = Self::unconfigured().await;
        world.configure("dstack");
        world.start().await;
        world
    }

    pub async fn unconfigured() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["state", "etc", "credentials"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let dns = free_port();
        let knot = servers::knot(dir.path(), dns);
        let (pebble, url) = servers::pebble(dir.path(), dns, &[], None);
        std::fs::write(dir.path().join("url"), url).unwrap();
        let bus = PrivateBus::start(dir.path());
        let address = bus.address.clone();
        let polkit = Polkit::new(&bus).await;
        let connection = bus.connect().await;
        let manager = ManagerProxy::builder(&connection).cache_properties(CacheProperties::No);
        let manager = manager.build().await.unwrap();
        Self {
            polkit,
            manager,
            connection,
            address,
            dns,
            daemon: None,
            _servers: [knot, pebble],
            _bus: bus,
            dir,
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes settings that use this TSIG key.
    pub fn configure(&self, key: &str) {
        let (dns, url) = (self.dns, std::fs::read_to_string(self.path("url")).unwrap());
        let text = format!(
            "domain = \"*.apps.example.test\"\nacme_url = \"{url}\"\nacme_root = \"{}\"\nissuer = \"ca.test\"\n\
             [dns]\nprovider = \"rfc2136\"\n[dns.rfc2136]\nserver = \"127.0.0.1:{dns}\"\nkey_name = \"{key}\"\n\
             [propagation]\ntimeout = 5\nservers = [\"127.0.0.1:{dns}\"]\n",
            self.path("roots.pem").display()
        );
        std::fs::write(self.path("etc/certbot.toml"), text).unwrap();
        std::fs::write(self.path("credentials/certbot-tsig"), SECRET).unwrap();
    }

    /// Puts a certificate that somebody else issued into the state; it is over in so many days.
    pub fn store_certificate(&self, name: &str, days: i64) {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new([name.to_owned()]).unwrap();
        let now = time::OffsetDateTime::now_utc();
        params.not_before = now - time::Duration::days(90);
        params.not_after = now + time::Duration::days(days);
        let live = self.path("state/live");
        std::fs::create_dir_all(&live).unwrap();
        std::fs::write(live.join("cert.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
        std::fs::write(live.join("key.pem"), key.serialize_pem()).unwrap();
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dstack-certbot"));
        command
            .env("DBUS_SYSTEM_BUS_ADDRESS", &self.address)
            .env("STATE_DIRECTORY", self.path("state"))
            .env("CREDENTIALS_DIRECTORY", self.path("credentials"))
            .env("CONFIGURATION_DIRECTORY", self.path("etc"))
            .stdin(Stdio::null());
        command
    }

    /// Starts the daemon as systemd would, and waits until it has its name.
    pub async fn start(&mut self) {
        drop(self.daemon.take());
        self.daemon =
            Some(bus::start(&self.connection, NAME, PATIENCE, || self.command().spawn().unwrap()).await);
    }

    /// A run of the program with these arguments.
    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command().args(arguments).output().unwrap()
    }

    /// The same, under way.
    pub fn spawn(&self, arguments: &[&str]) -> std::process::Child {
        self.command().args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }
}

/// The value of a row.
pub fn text(row: &dstack_service::api::certbot1::CertificateRow, key: &str) -> String {
    String::try_from(row[key].clone()).unwrap()
}
