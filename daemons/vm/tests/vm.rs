// SPDX-License-Identifier: Apache-2.0
//! dstack-vm from outside: a fake QEMU, a fake guest, a fake systemd, the real program.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::{Behaviour, Bench};
use dstack_core::home::{FromVm, Phase, ToVm, format, parse};
use dstack_core::limits::HOME_PACKET_MAX;
use dstack_sys::seqpacket;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

/// Ends QEMU when the guest's agent was asked to shut down.
const OBEY: &str = "(while [ ! -e $DIR/down ]; do sleep 0.05; done; echo '{\"event\":\"SHUTDOWN\",\"data\":{\"reason\":\"guest-shutdown\"}}' >&$qmp; kill $$) &";

#[test]
fn a_life() {
    let mut bench = Bench::start(Behaviour { begin: OBEY, ..Behaviour::default() }, |_| {});
    bench.until("READY=1");
    bench.until("STATUS=Running; boot: qemu 0.");
    assert!(bench.told.iter().any(|line| line.starts_with("EXTEND_TIMEOUT_USEC=")), "{:?}", bench.told);
    bench.until("WATCHDOG=1");
    bench.signal("TERM");
    bench.until("STOPPING=1");
    let (status, log) = bench.end();
    assert_eq!(status, 0, "{log}");
    // Asked by its agent; neither the power button nor quit was needed.
    assert!(
        !bench.commands().contains("powerdown") && !bench.commands().contains("quit"),
        "{}",
        bench.commands()
    );
    for line in ["console: firmware\n", "dstack-vm: Ready; boot: ", "dstack-vm: The guest has powered off"] {
        assert!(log.contains(line), "{line}: {log}");
    }
    let arguments = std::fs::read_to_string(bench.dir.path().join("arguments")).unwrap();
    assert!(
        arguments.contains("vhost-user-vsock-pci") && arguments.contains("state/data.qcow2"),
        "{arguments}"
    );
}

#[test]
fn machined_powers_off_by_a_signal() {
    let behaviour = Behaviour { shutdown: None, ..Behaviour::default() };
    let mut bench = Bench::start(behaviour, |_| {});
    bench.until("READY=1");
    bench.signal("RTMIN+4");
    let (status, log) = bench.end();
    assert_eq!(status, 0, "{log}");
    // Its agent does not answer: the power button comes at once.
    assert!(bench.commands().contains("system_powerdown"), "{}", bench.commands());
}

#[test]
fn a_deaf_guest_is_ended() {
    // Accepts to shut down, and then neither does nor hears the power button.
    let behaviour = Behaviour { power_down: ":", ..Behaviour::default() };
    let mut bench = Bench::start(behaviour, |launch| launch.stop_timeout = 10);
    bench.until("READY=1");
    bench.signal("TERM");
    let (status, log) = bench.end();
    assert_eq!(status, 0, "{log}");
    let commands: Vec<_> = bench.commands().lines().map(|l| l.contains("quit")).collect();
    assert_eq!(commands, [false, false, true], "{}", bench.commands());
    assert!(log.contains("did not shut down in time"), "{log}");
}

#[test]
fn exit_statuses() {
    let panic = "echo '{\"event\":\"GUEST_PANICKED\",\"data\":{}}' >&$qmp; end guest-panic";
    let cases = [
        ("end guest-shutdown", 1, "The guest has powered off before it was ready"),
        ("end guest-reset", 133, "a new QEMU is started"),
        (panic, 1, "The guest's kernel panicked"),
        ("echo 'qemu: no such thing' >&2; exit 1", 1, "a failure of the host: no such thing"),
        ("kill -KILL $$", 1, "a failure of the host"),
    ];
    for (begin, status, words) in cases {
        let mut bench = Bench::start(Behaviour { begin, lines: None, ..Behaviour::default() }, |_| {});
        let (code, log) = bench.end();
        assert_eq!(code, status, "{begin}: {log}");
        assert!(log.contains(words), "{begin}: {log}");
    }
}

