// SPDX-License-Identifier: Apache-2.0
//! The guest's serial line: always drained, into the log and to whoever has attached to the console.

use crate::console::{Budget, Sanitizer, Verdict};
use crate::journal::{Journal, Priority};
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{SendFlags, send};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Most people at one console.
pub const CLIENTS_MAX: usize = 4;
/// What a new client sees of the past, bytes.
const REPLAY_MAX: usize = 16 * 1024;
/// What a client may lag behind before bytes are left out, bytes.
const BACKLOG_MAX: usize = 256 * 1024;
/// What may wait for the guest to read, bytes.
const INPUT_MAX: usize = 4096;

#[derive(Debug)]
struct Client {
    stream: UnixStream,
    output: VecDeque<u8>,
}

/// What the serial line has shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Seen {
    /// Any byte.
    pub byte: bool,
    /// The first line of a Linux kernel.
    pub kernel: bool,
}

/// The serial line and its clients.
#[derive(Debug)]
pub struct Hub {
    serial: OwnedFd,
    open: bool,
    sanitizer: Sanitizer,
    budget: Budget,
    replay: VecDeque<u8>,
    input: VecDeque<u8>,
    clients: Vec<Client>,
}

impl Hub {
    /// Takes this process's end of the serial line, non-blocking.
    #[must_use]
    pub fn new(serial: OwnedFd) -> Self {
        Self {
            serial,
            open: true,
            sanitizer: Sanitizer::default(),
            budget: Budget::default(),
            replay: VecDeque::new(),
            input: VecDeque::new(),
            clients: Vec::new(),
        }
    }

    /// The serial line's descriptor and what to poll it for; `None` when QEMU has closed it.
    #[must_use]
    pub fn interest(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        let out = if self.input.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
        self.open.then(|| (self.serial.as_fd(), PollFlags::IN | out))
    }

    /// The clients' descriptors, by index, and what to poll them for.
    pub fn clients(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        let input = if self.input.len() < INPUT_MAX { PollFlags::IN } else { PollFlags::empty() };
        self.clients.iter().map(move |client| {
            let out = if client.output.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
            (client.stream.as_fd(), input | out)
        })
    }

    /// A new client's end of a two-way stream; it begins with the last of what the line has shown.
    ///
    /// # Errors
    /// `ResourceBusy` when there are [`CLIENTS_MAX`]; the error of `socketpair(2)`.
    pub fn attach(&mut self) -> io::Result<OwnedFd> {
        if self.clients.len() >= CLIENTS_MAX {
            let text = format!("the console has {CLIENTS_MAX} clients already; close one");
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, text));
        }
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        self.clients.push(Client { stream: ours, output: self.replay.clone() });
        Ok(theirs.into())
    }

    /// Moves bytes when the serial line is ready; logs the lines that are whole.
    pub fn serial_ready(&mut self, now: Duration, journal: &Journal) -> Seen {
        self.feed();
        let mut chunk = [0; 8192];
        match rustix::io::read(&self.serial, &mut chunk) {
            Ok(0) => self.open = false,
            Ok(count) => return self.shown(chunk.get(..count).unwrap_or_default(), now, journal),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => self.open = false,
        }
        Seen::default()
    }

    /// Reads the rest of what QEMU has written before its end.
    pub fn drain(&mut self, now: Duration, journal: &Journal) {
        // Bounded: QEMU is gone, so only what is in the socket's buffer is left.
        for _ in 0..64 {
            if !self.open || !self.serial_ready(now, journal).byte {
                break;
            }
        }
        if let Some(line) = self.sanitizer.finish() {
            self.log(&line, now, journal);
        }
    }

    /// Bytes of the console that were left out of the log: control characters and escape sequences.
    #[must_use]
    pub const fn dropped(&self) -> u64 {
        self.sanitizer.dropped
    }

    fn shown(&mut self, bytes: &[u8], now: Duration, journal: &Journal) -> Seen {
        let mut seen = Seen { byte: true, kernel: false };
        for line in self.sanitizer.push(bytes) {
            seen.kernel |= kernel(&line);
            self.log(&line, now, journal);
        }
        keep(&mut self.replay, bytes, REPLAY_MAX);
        for client in &mut self.clients {
            keep(&mut client.output, bytes, BACKLOG_MAX);
        }
        self.clients.retain_mut(|client| client.flush().is_ok());
        seen
    }

    fn log(&mut self, line: &str, now: Duration, journal: &Journal) {
        match self.budget.take(now) {
            Verdict::Suppress => return,
            Verdict::LogAfter(count) => {
                let text = format!("{count} console lines came too fast and were left out of the log");
                journal.log(Priority::Warning, None, &text);
            }
            Verdict::Log => {}
        }
        journal.console(line);
    }

    /// Moves bytes when a client is ready.
    pub fn client_ready(&mut self, index: usize) {
        let Some(client) = self.clients.get_mut(index) else { return };
        let room = INPUT_MAX.saturating_sub(self.input.len());
        let alive = client.flush().and_then(|()| client.read(room)).map(|bytes| self.input.extend(bytes));
        if alive.is_err() {
            self.clients.remove(index);
        }
        self.feed();
    }

    /// Gives the guest what its clients have typed.
    fn feed(&mut self) {
        if write(self.serial.as_fd(), &mut self.input).is_err() {
            self.input.clear();
        }
    }
}

