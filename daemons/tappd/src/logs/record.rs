// SPDX-License-Identifier: Apache-2.0
//! One journal record of a container, and the lines that records make together.
//!
//! Docker's journald driver sends a line without its line end, `PRIORITY` 6 for stdout and 3 for stderr, and the time at
//! which it read the line as `SYSLOG_TIMESTAMP`. It splits lines at 16 KiB: all pieces of one line but the last have
//! `CONTAINER_PARTIAL_MESSAGE=true`, and all share `CONTAINER_PARTIAL_ID`.

/// Longest line that is put together, bytes; a longer one is given in pieces of this size.
pub const LINE_MAX: usize = 1024 * 1024;

/// Where a container wrote a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channel {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Channel {
    /// Its name in the JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// One journal record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// When journald received it, microseconds since 1970.
    pub realtime: u64,
    /// When the container wrote it, nanoseconds since 1970.
    pub nanos: u64,
    /// Where.
    pub channel: Channel,
    /// The line, or a piece of it, without its line end.
    pub data: Vec<u8>,
    /// Whether more pieces of the line follow.
    pub more: bool,
    /// What the pieces of one line share.
    pub partial_id: Option<String>,
}

impl Record {
    /// Builds a record from its fields; `field` returns a field's value.
    ///
    /// # Errors
    /// Those of `field`.
    pub fn from_fields<E>(
        realtime: u64,
        mut field: impl FnMut(&str) -> Result<Option<Vec<u8>>, E>,
    ) -> Result<Self, E> {
        let mut data = field("MESSAGE")?.unwrap_or_default();
        // Podman's driver keeps the line end.
        data.pop_if(|last| *last == b'\n');
        let stderr = field("PRIORITY")?.as_deref() == Some(b"3");
        let written = field("SYSLOG_TIMESTAMP")?.and_then(|text| parse_time(&text));
        let more = field("CONTAINER_PARTIAL_MESSAGE")?.as_deref() == Some(b"true");
        let partial_id = field("CONTAINER_PARTIAL_ID")?.and_then(|id| String::from_utf8(id).ok());
        Ok(Self {
            realtime,
            nanos: written.unwrap_or_else(|| realtime.saturating_mul(1000)),
            channel: if stderr { Channel::Stderr } else { Channel::Stdout },
            data,
            more,
            partial_id,
        })
    }
}

/// RFC 3339 with up to nine digits of a second, as nanoseconds since 1970.
fn parse_time(text: &[u8]) -> Option<u64> {
    let time: jiff::Timestamp = std::str::from_utf8(text).ok()?.parse().ok()?;
    u64::try_from(time.as_nanosecond()).ok()
}

/// A whole line, with its line end; or, without it, a piece of a line that is too long or was never finished.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// When the container wrote it, nanoseconds since 1970.
    pub nanos: u64,
    /// Where.
    pub channel: Channel,
    /// The bytes.
    pub data: Vec<u8>,
}

/// Puts the pieces of lines together; stdout and stderr may come mixed.
#[derive(Debug, Default)]
pub struct Joiner {
    stdout: Option<Pending>,
    stderr: Option<Pending>,
}

#[derive(Debug)]
struct Pending {
    message: Message,
    id: Option<String>,
}

impl Joiner {
    /// Takes the next record and gives what it completes.
    pub fn push(&mut self, record: Record, mut give: impl FnMut(Message)) {
        let slot = match record.channel {
            Channel::Stdout => &mut self.stdout,
            Channel::Stderr => &mut self.stderr,
        };
        let fits =
            |p: &Pending| p.id == record.partial_id && p.message.data.len() + record.data.len() < LINE_MAX;
        let mut pending = match slot.take() {
            Some(mut pending) if fits(&pending) => {
                pending.message.data.extend_from_slice(&record.data);
                pending
            }
            other => {
                if let Some(unfinished) = other {
                    give(unfinished.message);
                }
                let message = Message { nanos: record.nanos, channel: record.channel, data: record.data };
                Pending { message, id: record.partial_id }
            }
        };
        if record.more {
            *slot = Some(pending);
        } else {
            pending.message.data.push(b'\n');
            give(pending.message);
        }
    }

    /// Gives what is unfinished: nothing more will come.
    pub fn finish(&mut self, mut give: impl FnMut(Message)) {
        for pending in [self.stdout.take(), self.stderr.take()].into_iter().flatten() {
            give(pending.message);
        }
    }
}

#[cfg(test)]
#[path = "record_tests.rs"]
mod tests;
