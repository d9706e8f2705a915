// SPDX-License-Identifier: Apache-2.0
//! From a query to the lines it asks for, in chunks; no waiting.

use super::format;
use super::query::{Query, Tail};
use super::reader::Reader;
use super::record::{Joiner, Record};
use std::io;

/// Bytes after which a chunk is given.
pub const CHUNK: usize = 64 * 1024;
/// Records looked at before a chunk is given, however small it is, so that other readers get their turn.
const STEPS_MAX: usize = 4096;
/// How much later than its own time a record may arrive in the journal, microseconds.
const LATE_MAX: u64 = 5_000_000;

/// How a chunk ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filled {
    /// There is more to read at once.
    More,
    /// There are no more records now.
    End,
    /// There will be no more: the end of the time range is passed.
    Done,
}

/// One reading of one container's log.
#[derive(Debug)]
pub struct Cursor<R> {
    reader: R,
    query: Query,
    joiner: Joiner,
}

impl<R: Reader> Cursor<R> {
    /// Goes to where the query begins.
    ///
    /// # Errors
    /// Those of the journal.
    pub fn new(mut reader: R, query: Query) -> io::Result<Self> {
        match query.tail {
            Tail::All => match query.since {
                Some(since) => reader.seek_time(since / 1000)?,
                None => reader.seek_head()?,
            },
            Tail::Last(lines) => seek_last(&mut reader, &query, lines)?,
        }
        Ok(Self { reader, query, joiner: Joiner::default() })
    }

    /// What reads the records.
    pub const fn reader(&mut self) -> &mut R {
        &mut self.reader
    }

    /// Appends the next lines to `out`, until it has [`CHUNK`] bytes.
    ///
    /// # Errors
    /// Those of the journal.
    pub fn fill(&mut self, out: &mut Vec<u8>) -> io::Result<Filled> {
        for _ in 0..STEPS_MAX {
            if !self.reader.next()? {
                return Ok(Filled::End);
            }
            let record = self.reader.record()?;
            if self.query.until.is_some_and(|until| record.realtime > (until / 1000).saturating_add(LATE_MAX))
            {
                return Ok(Filled::Done);
            }
            self.push(record, out);
            if out.len() >= CHUNK {
                break;
            }
        }
        Ok(Filled::More)
    }

    fn push(&mut self, record: Record, out: &mut Vec<u8>) {
        let query = &self.query;
        self.joiner.push(record, |message| {
            if query.wants(message.nanos) {
                format::message(&message, query, out);
            }
        });
    }

    /// Appends lines that were begun and never ended.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        let query = &self.query;
        self.joiner.finish(|message| {
            if query.wants(message.nanos) {
                format::message(&message, query, out);
            }
        });
    }
}

/// Steps back over `lines` line ends, to the record before the first line asked for.
fn seek_last<R: Reader>(reader: &mut R, query: &Query, lines: u64) -> io::Result<()> {
    match query.until {
        Some(until) => reader.seek_time((until / 1000).saturating_add(LATE_MAX))?,
        None => reader.seek_tail()?,
    }
    let mut seen = 0;
    while reader.previous()? {
        let record = reader.record()?;
        if query.since.is_some_and(|since| record.realtime < since / 1000) {
            return Ok(());
        }
        seen += u64::from(!record.more && query.wants(record.nanos));
        if seen > lines {
            return Ok(());
        }
    }
    reader.seek_head()
}

#[cfg(test)]
#[path = "cursor_tests.rs"]
mod tests;
