// SPDX-License-Identifier: Apache-2.0
//! Clients and instances that mean no good, or do no good.

use crate::client::{client, hello, open};
use crate::world::{BASE, Script, World, certificate, config, connect, echo, id, instance, serve_port};
use dstack_core::flow::{Config, Timeouts};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

pub fn script(address: &str, handshake: u64) -> Script {
    let timeouts = Timeouts { handshake, connect: 1_000, ..Timeouts::default() };
    let config = Config { timeouts, ..config() };
    let instances = vec![instance(1, 9, address)];
    Script { config, certificates: vec![certificate(false)], instances, ..Script::default() }
}

/// Everything until the end, be it a reset.
pub fn rest(mut stream: &TcpStream) -> Vec<u8> {
    let (mut all, mut piece) = (Vec::new(), [0; 4096]);
    while let Ok(count @ 1..) = stream.read(&mut piece) {
        all.extend_from_slice(&piece[..count]);
    }
    all
}

pub fn works(world: &World, port: u16) {
    let bytes = hello(&format!("{}-{port}s.{BASE}", id(9)), None, 0);
    let mut stream = connect(world.ingress);
    stream.write_all(&bytes).unwrap();
    let mut back = vec![0; bytes.len()];
    stream.read_exact(&mut back).unwrap();
    assert!(back == bytes);
}

#[test]
fn what_is_no_hello_ends_at_once_and_is_counted() {
    let port = echo("127.6.1.1");
    let world = World::new(script("127.6.1.1", 5_000));
    let no_name = {
        // The name becomes another extension.
        let mut bytes = hello(&format!("{}.{BASE}", id(9)), None, 0);
        let at = bytes.windows(20).position(|window| window == &id(9).as_bytes()[..20]).unwrap();
        bytes[at - 9] = 0xff;
        bytes
    };
    for (bytes, answer) in [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), vec![]),
        (vec![0; 4096], vec![]),
        (vec![22, 3, 1, 0xff, 0xff, 1, 1], vec![]),
        (no_name, vec![21, 3, 3, 0, 2, 2, 112]),
        (hello(&format!("{}.{BASE}", id(8)), None, 0), vec![21, 3, 3, 0, 2, 2, 112]),
        (hello(BASE, None, 0), vec![21, 3, 3, 0, 2, 2, 112]),
        (hello(&format!("{}-1s.{BASE}", id(9)), None, 0), vec![21, 3, 3, 0, 2, 2, 80]),
    ] {
        let mut stream = connect(world.ingress);
        stream.write_all(&bytes).unwrap();
        let start = Instant::now();
        assert_eq!(rest(&stream), answer);
        assert!(start.elapsed() < Duration::from_secs(4));
    }
    drop(connect(world.ingress));
    works(&world, port);
    world.counted(|stats| {
        let c = &stats.counters;
        (c.not_tls, c.no_name, c.unknown_name, c.connect_failed) == (3, 1, 2, 1) && c.early_close == 1
    });
}

#[test]
fn slow_clients_are_let_go_at_the_deadline_and_delay_nobody() {
    let port = echo("127.6.2.1");
    let world = World::new(script("127.6.2.1", 1_500));
    let bytes = hello(&format!("{}-{port}.{BASE}", id(9)), None, 0);
    let silent: Vec<_> = (0..300).map(|_| connect(world.ingress)).collect();
    let stalled: Vec<_> = (0..300)
        .map(|_| {
            let mut stream = connect(world.ingress);
            stream.write_all(&bytes[..20]).unwrap();
            stream
        })
        .collect();
    // A whole hello, but no handshake.
    let half: Vec<_> = (0..50)
        .map(|_| {
            let mut stream = connect(world.ingress);
            stream.write_all(&bytes).unwrap();
            stream
        })
        .collect();
    (0..20).for_each(|_| works(&world, port));
    let start = Instant::now();
    silent.iter().chain(&stalled).for_each(|stream| assert!(rest(stream).is_empty()));
    half.iter().for_each(|stream| assert!(!rest(stream).is_empty(), "our part of the handshake"));
    assert!(start.elapsed() < Duration::from_secs(10));
    world.counted(|s| {
        s.counters.hello_timeout == 600 && s.counters.handshake_timeout == 50 && s.counters.open == 0
    });
}

#[test]
fn too_many_half_open_connections_cost_the_oldest() {
    let port = echo("127.6.3.1");
    let mut script = script("127.6.3.1", 60_000);
    script.config.half_open = 100;
    let world = World::new(script);
    let idle: Vec<_> = (0..1_000).map(|_| connect(world.ingress)).collect();
    works(&world, port);
    world.counted(|stats| stats.counters.evicted >= 880 && stats.counters.open <= 101);
    drop(idle);
    works(&world, port);
}

