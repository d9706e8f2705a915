// SPDX-License-Identifier: Apache-2.0
//! The program itself: activated by a socket, on a private bus.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use common::{Journal, eventually};
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use zbus::{Connection, Variant};

const TAPPD: &str = env!("CARGO_BIN_EXE_dstack-tappd");
const COMPOSE: &str = r#"{"manifest_version":2,"name":"hello","runner":"docker-compose","public_logs":true,
    "docker_compose_file":"services: {web: {image: web}}"}"#;
const BUS: &str = r#"<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>system</type><listen>unix:dir=DIR</listen><auth>EXTERNAL</auth>
<policy context="default"><allow user="*"/><allow own="*"/><allow send_destination="*"/><allow receive_sender="*"/></policy>
</busconfig>"#;

struct Bus {
    address: String,
    daemon: Child,
}

impl Bus {
    fn start(directory: &Path) -> Option<Self> {
        let config = directory.join("bus.conf");
        std::fs::write(&config, BUS.replace("DIR", directory.to_str().unwrap())).unwrap();
        let spawned = Command::new("dbus-daemon")
            .arg(format!("--config-file={}", config.display()))
            .args(["--nofork", "--nopidfile", "--print-address=1"])
            .stdout(Stdio::piped())
            .spawn();
        let Ok(mut daemon) = spawned else {
            eprintln!("SKIP: dbus-daemon is missing (package dbus-daemon)");
            return None;
        };
        let mut address = String::new();
        BufReader::new(daemon.stdout.take().unwrap()).read_line(&mut address).unwrap();
        Some(Self { address: address.trim().to_owned(), daemon })
    }

    async fn connect(&self) -> Connection {
        zbus::connection::Builder::address(self.address.as_str()).build().await.unwrap()
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

/// Starts the program with its listening socket as descriptor 3, as systemd does.
/// Ends with its test, however that ends.
struct Tappd(Child);

impl Drop for Tappd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn activate(directory: &Path, journal: &Path, bus: &Bus) -> (Tappd, SocketAddr) {
    let run = directory.join("run");
    std::fs::create_dir(&run).unwrap();
    std::fs::write(run.join("app-compose.json"), COMPOSE).unwrap();
    std::fs::write(run.join("instance.json"), r#"{"app_id":"aa","instance_id":"bb"}"#).unwrap();
    let settings = format!(
        "run_directory = {run:?}\njournal_directory = {journal:?}\ndocker_socket = \"/nonexistent\"\n"
    );
    std::fs::write(directory.join("tappd.toml"), settings).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let script = "LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=external exec \"$0\" 3<&0 </dev/null";
    let child = Command::new("sh")
        .args(["-c", script, TAPPD])
        .env("DBUS_SYSTEM_BUS_ADDRESS", &bus.address)
        .env("CONFIGURATION_DIRECTORY", directory)
        .stdin(Stdio::from(OwnedFd::from(listener)))
        .spawn()
        .unwrap();
    (Tappd(child), address)
}

/// Without a cache: filling it would wait for a name that nobody owns yet.
async fn manager(connection: &Connection) -> zbus::Proxy<'static> {
    zbus::proxy::Builder::<zbus::Proxy<'static>>::new(connection)
        .destination(dstack_tappd::bus::NAME)
        .path(dstack_tappd::bus::PATH)
        .interface("org.dstack.tappd1.Manager")
        .cache_properties(zbus::proxy::CacheProperties::No)
        .build()
        .await
        .unwrap()
}

#[tokio::test]
async fn from_activation_to_a_stop() {
    tokio::time::timeout(Duration::from_secs(30), activation_to_stop()).await.unwrap();
}

async fn activation_to_stop() {
    let directory = tempfile::tempdir().unwrap();
    let Some(mut journal) = Journal::create() else { return };
    let Some(bus) = Bus::start(directory.path()) else { return };
    journal.line("app-web-1", "6", b"hello");
    // The record is in the file before anybody asks for it.
    journal.close();
    let (mut tappd, address) = activate(directory.path(), journal.directory.path(), &bus);
    let connection = bus.connect().await;
    let manager = manager(&connection).await;
    eventually(async || manager.get_property::<String>("AppId").await.is_ok_and(|id| id == "aa")).await;
    assert!(manager.get_property::<bool>("PublicLogs").await.unwrap());
    assert!(!manager.get_property::<bool>("PublicSysinfo").await.unwrap());
    let response = std::net::TcpStream::connect(address).is_ok();
    assert!(response);

    let mut options = HashMap::from([("text", Variant::from(true)), ("bare", Variant::from(true))]);
    let opened: zbus::Result<zbus::OwnedFd> = manager.call("OpenLogs", &("web", &options)).await;
    if rustix::process::geteuid().is_root() {
        let mut log = String::new();
        let fd: OwnedFd = opened.unwrap().into();
        std::fs::File::from(fd).read_to_string(&mut log).unwrap();
        assert_eq!(log, "hello\n");
        let name = |e: zbus::Error| e.to_string();
        let none: zbus::Result<zbus::OwnedFd> = manager.call("OpenLogs", &("none", &options)).await;
        assert!(name(none.unwrap_err()).contains("org.dstack.tappd1.NoSuchContainer"));
        options.insert("colour", Variant::from(true));
        let odd: zbus::Result<zbus::OwnedFd> = manager.call("OpenLogs", &("web", &options)).await;
        assert!(name(odd.unwrap_err()).contains("unknown option \"colour\""));
        let list: zbus::Result<Vec<(String, String, String, String)>> =
            manager.call("ListContainers", &()).await;
        assert!(name(list.unwrap_err()).contains("org.dstack.tappd1.DockerUnavailable"));
    } else {
        // There is no polkit on this bus, so only root may read.
        assert!(opened.unwrap_err().to_string().contains("AccessDenied"));
    }

    let asked = Instant::now();
    let pid = rustix::process::Pid::from_child(&tappd.0);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(tappd.0.wait().unwrap().success());
    assert!(asked.elapsed() < Duration::from_secs(3));
}

#[test]
fn the_shipped_interface_is_the_programs() {
    let argument = format!("--bus-introspect={}", dstack_tappd::bus::PATH);
    let output = Command::new(TAPPD).arg(argument).output().unwrap();
    let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/../../dbus/interfaces/org.dstack.tappd1.Manager.xml");
    assert!(
        String::from_utf8(output.stdout).unwrap() == std::fs::read_to_string(shipped).unwrap(),
        "dbus/interfaces/org.dstack.tappd1.Manager.xml is old; write the output of --bus-introspect there"
    );
}

#[test]
fn without_its_socket_it_says_how_to_start_it() {
    let output = Command::new(TAPPD).env_remove("LISTEN_FDS").output().unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("no socket named \"external\"") && said.contains("systemctl start"), "{said}");
}
