// SPDX-License-Identifier: Apache-2.0
//! Clients that reach their app.

use crate::client::{client, hello, open};
use crate::world::{
    BASE, Script, World, certificate, config, connect, echo, echo_at, id, instance, serve_port,
};
use dstack_core::flow::{Config, Instance, Target, Timeouts, ToFlow};
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::Shutdown;

const LARGE: usize = 24 * 1024 * 1024;

fn script(address: &str) -> Script {
    let certificates = vec![certificate(false)];
    Script { config: config(), certificates, instances: vec![instance(1, 9, address)], ..Script::default() }
}

fn pattern(size: usize) -> Vec<u8> {
    (0..size).map(|at| (at * 31 + at / 4093).to_le_bytes()[0]).collect()
}

#[test]
fn every_form_of_hello_is_passed_through_as_it_was() {
    let port = echo("127.5.1.1");
    let world = World::new(script("127.5.1.1"));
    let name = format!("{}-{port}s.{BASE}", id(9));
    for (fragment, padding, piece) in
        [(None, 0, 0), (None, 0, 1), (Some(64), 0, 0), (Some(64), 0, 7), (None, 60, 0), (None, 150, 1000)]
    {
        let mut bytes = hello(&name, fragment, padding);
        assert!(bytes.len() > padding * 90 && bytes.len() < 16_000);
        let mut stream = connect(world.ingress);
        for part in bytes.chunks(if piece == 0 { bytes.len() } else { piece }) {
            stream.write_all(part).unwrap();
        }
        stream.write_all(b"and more").unwrap();
        bytes.extend_from_slice(b"and more");
        let mut back = vec![0; bytes.len()];
        stream.read_exact(&mut back).unwrap();
        assert!(back == bytes, "{fragment:?} {padding} {piece}");
    }
    world.counted(|stats| {
        stats.counters.passed_through == 6 && stats.instances.iter().any(|i| i.connected == 6)
    });
}

/// Captured hellos, and what they are: `daemons/lib/core/tests/client_hellos/README.md`.
#[test]
fn hellos_of_real_programs_reach_their_app() {
    let app = "3327603e03f5bd1f830812ca4a789277fc31f577";
    echo_at("127.5.9.1", 8443);
    let mut config = config();
    config.base_domains.push("app.example.com".into());
    let instances = vec![Instance { app_id: app.parse().unwrap(), ..instance(1, 9, "127.5.9.1") }];
    let world = World::new(Script { config, instances, ..Script::default() });
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/../lib/core/tests/client_hellos");
    let files = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let files: Vec<_> = files.filter(|path| path.extension().is_some_and(|ext| ext == "bin")).collect();
    assert!(files.len() >= 14);
    for path in &files {
        let bytes = std::fs::read(path).unwrap();
        for piece in [bytes.len(), 100] {
            let mut stream = connect(world.ingress);
            bytes.chunks(piece).for_each(|part| stream.write_all(part).unwrap());
            let mut back = vec![0; bytes.len()];
            stream.read_exact(&mut back).unwrap();
            assert!(back == bytes, "{}", path.display());
        }
    }
    world.counted(|stats| stats.counters.passed_through == 2 * files.len() as u64);
}

#[test]
fn p31_half_close_both_ways_and_all_bytes_arrive() {
    // It answers only after the client has said all, and then goes on for long.
    let port = serve_port("127.5.2.1", |mut stream| {
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        stream.write_all(&pattern(LARGE)).unwrap();
        stream.write_all(&(all.len() as u64).to_be_bytes()).unwrap();
    });
    let world = World::new(script("127.5.2.1"));
    let bytes = hello(&format!("{}-{port}s.{BASE}", id(1)), None, 0);
    let mut stream = connect(world.ingress);
    stream.write_all(&bytes).unwrap();
    stream.write_all(&pattern(LARGE)).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut back = Vec::new();
    stream.read_to_end(&mut back).unwrap();
    assert_eq!(back.len(), LARGE + 8);
    assert!(back[..LARGE] == pattern(LARGE));
    assert_eq!(back[LARGE..], ((LARGE + bytes.len()) as u64).to_be_bytes());
    // And the app may be the first to say all.
    let port = serve_port("127.5.2.1", |mut stream| {
        stream.write_all(b"bye").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        assert!(all.ends_with(b"still here"));
    });
    let mut stream = connect(world.ingress);
    stream.write_all(&hello(&format!("{}-{port}s.{BASE}", id(1)), None, 0)).unwrap();
    let mut back = Vec::new();
    stream.read_to_end(&mut back).unwrap();
    assert_eq!(back, b"bye");
    stream.write_all(b"still here").unwrap();
    drop(stream);
    world.counted(|stats| stats.counters.open == 0 && stats.counters.reset == 0);
}