impl Client {
    fn flush(&mut self) -> io::Result<()> {
        write(self.stream.as_fd(), &mut self.output)
    }

    fn read(&mut self, room: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; room];
        match rustix::io::read(&self.stream, &mut bytes) {
            Ok(0) if room > 0 => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                bytes.truncate(count);
                Ok(bytes)
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(Vec::new()),
            Err(e) => Err(e.into()),
        }
    }
}

/// Whether a Linux kernel has written this line: `[    2.210207] …`.
fn kernel(line: &str) -> bool {
    let seconds =
        line.strip_prefix('[').and_then(|rest| rest.split_once("] ")).map(|(time, _)| time.trim_start());
    seconds.and_then(|s| s.split_once('.')).is_some_and(|(s, f)| {
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        digits(s) && digits(f)
    })
}

/// Adds bytes and forgets the oldest beyond `max`.
fn keep(queue: &mut VecDeque<u8>, bytes: &[u8], max: usize) {
    queue.extend(bytes);
    let excess = queue.len().saturating_sub(max);
    queue.drain(..excess);
}

/// Writes as much as can be written now.
fn write(fd: BorrowedFd<'_>, queue: &mut VecDeque<u8>) -> io::Result<()> {
    while !queue.is_empty() {
        match send(fd, queue.as_slices().0, SendFlags::NOSIGNAL) {
            Ok(count) => drop(queue.drain(..count)),
            Err(Errno::AGAIN | Errno::INTR) => break,
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    fn hub() -> (Hub, UnixStream, Journal) {
        let (ours, qemu) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (Hub::new(ours.into()), qemu, Journal::open(&[]))
    }

    #[test]
    fn a_console_is_two_way_and_begins_with_the_past() {
        let (mut hub, mut qemu, journal) = hub();
        qemu.write_all(b"[    0.000001] L\nlogin: ").unwrap();
        assert_eq!(hub.serial_ready(Duration::ZERO, &journal), Seen { byte: true, kernel: true });
        let mut console = UnixStream::from(hub.attach().unwrap());
        hub.client_ready(0);
        let mut past = [0; 24];
        console.read_exact(&mut past).unwrap();
        assert_eq!(&past, b"[    0.000001] L\nlogin: ");
        console.write_all(b"root\n").unwrap();
        hub.client_ready(0);
        let mut typed = [0; 5];
        qemu.read_exact(&mut typed).unwrap();
        assert_eq!(&typed, b"root\n");
        qemu.write_all(b"# ").unwrap();
        hub.serial_ready(Duration::ZERO, &journal);
        let mut prompt = [0; 2];
        console.read_exact(&mut prompt).unwrap();
        drop(console);
        hub.client_ready(0);
        assert_eq!(hub.clients().count(), 0);
    }

    #[test]
    fn clients_are_bounded_and_the_end_is_noticed() {
        let (mut hub, qemu, journal) = hub();
        let clients: Vec<_> = (0..CLIENTS_MAX).map(|_| hub.attach().unwrap()).collect();
        assert_eq!(hub.attach().unwrap_err().kind(), io::ErrorKind::ResourceBusy);
        drop(clients);
        drop(qemu);
        hub.drain(Duration::ZERO, &journal);
        assert!(hub.interest().is_none());
    }

    #[test]
    fn a_client_that_does_not_read_does_not_stop_the_guest() {
        let (mut hub, mut qemu, journal) = hub();
        let _console = hub.attach().unwrap();
        for _ in 0..200 {
            qemu.write_all(&[b'x'; 8192]).unwrap();
            assert!(hub.serial_ready(Duration::ZERO, &journal).byte);
        }
        assert!(hub.clients.first().unwrap().output.len() <= BACKLOG_MAX);
    }
}
