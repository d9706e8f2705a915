// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used)]
use super::*;
use rustix::event::{PollFd, Timespec, poll};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

struct Bench {
    dir: tempfile::TempDir,
    relay: Relay,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let relay = Relay::listen(&dir.path().join("vsock.sock"), &dir.path().join("sim")).unwrap();
        Self { dir, relay }
    }

    fn service(&self) -> UnixListener {
        UnixListener::bind(self.dir.path().join("sim")).unwrap()
    }

    fn guest(&self) -> UnixStream {
        UnixStream::connect(self.dir.path().join("vsock.sock_9998")).unwrap()
    }

    /// Goes on until nothing is ready any more.
    fn settle(&mut self) {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        loop {
            let tokens: Vec<Ready> = self.relay.interests().map(|(token, ..)| token).collect();
            let ready: Vec<Ready> = {
                let mut fds: Vec<_> = self
                    .relay
                    .interests()
                    .map(|(_, fd, flags)| PollFd::from_borrowed_fd(fd, flags))
                    .collect();
                poll(&mut fds, Some(&now)).unwrap();
                let ready = tokens.into_iter().zip(&fds).filter(|(_, fd)| !fd.revents().is_empty());
                ready.map(|(token, _)| token).collect()
            };
            if ready.is_empty() {
                return;
            }
            ready.into_iter().rev().for_each(|token| self.relay.ready(token));
            self.relay.sweep();
        }
    }
}

#[test]
fn words_pass_both_ways_and_an_end_ends_both() {
    let mut bench = Bench::new();
    let service = bench.service();
    let mut guest = bench.guest();
    guest.write_all(b"request").unwrap();
    bench.settle();
    let (mut server, _) = service.accept().unwrap();
    let mut request = [0; 7];
    server.read_exact(&mut request).unwrap();
    assert_eq!(&request, b"request");
    // Its last words arrive although it closes at once.
    server.write_all(b"reply").unwrap();
    drop(server);
    bench.settle();
    let mut reply = String::new();
    guest.read_to_string(&mut reply).unwrap();
    assert_eq!(reply, "reply");
    assert!(bench.relay.pairs.is_empty());
}

#[test]
fn a_guest_that_does_not_read_holds_a_bounded_buffer() {
    let mut bench = Bench::new();
    let service = bench.service();
    let guest = bench.guest();
    bench.settle();
    let (mut server, _) = service.accept().unwrap();
    server.set_nonblocking(true).unwrap();
    let mut sent = 0;
    for _ in 0..1000 {
        sent += server.write(&[7; 8192]).unwrap_or(0);
        bench.settle();
    }
    let waiting: usize = bench.relay.pairs.iter().flat_map(|p| &p.ends).map(|e| e.waiting.len()).sum();
    assert!(waiting > 0 && waiting < BUFFER + 4096, "{waiting}");
    let mut got = Vec::new();
    guest.set_nonblocking(true).unwrap();
    drop(server);
    for _ in 0..sent {
        bench.settle();
        let mut chunk = [0; 65_536];
        match (&guest).read(&mut chunk) {
            Ok(0) => break,
            Ok(count) => got.extend_from_slice(&chunk[..count]),
            Err(e) => assert_eq!(e.kind(), io::ErrorKind::WouldBlock),
        }
    }
    assert_eq!(got.len(), sent, "everything arrives in the end");
}

#[test]
fn connections_are_few_and_come_back() {
    let mut bench = Bench::new();
    let service = bench.service();
    let guests: Vec<UnixStream> = (0..CONNECTIONS_MAX + 3).map(|_| bench.guest()).collect();
    bench.settle();
    assert_eq!(bench.relay.pairs.len(), CONNECTIONS_MAX);
    drop(guests);
    bench.settle();
    assert!(bench.relay.pairs.is_empty());
    let _late = bench.guest();
    bench.settle();
    assert_eq!(bench.relay.pairs.len(), 1);
    drop(service);
}

#[test]
fn without_the_service_a_guest_is_told_at_once() {
    let mut bench = Bench::new();
    let mut guest = bench.guest();
    bench.settle();
    assert!(bench.relay.pairs.is_empty());
    assert_eq!(guest.read(&mut [0; 1]).unwrap_or(0), 0);
}
