// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used)]

use super::*;
use crate::logs::reader::ListReader;
use crate::logs::record::Channel;

const SECOND: u64 = 1_000_000;

/// Ten lines `0` to `9`, written at seconds 100 to 109 and received a millisecond later; line 5 in two pieces.
fn log() -> ListReader {
    let mut records = Vec::new();
    for n in 0..10_u64 {
        let written = (100 + n) * SECOND;
        let record = |data: &str, more: bool| Record {
            realtime: written + 1000,
            nanos: written * 1000,
            channel: Channel::Stdout,
            data: data.into(),
            more,
            partial_id: (n == 5).then(|| "p".to_owned()),
        };
        if n == 5 {
            records.push(record("5", true));
            records.push(record("5", false));
        } else {
            records.push(record(&n.to_string(), false));
        }
    }
    ListReader { records, at: 0 }
}

fn read(raw: &str) -> (String, Filled) {
    let query = Query::parse(&format!("{raw}&text&bare"), 110 * SECOND * 1000).unwrap();
    let mut cursor = Cursor::new(log(), query).unwrap();
    let mut out = Vec::new();
    let filled = cursor.fill(&mut out).unwrap();
    cursor.finish(&mut out);
    (String::from_utf8(out).unwrap().replace('\n', " "), filled)
}

#[test]
fn tail_since_and_until() {
    let cases = [
        ("", "0 1 2 3 4 55 6 7 8 9 "),
        ("tail=all", "0 1 2 3 4 55 6 7 8 9 "),
        ("tail=2", "8 9 "),
        ("tail=5", "55 6 7 8 9 "),
        ("tail=10", "0 1 2 3 4 55 6 7 8 9 "),
        ("tail=0", ""),
        ("since=107", "7 8 9 "),
        ("since=107&tail=all", "7 8 9 "),
        ("since=107&tail=2", "8 9 "),
        ("since=3s", "7 8 9 "),
        ("until=102", "0 1 2 "),
        ("until=102&tail=2", "1 2 "),
        ("until=102&tail=all", "0 1 2 "),
        ("since=104&until=106", "4 55 6 "),
        ("since=104&until=106&tail=1", "6 "),
        ("since=200", ""),
        ("until=1", ""),
    ];
    for (raw, lines) in cases {
        assert_eq!(read(raw).0, lines, "{raw}");
    }
}

#[test]
fn the_end_of_the_range_is_final() {
    assert_eq!(read("until=102").1, Filled::Done);
    assert_eq!(read("until=109").1, Filled::End);
    assert_eq!(read("").1, Filled::End);
}

#[test]
fn chunks_are_bounded_and_lose_nothing() {
    let big = "x".repeat(CHUNK / 2);
    let record = |n: u64| Record {
        realtime: n,
        nanos: n * 1000,
        channel: Channel::Stdout,
        data: big.clone().into_bytes(),
        more: false,
        partial_id: None,
    };
    let list = ListReader { records: (0..10).map(record).collect(), at: 0 };
    let mut cursor = Cursor::new(list, Query::parse("text&bare", 0).unwrap()).unwrap();
    let (mut total, mut chunks) = (0, 0);
    loop {
        let mut out = Vec::new();
        let filled = cursor.fill(&mut out).unwrap();
        assert!(out.len() <= CHUNK + big.len() + 1);
        total += out.len();
        chunks += 1;
        if filled == Filled::End {
            break;
        }
    }
    assert_eq!(total, 10 * (big.len() + 1));
    assert!(chunks >= 5);
}

#[test]
fn new_records_are_found_after_the_end() {
    let query = Query::parse("text&bare&tail=0&follow", 0).unwrap();
    let mut cursor = Cursor::new(log(), query).unwrap();
    let mut out = Vec::new();
    assert_eq!(cursor.fill(&mut out).unwrap(), Filled::End);
    let mut newer = log().records.remove(0);
    newer.data = b"new".to_vec();
    cursor.reader().records.push(newer);
    assert_eq!(cursor.fill(&mut out).unwrap(), Filled::End);
    assert_eq!(out, b"new\n");
}
