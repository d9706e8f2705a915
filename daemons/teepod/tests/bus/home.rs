// SPDX-License-Identifier: Apache-2.0
//! The test plays dstack-vm.

use crate::systemd::Start;
use crate::world::{COMPOSE, World, options};
use dstack_core::home::{FromVm, PROTOCOL, Phase, Status, ToVm, format, parse};
use dstack_core::limits::HOME_PACKET_MAX;
use dstack_service::api::teepod1::Error;
use dstack_sys::seqpacket;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

struct Vm(OwnedFd);

impl Vm {
    fn connect(world: &World, name: &str) -> Self {
        let vm = Self(seqpacket::connect(&world.path("vm.sock")).unwrap());
        vm.send(&FromVm::Hello { protocol: PROTOCOL, vm: name.parse().unwrap(), build: "test".into() }, &[]);
        vm
    }

    fn send(&self, packet: &FromVm, fds: &[OwnedFd]) {
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        seqpacket::send(self.0.as_fd(), &format(packet).unwrap(), &fds).unwrap();
    }

    /// The next packet; `None` when teepod has closed.
    async fn receive(&self) -> Option<ToVm> {
        for _ in 0..1000 {
            match seqpacket::receive(self.0.as_fd(), HOME_PACKET_MAX) {
                Ok(packet) => return packet.map(|p| parse(&p.bytes).unwrap()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("{error}"),
            }
        }
        panic!("teepod says nothing");
    }
}

fn status(phase: Phase, stage: &str) -> FromVm {
    FromVm::Status(Status {
        phase,
        stage: stage.into(),
        progress: (1, 4),
        error: String::new(),
        waiting: String::new(),
        instance_id: Some([7; 20].into()),
        cid: Some(1000),
        qemu_pid: 1,
        timeline: vec![("qemu".into(), 120)],
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vm_reports_and_passes_descriptors() {
    let mut world = World::new().await;
    let unit = "dstack-vm@a.service";
    world.systemd.on_start(unit, Start::Wait);
    world.systemd.set_pid(std::process::id(), unit);
    let (_, job) = world.manager.create_vm("a", COMPOSE.as_bytes(), options(&[])).await.unwrap();
    world.until_state("a", "starting").await;
    world.systemd.wait_for(&format!("Start {unit}")).await;
    let vm = Vm::connect(&world, "a");
    vm.send(&status(Phase::Booting, "pull"), &[]);
    world.until_state("a", "booting").await;
    let proxy = world.vm("a").await;
    assert_eq!(proxy.boot_progress().await.unwrap(), "pulling images (1 of 4)");
    assert_eq!(proxy.instance_id().await.unwrap(), "07".repeat(20));
    assert_eq!(proxy.timeline().await.unwrap(), [("qemu".to_owned(), 120)]);
    vm.send(&status(Phase::Running, ""), &[]);
    world.systemd.set(unit, "active", "running", "success").await;
    world.done(&job).await;

    // The console.
    let manager = world.manager.clone();
    let opened = tokio::spawn(async move { manager.open_console("a").await });
    let Some(ToVm::Console { id }) = vm.receive().await else { panic!("no request") };
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    vm.send(&FromVm::Opened { id }, &[theirs.into()]);
    let mut console = UnixStream::from(OwnedFd::from(opened.await.unwrap().unwrap()));
    console.write_all(b"hi").unwrap();
    let mut two = [0; 2];
    ours.read_exact(&mut two).unwrap();
    assert_eq!(&two, b"hi");

    // The guest API.
    let manager = world.manager.clone();
    let called = tokio::spawn(async move { manager.call_guest("a", "Info").await });
    let Some(ToVm::Connect { id, port: 8000 }) = vm.receive().await else { panic!("no request") };
    let (ours, theirs) = UnixStream::pair().unwrap();
    vm.send(&FromVm::Opened { id }, &[theirs.into()]);
    let request = tokio::task::spawn_blocking(move || answer(ours, r#"{"version":"9"}"#)).await.unwrap();
    assert!(request.starts_with("POST /api/Info"), "{request}");
    assert_eq!(called.await.unwrap().unwrap(), r#"{"version":"9"}"#);
    assert!(matches!(world.manager.call_guest("a", "Format").await, Err(Error::InvalidArgument(_))));

    // A refusal in the VM's words, without control characters.
    let manager = world.manager.clone();
    let opened = tokio::spawn(async move { manager.open_console("a").await });
    let Some(ToVm::Console { id }) = vm.receive().await else { panic!("no request") };
    vm.send(&FromVm::Failed { id, error: "console\x1b is busy".into() }, &[]);
    let refused = opened.await.unwrap().unwrap_err();
    assert!(matches!(&refused, Error::GuestUnreachable(t) if t.ends_with("console is busy")), "{refused:?}");

    // It calls again after teepod was killed.
    world.kill_teepod().await;
    assert!(vm.receive().await.is_none());
    world.forget_signals();
    world.start_teepod().await;
    let vm = Vm::connect(&world, "a");
    vm.send(&status(Phase::Stopping, ""), &[]);
    world.until_state("a", "stopping").await;
    drop(vm);
    world.systemd.set(unit, "inactive", "dead", "success").await;
    world.until_state("a", "stopped").await;
    assert!(matches!(world.manager.open_console("a").await, Err(Error::VmNotRunning(_))));
    assert_eq!(world.vm("a").await.instance_id().await.unwrap(), "07".repeat(20));
}

/// Answers one HTTP request; returns its text.
fn answer(mut stream: UnixStream, json: &str) -> String {
    let mut request = Vec::new();
    let mut byte = [0; 1];
    while !request.ends_with(b"{}") {
        stream.read_exact(&mut byte).unwrap();
        request.push(byte[0]);
    }
    write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{json}", json.len()).unwrap();
    String::from_utf8(request).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p32_only_a_vms_own_unit_speaks_for_it() {
    let world = World::new().await;
    world.create("a").await;
    world.create("b").await;
    // No unit at all, another service, a VM that is not teepod's, another VM's name.
    let stranger = Vm::connect(&world, "a");
    assert!(stranger.receive().await.is_none());
    for unit in ["ssh.service", "dstack-vm@nobody.service", "dstack-vm@b.service"] {
        world.systemd.set_pid(std::process::id(), unit);
        let liar = Vm::connect(&world, "a");
        assert!(liar.receive().await.is_none(), "{unit}");
    }
    // Garbage ends the connection, and only that.
    let vm = Vm::connect(&world, "b");
    seqpacket::send(vm.0.as_fd(), b"garbage", &[]).unwrap();
    assert!(vm.receive().await.is_none());
    let vm = Vm::connect(&world, "b");
    vm.send(&status(Phase::Stopping, ""), &[]);
    world.until_state("b", "stopping").await;
    assert_eq!(world.state("a").await, "running");
}
