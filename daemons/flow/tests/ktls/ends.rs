// SPDX-License-Identifier: Apache-2.0
//! How sessions of the kernel end, and clients that do what is not allowed.

use crate::client::{Tls, client};
use crate::world::{PATIENCE, World, echo, serve_port};
use crate::{BULK, LARGE, always, joined, pattern, support, well, with};
use dstack_core::flow::{Ktls, Timeouts};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;

/// A session of the kernel with an app that sends everything back.
fn taken(world: &World, port: u16, tls12: bool) -> Tls {
    let mut tls = joined(world, port, &client(tls12, &[]));
    let sent = pattern(BULK);
    for part in sent.chunks(64 * 1024) {
        tls.write_all(part).unwrap();
        let mut back = vec![0; part.len()];
        tls.read_exact(&mut back).unwrap();
        assert!(back == part);
    }
    tls
}

#[test]
fn p31_either_side_may_be_the_first_to_say_all() {
    let Some(_) = support() else { return };
    let (sender, heard) = channel();
    let port = serve_port("127.21.1.1", move |mut stream| {
        stream.write_all(&pattern(LARGE)).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        sender.send(all).unwrap();
    });
    let world = always("127.21.1.1");
    for (ended, tls12) in [(1, false), (2, true)] {
        let mut tls = joined(&world, port, &client(tls12, &[]));
        let mut back = Vec::new();
        tls.read_to_end(&mut back).unwrap();
        assert!(back == pattern(LARGE), "{} bytes, TLS 1.2 {tls12}", back.len());
        // The other way is open still.
        tls.write_all(&pattern(LARGE)).unwrap();
        tls.conn.send_close_notify();
        tls.flush().unwrap();
        assert!(heard.recv_timeout(PATIENCE).unwrap() == pattern(LARGE), "TLS 1.2 {tls12}");
        drop(tls);
        well(&world, ended, ended);
    }
}

#[test]
fn an_end_without_close_notify_is_an_end() {
    let Some(_) = support() else { return };
    let port = echo("127.21.2.1");
    let world = always("127.21.2.1");
    for (ended, tls12) in [(1, false), (2, true)] {
        let mut tls = taken(&world, port, tls12);
        tls.write_all(b"last").unwrap();
        tls.sock.shutdown(Shutdown::Write).unwrap();
        let mut back = Vec::new();
        tls.read_to_end(&mut back).unwrap();
        assert_eq!(back, b"last");
        well(&world, ended, ended);
    }
}

#[test]
fn a_record_that_does_not_open_ends_it_with_an_alert() {
    let Some(_) = support() else { return };
    let port = echo("127.21.3.1");
    let world = always("127.21.3.1");
    for (number, tls12) in [(1, false), (2, true)] {
        let mut tls = taken(&world, port, tls12);
        tls.sock.write_all(&[[23, 3, 3, 0, 40].as_slice(), &[7; 40]].concat()).unwrap();
        let error = tls.read(&mut [0]).unwrap_err();
        assert!(error.to_string().contains("BadRecordMac"), "{error}");
        world.counted(|s| {
            (s.counters.tls_broken, s.counters.reset, s.counters.ktls) == (number, number, number)
        });
    }
}

#[test]
fn a_reset_is_passed_on() {
    let Some(_) = support() else { return };
    let (sender, heard) = channel();
    let port = serve_port("127.21.4.1", move |mut stream| {
        stream.write_all(&pattern(BULK)).unwrap();
        sender.send(stream.read(&mut [0]).map_err(|error| error.kind())).unwrap();
    });
    let world = always("127.21.4.1");
    let mut tls = joined(&world, port, &client(false, &[]));
    tls.read_exact(&mut vec![0; BULK]).unwrap();
    world.counted(|s| s.counters.ktls == 1);
    rustix::net::sockopt::set_socket_linger(&tls.sock, Some(std::time::Duration::ZERO)).unwrap();
    drop(tls);
    assert_eq!(heard.recv_timeout(PATIENCE).unwrap(), Err(ErrorKind::ConnectionReset));
    world.counted(|s| s.counters.reset == 1 && s.counters.open == 0);
}

#[test]
fn who_takes_nothing_is_let_go() {
    let Some(_) = support() else { return };
    let flood = |mut stream: std::net::TcpStream| while stream.write_all(&[7; 65_536]).is_ok() {};
    let (flooding, ending) = (
        serve_port("127.21.5.1", flood),
        serve_port("127.21.5.1", |mut stream| {
            // It fits into all buffers but the client's.
            stream.write_all(&pattern(2 * LARGE)).unwrap();
        }),
    );
    let timeouts = Timeouts { write: Some(1_500), ..Timeouts::default() };
    let world = with("127.21.5.1", Ktls::Always, timeouts);
    for (number, port) in [(1, flooding), (2, ending)] {
        let mut tls = joined(&world, port, &client(false, &[]));
        rustix::net::sockopt::set_socket_recv_buffer_size(&tls.sock, 256 * 1024).unwrap();
        tls.read_exact(&mut vec![0; BULK]).unwrap();
        world.counted(|s| s.counters.write_timeout == number && s.counters.ktls == number);
    }
}

/// `openssl s_client` asks for another handshake when it reads a line `R`.
#[test]
fn a_renegotiation_is_refused_and_counted() {
    let Some(_) = support() else { return };
    let port = echo("127.21.6.1");
    let world = always("127.21.6.1");
    let mut openssl = crate::rekey::s_client(&world, port, &["-tls1_2"]);
    let mut input = openssl.stdin.take().unwrap();
    let output = BufReader::new(openssl.stdout.take().unwrap());
    let mut lines = output.lines().map_while(Result::ok);
    crate::rekey::bulk(&mut input, &mut lines);
    world.counted(|s| s.counters.ktls == 1);
    input.write_all(b"R\n").unwrap();
    let mut said = String::new();
    openssl.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(said.contains("RENEGOTIATING") && said.contains("no renegotiation"), "{said}");
    openssl.wait().unwrap();
    world.counted(|s| s.counters.renegotiations == 1 && s.counters.open == 0);
}

/// curl checks nothing here but the protocol; the digest is of what it wrote.
#[test]
fn curl_downloads() {
    let Some(_) = support() else { return };
    let port = serve_port("127.21.7.1", |mut stream| {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {LARGE}\r\nConnection: close\r\n\r\n");
        stream.write_all(answer.as_bytes()).unwrap();
        stream.write_all(&pattern(LARGE)).unwrap();
    });
    let world = always("127.21.7.1");
    let name = format!("{}-{port}.{}", crate::world::id(9), crate::world::BASE);
    let resolve = format!("{name}:{}:127.0.0.1", world.ingress.port());
    let url = format!("https://{name}:{}/", world.ingress.port());
    for (ended, version) in [(1, "1.3"), (2, "1.2")] {
        let out = Command::new("curl")
            .args(["-ksS", "--tls-max", version, "--resolve", &resolve, &url])
            .stderr(Stdio::inherit())
            .output()
            .expect("the program curl");
        assert!(out.status.success() && out.stdout == pattern(LARGE), "{} bytes", out.stdout.len());
        well(&world, ended, ended);
    }
}
