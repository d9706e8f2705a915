// SPDX-License-Identifier: Apache-2.0
//! What a VM wrote to the journal, read on a thread of its own: libsystemd's journal blocks and stays where it is.

use std::io;
use std::time::Duration;
use systemd::journal::{Journal, JournalWaitResult, OpenOptions};
use tokio::sync::mpsc::Sender;

/// Lines that a reader gets who does not say how many.
pub const LINES_DEFAULT: u32 = 10_000;
/// Most lines before the first new one.
pub const LINES_MAX: u32 = 1_000_000;
/// Longest line that is read whole, bytes; dstack-vm cuts consoles' lines far below.
const LINE_MAX: usize = 64 * 1024;
/// How soon a follower that has gone is noticed.
const PATIENCE: Duration = Duration::from_secs(5);
/// `SYSLOG_IDENTIFIER=` of the guest's console.
const CONSOLE: &[u8] = b"console";

/// Which of a VM's logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channel {
    /// The guest's serial console.
    Serial,
    /// What dstack-vm and QEMU say.
    Host,
}

impl Channel {
    /// The original's words.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        match word {
            "" | "serial" => Some(Self::Serial),
            "stdout" | "stderr" => Some(Self::Host),
            _ => None,
        }
    }
}

/// What to read.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The VM's unit.
    pub unit: String,
    /// Which log.
    pub channel: Channel,
    /// Lines from before now.
    pub lines: u32,
    /// Whether to go on with new lines.
    pub follow: bool,
}

/// Sends lines until there are no more, or the receiver is gone.
///
/// # Errors
/// Those of the journal.
pub fn read(wanted: &Wanted, to: &Sender<String>) -> io::Result<()> {
    let mut journal = open(wanted)?;
    rewind(&mut journal, wanted)?;
    loop {
        while journal.next().map_err(error)? > 0 {
            if let Some(line) = line(&mut journal, wanted.channel)?
                && to.blocking_send(line).is_err()
            {
                return Ok(());
            }
        }
        if !wanted.follow {
            return Ok(());
        }
        while matches!(journal.wait(Some(PATIENCE)).map_err(error)?, JournalWaitResult::Nop) {
            if to.is_closed() {
                return Ok(());
            }
        }
    }
}

fn open(wanted: &Wanted) -> io::Result<Journal> {
    let mut journal = OpenOptions::default().system(true).local_only(true).open().map_err(error)?;
    journal.set_data_threshold(LINE_MAX).map_err(error)?;
    // A trusted field: only the unit's own processes can have it.
    journal.match_add("_SYSTEMD_UNIT", wanted.unit.as_str()).map_err(error)?;
    Ok(journal)
}

/// Goes before the last `lines` lines of the channel.
fn rewind(journal: &mut Journal, wanted: &Wanted) -> io::Result<()> {
    journal.seek_tail().map_err(error)?;
    let mut found = 0;
    while found < wanted.lines {
        if journal.previous().map_err(error)? == 0 {
            return journal.seek_head().map_err(error);
        }
        found += u32::from(line(journal, wanted.channel)?.is_some());
    }
    // Onto the record before, so that `next` gives the first one that is wanted.
    if journal.previous().map_err(error)? == 0 {
        return journal.seek_head().map_err(error);
    }
    Ok(())
}

/// The record's text, when it belongs to the channel.
fn line(journal: &mut Journal, channel: Channel) -> io::Result<Option<String>> {
    let console = field(journal, "SYSLOG_IDENTIFIER")?.is_some_and(|id| id == CONSOLE);
    if console != (channel == Channel::Serial) {
        return Ok(None);
    }
    Ok(field(journal, "MESSAGE")?.map(|text| printable(&text)))
}

fn field(journal: &mut Journal, name: &str) -> io::Result<Option<Vec<u8>>> {
    let field = journal.get_data(name).map_err(error)?;
    Ok(field.and_then(|f| f.value().map(<[u8]>::to_vec)))
}

/// dstack-vm lets no escapes through; QEMU's own words are not looked at by anybody else.
fn printable(text: &[u8]) -> String {
    String::from_utf8_lossy(text).chars().map(|c| if c.is_control() && c != '\t' { ' ' } else { c }).collect()
}

fn error(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::other(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_have_the_originals_words() {
        for (word, channel) in [
            ("", Some(Channel::Serial)),
            ("serial", Some(Channel::Serial)),
            ("stdout", Some(Channel::Host)),
            ("stderr", Some(Channel::Host)),
            ("/etc/passwd", None),
        ] {
            assert_eq!(Channel::parse(word), channel, "{word}");
        }
        assert_eq!(printable(b"a\x1b[2J\tb\xff"), "a [2J\tb\u{fffd}");
    }
}
