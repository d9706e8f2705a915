// SPDX-License-Identifier: Apache-2.0
//! How connections end, and clients that ask for more than a handshake.

use crate::client::{client, hello, open};
use crate::hostile::{script, works};
use crate::world::{BASE, World, connect, echo, id, serve_port};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::process::{Command, Stdio};

const LARGE: usize = 8 * 1024 * 1024;

fn pattern(size: usize) -> Vec<u8> {
    (0..size).map(|at| (at * 17 + at / 8191).to_le_bytes()[0]).collect()
}

#[test]
fn p31_with_tls_the_client_may_be_the_first_to_say_all() {
    let port = serve_port("127.8.1.1", |mut stream| {
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        assert_eq!(all, b"the question");
        stream.write_all(&pattern(LARGE)).unwrap();
    });
    let world = World::new(script("127.8.1.1", 5_000));
    for tls12 in [false, true] {
        let mut tls = open(world.ingress, &format!("{}-{port}.{BASE}", id(9)), &client(tls12, &[]));
        tls.write_all(b"the question").unwrap();
        tls.conn.send_close_notify();
        tls.flush().unwrap();
        let mut back = Vec::new();
        tls.read_to_end(&mut back).unwrap();
        assert!(back == pattern(LARGE), "{} bytes, TLS 1.2 {tls12}", back.len());
    }
    world.counted(|s| s.counters.open == 0 && s.counters.terminated == 2 && s.counters.reset == 0);
}

#[test]
fn p31_with_tls_the_app_may_be_the_first_to_say_all() {
    let (sender, heard) = std::sync::mpsc::channel();
    let port = serve_port("127.8.2.1", move |mut stream| {
        stream.write_all(b"bye").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        sender.send(all).unwrap();
    });
    let world = World::new(script("127.8.2.1", 5_000));
    for tls12 in [false, true] {
        let mut tls = open(world.ingress, &format!("{}-{port}.{BASE}", id(9)), &client(tls12, &[]));
        let mut back = Vec::new();
        tls.read_to_end(&mut back).unwrap();
        assert_eq!(back, b"bye");
        tls.write_all(&pattern(LARGE)).unwrap();
        tls.conn.send_close_notify();
        tls.flush().unwrap();
        let all = heard.recv_timeout(crate::world::PATIENCE).unwrap();
        assert!(all == pattern(LARGE), "{} bytes, TLS 1.2 {tls12}", all.len());
    }
    drop(world);
}

#[test]
fn p31_a_client_may_say_all_before_it_is_looked_at() {
    let port = echo("127.8.5.1");
    let world = World::new(script("127.8.5.1", 20_000));
    let name = format!("{}-{port}s.{BASE}", id(9));
    let http = format!("GET / HTTP/1.1\r\nHost: {}-{port}.{BASE}\r\n\r\n", id(9)).into_bytes();
    for (number, door, said) in [
        (1, world.ingress, hello(&name, None, 0)),
        (2, world.passthrough, hello(&name, None, 0)),
        (3, world.http, http),
    ] {
        let mut stream = connect(door);
        world.counted(|s| s.counters.accepted == number && s.counters.half_open == 1);
        let said = [said, b"and a question".to_vec()].concat();
        world.frozen(|| {
            stream.write_all(&said).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
        });
        let mut back = Vec::new();
        stream.read_to_end(&mut back).unwrap();
        assert!(back == said, "{number}: {} bytes of {}", back.len(), said.len());
    }
    // TLS that ends here needs more from such a client than a hello.
    let mut stream = connect(world.ingress);
    world.counted(|s| s.counters.accepted == 4 && s.counters.half_open == 1);
    world.frozen(|| {
        stream.write_all(&hello(&format!("{}-{port}.{BASE}", id(9)), None, 0)).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
    });
    stream.read_to_end(&mut Vec::new()).unwrap();
    world.counted(|s| (s.counters.early_close, s.counters.open, s.counters.reset) == (1, 0, 0));
}

/// `openssl s_client` asks for another handshake when it reads a line `R`.
#[test]
fn a_renegotiation_is_refused_and_counted() {
    let port = echo("127.8.3.1");
    let world = World::new(script("127.8.3.1", 5_000));
    let name = format!("{}-{port}.{BASE}", id(9));
    let to = world.ingress.to_string();
    let mut openssl = Command::new("openssl")
        .args(["s_client", "-tls1_2", "-connect", &to, "-servername", &name])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program openssl");
    let mut input = openssl.stdin.take().unwrap();
    let output = BufReader::new(openssl.stdout.take().unwrap());
    let mut lines = output.lines().map_while(Result::ok);
    assert!(lines.any(|line| line == "---"), "no handshake");
    input.write_all(b"first\n").unwrap();
    assert!(lines.any(|line| line == "first"), "the app has not answered");
    input.write_all(b"R\n").unwrap();
    let mut said = String::new();
    openssl.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(said.contains("RENEGOTIATING") && said.contains("no renegotiation"), "{said}");
    openssl.wait().unwrap();
    world.counted(|s| s.counters.renegotiations == 1 && s.counters.open == 0);
    works(&world, port);
}

#[test]
fn what_is_no_tls_after_the_handshake_ends_it_with_an_alert() {
    let port = echo("127.8.4.1");
    let world = World::new(script("127.8.4.1", 5_000));
    for (number, tls12) in [(1, false), (2, true)] {
        let mut tls = open(world.ingress, &format!("{}-{port}.{BASE}", id(9)), &client(tls12, &[]));
        tls.write_all(b"x").unwrap();
        tls.read_exact(&mut [0]).unwrap();
        // A record that nobody can have sealed.
        tls.sock.write_all(&[[23, 3, 3, 0, 32].as_slice(), &[7; 32]].concat()).unwrap();
        let error = tls.read(&mut [0]).unwrap_err();
        assert!(error.to_string().contains("BadRecordMac"), "{error}");
        world.counted(|s| (s.counters.tls_broken, s.counters.reset) == (number, number));
    }
}
