// SPDX-License-Identifier: Apache-2.0
//! ClientHellos as real programs send them (`client_hellos/README.md`), whole and in every kind of pieces.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::cast_possible_truncation)]

use dstack_core::client_hello::{ClientHello, HELLO_MAX, HelloError, Progress, parse};

const NAME: &str = "3327603e03f5bd1f830812ca4a789277fc31f577-8443s.app.example.com";
const HEADER: usize = 5;

macro_rules! captured {
    ($($name:literal $alpn:expr;)*) => {
        &[$(($name, include_bytes!(concat!("client_hellos/", $name, ".bin")).as_slice(), &$alpn)),*]
    };
}

/// Program, the bytes, and the protocols that it offers.
const CAPTURED: &[(&str, &[u8], &[&str])] = captured! {
    "chromium" ["h2", "http/1.1"];
    "curl-gnutls" ["h2", "http/1.1"];
    "curl-openssl" ["h2", "http/1.1"];
    "firefox" ["h2", "http/1.1"];
    "gnutls-cli" [];
    "go" ["h2", "http/1.1"];
    "java" ["h2", "http/1.1"];
    "node" [];
    "nss-tstclnt" [];
    "openssl-mlkem" [];
    "openssl-tls12" [];
    "openssl-tls13" ["h2", "http/1.1"];
    "python" ["http/1.1"];
    "rustls" [];
};

fn whole(stream: &[u8]) -> ClientHello {
    match parse(stream) {
        Ok(Progress::Done(hello)) => hello,
        other => panic!("{other:?}"),
    }
}

fn check(program: &str, stream: &[u8], protocols: &[&str]) {
    let hello = whole(stream);
    assert_eq!(hello.server_name.as_deref(), Some(NAME), "{program}");
    let alpn: Vec<_> = hello.alpn.iter().map(|protocol| std::str::from_utf8(protocol).unwrap()).collect();
    assert_eq!(alpn, protocols, "{program}");
    assert_eq!(hello.length, stream.len(), "{program}");
}

/// The handshake message without its record headers.
fn message(stream: &[u8]) -> Vec<u8> {
    let (mut rest, mut message) = (stream, Vec::new());
    while let [_, _, _, high, low, body @ ..] = rest {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        message.extend_from_slice(&body[..length]);
        rest = &body[length..];
    }
    message
}

fn record(fragment: &[u8]) -> Vec<u8> {
    [&[22, 3, 1], (fragment.len() as u16).to_be_bytes().as_slice(), fragment].concat()
}

#[test]
fn name_and_protocols_are_found() {
    CAPTURED.iter().for_each(|(program, stream, protocols)| check(program, stream, protocols));
}

/// Whatever segment ends where: the beginning asks for more, and never for more than there will be.
#[test]
fn every_cut_into_segments() {
    for (program, stream, _) in CAPTURED {
        for end in 0..stream.len() {
            match parse(&stream[..end]) {
                Ok(Progress::NeedMore(needed)) => {
                    assert!(needed > end && needed <= stream.len(), "{program} {end}");
                }
                other => panic!("{program} {end}: {other:?}"),
            }
        }
        // What comes behind it is not its business.
        let trailing = [stream, &[23, 3, 3][..]].concat();
        assert_eq!(whole(&trailing), whole(stream), "{program}");
    }
}

#[test]
fn every_split_into_two_records() {
    for (program, stream, protocols) in CAPTURED {
        let message = message(stream);
        for at in 1..message.len() {
            let split = [record(&message[..at]), record(&message[at..])].concat();
            check(program, &split, protocols);
            let first = HEADER + at;
            assert_eq!(parse(&split[..first]), Ok(Progress::NeedMore(first + HEADER)), "{program} {at}");
        }
    }
}

#[test]
fn records_of_every_small_size() {
    for (program, stream, protocols) in CAPTURED {
        let message = message(stream);
        for size in (message.len().div_ceil(1024)..=64).chain([255, 256, 512, 1024]) {
            let split: Vec<u8> = message.chunks(size).flat_map(record).collect();
            check(program, &split, protocols);
        }
    }
}

/// A byte of a length or kind that is wrong makes another hello, an error, or the wish for more: never a panic, and
/// never a hello larger than may be.
#[test]
fn every_byte_may_be_wrong() {
    for (program, stream, _) in CAPTURED {
        for at in 0..stream.len() {
            for wrong in [0, 1, 0x7f, 0xff, stream[at] ^ 1] {
                let mut stream = stream.to_vec();
                stream[at] = wrong;
                match parse(&stream) {
                    Ok(Progress::Done(hello)) => assert!(hello.length <= stream.len(), "{program} {at}"),
                    Ok(Progress::NeedMore(needed)) => {
                        assert!(needed > stream.len() && needed <= HELLO_MAX + 2 * HEADER, "{program} {at}");
                    }
                    Err(
                        HelloError::NotTls
                        | HelloError::Record
                        | HelloError::NotHello
                        | HelloError::TooLarge
                        | HelloError::Malformed
                        | HelloError::ServerName,
                    ) => {}
                }
            }
        }
    }
}