#[test]
fn tls_ends_here_for_both_versions_and_kinds_of_keys() {
    let port = echo("127.5.3.1");
    for ed25519 in [false, true] {
        let certificates = vec![certificate(ed25519)];
        let world = World::new(Script { certificates, ..script("127.5.3.1") });
        for (number, tls12) in [(1, false), (2, true)] {
            let config = client(tls12, &["h2", "http/1.1"]);
            for round in 0..2 {
                let mut tls = open(world.ingress, &format!("{}-{port}.{BASE}", id(9)), &config);
                tls.write_all(b"hello").unwrap();
                let mut back = [0; 5];
                tls.read_exact(&mut back).unwrap();
                assert_eq!((&back, tls.conn.alpn_protocol()), (b"hello", Some(&b"http/1.1"[..])));
                let resumed = tls.conn.handshake_kind() == Some(rustls::HandshakeKind::Resumed);
                assert_eq!(resumed, round == 1, "tls12 {tls12}");
                tls.conn.send_close_notify();
                tls.flush().unwrap();
                assert_eq!(tls.read_to_end(&mut Vec::new()).unwrap(), 0, "a clean end");
            }
            world.counted(|stats| stats.counters.resumed == number);
        }
    }
}

#[test]
fn protocols_are_agreed_only_where_they_can_be_kept() {
    let port = echo("127.5.4.1");
    let world = World::new(script("127.5.4.1"));
    for (suffix, offered, agreed) in [
        ("", vec!["h2", "http/1.1"], Some("http/1.1")),
        ("g", vec!["h2", "http/1.1"], Some("h2")),
        ("g", vec!["http/1.1"], None),
        ("", vec!["h2"], None),
        ("", vec!["mqtt"], None),
        ("", vec![], None),
    ] {
        let mut tls =
            open(world.ingress, &format!("{}-{port}{suffix}.{BASE}", id(9)), &client(false, &offered));
        tls.write_all(b"x").unwrap();
        tls.read_exact(&mut [0]).unwrap();
        assert_eq!(tls.conn.alpn_protocol(), agreed.map(str::as_bytes), "{suffix} {offered:?}");
    }
}

#[test]
fn large_bodies_wait_for_slow_readers_and_arrive_whole() {
    let port = serve_port("127.5.5.1", |mut stream| {
        let mut other = stream.try_clone().unwrap();
        let writer = std::thread::spawn(move || other.write_all(&pattern(LARGE)));
        let mut all = vec![0; LARGE];
        stream.read_exact(&mut all).unwrap();
        assert!(all == pattern(LARGE));
        assert_eq!(stream.read_to_end(&mut Vec::new()).unwrap(), 0);
        writer.join().unwrap().unwrap();
    });
    // The client takes nothing while it sends, which takes a while here.
    let timeouts = Timeouts { write: None, ..Timeouts::default() };
    let world = World::new(Script { config: Config { timeouts, ..config() }, ..script("127.5.5.1") });
    for tls12 in [false, true] {
        let mut tls = open(world.ingress, &format!("{}-{port}.{BASE}", id(9)), &client(tls12, &[]));
        tls.write_all(&pattern(LARGE)).unwrap();
        tls.conn.send_close_notify();
        tls.flush().unwrap();
        let mut back = Vec::new();
        tls.read_to_end(&mut back).unwrap();
        assert!(back == pattern(LARGE), "{} bytes", back.len());
    }
    world.counted(|stats| stats.counters.bytes_down >= 2 * LARGE as u64 && stats.counters.open == 0);
}

#[test]
fn the_passthrough_door_and_custom_domains() {
    let port = echo("127.5.6.1");
    let target = Some(Target { id: [9; 20].into(), port });
    let names = [("www.example.org".to_owned(), target), ("no.example.org".to_owned(), None)].into();
    let world = World::new(Script { names, ..script("127.5.6.1") });
    let own = format!("{}-{port}.{BASE}", id(9));
    for (door, name) in [
        (world.passthrough, own.as_str()),
        (world.passthrough, "www.example.org"),
        (world.ingress, "www.example.org"),
        (world.ingress, "WWW.example.org"),
    ] {
        let bytes = hello(name, None, 0);
        let mut stream = connect(door);
        stream.write_all(&bytes).unwrap();
        let mut back = vec![0; bytes.len()];
        stream.read_exact(&mut back).unwrap();
        assert!(back == bytes, "{name}");
    }
    let mut stream = connect(world.ingress);
    stream.write_all(&hello("no.example.org", None, 0)).unwrap();
    let mut back = Vec::new();
    stream.read_to_end(&mut back).unwrap();
    assert_eq!(back, [21, 3, 3, 0, 2, 2, 112]);
    world.counted(|stats| stats.counters.name_lookups == 2 && stats.counters.unknown_name == 1);
}

