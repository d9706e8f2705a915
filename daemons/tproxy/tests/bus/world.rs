// SPDX-License-Identifier: Apache-2.0
//! A private bus with a systemd, a polkit, a key service, and the real ingress on it.

use crate::kms::Kms;
use crate::systemd::Systemd;
use dstack_service::api::tproxy1::{ManagerProxy, NAME};
use dstack_testing::bus::{self, PrivateBus};
use dstack_testing::polkit::Polkit;
use dstack_testing::process::Process;
use rcgen::{CertificateParams, KeyPair};
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use zbus::Connection;
use zbus::proxy::CacheProperties;

pub const PATIENCE: Duration = Duration::from_secs(20);

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
    _bus: PrivateBus,
    dir: tempfile::TempDir,
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
        for name in ["state", "cache", "etc"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let bus = PrivateBus::start(dir.path());
        let address = bus.address.clone();
        let (systemd, polkit) = (Systemd::new(&address).await, Polkit::new(&bus).await);
        let kms = Kms::new(&address, bootstrapped).await;
        let connection = bus.connect().await;
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
        self.tproxy = Some(bus::start(&self.connection, NAME, PATIENCE, || self.spawn()).await);
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
        bus::kill(&self.connection, NAME, self.tproxy.take()).await;
    }
}
