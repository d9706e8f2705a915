// SPDX-License-Identifier: Apache-2.0
//! A private bus with a polkit, a certbot, and the real monitor on it.

use crate::certs::key_id;
use crate::crtsh::Crtsh;
use crate::polkit::Polkit;
use dstack_service::api::ctmonitor1::{Error, ManagerProxy, NAME};
use futures_util::StreamExt;
use rcgen::{KeyPair, PublicKeyData};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::time::Duration;
use zbus::proxy::CacheProperties;
use zbus::{Connection, fdo::DBusProxy, interface};

pub const PATIENCE: Duration = Duration::from_secs(30);
pub const NAMES: [&str; 1] = ["*.apps.example.com"];
pub static OURS: LazyLock<KeyPair> = LazyLock::new(|| KeyPair::generate().unwrap());
pub static THEIRS: LazyLock<KeyPair> = LazyLock::new(|| KeyPair::generate().unwrap());

/// Ends a process with the test.
pub struct Process(pub Child);

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

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
        // The bus is for other users too.
        std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        for name in ["state", "etc"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let (bus, address) = spawn_bus(dir.path());
        let polkit = Polkit::new(&address).await;
        let build = zbus::conn::Builder::address(address.as_str())
            .serve_at("/org/dstack/certbot1", Certbot)
            .name("org.dstack.certbot1")
            .build();
        let certbot = if certbot { Some(build.await.unwrap()) } else { None };
        let connection = zbus::conn::Builder::address(address.as_str()).build().await.unwrap();
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
        let bus = DBusProxy::new(&self.connection).await.unwrap();
        let mut owners = bus.receive_name_owner_changed_with_args(&[(0, NAME)]).await.unwrap();
        self.daemon = Some(Process(self.command().spawn().unwrap()));
        let named = async { while owners.next().await.unwrap().args().unwrap().new_owner().is_none() {} };
        tokio::time::timeout(PATIENCE, named).await.expect("the monitor did not take its name");
    }

    /// Starts it and waits for its end; tells what it said.
    pub fn start_and_fail(&self) -> String {
        let output = self.command().output().unwrap();
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// SIGKILL, as the kernel or an operator would.
    pub async fn kill(&mut self) {
        let bus = DBusProxy::new(&self.connection).await.unwrap();
        let mut owners = bus.receive_name_owner_changed_with_args(&[(0, NAME)]).await.unwrap();
        drop(self.daemon.take());
        if bus.name_has_owner(NAME.try_into().unwrap()).await.unwrap() {
            owners.next().await.unwrap();
        }
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
        let mut command = tokio::process::Command::from(self.command());
        command.arg("--check").status().await.unwrap().code()
    }
}
