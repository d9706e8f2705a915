// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation)]
use super::*;
use proptest::prelude::*;

fn long(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u16).to_be_bytes(), bytes].concat()
}

fn extension(kind: u16, content: &[u8]) -> Vec<u8> {
    [kind.to_be_bytes().to_vec(), long(content)].concat()
}

fn sni(name: &[u8]) -> Vec<u8> {
    extension(0, &long(&[&[0], long(name).as_slice()].concat()))
}

/// A handshake message with these extensions.
fn message(extensions: &[u8]) -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0]);
    body.extend(long(&[0x13, 0x01, 0x0a, 0x0a]));
    body.extend([1, 0]);
    body.extend(long(extensions));
    let length = (body.len() as u32).to_be_bytes();
    [&[1], &length[1..], &body].concat()
}

/// The message in records of at most `size` bytes.
fn records(message: &[u8], size: usize) -> Vec<u8> {
    message.chunks(size).flat_map(|c| [&[22, 3, 1][..], &long(c)].concat()).collect()
}

fn name_of(stream: &[u8]) -> Option<String> {
    match parse(stream) {
        Ok(Progress::Done(hello)) => hello.server_name,
        other => panic!("{other:?}"),
    }
}

#[test]
fn one_record_or_many() {
    let alpn = extension(16, &long(b"\x02h2\x08http/1.1"));
    let message = message(&[sni(b"Abc.Example.com"), alpn, extension(0x0a0a, b"")].concat());
    for size in [1, 2, 5, 64, message.len()] {
        let stream = records(&message, size);
        let Ok(Progress::Done(hello)) = parse(&stream) else { panic!("{size}") };
        assert_eq!(hello.server_name.as_deref(), Some("abc.example.com"));
        assert_eq!(hello.alpn, [b"h2".to_vec(), b"http/1.1".to_vec()]);
        assert_eq!(hello.length, stream.len());
    }
}

#[test]
fn every_prefix_needs_more_and_says_how_much() {
    let message = message(&[sni(b"a.b"), extension(51, &[9; 1200])].concat());
    for size in [3, 100, message.len()] {
        let stream = records(&message, size);
        for end in 0..stream.len() {
            match parse(&stream[..end]) {
                Ok(Progress::NeedMore(needed)) => {
                    assert!(needed > end && needed <= stream.len(), "{size} {end}")
                }
                other => panic!("{size} {end}: {other:?}"),
            }
        }
        let trailing = [stream.clone(), vec![1, 2, 3]].concat();
        assert_eq!(parse(&trailing), parse(&stream));
    }
}

#[test]
fn sixteen_kib_pass_and_more_does_not() {
    let fits = message(&[sni(b"a.b"), extension(21, &vec![0; 16_000])].concat());
    assert_eq!(name_of(&records(&fits, 4096)), Some("a.b".into()));
    let over = message(&[sni(b"a.b"), extension(21, &vec![0; 17_000])].concat());
    assert_eq!(parse(&records(&over, 4096)), Err(HelloError::TooLarge));
    assert_eq!(parse(&records(&over, 4096)[..9]), Err(HelloError::TooLarge));
    let split = message(&extension(21, &[0; 2000]));
    assert_eq!(parse(&records(&split, 1)), Err(HelloError::TooLarge));
}

#[test]
fn what_is_no_hello_is_refused_at_once() {
    assert_eq!(parse(b"GET / HTTP/1.1\r\n"), Err(HelloError::NotTls));
    assert_eq!(parse(b"\x16\x02"), Err(HelloError::NotTls));
    assert_eq!(parse(b"\x16\x03\x01\x00\x00"), Err(HelloError::Record));
    assert_eq!(parse(b"\x16\x03\x01\x40\x01"), Err(HelloError::Record));
    assert_eq!(parse(b"\x16\x03\x01\x00\x05\x02"), Err(HelloError::NotHello));
    let mut other = records(&message(&sni(b"a.b")), 20);
    other[25] = 23;
    assert_eq!(parse(&other), Err(HelloError::Record));
    assert_eq!(parse(b""), Ok(Progress::NeedMore(5)));
}

#[test]
fn hellos_without_a_name_are_hellos() {
    assert_eq!(name_of(&records(&message(&[]), 100)), None);
    let other_kind = extension(0, &long(&[&[1], long(b"x").as_slice()].concat()));
    assert_eq!(name_of(&records(&message(&other_kind), 100)), None);
}

#[test]
fn names_are_dns_names_and_come_once() {
    let long_label = "x".repeat(64);
    for bad in ["", ".", "a..b", "a b", "a/b", "ä", "a\0b", "a.", &long_label, "1:2"] {
        let error = parse(&records(&message(&sni(bad.as_bytes())), 500)).unwrap_err();
        assert!(matches!(error, HelloError::ServerName), "{bad:?}");
    }
    let twice = message(&[sni(b"a.b"), sni(b"c.d")].concat());
    assert_eq!(parse(&records(&twice, 500)), Err(HelloError::Malformed));
    let two = [[&[0][..], &long(b"a.b")].concat(), [&[0][..], &long(b"c.d")].concat()].concat();
    assert_eq!(parse(&records(&message(&extension(0, &long(&two))), 500)), Err(HelloError::Malformed));
}

proptest! {
    #[test]
    fn any_split_gives_the_same(size in 1_usize..400, padding in 0_usize..800) {
        let message = message(&[sni(b"app.example"), extension(21, &vec![0; padding])].concat());
        let stream = records(&message, size.max(message.len().div_ceil(RECORDS_MAX)));
        prop_assert_eq!(name_of(&stream), Some("app.example".to_owned()));
    }

    #[test]
    fn a_flipped_byte_never_panics(at in 0_usize..300, to in any::<u8>()) {
        let mut stream = records(&message(&[sni(b"app.example"), extension(51, &[1; 200])].concat()), 90);
        let at = at % stream.len();
        stream[at] = to;
        for end in 0..=stream.len() {
            if let Ok(Progress::NeedMore(needed)) = parse(&stream[..end]) {
                prop_assert!(needed > end);
            }
        }
    }
}