#[test]
fn plain_http_goes_by_host() {
    let agent = serve_port("127.5.7.1", |mut stream| {
        let mut buffer = [0; 4096];
        let count = stream.read(&mut buffer).unwrap();
        let line = String::from_utf8_lossy(&buffer[..count]).lines().next().unwrap().to_owned();
        stream.write_all(format!("HTTP/1.1 200 OK\r\n\r\n{line}").as_bytes()).unwrap();
    });
    let config = Config { tappd_port: agent, ..config() };
    let world = World::new(Script { config, ..script("127.5.7.1") });
    let ask = |text: &str| {
        let mut stream = connect(world.http);
        stream.write_all(text.as_bytes()).unwrap();
        let mut back = String::new();
        stream.read_to_string(&mut back).unwrap();
        back
    };
    let bare = format!("{}.{BASE}", id(9));
    let answer = ask(&format!("GET /logs/x HTTP/1.1\r\nHost: {bare}:9090\r\n\r\n"));
    assert!(answer.ends_with("GET /logs/x HTTP/1.1"), "{answer}");
    assert!(
        ask(&format!("GET / HTTP/1.1\r\nHost: {}-{agent}.{BASE}\r\n\r\n", id(1))).starts_with("HTTP/1.1 200")
    );
    for (host, status) in
        [("www.example.org", "404"), ("x.app.test", "404"), (&*format!("{}.{BASE}", id(7)), "404")]
    {
        let answer = ask(&format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{host}: {answer}");
    }
    assert!(ask("\x16\x03\x01 no\r\n\r\n").starts_with("HTTP/1.1 400 "));
    let closed = format!("{}-1.{BASE}", id(9));
    assert!(ask(&format!("GET / HTTP/1.1\r\nHost: {closed}\r\n\r\n")).starts_with("HTTP/1.1 502 "));
}

#[test]
fn an_app_that_asks_for_it_hears_who_comes() {
    let port = echo("127.5.8.1");
    let asks = Instance { proxy_protocol: BTreeSet::from([port]), ..instance(1, 9, "127.5.8.1") };
    let names = [("www.example.org".to_owned(), Some(Target { id: [9; 20].into(), port }))].into();
    let world = World::new(Script { instances: vec![asks.clone()], names, ..script("127.5.8.1") });
    let bytes = hello(&format!("{}-{port}s.{BASE}", id(9)), None, 0);
    let mut stream = connect(world.ingress);
    stream.write_all(&bytes).unwrap();
    let mut back = vec![0; 28 + bytes.len()];
    stream.read_exact(&mut back).unwrap();
    let header = dstack_core::proxy_header::format(stream.local_addr().unwrap(), world.ingress);
    assert!(back.starts_with(&header) && back.ends_with(&bytes));
    let refused = Instance { port_policy: Some(BTreeSet::from([1])), ..asks };
    world.say(|_| {}, &ToFlow::RouteDelta { upsert: vec![refused], remove: vec![] });
    // The change and the next client race: ask until it has arrived.
    let mut alert = Vec::new();
    while alert != [21, 3, 3, 0, 2, 2, 49] {
        let mut stream = connect(world.ingress);
        stream.write_all(&bytes).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        alert.clear();
        stream.read_to_end(&mut alert).unwrap();
    }
    world.counted(|stats| stats.counters.port_refused == 1);
    // Plain HTTP and a custom domain come under the same policy.
    let mut plain = connect(world.http);
    plain.write_all(format!("GET / HTTP/1.1\r\nHost: {}-{port}.{BASE}\r\n\r\n", id(9)).as_bytes()).unwrap();
    let mut answer = String::new();
    plain.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    let mut custom = connect(world.ingress);
    custom.write_all(&hello("www.example.org", None, 0)).unwrap();
    alert.clear();
    custom.read_to_end(&mut alert).unwrap();
    assert_eq!(alert, [21, 3, 3, 0, 2, 2, 49]);
    world.counted(|stats| stats.counters.port_refused == 3);
}
