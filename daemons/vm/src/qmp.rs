// SPDX-License-Identifier: Apache-2.0
//! QEMU's control channel: one JSON object a line, over an inherited stream socket.

use crate::lines::Lines;
use rustix::event::PollFlags;
use rustix::net::{SendFlags, send};
use serde::Deserialize;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Longest message of QEMU, bytes.
const MESSAGE_MAX: usize = 64 * 1024;

/// Why QEMU ends, as its `SHUTDOWN` event says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The guest powered off.
    GuestShutdown,
    /// The guest rebooted.
    GuestReset,
    /// The guest's kernel panicked.
    GuestPanic,
    /// The host asked for it (`quit`).
    HostQuit,
    /// QEMU got a signal.
    HostSignal,
    /// An error in QEMU, or a word of a newer QEMU.
    Other,
}

impl Reason {
    fn from_word(word: &str) -> Self {
        match word {
            "guest-shutdown" => Self::GuestShutdown,
            "guest-reset" => Self::GuestReset,
            "guest-panic" => Self::GuestPanic,
            "host-qmp-quit" => Self::HostQuit,
            "host-signal" => Self::HostSignal,
            _ => Self::Other,
        }
    }
}

/// A message of QEMU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// The greeting; capabilities must be negotiated now.
    Greeting,
    /// A command has been carried out.
    Done,
    /// A command was refused.
    Refused(String),
    /// QEMU is about to end.
    Shutdown(Reason),
    /// The guest's kernel panicked.
    Panicked,
    /// The network backend has gone or come back.
    Network(bool),
    /// An event that does not matter here.
    Other,
}

#[derive(Deserialize)]
struct Raw {
    #[serde(rename = "QMP")]
    greeting: Option<serde::de::IgnoredAny>,
    #[serde(rename = "return")]
    done: Option<serde::de::IgnoredAny>,
    error: Option<RawError>,
    event: Option<String>,
    #[serde(default)]
    data: RawData,
}

#[derive(Deserialize)]
struct RawError {
    #[serde(default)]
    desc: String,
}

#[derive(Deserialize, Default)]
struct RawData {
    #[serde(default)]
    reason: String,
}

/// Parses one line.
///
/// # Errors
/// When it is not a JSON object.
pub fn parse(line: &[u8]) -> Result<Message, serde_json::Error> {
    let raw: Raw = serde_json::from_slice(line)?;
    Ok(match (raw.event.as_deref(), raw.error) {
        (Some("SHUTDOWN"), _) => Message::Shutdown(Reason::from_word(&raw.data.reason)),
        (Some("GUEST_PANICKED"), _) => Message::Panicked,
        (Some("NETDEV_STREAM_DISCONNECTED"), _) => Message::Network(false),
        (Some("NETDEV_STREAM_CONNECTED"), _) => Message::Network(true),
        (Some(_), _) => Message::Other,
        (None, Some(error)) => Message::Refused(error.desc.chars().take(200).collect()),
        (None, None) if raw.greeting.is_some() => Message::Greeting,
        (None, None) if raw.done.is_some() => Message::Done,
        (None, None) => Message::Other,
    })
}

/// A command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Ends the negotiation that every connection begins with.
    Capabilities,
    /// Press the power button.
    PowerDown,
    /// End at once.
    Quit,
}

impl Command {
    const fn text(self) -> &'static [u8] {
        match self {
            Self::Capabilities => b"{\"execute\":\"qmp_capabilities\"}\n",
            Self::PowerDown => b"{\"execute\":\"system_powerdown\"}\n",
            Self::Quit => b"{\"execute\":\"quit\"}\n",
        }
    }
}

/// The channel.
#[derive(Debug)]
pub struct Qmp {
    fd: OwnedFd,
    lines: Lines,
    output: Vec<u8>,
    greeted: bool,
    /// Commands that wait for the greeting.
    waiting: Vec<Command>,
}

impl Qmp {
    /// Takes this process's end of the stream, non-blocking.
    #[must_use]
    pub const fn new(fd: OwnedFd) -> Self {
        Self { fd, lines: Lines::new(MESSAGE_MAX), output: Vec::new(), greeted: false, waiting: Vec::new() }
    }

    /// What to poll for.
    #[must_use]
    pub fn interest(&self) -> PollFlags {
        if self.output.is_empty() { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT }
    }

    /// Sends a command, after the greeting if that has not come yet.
    ///
    /// # Errors
    /// The error of `send(2)`: QEMU is gone.
    pub fn execute(&mut self, command: Command) -> io::Result<()> {
        if !self.greeted {
            self.waiting.push(command);
            return Ok(());
        }
        self.output.extend_from_slice(command.text());
        self.flush()
    }

