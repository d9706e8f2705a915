// SPDX-License-Identifier: Apache-2.0
use super::*;
use crate::status::Status;
use dstack_core::boot::{Failure, Stage};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread::JoinHandle;

struct Guest {
    _dir: tempfile::TempDir,
    path: PathBuf,
    delivered: PathBuf,
    status: Status,
}

impl Guest {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("boot-status");
        File::create(&path).unwrap();
        let status = Status::new(&path);
        Self { path, delivered: dir.path().join("delivered"), status, _dir: dir }
    }

    fn connect(&self) -> (BufReader<UnixStream>, JoinHandle<io::Result<()>>) {
        let (host, guest) = UnixStream::pair().unwrap();
        let (path, delivered) = (self.path.clone(), self.delivered.clone());
        let server = std::thread::spawn(move || serve(guest.as_fd(), &path, &delivered));
        (BufReader::new(host), server)
    }
}

fn line(host: &mut BufReader<UnixStream>) -> String {
    let mut text = String::new();
    host.read_line(&mut text).unwrap();
    text
}

#[test]
fn past_and_present_arrive_on_every_connection() {
    let guest = Guest::new();
    guest.status.stage(Stage::Config);
    let mut hosts: Vec<_> = (0..3).map(|_| guest.connect()).collect();
    for (host, _) in &mut hosts {
        assert_eq!((line(host), line(host)), ("DSTACK 1\n".into(), "STAGE config\n".into()));
    }
    guest.status.ready();
    for (host, _) in &mut hosts {
        assert_eq!(line(host), "READY\n");
    }
    for (host, server) in hosts {
        drop(host);
        server.join().unwrap().unwrap();
    }
}

#[test]
fn a_slow_reader_gets_everything_and_costs_little() {
    let guest = Guest::new();
    let (mut host, server) = guest.connect();
    (0..50_000).for_each(|n| guest.status.progress(n, 50_000));
    guest.status.stopping();
    assert_eq!(line(&mut host), "DSTACK 1\n");
    for n in 0..50_000 {
        assert_eq!(line(&mut host), format!("PROGRESS {n} 50000\n"));
    }
    assert_eq!(line(&mut host), "STOPPING\n");
    drop(host);
    server.join().unwrap().unwrap();
}

#[test]
fn t18_a_host_that_talks_is_cut_off() {
    let guest = Guest::new();
    let (mut host, server) = guest.connect();
    assert_eq!(line(&mut host), "DSTACK 1\n");
    host.get_mut().write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    server.join().unwrap().unwrap();
}

#[test]
fn t07_the_power_goes_off_after_the_error_was_sent() {
    let guest = Guest::new();
    assert!(!await_delivery(&guest.delivered, 0).unwrap());
    let (mut host, server) = guest.connect();
    assert_eq!(line(&mut host), "DSTACK 1\n");
    guest.status.stage(Stage::Disk);
    assert_eq!(line(&mut host), "STAGE disk\n");
    assert!(!guest.delivered.exists());
    let delivered = guest.delivered.clone();
    let waiter = std::thread::spawn(move || await_delivery(&delivered, 30));
    guest.status.error(Failure::DiskFailed);
    assert_eq!(line(&mut host), "ERROR disk-failed\n");
    assert!(waiter.join().unwrap().unwrap());
    drop(host);
    server.join().unwrap().unwrap();
}
