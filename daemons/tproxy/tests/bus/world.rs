// SPDX-License-Identifier: Apache-2.0
//! A private bus with a systemd, a polkit, a key service, and the real ingress on it.

use crate::kms::Kms;
use crate::polkit::Polkit;
use crate::systemd::Systemd;
use dstack_service::api::tproxy1::{ManagerProxy, NAME};
use futures_util::StreamExt;
use rcgen::{CertificateParams, KeyPair};
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use zbus::proxy::CacheProperties;
use zbus::{Connection, fdo::DBusProxy};

pub const PATIENCE: Duration = Duration::from_secs(20);

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
    pub kms: Kms,
    pub manager: ManagerProxy<'static>,
    pub connection: Connection,
    pub address: String,
    pub rpc: String,
    listeners: (TcpListener, UnixListener),
    pub tproxy: Option<Process>,
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

fn passed_on<F: std::os::fd::AsFd>(listener: F) -> F {
    rustix::io::fcntl_setfd(&listener, rustix::io::FdFlags::empty()).unwrap();
    listener
}

impl World {
    /// A configured ingress that is ready, with a certificate and a key service that has keys.
    pub async fn new() -> Self {
        let mut world = Self::stopped(true).await;
        world.configure("");
        world.certificate();
        world.start().await;
        world.until_started().await;
        world
    }

    /// Everything but the ingress itself.
    pub async fn stopped(bootstrapped: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        // The bus is for other users too.
        std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        for name in ["state", "cache", "etc"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let (bus, address) = spawn_bus(dir.path());
        let (systemd, polkit) = (Systemd::new(&address).await, Polkit::new(&address).await);
        let kms = Kms::new(&address, bootstrapped).await;
        let connection = zbus::conn::Builder::address(address.as_str()).build().await.unwrap();
        let manager = ManagerProxy::builder(&connection).cache_properties(CacheProperties::No);
        let manager = manager.build().await.unwrap();
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let rpc = tcp.local_addr().unwrap().to_string();
        let flow = UnixListener::bind(dir.path().join("flow.sock")).unwrap();
        let listeners = (passed_on(tcp), passed_on(flow));
        Self {
            systemd,
            polkit,
            kms,
            manager,
            connection,
            address,
            rpc,
            listeners,
            tproxy: None,
            _bus: bus,
            dir,
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes the settings, with more keys of `[proxy]`.
    pub fn configure(&self, more: &str) {
        let text = format!(
            "[wg]\nendpoint='192.0.2.1:51820'\n[proxy]\nbase_domain='apps.example.com'\n\
             cert_chain='{0}/cert.pem'\ncert_key='{0}/key.pem'\nresolver='192.0.2.53'\n{more}\n",
            self.dir.path().display()
        );
        std::fs::write(self.path("etc/tproxy.toml"), text).unwrap();
    }

    pub fn certificate(&self) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["*.apps.example.com".to_owned()]).unwrap();
        std::fs::write(self.path("cert.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
        std::fs::write(self.path("key.pem"), key.serialize_pem()).unwrap();
    }

    fn spawn(&self) -> Child {
        // A network of its own, so that no interface is made in the real one; others could make none anyway.
        let own = if rustix::process::geteuid().is_root() { "unshare --net" } else { "" };
        let (tcp, unix) = (self.listeners.0.as_raw_fd(), self.listeners.1.as_raw_fd());
        let script = format!(
            "exec {own} bash -c 'export LISTEN_PID=$$; exec \"$0\"' {} 3<&{tcp} 4<&{unix}",
            env!("CARGO_BIN_EXE_dstack-tproxy")
        );
        Command::new("bash")
            .args(["-c", &script])
            .env("LISTEN_FDS", "2")
            .env("LISTEN_FDNAMES", "rpc:flow")
            .env("DBUS_SYSTEM_BUS_ADDRESS", &self.address)
            .env("STATE_DIRECTORY", self.path("state"))
            .env("CACHE_DIRECTORY", self.path("cache"))
            .env("CONFIGURATION_DIRECTORY", self.path("etc"))
            .stdin(Stdio::null())
            .spawn()
            .unwrap()
    }

    /// Starts the daemon as systemd would, and waits until it has its name.
    pub async fn start(&mut self) {
        let bus = DBusProxy::new(&self.connection).await.unwrap();
        let mut owners = bus.receive_name_owner_changed().await.unwrap();
        self.tproxy = Some(Process(self.spawn()));
        let named = async {
            while let Some(change) = owners.next().await {
                let args = change.args().unwrap();
                if args.name() == NAME && args.new_owner().is_some() {
                    return;
                }
            }
        };
        tokio::time::timeout(PATIENCE, named).await.expect("the ingress did not take its name");
    }

    /// Waits until it has asked for a data plane, the last step of a start.
    pub async fn until_started(&self) {
        let started = self.systemd.started.notified();
        tokio::time::timeout(PATIENCE, started).await.expect("no data plane was started");
    }

    /// Starts it and waits for its end; tells whether it failed.
    pub fn start_and_fail(&self) -> bool {
        !Process(self.spawn()).0.wait().unwrap().success()
    }

    /// SIGKILL, as the kernel or an operator would.
    pub async fn kill(&mut self) {
        drop(self.tproxy.take());
        let bus = DBusProxy::new(&self.connection).await.unwrap();
        let mut owners = bus.receive_name_owner_changed_with_args(&[(0, NAME)]).await.unwrap();
        if bus.name_has_owner(NAME.try_into().unwrap()).await.unwrap() {
            owners.next().await.unwrap();
        }
    }
}
