// SPDX-License-Identifier: Apache-2.0
//! How long things may take once bytes flow, readers that read slowly or not at all, and IPv6.

use crate::client::{client, hello, open};
use crate::hostile::{rest, script, works};
use crate::world::{BASE, Script, World, certificate, config, connect, echo, id, instance, serve_port};
use dstack_core::flow::{Config, Instance, Timeouts};
use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

const MIB: usize = 1024 * 1024;

fn timed(address: &str, timeouts: Timeouts) -> Script {
    let config = Config { timeouts, ..config() };
    Script {
        config,
        certificates: vec![certificate(false)],
        instances: vec![instance(1, 9, address)],
        ..Script::default()
    }
}

fn passed(world: &World, port: u16) -> TcpStream {
    let mut stream = connect(world.ingress);
    stream.write_all(&hello(&format!("{}-{port}s.{BASE}", id(9)), None, 0)).unwrap();
    stream
}

/// Sends a byte now and then until nobody wants it.
fn drip(mut stream: TcpStream) {
    while stream.write_all(b".").is_ok() {
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn p31_idle_is_who_hears_nothing_in_either_direction() {
    let silent = serve_port("127.10.1.1", |mut stream| drop(stream.read_to_end(&mut Vec::new())));
    let dripping = serve_port("127.10.1.1", drip);
    let world = World::new(timed("127.10.1.1", Timeouts { idle: Some(600), ..Timeouts::default() }));
    let mut alive = passed(&world, dripping);
    let start = Instant::now();
    let mut ended = passed(&world, silent);
    let error = ended.read_to_end(&mut Vec::new()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert!(start.elapsed() >= Duration::from_millis(600));
    // Three times as long, and one direction says nothing.
    while start.elapsed() < Duration::from_millis(1_800) {
        alive.read_exact(&mut [0; 4]).unwrap();
    }
    world.counted(|s| s.counters.idle_timeout == 1 && s.counters.open == 1);
}

#[test]
fn nothing_lasts_longer_than_the_total_time() {
    let port = serve_port("127.10.2.1", drip);
    let world = World::new(timed("127.10.2.1", Timeouts { total: Some(700), ..Timeouts::default() }));
    let start = Instant::now();
    let mut stream = passed(&world, port);
    let error = stream.read_to_end(&mut Vec::new()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert!(start.elapsed() >= Duration::from_millis(700));
    world.counted(|s| s.counters.total_timeout == 1 && s.counters.open == 0);
}

/// Writes until nobody wants it.
fn flood(mut stream: TcpStream) {
    while stream.write_all(&[7; 65_536]).is_ok() {}
}

#[test]
fn who_takes_nothing_is_let_go_and_who_takes_little_is_not() {
    let port = serve_port("127.10.3.1", flood);
    let world = World::new(timed("127.10.3.1", Timeouts { write: Some(800), ..Timeouts::default() }));
    let mut slow = passed(&world, port);
    let stalled = [passed(&world, port)];
    let mut tls = open(world.ingress, &format!("{}-{port}.{BASE}", id(9)), &client(false, &[]));
    tls.read_exact(&mut [0]).unwrap();
    // Much less than the socket's buffers, so that only a look at them tells that something was taken.
    let (start, mut piece) = (Instant::now(), vec![0; 64 * 1024]);
    while start.elapsed() < Duration::from_millis(4_000) {
        slow.read_exact(&mut piece).unwrap();
        std::thread::sleep(Duration::from_millis(20));
    }
    world.counted(|s| s.counters.write_timeout == 2 && s.counters.open == 1);
    stalled.iter().for_each(|stream| assert!(!rest(stream).is_empty()));
    slow.read_exact(&mut piece).unwrap();
}

#[test]
fn a_refused_client_that_does_not_go_is_closed() {
    let world = World::new(timed("127.10.4.1", Timeouts { shutdown: 300, ..Timeouts::default() }));
    let mut stream = connect(world.ingress);
    stream.write_all(&hello(&format!("{}.{BASE}", id(77)), None, 0)).unwrap();
    let mut alert = [0; 7];
    stream.read_exact(&mut alert).unwrap();
    assert_eq!(alert, [21, 3, 3, 0, 2, 2, 112]);
    world.counted(|s| s.counters.unknown_name == 1 && s.counters.open == 0);
    drop(stream);
}

#[test]
fn a_stalled_reader_stops_its_app_and_nobody_else() {
    let (sender, written) = channel();
    let port = serve_port("127.10.5.1", move |mut stream| {
        // What is left unread at the end would make it a reset.
        stream.read_exact(&mut vec![0; hello(&format!("{}-12345s.{BASE}", id(9)), None, 0).len()]).unwrap();
        stream.set_write_timeout(Some(Duration::from_millis(700))).unwrap();
        let (mut total, piece) = (0, vec![7; 65_536]);
        let error = loop {
            match stream.write(&piece) {
                Ok(count) => total += count,
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
        sender.send(total).unwrap();
    });
    let good = echo("127.10.5.1");
    let world = World::new(script("127.10.5.1", 5_000));
    works(&world, good);
    let before = world.resident();
    let mut stalled: Vec<_> = (0..8).map(|_| passed(&world, port)).collect();
    let start = Instant::now();
    (0..100).for_each(|_| works(&world, good));
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    let mut total = 0;
    for _ in &stalled {
        let each = written.recv_timeout(crate::world::PATIENCE).unwrap();
        // What the buffers of three sockets and a pipe hold.
        assert!(each < 48 * MIB, "{each} bytes");
        total += each;
    }
    let kept = world.resident().saturating_sub(before);
    assert!(kept < 4 * MIB, "{kept} bytes are kept in the process");
    // Once it reads, it gets all of it.
    let arrived: usize = stalled.iter_mut().map(|stream| rest(stream).len()).sum();
    assert_eq!(arrived, total);
}

#[test]
fn both_sides_may_speak_ipv6() {
    let port = echo("::1");
    let asks = Instance { proxy_protocol: BTreeSet::from([port]), ..instance(1, 9, "::1") };
    let world = World::dual(Script { instances: vec![asks, instance(2, 8, "::1")], ..script("::1", 5_000) });
    let to = world.ingress6.unwrap();
    let bytes = hello(&format!("{}-{port}s.{BASE}", id(9)), None, 0);
    for (door, header) in [(to, 52), (world.ingress, 28)] {
        let mut stream = connect(door);
        stream.write_all(&bytes).unwrap();
        let mut back = vec![0; header + bytes.len()];
        stream.read_exact(&mut back).unwrap();
        let expected = dstack_core::proxy_header::format(stream.local_addr().unwrap(), door);
        assert!(back.starts_with(&expected) && expected.len() == header && back.ends_with(&bytes));
    }
    let mut tls = open(to, &format!("{}-{port}.{BASE}", id(8)), &client(false, &[]));
    tls.write_all(b"six").unwrap();
    let mut back = [0; 3];
    tls.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"six");
}
