// SPDX-License-Identifier: Apache-2.0
//! The program itself: activated by a socket, on a private bus.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use common::program::{Bus, Tappd, activate};
use common::world::{self, World};
use common::{Journal, eventually};
use dstack_keys::derive;
use dstack_keys::handover::Provider;
use std::collections::HashMap;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use zbus::{Connection, Variant};

const TAPPD: &str = env!("CARGO_BIN_EXE_dstack-tappd");
const COMPOSE: &str = r#"{"manifest_version":2,"name":"hello","runner":"docker-compose","public_logs":true,
    "docker_compose_file":"services: {web: {image: web}}"}"#;

fn start(directory: &Path, journal: &Path, bus: &Bus) -> Tappd {
    let run = directory.join("run");
    std::fs::create_dir(&run).unwrap();
    std::fs::write(run.join("app-compose.json"), COMPOSE).unwrap();
    std::fs::write(run.join("instance.json"), r#"{"app_id":"aa","instance_id":"bb"}"#).unwrap();
    let settings = format!(
        "run_directory = {run:?}\njournal_directory = {journal:?}\ndocker_socket = \"/nonexistent\"\n"
    );
    activate(Path::new(TAPPD), directory, &settings, bus)
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
    let mut tappd = start(directory.path(), journal.directory.path(), &bus);
    let connection = bus.connect().await;
    let manager = manager(&connection).await;
    eventually(async || manager.get_property::<String>("AppId").await.is_ok_and(|id| id == "aa")).await;
    assert!(manager.get_property::<bool>("PublicLogs").await.unwrap());
    assert!(!manager.get_property::<bool>("PublicSysinfo").await.unwrap());
    let response = std::net::TcpStream::connect(tappd.address).is_ok();
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
    let pid = rustix::process::Pid::from_child(&tappd.child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(tappd.child.wait().unwrap().success());
    assert!(asked.elapsed() < Duration::from_secs(3));
}

#[tokio::test]
async fn keys_and_quotes_over_the_bus() {
    tokio::time::timeout(Duration::from_secs(30), over_the_bus()).await.unwrap();
}

async fn over_the_bus() {
    let world = World::new(Provider::Kms, 10);
    let Some(bus) = Bus::start(world.directory.path()) else { return };
    let settings = world.settings(Some(&world.run()));
    let tappd = activate(Path::new(TAPPD), world.directory.path(), &settings, &bus);
    let connection = bus.connect().await;
    let manager = manager(&connection).await;
    let id = world::app_id().to_string();
    eventually(async || manager.get_property::<String>("AppId").await.is_ok_and(|found| found == id)).await;
    assert_eq!(manager.get_property::<String>("KeyProvider").await.unwrap(), "kms");
    assert!(manager.get_property::<String>("Realm").await.unwrap().starts_with("test:"));
    assert!(manager.get_property::<String>("KeyProviderInfo").await.unwrap().contains("\"id\":\"3059"));

    let quoted: zbus::Result<(Vec<u8>, String)> = manager.call("GetQuote", &(vec![7_u8; 3],)).await;
    let options = HashMap::from([("subject", Variant::from("app")), ("server_auth", Variant::from(true))]);
    let key: zbus::Result<(zbus::OwnedFd, Vec<Vec<u8>>)> =
        manager.call("GetKey", &("a", "b", "ed25519")).await;
    if !rustix::process::geteuid().is_root() {
        // There is no polkit on this bus, so only root may have keys.
        assert!(key.unwrap_err().to_string().contains("AccessDenied"));
        return;
    }
    let (quote, log) = quoted.unwrap();
    assert!(quote.len() > 1000 && log.starts_with('['));
    let (fd, chain) = key.unwrap();
    let mut secret = Vec::new();
    std::fs::File::from(OwnedFd::from(fd)).read_to_end(&mut secret).unwrap();
    let expected = derive::ed25519_of_path(&world.keys().k256_key, "a").unwrap();
    assert_eq!((secret.as_slice(), chain.len()), (&expected.expose()[..], 2));
    let (fd, chain): (zbus::OwnedFd, Vec<String>) = manager.call("GetTlsKey", &(&options,)).await.unwrap();
    let mut pem = String::new();
    std::fs::File::from(OwnedFd::from(fd)).read_to_string(&mut pem).unwrap();
    assert!(pem.starts_with("-----BEGIN PRIVATE KEY-----") && chain.len() == 2);
    manager.call::<_, _, ()>("EmitEvent", &("mine", vec![1_u8])).await.unwrap();
    let errors = [
        (manager.call::<_, _, ()>("EmitEvent", &("app-id", vec![1_u8])).await, "tappd1.NotAttested"),
        (manager.call::<_, _, ()>("GetQuote", &(vec![0_u8; 65],)).await, "InvalidArgs"),
        (manager.call::<_, _, ()>("GetKey", &("a", "b", "rsa")).await, "InvalidArgs"),
    ];
    for (refused, name) in errors {
        let error = refused.unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
    }
    assert!(std::os::unix::net::UnixStream::connect(&tappd.dstack).is_ok());
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
