// SPDX-License-Identifier: Apache-2.0
//! The guest's serial console, made fit for a log: bytes of a hostile guest become plain, bounded, counted lines.

use std::time::Duration;

/// Longest line in the log, bytes; longer ones are cut into pieces.
pub const LINE_MAX: usize = 1024;
/// Longest escape sequence that is skipped whole, bytes.
const SEQUENCE_MAX: usize = 256;
/// Lines that may come at once.
pub const BURST: u32 = 3000;
/// Lines a second that may come for long.
pub const PER_SECOND: u32 = 100;

/// Where in the stream the sanitizer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Text,
    /// After ESC.
    Escape,
    /// In `ESC [ … letter`, with the bytes seen.
    Control(usize),
    /// In `ESC ] … BEL` or another string sequence, with the bytes seen.
    Text2(usize),
    /// After ESC in such a string.
    TextEscape(usize),
}

/// Turns console bytes into plain lines: no control characters, no escape sequences, no text direction tricks.
#[derive(Debug)]
pub struct Sanitizer {
    state: State,
    line: Vec<u8>,
    /// After a carriage return: what comes now, unless it is a line end, overwrites the line.
    returned: bool,
    /// Bytes that were left out so far.
    pub dropped: u64,
}

impl Default for Sanitizer {
    fn default() -> Self {
        Self { state: State::Text, line: Vec::new(), returned: false, dropped: 0 }
    }
}

impl Sanitizer {
    /// Adds bytes and takes the lines that are whole. Empty lines are left out.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<String> {
        bytes.iter().filter_map(|byte| self.step(*byte)).collect()
    }

    /// The unfinished last line, at the end of the stream.
    pub fn finish(&mut self) -> Option<String> {
        self.take()
    }

    fn step(&mut self, byte: u8) -> Option<String> {
        let before = self.state;
        self.state = next(before, byte);
        if before != State::Text || self.state != State::Text {
            self.dropped += 1;
            return None;
        }
        match byte {
            b'\n' => self.take(),
            b'\r' => {
                self.returned = true;
                None
            }
            b'\t' => self.add(b' '),
            0..=0x1f | 0x7f => {
                self.dropped += 1;
                None
            }
            _ => self.add(byte),
        }
    }

    fn add(&mut self, byte: u8) -> Option<String> {
        if std::mem::take(&mut self.returned) {
            self.dropped += self.line.len() as u64;
            self.line.clear();
        }
        self.line.push(byte);
        // Not in the middle of a UTF-8 character, if it is one.
        let full = self.line.len() >= LINE_MAX && (byte < 0x80 || self.line.len() >= LINE_MAX + 4);
        if full { self.take() } else { None }
    }

    fn take(&mut self) -> Option<String> {
        self.returned = false;
        let bytes = std::mem::take(&mut self.line);
        let text: String = String::from_utf8_lossy(&bytes).chars().filter(|c| plain(*c)).collect();
        let text = text.trim_end();
        (!text.is_empty()).then(|| text.to_owned())
    }
}

/// The state after a byte.
const fn next(state: State, byte: u8) -> State {
    match (state, byte) {
        (State::Text, 0x1b) => State::Escape,
        (State::Text, _) => State::Text,
        (State::Escape, b'[') => State::Control(0),
        (State::Escape, b']' | b'P' | b'X' | b'^' | b'_') => State::Text2(0),
        // Two-byte sequences with an intermediate, such as the choice of a character set.
        (State::Escape, 0x20..=0x2f | 0x1b) => State::Escape,
        (State::Escape, _) => State::Text,
        (State::Control(_), 0x40..=0x7e) | (State::Text2(_), 0x07) | (State::TextEscape(_), b'\\') => {
            State::Text
        }
        // A line end or an over-long sequence: it was no sequence after all.
        (State::Control(SEQUENCE_MAX..) | State::Text2(SEQUENCE_MAX..), _) | (_, b'\n') => State::Text,
        (State::Control(n), _) => State::Control(n + 1),
        (State::Text2(n), 0x1b) => State::TextEscape(n),
        (State::Text2(n) | State::TextEscape(n), _) => State::Text2(n + 1),
    }
}

