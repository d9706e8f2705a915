// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used)]
use super::*;
use dstack_core::home::Phase;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};

const AT: fn(u64) -> Duration = Duration::from_secs;

fn status(stage: &str) -> Status {
    Status {
        phase: Phase::Booting,
        stage: stage.to_owned(),
        progress: (0, 0),
        error: String::new(),
        waiting: String::new(),
        instance_id: None,
        cid: Some(5),
        qemu_pid: 1,
        timeline: Vec::new(),
    }
}

fn receive(fd: &OwnedFd) -> (FromVm, Option<OwnedFd>) {
    let mut packet = seqpacket::receive(fd.as_fd(), HOME_PACKET_MAX).unwrap().unwrap();
    (parse(&packet.bytes).unwrap(), packet.fds.pop())
}

fn ask(fd: &OwnedFd, packet: &ToVm) {
    seqpacket::send(fd.as_fd(), &format(packet).unwrap(), &[]).unwrap();
}

struct Bench {
    dir: tempfile::TempDir,
    home: Home,
    listener: OwnedFd,
    guest: Guest,
}

fn bench() -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("home");
    let listener = seqpacket::listen(&path).unwrap();
    let guest = Guest::User(dir.path().join("vsock"));
    Bench { home: Home::new(path, "hello".parse().unwrap()), dir, listener, guest }
}

#[test]
fn greets_reports_and_comes_back() {
    let mut b = bench();
    for round in 0..2 {
        b.home.tick(AT(round * 10), || status("config"));
        let teepod = seqpacket::accept(b.listener.as_fd()).unwrap();
        let (hello, _) = receive(&teepod);
        assert!(matches!(hello, FromVm::Hello { protocol: PROTOCOL, ref vm, .. } if vm.as_str() == "hello"));
        assert_eq!(receive(&teepod).0, FromVm::Status(status("config")));
        b.home.publish(status("disk"));
        b.home.publish(status("docker"));
        b.home.flush(AT(round * 10));
        assert_eq!(receive(&teepod).0, FromVm::Status(status("docker")));
        drop(teepod);
        assert!(b.home.ready(AT(round * 10), &b.guest).is_empty());
        assert_eq!(b.home.deadline(), Some(AT(round * 10) + RETRY));
    }
}

#[test]
fn works_while_teepod_is_away() {
    let mut home = Home::new("/nonexistent".into(), "hello".parse().unwrap());
    for second in 0..5 {
        home.tick(AT(second), || status("x"));
        home.publish(status("y"));
        home.flush(AT(second));
        assert_eq!(home.deadline(), Some(AT(second) + RETRY));
        assert!(home.interest().is_none() && home.status.is_none());
    }
}

#[test]
fn opens_streams_to_the_guest() {
    let mut b = bench();
    b.home.tick(AT(0), || status(""));
    let teepod = seqpacket::accept(b.listener.as_fd()).unwrap();
    receive(&teepod);
    receive(&teepod);
    ask(&teepod, &ToVm::Connect { id: 7, port: 8000 });
    b.home.ready(AT(0), &b.guest);
    b.home.flush(AT(0));
    assert!(matches!(receive(&teepod).0, FromVm::Failed { id: 7, .. }));

    let guest = UnixListener::bind(b.dir.path().join("vsock")).unwrap();
    ask(&teepod, &ToVm::Connect { id: 8, port: 8000 });
    ask(&teepod, &ToVm::Console { id: 9 });
    seqpacket::send(teepod.as_fd(), b"{\"type\":\"newer\"}", &[]).unwrap();
    seqpacket::send(teepod.as_fd(), b"not json", &[]).unwrap();
    assert_eq!(b.home.ready(AT(0), &b.guest), [9]);
    b.home.pending_ready(0, AT(0));
    let mut server = guest.accept().unwrap().0;
    server.read_exact(&mut [0; 13]).unwrap();
    server.write_all(b"OK 1\nhello").unwrap();
    b.home.pending_ready(0, AT(0));
    let (answer, fd) = receive(&teepod);
    assert_eq!(answer, FromVm::Opened { id: 8 });
    let mut text = [0; 5];
    UnixStream::from(fd.unwrap()).read_exact(&mut text).unwrap();
    assert_eq!(&text, b"hello");
}

#[test]
fn a_stream_that_hangs_fails_and_many_are_refused() {
    let mut b = bench();
    let _guest = UnixListener::bind(b.dir.path().join("vsock")).unwrap();
    b.home.tick(AT(0), || status(""));
    let teepod = seqpacket::accept(b.listener.as_fd()).unwrap();
    receive(&teepod);
    receive(&teepod);
    for id in 0..=PENDING_MAX as u64 {
        ask(&teepod, &ToVm::Connect { id, port: 1 });
    }
    b.home.ready(AT(0), &b.guest);
    b.home.flush(AT(0));
    assert!(matches!(receive(&teepod).0, FromVm::Failed { id, .. } if id == PENDING_MAX as u64));
    b.home.tick(OPEN_MAX, || status(""));
    b.home.flush(OPEN_MAX);
    assert!(matches!(receive(&teepod).0, FromVm::Failed { id: 0, .. }));
    assert_eq!(b.home.pending().count(), 0);
}
