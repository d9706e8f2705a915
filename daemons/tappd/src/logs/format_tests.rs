// SPDX-License-Identifier: Apache-2.0
use super::*;
use crate::logs::record::Channel;

fn rendered(data: &[u8], query: &Query) -> String {
    let line = Message { nanos: 1_727_579_145_209_507_046, channel: Channel::Stdout, data: data.to_vec() };
    let mut out = Vec::new();
    message(&line, query, &mut out);
    String::from_utf8_lossy(&out).into_owned()
}

fn query(raw: &str) -> Query {
    Query::parse(raw, 0).unwrap_or_default()
}

#[test]
fn the_tutorials_lines() {
    let cases = [
        ("", r#"{"channel":"stdout","message":"SW5pdAo="}"#.to_owned() + "\n"),
        ("text", r#"{"channel":"stdout","message":"Init\n"}"#.to_owned() + "\n"),
        (
            "text&timestamps",
            r#"{"channel":"stdout","message":"2024-09-29T03:05:45.209507046Z Init\n"}"#.to_owned() + "\n",
        ),
        ("text&bare", "Init\n".to_owned()),
        ("text&bare&timestamps", "2024-09-29T03:05:45.209507046Z Init\n".to_owned()),
        ("bare", "SW5pdAo=".to_owned()),
    ];
    for (raw, expected) in cases {
        assert_eq!(rendered(b"Init\n", &query(raw)), expected, "{raw}");
    }
}

#[test]
fn times_have_nine_digits() {
    let line = Message { nanos: 1_727_579_145_000_000_000, channel: Channel::Stderr, data: b"x\n".to_vec() };
    let mut out = Vec::new();
    message(&line, &query("text&bare&timestamps"), &mut out);
    assert_eq!(out, b"2024-09-29T03:05:45.000000000Z x\n");
}

#[test]
fn text_is_lossy_and_escaped() {
    assert_eq!(
        rendered("grüße\n".as_bytes(), &query("text")),
        "{\"channel\":\"stdout\",\"message\":\"grüße\\n\"}\n"
    );
    assert_eq!(
        rendered(b"a\xff\"\x01\n", &query("text")),
        "{\"channel\":\"stdout\",\"message\":\"a\u{fffd}\\\"\\u0001\\n\"}\n"
    );
}

#[test]
fn escape_sequences_leave_bare_text_only() {
    let cases: [(&[u8], &str); 8] = [
        (b"\x1b[31mred\x1b[0m\n", "red\n"),
        (b"\x1b]0;title\x07x\n", "x\n"),
        (b"\x1b]8;;u\x1b\\link\n", "link\n"),
        (b"\x1b(Bx\x1bcy\n", "xy\n"),
        (b"cut\x1b[31\n", "cut\n"),
        (b"cut\x1b]0;t\n", "cut\n"),
        (b"end\x1b", "end"),
        ("ü\x1b[1mä\n".as_bytes(), "üä\n"),
    ];
    for (data, expected) in cases {
        assert_eq!(rendered(data, &query("bare&text")), expected);
    }
    assert_eq!(rendered(b"\x1b[1mx\n", &query("bare&text&ansi")), "\x1b[1mx\n");
    assert!(rendered(b"\x1b[1mx\n", &query("text")).contains("\\u001b[1mx"));
}

#[test]
fn errors_have_no_line_end() {
    assert_eq!(error("no \"x\""), br#"{"error":"no \"x\""}"#);
}

proptest::proptest! {
    #[test]
    fn no_escape_survives_and_nothing_else_is_added(data: Vec<u8>, tail in "(\x1b[\\[\\](#c]?[0-9;m\n\x07\\\\]{0,4}){0,8}") {
        let mut data = data;
        data.extend_from_slice(tail.as_bytes());
        let kept = strip_ansi(&data);
        proptest::prop_assert!(!kept.contains(&0x1b));
        let mut rest = data.iter();
        proptest::prop_assert!(kept.iter().all(|k| rest.any(|d| d == k)), "kept bytes are in order");
        let ends = |bytes: &[u8]| bytes.iter().filter(|b| **b == b'\n').count();
        proptest::prop_assert!(ends(&kept) + data.iter().filter(|b| **b == 0x1b).count() >= ends(&data));
    }

    #[test]
    fn every_query_is_answered_and_every_mode_takes_any_bytes(raw: String, data: Vec<u8>, flags: [bool; 4]) {
        let _ = Query::parse(&raw, u64::MAX);
        let [text, bare, ansi, timestamps] = flags;
        let query = Query { text, bare, ansi, timestamps, ..Query::default() };
        let line = Message { nanos: u64::MAX, channel: Channel::Stderr, data };
        let mut out = Vec::new();
        message(&line, &query, &mut out);
        proptest::prop_assert!(std::str::from_utf8(&out).is_ok());
    }
}
