// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use super::*;
use std::convert::Infallible;

fn record(fields: &[(&str, &str)]) -> Record {
    Record::from_fields(7_000_000, |name| {
        let found = fields.iter().find(|(n, _)| *n == name);
        Ok::<_, Infallible>(found.map(|(_, value)| value.as_bytes().to_vec()))
    })
    .unwrap()
}

fn piece(channel: Channel, text: &str, id: Option<&str>, more: bool) -> Record {
    let data = text.as_bytes().to_vec();
    Record { realtime: 1, nanos: 1000, channel, data, more, partial_id: id.map(Into::into) }
}

fn joined(records: Vec<Record>) -> Vec<(Channel, String)> {
    let mut joiner = Joiner::default();
    let mut lines = Vec::new();
    let mut give = |m: Message| lines.push((m.channel, String::from_utf8(m.data).unwrap()));
    records.into_iter().for_each(|r| joiner.push(r, &mut give));
    joiner.finish(&mut give);
    lines
}

#[test]
fn fields_of_dockers_driver() {
    let full = record(&[
        ("MESSAGE", "hello\n"),
        ("PRIORITY", "3"),
        ("SYSLOG_TIMESTAMP", "2024-09-29T03:05:45.209507046Z"),
        ("CONTAINER_PARTIAL_MESSAGE", "true"),
        ("CONTAINER_PARTIAL_ID", "abc"),
    ]);
    assert_eq!((full.channel, full.data.as_slice(), full.more), (Channel::Stderr, &b"hello"[..], true));
    assert_eq!((full.nanos, full.partial_id.as_deref()), (1_727_579_145_209_507_046, Some("abc")));
    let bare = record(&[("MESSAGE", ""), ("PRIORITY", "6"), ("SYSLOG_TIMESTAMP", "yesterday")]);
    assert_eq!((bare.channel, bare.nanos, bare.more), (Channel::Stdout, 7_000_000_000, false));
    assert_eq!(record(&[]).data, b"");
}

#[test]
fn pieces_become_lines() {
    use Channel::{Stderr as E, Stdout as O};
    let cases = [
        (vec![piece(O, "a", None, false)], vec![(O, "a\n")]),
        (vec![piece(O, "a", Some("1"), true), piece(O, "b", Some("1"), false)], vec![(O, "ab\n")]),
        // Older drivers give no id.
        (vec![piece(O, "a", None, true), piece(O, "b", None, false)], vec![(O, "ab\n")]),
        // Mixed streams.
        (
            vec![
                piece(O, "a", Some("1"), true),
                piece(E, "x", Some("2"), true),
                piece(O, "b", Some("1"), false),
                piece(E, "y", Some("2"), false),
            ],
            vec![(O, "ab\n"), (E, "xy\n")],
        ),
        // A line that was never finished, then another.
        (
            vec![
                piece(O, "a", Some("1"), true),
                piece(O, "b", Some("2"), false),
                piece(O, "c", Some("3"), true),
            ],
            vec![(O, "a"), (O, "b\n"), (O, "c")],
        ),
    ];
    for (records, expected) in cases {
        let expected: Vec<_> = expected.into_iter().map(|(c, t)| (c, t.to_owned())).collect();
        assert_eq!(joined(records), expected);
    }
}

#[test]
fn a_line_over_the_limit_is_given_in_pieces() {
    let chunk = "x".repeat(LINE_MAX / 4);
    let lines = joined((0..6).map(|n| piece(Channel::Stdout, &chunk, Some("1"), n < 5)).collect());
    assert_eq!(lines.len(), 2);
    assert_eq!(lines.iter().map(|(_, t)| t.len()).sum::<usize>(), 6 * chunk.len() + 1);
    assert!(lines.iter().all(|(_, t)| t.len() <= LINE_MAX));
}

proptest::proptest! {
    #[test]
    fn joining_loses_and_adds_nothing(pieces: Vec<(bool, bool, Vec<u8>, Option<u8>)>) {
        let mut joiner = Joiner::default();
        let mut out = [Vec::new(), Vec::new()];
        let mut expected = [Vec::new(), Vec::new()];
        let mut give = |m: Message| out[usize::from(m.channel == Channel::Stderr)].extend(m.data);
        for (stderr, more, data, id) in pieces {
            expected[usize::from(stderr)].extend_from_slice(&data);
            if !more {
                expected[usize::from(stderr)].push(b'\n');
            }
            let channel = if stderr { Channel::Stderr } else { Channel::Stdout };
            let partial_id = id.map(|id| id.to_string());
            joiner.push(Record { realtime: 1, nanos: 1, channel, data, more, partial_id }, &mut give);
        }
        joiner.finish(&mut give);
        proptest::prop_assert_eq!(out, expected);
    }
}
