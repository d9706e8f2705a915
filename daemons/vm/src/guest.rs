// SPDX-License-Identifier: Apache-2.0
//! The connection to the guest's boot agent: made by the host, tried again until the guest listens.

use crate::lines::Lines;
use dstack_core::boot::Line;
use dstack_core::limits::{BOOT_LINE_MAX, BOOT_STATUS_PORT};
use dstack_sys::vsock::{Connecting, Guest};
use rustix::event::PollFlags;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// Time between two attempts.
pub const RETRY: Duration = Duration::from_millis(250);
/// Time that one attempt may take.
const ATTEMPT_MAX: Duration = Duration::from_secs(2);

#[derive(Debug)]
enum State {
    /// Nothing is tried before this time.
    Waiting(Duration),
    /// Tried until this time.
    Connecting(Connecting, Duration),
    Open(OwnedFd, Lines),
}

/// The connection, in whatever state.
#[derive(Debug)]
pub struct GuestLink {
    guest: Guest,
    state: State,
    /// Malformed lines so far.
    pub malformed: u64,
}

impl GuestLink {
    /// Not connected yet; the first attempt is due at once.
    #[must_use]
    pub const fn new(guest: Guest) -> Self {
        Self { guest, state: State::Waiting(Duration::ZERO), malformed: 0 }
    }

    /// The descriptor to poll, and what for.
    #[must_use]
    pub fn interest(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        match &self.state {
            State::Waiting(_) => None,
            State::Connecting(connecting, _) => Some((connecting.as_fd(), connecting.interest())),
            State::Open(fd, _) => Some((fd.as_fd(), PollFlags::IN)),
        }
    }

    /// When to call [`Self::tick`] at the latest.
    #[must_use]
    pub const fn deadline(&self) -> Option<Duration> {
        match &self.state {
            State::Waiting(at) | State::Connecting(_, at) => Some(*at),
            State::Open(..) => None,
        }
    }

    /// Begins an attempt that is due, ends one that takes too long.
    pub fn tick(&mut self, now: Duration) {
        if self.deadline().is_none_or(|at| at > now) {
            return;
        }
        self.state = match (&self.state, Connecting::start(&self.guest, BOOT_STATUS_PORT)) {
            (State::Waiting(_), Ok(connecting)) => State::Connecting(connecting, now + ATTEMPT_MAX),
            _ => State::Waiting(now + RETRY),
        };
    }

    /// Goes on when the descriptor is ready; returns the lines that have come.
    pub fn ready(&mut self, now: Duration) -> Vec<Line> {
        match self.step() {
            Ok(lines) => lines,
            Err(_) => {
                self.state = State::Waiting(now + RETRY);
                Vec::new()
            }
        }
    }

    fn step(&mut self) -> io::Result<Vec<Line>> {
        match &mut self.state {
            State::Waiting(_) => return Ok(Vec::new()),
            State::Connecting(connecting, _) => {
                if connecting.advance()?.is_none() {
                    return Ok(Vec::new());
                }
            }
            State::Open(fd, lines) => {
                let (parsed, malformed) = read(fd.as_fd(), lines)?;
                self.malformed += malformed;
                return Ok(parsed);
            }
        }
        if let State::Connecting(connecting, _) =
            std::mem::replace(&mut self.state, State::Waiting(Duration::MAX))
        {
            self.state = State::Open(connecting.into_stream(), Lines::new(BOOT_LINE_MAX));
        }
        self.step()
    }
}

/// Reads what is there. The end of the stream is an error: the guest keeps it open as long as it lives.
fn read(fd: BorrowedFd<'_>, lines: &mut Lines) -> io::Result<(Vec<Line>, u64)> {
    let mut chunk = [0; 2048];
    let count = match rustix::io::read(fd, &mut chunk) {
        Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(count) => count,
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok((Vec::new(), 0)),
        Err(e) => return Err(e.into()),
    };
    let results = lines.push(chunk.get(..count).unwrap_or_default());
    let mut malformed = 0;
    let parsed = results.iter().filter_map(|line| {
        Line::parse(line).unwrap_or_else(|_| {
            malformed += 1;
            None
        })
    });
    Ok((parsed.collect(), malformed))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;

    #[test]
    fn connects_reads_and_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vsock");
        let mut link = GuestLink::new(Guest::User(path.clone()));
        let at = Duration::from_millis;
        link.tick(at(0));
        // Nobody listens: wait for the next attempt.
        assert_eq!(link.deadline(), Some(RETRY));
        let listener = UnixListener::bind(&path).unwrap();
        for round in 1..3 {
            link.tick(at(round * 1000));
            link.ready(at(round * 1000));
            let mut server = listener.accept().unwrap().0;
            let mut ask = [0; 13];
            server.read_exact(&mut ask).unwrap();
            assert_eq!(&ask, b"CONNECT 9997\n");
            server.write_all(b"OK 1\nDSTACK 1\nSTAGE x y z\nREA").unwrap();
            assert_eq!(link.ready(at(round * 1000)), [Line::Hello(1)]);
            assert_eq!(link.malformed, round);
            server.write_all(b"DY\n").unwrap();
            assert_eq!(link.ready(at(round * 1000)), [Line::Ready]);
            assert_eq!(link.deadline(), None);
            drop(server);
            link.ready(at(round * 1000 + 500));
            assert_eq!(link.deadline(), Some(at(round * 1000 + 500) + RETRY));
        }
    }

    #[test]
    fn an_attempt_that_hangs_is_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vsock");
        let _listener = UnixListener::bind(&path).unwrap();
        let mut link = GuestLink::new(Guest::User(path));
        link.tick(Duration::ZERO);
        assert_eq!(link.deadline(), Some(ATTEMPT_MAX));
        link.tick(ATTEMPT_MAX);
        assert_eq!(link.deadline(), Some(ATTEMPT_MAX + RETRY));
        assert!(link.interest().is_none());
    }
}
