// SPDX-License-Identifier: Apache-2.0
//! The program on a private bus, with a systemd to which this test's process is a VM, and a teepod that launched it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use dstack_core::event_log;
use dstack_core::ids::ComposeHash;
use dstack_core::quote_sim_wire::{self as wire, Certified, Extended, Quoted, Registers, Request, WireError};
use dstack_testing::bus::PrivateBus;
use dstack_testing::process::Process;
use serde::de::DeserializeOwned;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use zbus::{Connection, OwnedObjectPath, fdo, interface};

const PROGRAM: &str = env!("CARGO_BIN_EXE_dstack-quote-sim");
const UNIT: &str = "/org/freedesktop/systemd1/unit/hello";
const VM: &str = "/org/dstack/teepod1/vm/hello";

fn path(text: &str) -> OwnedObjectPath {
    text.try_into().unwrap()
}

/// What the test may change.
#[derive(Clone, Default)]
struct Facts {
    is_vm: Arc<AtomicBool>,
    main_pid: Arc<AtomicU32>,
}

struct Systemd;

#[interface(name = "org.freedesktop.systemd1.Manager")]
impl Systemd {
    #[zbus(name = "GetUnitByPID")]
    async fn get_unit_by_pid(&self, pid: u32) -> fdo::Result<OwnedObjectPath> {
        assert_eq!(pid, std::process::id(), "the caller's process");
        Ok(path(UNIT))
    }
}

struct Unit(Facts);

#[interface(name = "org.freedesktop.systemd1.Unit")]
impl Unit {
    #[zbus(property)]
    async fn id(&self) -> String {
        let is_vm = self.0.is_vm.load(Ordering::SeqCst);
        (if is_vm { "dstack-vm@hello.service" } else { "user@0.service" }).to_owned()
    }

    #[zbus(property, name = "InvocationID")]
    async fn invocation_id(&self) -> Vec<u8> {
        vec![7; 16]
    }
}

struct Service(Facts);

#[interface(name = "org.freedesktop.systemd1.Service")]
impl Service {
    #[zbus(property, name = "MainPID")]
    async fn main_pid(&self) -> u32 {
        self.0.main_pid.load(Ordering::SeqCst)
    }
}

struct Teepod;

#[interface(name = "org.dstack.teepod1.Manager")]
impl Teepod {
    async fn get_vm(&self, name: String) -> fdo::Result<OwnedObjectPath> {
        assert_eq!(name, "hello");
        Ok(path(VM))
    }
}

struct Vm;

#[interface(name = "org.dstack.teepod1.Vm")]
impl Vm {
    #[zbus(property)]
    async fn image(&self) -> String {
        "dstack-1".to_owned()
    }

    #[zbus(property)]
    async fn compose_hash(&self) -> String {
        ComposeHash::of(b"{}").to_string()
    }

    #[zbus(property)]
    async fn vcpus(&self) -> u32 {
        2
    }

    #[zbus(property)]
    async fn memory(&self) -> u64 {
        2 << 30
    }
}

async fn host(address: &str, facts: &Facts) -> Connection {
    let connection = zbus::conn::Builder::address(address).build().await.unwrap();
    let server = connection.object_server();
    server.at("/org/freedesktop/systemd1", Systemd).await.unwrap();
    server.at(UNIT, Unit(facts.clone())).await.unwrap();
    server.at(UNIT, Service(facts.clone())).await.unwrap();
    server.at("/org/dstack/teepod1", Teepod).await.unwrap();
    server.at(VM, Vm).await.unwrap();
    for name in ["org.freedesktop.systemd1", "org.dstack.teepod1"] {
        connection.request_name(name).await.unwrap();
    }
    connection
}

fn image(images: &Path) {
    let directory = images.join("dstack-1");
    std::fs::create_dir_all(&directory).unwrap();
    let metadata = format!(
        r#"{{"name":"dstack","version":"1","uki":"u","root":"r","root_hash":"{}"}}"#,
        "ab".repeat(32)
    );
    std::fs::write(directory.join("metadata.json"), metadata).unwrap();
    let sums = ["metadata.json", "r", "u"].map(|name| format!("{}  {name}\n", "02".repeat(32))).concat();
    std::fs::write(directory.join("sha256sum.txt"), sums).unwrap();
    let target = dstack_fuzz::TARGETS.iter().find(|t| t.name == "uki").unwrap();
    std::fs::write(directory.join("u"), (target.samples)().remove(0)).unwrap();
    std::fs::write(images.join("firmware"), "bios").unwrap();
}