#[test]
fn without_descriptors_it_waits_for_some() {
    let port = echo("127.6.4.1");
    let world = World::limited(script("127.6.4.1", 60_000), 200);
    let name = format!("{}-{port}s.{BASE}", id(9));
    let mut open: Vec<TcpStream> = Vec::new();
    for _ in 0..100 {
        let mut stream = connect(world.ingress);
        stream.write_all(&hello(&name, None, 0)).unwrap();
        open.push(stream);
    }
    world.counted(|stats| stats.counters.fd_exhausted > 0);
    drop(open);
    works(&world, port);
}

#[test]
fn a_reset_is_passed_on_and_never_looks_like_an_end() {
    let port = serve_port("127.6.5.1", |mut stream| {
        stream.write_all(b"part").unwrap();
        let mut seen = [0; 1];
        stream.read_exact(&mut seen).unwrap();
        rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
    });
    let world = World::new(script("127.6.5.1", 5_000));
    let mut stream = connect(world.ingress);
    stream.write_all(&hello(&format!("{}-{port}s.{BASE}", id(9)), None, 0)).unwrap();
    let error = stream.read_to_end(&mut Vec::new()).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    let mut tls = open(world.ingress, &format!("{}-{port}.{BASE}", id(9)), &client(false, &[]));
    tls.write_all(b"x").unwrap();
    assert!(tls.read_to_end(&mut Vec::new()).is_err(), "no close_notify");
    // Clients that reset in every phase leave nothing.
    for sent in [0, 20, 10_000] {
        let mut stream = connect(world.ingress);
        let bytes = hello(&format!("{}-{port}s.{BASE}", id(9)), None, 0);
        stream.write_all(&bytes[..sent.min(bytes.len())]).unwrap();
        rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
    }
    world.counted(|stats| stats.counters.open == 0 && stats.counters.accepted == 5);
}

#[test]
fn the_living_instance_wins_the_race_and_the_dead_one_is_shunned() {
    let port = echo("127.6.6.2");
    let mut script = script("127.6.6.2", 5_000);
    // Instance 3 is newer, and nothing listens there.
    script.instances = vec![instance(2, 9, "127.6.6.2"), instance(3, 9, "127.6.6.3")];
    script.config.connect_top_n = 1;
    let world = World::new(script);
    (0..10).for_each(|_| works(&world, port));
    world.counted(|stats| {
        let of = |id: u8| stats.instances.iter().find(|i| i.instance == [id; 20].into());
        of(2).is_some_and(|i| i.connected == 10) && of(3).is_some_and(|i| (1..=2).contains(&i.failed))
    });
}

#[test]
fn an_app_has_so_many_connections_and_no_more() {
    let port = echo("127.6.7.1");
    let mut script = script("127.6.7.1", 5_000);
    script.config.connections_per_app = 3;
    let world = World::new(script);
    let bytes = hello(&format!("{}-{port}s.{BASE}", id(1)), None, 0);
    let begin = || {
        let mut stream = connect(world.ingress);
        stream.write_all(&bytes).unwrap();
        let mut first = [0; 7];
        stream.read_exact(&mut first).unwrap();
        (stream, first)
    };
    let open: Vec<_> = (0..3).map(|_| begin()).collect();
    assert!(open.iter().all(|(_, first)| first[0] == 22));
    assert_eq!(begin().1, [21, 3, 3, 0, 2, 2, 80]);
    drop(open);
    while begin().1[0] != 22 {}
    world.counted(|stats| stats.counters.app_full >= 1);
}

#[test]
fn p29_t19_names_lead_only_to_registered_instances() {
    let secret = serve_port("127.0.0.1", |_| panic!("the host's own loopback was reached"));
    let mut script = script("127.6.8.1", 5_000);
    script.names = [
        ("127.0.0.1".to_owned(), None),
        ("evil.example".to_owned(), Some(dstack_core::flow::Target { id: [77; 20].into(), port: secret })),
    ]
    .into();
    let world = World::new(script);
    for name in [
        "evil.example",
        "localhost.example",
        &format!("127.0.0.1-{secret}s.{BASE}"),
        &format!("{secret}.{BASE}"),
    ] {
        let mut stream = connect(world.ingress);
        stream.write_all(&hello(name, None, 0)).unwrap();
        let answer = rest(&stream);
        assert!(matches!(answer.as_slice(), [21, 3, 3, 0, 2, 2, 112 | 80]), "{name}: {answer:?}");
    }
    world.counted(|stats| stats.counters.unknown_name >= 3 && stats.counters.name_timeout == 1);
}
