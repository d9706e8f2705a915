// SPDX-License-Identifier: Apache-2.0
//! Bytes arrive whole, whoever sends them and however slowly they are read.

use crate::client::{client, open};
use crate::world::{BASE, PATIENCE, echo, id, serve_port};
use crate::{BULK, LARGE, always, clients, joined, pattern, support, well};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::sync::mpsc::channel;
use std::time::Duration;

/// Answers one byte with much, and ends at once.
fn library(address: &str, size: usize) -> u16 {
    serve_port(address, move |mut stream| {
        stream.read_exact(&mut [0]).unwrap();
        stream.write_all(&pattern(size)).unwrap();
    })
}

#[test]
fn a_download_arrives_whole_by_every_suite() {
    let Some(support) = support() else { return };
    let port = library("127.20.1.1", LARGE);
    let world = always("127.20.1.1");
    let all = clients(support);
    for (_, name, config) in &all {
        let mut tls = joined(&world, port, config);
        tls.write_all(b"?").unwrap();
        let mut back = Vec::new();
        // It ends with close_notify; without, that would be an error.
        tls.read_to_end(&mut back).unwrap();
        assert!(back == pattern(LARGE), "{} bytes by {name}", back.len());
    }
    well(&world, all.len() as u64, all.len() as u64);
}

#[test]
fn an_upload_arrives_whole_by_every_suite() {
    let Some(support) = support() else { return };
    let (sender, heard) = channel();
    let port = serve_port("127.20.2.1", move |mut stream| {
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        sender.send(all).unwrap();
        stream.write_all(b"thanks").unwrap();
    });
    let world = always("127.20.2.1");
    let all = clients(support);
    for (_, name, config) in &all {
        let mut tls = joined(&world, port, config);
        tls.write_all(&pattern(LARGE)).unwrap();
        tls.conn.send_close_notify();
        tls.flush().unwrap();
        let there = heard.recv_timeout(PATIENCE).unwrap();
        assert!(there == pattern(LARGE), "{} bytes by {name}", there.len());
        let mut back = Vec::new();
        tls.read_to_end(&mut back).unwrap();
        assert_eq!(back, b"thanks", "{name}");
    }
    well(&world, all.len() as u64, all.len() as u64);
}

#[test]
fn both_ways_at_once() {
    let Some(_) = support() else { return };
    let port = echo("127.20.3.1");
    let world = always("127.20.3.1");
    for (ended, tls12) in [(1, false), (2, true)] {
        let mut tls = joined(&world, port, &client(tls12, &[]));
        let (mut back, mut piece) = (Vec::new(), vec![0; 100_000]);
        // Odd sizes, so that records end anywhere; never more on the way than the buffers hold.
        for (number, part) in pattern(LARGE).chunks(77_777).enumerate() {
            tls.write_all(part).unwrap();
            if number > 1 {
                let count = tls.read(&mut piece).unwrap();
                back.extend_from_slice(&piece[..count]);
            }
        }
        tls.conn.send_close_notify();
        tls.flush().unwrap();
        tls.read_to_end(&mut back).unwrap();
        assert!(back == pattern(LARGE), "{} bytes, TLS 1.2 {tls12}", back.len());
        well(&world, ended, ended);
    }
}

/// What the kernel holds for want of room must not be lost when the app has said all.
#[test]
fn a_slow_reader_gets_the_last_byte() {
    /// More than all buffers.
    const HUGE: usize = 3 * LARGE;
    let Some(_) = support() else { return };
    let port = library("127.20.4.1", HUGE);
    let world = always("127.20.4.1");
    for (ended, tls12) in [(1, false), (2, true)] {
        let mut tls = joined(&world, port, &client(tls12, &[]));
        rustix::net::sockopt::set_socket_recv_buffer_size(&tls.sock, 256 * 1024).unwrap();
        tls.write_all(b"?").unwrap();
        let (mut back, mut piece) = (Vec::new(), vec![0; 128 * 1024]);
        loop {
            match tls.read(&mut piece).unwrap() {
                0 => break,
                count => back.extend_from_slice(&piece[..count]),
            }
            if back.len() > HUGE - BULK {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        assert!(back == pattern(HUGE), "{} bytes, TLS 1.2 {tls12}", back.len());
        drop(tls);
        well(&world, ended, ended);
    }
}

/// Many at a time, each with its own end.
#[test]
fn many_at_once() {
    let Some(_) = support() else { return };
    let port = serve_port("127.20.5.1", |mut stream| {
        let mut sum = Vec::new();
        std::io::Read::by_ref(&mut stream).take(BULK as u64).read_to_end(&mut sum).unwrap();
        stream.write_all(&sum).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        stream.read_to_end(&mut sum).unwrap();
    });
    let world = always("127.20.5.1");
    std::thread::scope(|scope| {
        for number in 0..8 {
            let to = world.ingress;
            scope.spawn(move || {
                let mut tls = open(to, &format!("{}-{port}.{BASE}", id(9)), &client(number % 2 == 0, &[]));
                tls.write_all(&pattern(BULK)).unwrap();
                let mut back = Vec::new();
                tls.read_to_end(&mut back).unwrap();
                assert!(back == pattern(BULK), "{} bytes", back.len());
            });
        }
    });
    well(&world, 8, 8);
}
