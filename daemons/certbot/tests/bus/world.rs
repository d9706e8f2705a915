// SPDX-License-Identifier: Apache-2.0
//! A private bus with a polkit, and the real daemon on it.

use crate::polkit::Polkit;
use crate::servers::{self, Process, SECRET, free_port};
use dstack_service::api::certbot1::{ManagerProxy, NAME};
use futures_util::StreamExt;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;
use zbus::proxy::CacheProperties;
use zbus::{Connection, fdo::DBusProxy};

const PATIENCE: Duration = Duration::from_secs(20);

pub struct World {
    pub polkit: Polkit,
    pub manager: ManagerProxy<'static>,
    pub connection: Connection,
    pub address: String,
    pub dns: u16,
    daemon: Option<Process>,
    _servers: [Process; 2],
    _bus: Process,
    dir: tempfile::TempDir,
}

fn spawn_bus(dir: &Path) -> (Process, String) {
    let config = dir.join("bus.conf");
    let text = format!(
        "<busconfig><type>system</type><listen>unix:path={}/bus</listen><auth>EXTERNAL</auth>\
         <policy context=\"default\"><allow user=\"*\"/><allow own=\"*\"/><allow send_type=\"method_call\"/>\
         <allow send_type=\"signal\"/><allow send_requested_reply=\"true\"/><allow receive_type=\"method_call\"/>\
         <allow receive_type=\"signal\"/><allow receive_requested_reply=\"true\"/></policy></busconfig>",
        dir.display()
    );
    std::fs::write(&config, text).unwrap();
    let mut child = Command::new("dbus-daemon")
        .arg(format!("--config-file={}", config.display()))
        .args(["--nofork", "--print-address"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("dbus-daemon is needed: apt install dbus-daemon");
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    (Process(child), line.trim().to_owned())
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
        // The bus is for other users too.
        std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        for name in ["state", "etc", "credentials"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let dns = free_port();
        let knot = servers::knot(dir.path(), dns);
        let (pebble, url) = servers::pebble(dir.path(), dns, &[], None);
        std::fs::write(dir.path().join("url"), url).unwrap();
        let (bus, address) = spawn_bus(dir.path());
        let polkit = Polkit::new(&address).await;
        let connection = zbus::conn::Builder::address(address.as_str()).build().await.unwrap();
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
        let bus = DBusProxy::new(&self.connection).await.unwrap();
        let mut owners = bus.receive_name_owner_changed().await.unwrap();
        self.daemon = Some(Process(self.command().spawn().unwrap()));
        let named = async {
            while let Some(change) = owners.next().await {
                let args = change.args().unwrap();
                if args.name() == NAME && args.new_owner().is_some() {
                    return;
                }
            }
        };
        tokio::time::timeout(PATIENCE, named).await.expect("the daemon did not take its name");
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