#[test]
fn a_failed_boot_is_told_and_ended_in_time() {
    let lines = Some("DSTACK 1\nSTAGE pull\nPROGRESS 1 2\nERROR pull-failed\n");
    let mut bench = Bench::start(Behaviour { lines, shutdown: None, ..Behaviour::default() }, |launch| {
        launch.progress_timeout = 2;
    });
    bench.until("STATUS=Boot failed: an image could not be pulled");
    let (status, log) = bench.end();
    assert_eq!(status, 1, "{log}");
    assert!(log.contains("not ready after 2 s without progress"), "{log}");
    assert!(!bench.told.iter().any(|line| line == "READY=1"));
}

#[test]
fn a_host_that_cannot_run_it_says_why() {
    type Change = fn(&mut dstack_core::spec::LaunchSpec);
    for (change, code, words) in [
        ((|l| l.vm.disk = 1) as Change, 78, "a disk of 1 bytes is not possible"),
        (|l| l.version = 99, 78, "version 99 is not 1"),
        (|l| l.qemu = "/nonexistent/qemu".into(), 1, "/nonexistent/qemu"),
        (|l| l.vsock_program = "/bin/true".into(), 1, "/bin/true does not come up"),
    ] {
        let mut bench = Bench::start(Behaviour { backend: false, ..Behaviour::default() }, change);
        let (status, log) = bench.end();
        assert_eq!(status, code, "{log}");
        assert!(log.contains(words), "{words}: {log}");
    }
}

#[test]
fn a_vm_does_not_start_without_its_network() {
    let mut bench = Bench::start(Behaviour { network: false, ..Behaviour::default() }, |_| {});
    bench.until("STATUS=Cannot start the VM: the VM's network is not there");
    assert_eq!(bench.end().0, 1);
}

fn receive(fd: &OwnedFd) -> (FromVm, Option<OwnedFd>) {
    use rustix::event::{PollFd, PollFlags, poll};
    poll(&mut [PollFd::new(fd, PollFlags::IN)], None).unwrap();
    let mut packet = seqpacket::receive(fd.as_fd(), HOME_PACKET_MAX).unwrap().unwrap();
    (parse(&packet.bytes).unwrap(), packet.fds.pop())
}

fn running(fd: &OwnedFd) {
    while !matches!(receive(fd).0, FromVm::Status(status) if status.phase == Phase::Running) {}
}

fn accept(listener: &OwnedFd) -> OwnedFd {
    use rustix::event::{PollFd, PollFlags, poll};
    poll(&mut [PollFd::new(listener, PollFlags::IN)], None).unwrap();
    seqpacket::accept(listener.as_fd()).unwrap()
}

#[test]
fn teepod_comes_and_goes() {
    let mut bench = Bench::start(Behaviour::default(), |_| {});
    bench.until("READY=1");
    for _ in 0..2 {
        let listener = seqpacket::listen(&bench.home()).unwrap();
        let teepod = accept(&listener);
        assert!(matches!(receive(&teepod).0, FromVm::Hello { vm, .. } if vm.as_str() == "hello"));
        running(&teepod);
        seqpacket::send(teepod.as_fd(), &format(&ToVm::Console { id: 1 }).unwrap(), &[]).unwrap();
        let (answer, console) = receive(&teepod);
        assert_eq!(answer, FromVm::Opened { id: 1 });
        let mut past = [0; 12];
        UnixStream::from(console.unwrap()).read_exact(&mut past).unwrap();
        assert_eq!(&past, b"\x1b[2Jfirmware");
        seqpacket::send(teepod.as_fd(), &format(&ToVm::Connect { id: 2, port: 7 }).unwrap(), &[]).unwrap();
        assert!(matches!(receive(&teepod).0, FromVm::Failed { id: 2, .. }));
        drop(teepod);
        drop(listener);
        std::fs::remove_file(bench.home()).unwrap();
    }
    bench.signal("TERM");
    assert_eq!(bench.end().0, 0);
}