    /// Sends what waits and reads what has come; call it when the descriptor is ready. `None` at the end of the stream.
    ///
    /// # Errors
    /// The error of `read(2)`: QEMU is gone.
    pub fn ready(&mut self) -> io::Result<Option<Vec<Message>>> {
        // A QEMU that does not listen any more may have said why it ends.
        let _ = self.flush();
        let mut chunk = [0; 4096];
        let count = match rustix::io::read(&self.fd, &mut chunk) {
            Ok(0) => return Ok(None),
            Ok(count) => count,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(Some(Vec::new())),
            Err(e) => return Err(e.into()),
        };
        let lines = self.lines.push(chunk.get(..count).unwrap_or_default());
        let messages: Vec<Message> = lines.iter().filter_map(|line| parse(line).ok()).collect();
        if messages.contains(&Message::Greeting) {
            let _ = self.greet();
        }
        Ok(Some(messages))
    }

    fn greet(&mut self) -> io::Result<()> {
        self.greeted = true;
        let waiting = std::mem::take(&mut self.waiting);
        [Command::Capabilities].into_iter().chain(waiting).try_for_each(|command| self.execute(command))
    }

    fn flush(&mut self) -> io::Result<()> {
        while !self.output.is_empty() {
            match send(&self.fd, &self.output, SendFlags::NOSIGNAL) {
                Ok(sent) => drop(self.output.drain(..sent)),
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => break,
                Err(e) => {
                    self.output.clear();
                    return Err(e.into());
                }
            }
        }
        Ok(())
    }
}

impl AsFd for Qmp {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    #[test]
    fn messages() {
        let cases = [
            (r#"{"QMP":{"version":{"qemu":{"major":10}},"capabilities":["oob"]}}"#, Message::Greeting),
            (r#"{"return":{}}"#, Message::Done),
            (r#"{"error":{"class":"CommandNotFound","desc":"no"}}"#, Message::Refused("no".into())),
            (
                r#"{"event":"SHUTDOWN","data":{"guest":true,"reason":"guest-reset"},"timestamp":{"seconds":1}}"#,
                Message::Shutdown(Reason::GuestReset),
            ),
            (
                r#"{"event":"SHUTDOWN","data":{"guest":false,"reason":"later"}}"#,
                Message::Shutdown(Reason::Other),
            ),
            (r#"{"event":"GUEST_PANICKED","data":{"action":"shutdown"}}"#, Message::Panicked),
            (r#"{"event":"NETDEV_STREAM_DISCONNECTED","data":{"netdev-id":"net"}}"#, Message::Network(false)),
            (r#"{"event":"RTC_CHANGE","data":{"offset":0}}"#, Message::Other),
            ("{}", Message::Other),
        ];
        for (line, message) in cases {
            assert_eq!(parse(line.as_bytes()).unwrap(), message, "{line}");
        }
        for bad in ["", "x", "[]", r#"{"event":3}"#] {
            assert!(parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn commands_wait_for_the_greeting() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut qmp = Qmp::new(ours.into());
        qmp.execute(Command::PowerDown).unwrap();
        assert_eq!(qmp.ready().unwrap(), Some(vec![]));
        theirs.write_all(b"{\"QMP\":{}}\r\n{\"event\":\"SHUT").unwrap();
        assert_eq!(qmp.ready().unwrap(), Some(vec![Message::Greeting]));
        let mut text = [0; 200];
        let count = theirs.read(&mut text).unwrap();
        let sent = String::from_utf8_lossy(text.get(..count).unwrap()).into_owned();
        assert_eq!(sent, "{\"execute\":\"qmp_capabilities\"}\n{\"execute\":\"system_powerdown\"}\n");
        theirs.write_all(b"DOWN\",\"data\":{\"reason\":\"guest-shutdown\"}}\r\n").unwrap();
        assert_eq!(qmp.ready().unwrap(), Some(vec![Message::Shutdown(Reason::GuestShutdown)]));
        drop(theirs);
        assert_eq!(qmp.ready().unwrap(), None);
    }

    #[test]
    fn last_words_are_read_though_nobody_listens() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut qmp = Qmp::new(ours.into());
        theirs
            .write_all(b"{\"QMP\":{}}\n{\"event\":\"SHUTDOWN\",\"data\":{\"reason\":\"guest-reset\"}}\n")
            .unwrap();
        drop(theirs);
        let messages = qmp.ready().unwrap().unwrap();
        assert_eq!(messages, [Message::Greeting, Message::Shutdown(Reason::GuestReset)]);
        assert_eq!(qmp.ready().unwrap(), None);
    }
}
