// SPDX-License-Identifier: Apache-2.0
//! A private bus with a systemd, a polkit, and the real key service on it.

use crate::polkit::Polkit;
use crate::systemd::Systemd;
use dstack_service::api::kms1::{ManagerProxy, NAME};
use futures_util::StreamExt;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use zbus::proxy::CacheProperties;
use zbus::{Connection, fdo::DBusProxy};

const PATIENCE: Duration = Duration::from_secs(10);

/// Ends a process with the test.
pub struct Process(pub Child);

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

pub struct World {
    pub systemd: Systemd,
    pub polkit: Polkit,
    pub manager: ManagerProxy<'static>,
    pub connection: Connection,
    pub address: String,
    listener: TcpListener,
    pub kms: Option<Process>,
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
    pub async fn new() -> Self {
        let mut world = Self::without_kms().await;
        world.start().await;
        world
    }

    pub async fn without_kms() -> Self {
        let dir = tempfile::tempdir().unwrap();
        // The bus is for other users too.
        std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        for name in ["state", "cache", "etc", "credentials"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let (bus, address) = spawn_bus(dir.path());
        let (unsealed, sealed) = (dir.path().join("run/kmsroot.new"), dir.path().join("credentials/kmsroot"));
        let systemd = Systemd::new(&address, unsealed, sealed).await;
        let polkit = Polkit::new(&address).await;
        let connection = zbus::conn::Builder::address(address.as_str()).build().await.unwrap();
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
        let bus = DBusProxy::new(&self.connection).await.unwrap();
        let mut owners = bus.receive_name_owner_changed().await.unwrap();
        self.kms = Some(Process(self.spawn()));
        let named = async {
            while let Some(change) = owners.next().await {
                let args = change.args().unwrap();
                if args.name() == NAME && args.new_owner().is_some() {
                    return;
                }
            }
        };
        tokio::time::timeout(PATIENCE, named).await.expect("the key service did not take its name");
    }

    /// Starts it and waits for its end; gives what it said.
    pub fn start_and_fail(&self) -> bool {
        !Process(self.spawn()).0.wait().unwrap().success()
    }

    /// SIGKILL, as the kernel or an operator would.
    pub async fn kill(&mut self) {
        drop(self.kms.take());
        let bus = DBusProxy::new(&self.connection).await.unwrap();
        let mut owners = bus.receive_name_owner_changed_with_args(&[(0, NAME)]).await.unwrap();
        if bus.name_has_owner(NAME.try_into().unwrap()).await.unwrap() {
            owners.next().await.unwrap();
        }
    }
}
