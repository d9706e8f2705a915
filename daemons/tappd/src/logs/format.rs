// SPDX-License-Identifier: Apache-2.0
//! Lines as `/logs` gives them.
//!
//! `{"channel":"stdout","message":"<base64>"}` and a line end; with `text` the message is lossy UTF-8; with `bare` only
//! the message, where base64 has no separators.

use super::query::Query;
use super::record::Message;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use std::borrow::Cow;
use std::io::Write as _;

#[derive(Serialize)]
struct Line<'a> {
    channel: &'static str,
    message: &'a str,
}

#[derive(Serialize)]
struct Failure<'a> {
    error: &'a str,
}

/// Appends one message to `out`.
pub fn message(message: &Message, query: &Query, out: &mut Vec<u8>) {
    let data = stamped(message, query.timestamps);
    match (query.bare, query.text) {
        (true, true) if query.ansi => out.extend_from_slice(String::from_utf8_lossy(&data).as_bytes()),
        (true, true) => out.extend_from_slice(String::from_utf8_lossy(&strip_ansi(&data)).as_bytes()),
        (true, false) => out.extend_from_slice(STANDARD.encode(&data).as_bytes()),
        (false, true) => line(message, &String::from_utf8_lossy(&data), out),
        (false, false) => line(message, &STANDARD.encode(&data), out),
    }
}

fn line(message: &Message, text: &str, out: &mut Vec<u8>) {
    let line = Line { channel: message.channel.name(), message: text };
    // Two texts always have a JSON form, and a vector takes every write.
    let _ = serde_json::to_writer(&mut *out, &line);
    out.push(b'\n');
}

/// The whole answer when logs cannot be given: JSON without a line end.
#[must_use]
pub fn error(text: &str) -> Vec<u8> {
    serde_json::to_vec(&Failure { error: text }).unwrap_or_default()
}

/// `2024-09-29T03:05:45.209507046Z ` and the line.
fn stamped(message: &Message, timestamps: bool) -> Cow<'_, [u8]> {
    let time = jiff::Timestamp::from_nanosecond(i128::from(message.nanos));
    match time {
        Ok(time) if timestamps => {
            let mut data = Vec::with_capacity(message.data.len() + 32);
            let _ = write!(data, "{time:.9} ");
            data.extend_from_slice(&message.data);
            Cow::Owned(data)
        }
        _ => Cow::Borrowed(&message.data),
    }
}

/// Removes terminal escape sequences (ECMA-48 CSI, OSC and two-byte ones).
fn strip_ansi(data: &[u8]) -> Cow<'_, [u8]> {
    const ESC: u8 = 0x1b;
    if !data.contains(&ESC) {
        return Cow::Borrowed(data);
    }
    let mut kept = Vec::with_capacity(data.len());
    let mut rest = data;
    while let Some(at) = rest.iter().position(|b| *b == ESC) {
        let (before, sequence) = rest.split_at(at);
        kept.extend_from_slice(before);
        rest = sequence.get(sequence_length(sequence)..).unwrap_or_default();
    }
    kept.extend_from_slice(rest);
    Cow::Owned(kept)
}

/// Length of the escape sequence at the start of `bytes`, which begin with ESC. An unfinished one ends at its line end.
fn sequence_length(bytes: &[u8]) -> usize {
    let body = bytes.get(2..).unwrap_or_default();
    let until = |found: Option<usize>| 2 + found.unwrap_or(body.len());
    match bytes.get(1) {
        Some(b'[') => match body.iter().position(|b| (0x40..=0x7e).contains(b) || *b == b'\n') {
            Some(at) if body.get(at) != Some(&b'\n') => 2 + at + 1,
            other => until(other),
        },
        Some(b']') => match body.iter().position(|b| matches!(b, 0x07 | 0x1b | b'\n')) {
            Some(at) if body.get(at) == Some(&0x07) => 2 + at + 1,
            Some(at) if body.get(at..at + 2) == Some(b"\x1b\\") => 2 + at + 2,
            other => until(other),
        },
        // Intermediate bytes, then one final byte, e.g. `ESC ( B`.
        Some(0x20..=0x2f) => until(body.iter().position(|b| !(0x20..=0x2f).contains(b)).map(|at| at + 1)),
        Some(0x30..=0x7e) => 2,
        _ => 1,
    }
}

#[cfg(test)]
#[path = "format_tests.rs"]
mod tests;