/// Neither a control character nor one that changes the direction of the text around it.
fn plain(c: char) -> bool {
    !c.is_control()
        && !matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// A budget of lines that refills with time.
#[derive(Debug)]
pub struct Budget {
    lines: u32,
    refilled: Duration,
    suppressed: u64,
}

/// What to do with a line.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Log it.
    Log,
    /// Log it, and say first how many were suppressed before it.
    LogAfter(u64),
    /// Leave it out.
    Suppress,
}

impl Default for Budget {
    fn default() -> Self {
        Self { lines: BURST, refilled: Duration::ZERO, suppressed: 0 }
    }
}

impl Budget {
    /// Asks for one line at `now`, a time since the start.
    pub fn take(&mut self, now: Duration) -> Verdict {
        self.refill(now);
        let Some(rest) = self.lines.checked_sub(1) else {
            self.suppressed += 1;
            return Verdict::Suppress;
        };
        self.lines = rest;
        match std::mem::take(&mut self.suppressed) {
            0 => Verdict::Log,
            n => Verdict::LogAfter(n),
        }
    }

    fn refill(&mut self, now: Duration) {
        let seconds = now.saturating_sub(self.refilled).as_secs();
        if seconds > 0 {
            let more = u32::try_from(seconds).unwrap_or(u32::MAX).saturating_mul(PER_SECOND);
            self.lines = self.lines.saturating_add(more).min(BURST);
            self.refilled += Duration::from_secs(seconds);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clean(bytes: &[u8]) -> Vec<String> {
        let mut sanitizer = Sanitizer::default();
        let mut lines = sanitizer.push(bytes);
        lines.extend(sanitizer.finish());
        lines
    }

    #[test]
    fn t18_nothing_but_plain_text_reaches_the_log() {
        let cases: &[(&[u8], &[&str])] = &[
            (b"plain\r\nnext\n\n\n", &["plain", "next"]),
            (b"\x1b[2J\x1b[01;31mred\x1b[0m text\n", &["red text"]),
            (b"\x1b]0;title\x07after\n", &["after"]),
            (b"\x1b]0;title\x1b\\after\n", &["after"]),
            (b"\x1bPdcs\x1b\\after\n", &["after"]),
            (b"\x1b(Bset\x1b=\n", &["set"]),
            (b"tab\there\x08\x07\x00\x7f\n", &["tab here"]),
            ("h\u{e9}llo \u{202e}gpj.exe \u{9b}31m\n".as_bytes(), &["h\u{e9}llo gpj.exe 31m"]),
            (b"bad \xff\xfe utf\n", &["bad \u{fffd}\u{fffd} utf"]),
            (b"[*  ] waiting\r\x1b[K[ * ] waiting\r\x1b[Kdone\r\r\n", &["done"]),
            (b"\x1b[12;\nnot swallowed\n", &["not swallowed"]),
            (b"no end", &["no end"]),
        ];
        for (bytes, lines) in cases {
            assert_eq!(clean(bytes), *lines, "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn an_endless_sequence_or_line_is_bounded() {
        let mut bytes = b"\x1b]".to_vec();
        bytes.resize(SEQUENCE_MAX * 2, b'x');
        bytes.extend_from_slice(b" back\n");
        assert!(clean(&bytes).concat().ends_with(" back"));
        let lines = clean(&vec![b'y'; LINE_MAX * 3 + 1]);
        assert_eq!(lines.iter().map(String::len).collect::<Vec<_>>(), [LINE_MAX, LINE_MAX, LINE_MAX, 1]);
    }

    #[test]
    fn what_is_left_out_is_counted() {
        let mut sanitizer = Sanitizer::default();
        sanitizer.push(b"\x1b[31mred\x07\n");
        assert_eq!(sanitizer.dropped, 6);
    }

    #[test]
    fn the_budget_holds_and_refills() {
        let mut budget = Budget::default();
        let at = Duration::from_secs;
        for _ in 0..BURST {
            assert_eq!(budget.take(at(0)), Verdict::Log);
        }
        assert_eq!(budget.take(at(0)), Verdict::Suppress);
        assert_eq!(budget.take(at(0)), Verdict::Suppress);
        assert_eq!(budget.take(at(1)), Verdict::LogAfter(2));
        for _ in 1..PER_SECOND {
            assert_eq!(budget.take(at(1)), Verdict::Log);
        }
        assert_eq!(budget.take(at(1)), Verdict::Suppress);
    }
}