struct World {
    dir: tempfile::TempDir,
    facts: Facts,
    listener: UnixListener,
    address: String,
    _host: Connection,
    _bus: PrivateBus,
}

impl World {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["root", "run", "etc"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        image(&dir.path().join("images"));
        let images = dir.path().join("images").display().to_string();
        let settings = format!("images_directory = {images:?}\nfirmware = \"{images}/firmware\"\n");
        std::fs::write(dir.path().join("etc/quote-sim.toml"), settings).unwrap();
        let made = Command::new(PROGRAM).arg("--make-root").arg(dir.path().join("root")).output().unwrap();
        assert!(made.status.success() && made.stdout.len() == 17, "{made:?}");
        let bus = PrivateBus::start(dir.path());
        let address = bus.address.clone();
        let facts = Facts::default();
        let host = host(&address, &facts).await;
        let listener = UnixListener::bind(dir.path().join("s")).unwrap();
        Self { dir, facts, listener, address, _host: host, _bus: bus }
    }

    fn start(&self) -> Process {
        let script = "LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=unix exec \"$0\" 3<&0 </dev/null";
        let child = Command::new("sh")
            .args(["-c", script, PROGRAM])
            .env("DBUS_SYSTEM_BUS_ADDRESS", &self.address)
            .env("CONFIGURATION_DIRECTORY", self.dir.path().join("etc"))
            .env("CREDENTIALS_DIRECTORY", self.dir.path().join("root"))
            .env("RUNTIME_DIRECTORY", self.dir.path().join("run"))
            .stdin(Stdio::from(OwnedFd::from(self.listener.try_clone().unwrap())))
            .spawn()
            .unwrap();
        Process(child)
    }

    /// One request over a connection of its own.
    async fn ask<T: DeserializeOwned + Send + 'static>(&self, request: Request) -> Result<T, WireError> {
        let socket = self.dir.path().join("s");
        let asked = tokio::task::spawn_blocking(move || {
            let mut stream = UnixStream::connect(socket).unwrap();
            stream.write_all(&wire::frame(&request).unwrap()).unwrap();
            let mut head = [0; 4];
            stream.read_exact(&mut head).unwrap();
            let mut body = vec![0; wire::length(head, wire::FRAME_MAX).unwrap()];
            stream.read_exact(&mut body).unwrap();
            wire::parse_reply(&body)
        });
        asked.await.unwrap()
    }
}

#[tokio::test]
async fn t14_a_vm_quotes_and_its_register_survives_a_kill_of_the_daemon() {
    let world = World::new().await;
    let daemon = world.start();
    let refused = world.ask::<Registers>(Request::Registers).await;
    assert!(matches!(refused, Err(WireError::Refused(_))), "{refused:?}");
    world.facts.is_vm.store(true, Ordering::SeqCst);
    let refused = world.ask::<Registers>(Request::Registers).await;
    assert!(
        matches!(&refused, Err(WireError::Refused(reason)) if reason.contains("not running")),
        "{refused:?}"
    );

    world.facts.main_pid.store(1, Ordering::SeqCst);
    let first: Registers = world.ask(Request::Registers).await.unwrap();
    assert_eq!((first.rtmr3, first.mr_config_id[0]), ([0; 48], 1));
    let extended: Extended = world.ask(Request::Extend { digest: [5; 48] }).await.unwrap();
    assert_eq!(extended.rtmr3, event_log::extend(&[0; 48], &[5; 48]));
    drop(daemon);
    let _daemon = world.start();
    let quoted: Quoted = world.ask(Request::Quote { report_data: [9; 64] }).await.unwrap();
    assert_eq!(quoted.quote[48 + 472..][..48], extended.rtmr3);
    let certified: Certified = world.ask(Request::Collateral).await.unwrap();
    assert!(certified.collateral["tcb_info"].is_string() && certified.root.starts_with("-----BEGIN"));

    // Another main process is another TEE.
    world.facts.main_pid.store(2, Ordering::SeqCst);
    let fresh: Registers = world.ask(Request::Registers).await.unwrap();
    assert_eq!(fresh, first);
}

#[test]
fn without_its_socket_it_says_how_to_start_it() {
    let output = Command::new(PROGRAM).env_remove("LISTEN_FDS").output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && said.contains("systemctl start"), "{said}");
    let unknown = Command::new(PROGRAM).arg("--make-root").output().unwrap();
    assert!(!unknown.status.success(), "a directory is needed");
}
