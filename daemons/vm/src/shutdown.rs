// SPDX-License-Identifier: Apache-2.0
//! Asks the guest's agent to shut down: one HTTP request over vsock, `POST /api/Shutdown`.

use dstack_core::limits::GUEST_API_PORT;
use dstack_sys::vsock::{Connecting, Guest};
use rustix::event::PollFlags;
use rustix::net::{SendFlags, send};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

const REQUEST: &[u8] = b"POST /api/Shutdown HTTP/1.1\r\nHost: guest\r\nContent-Type: application/json\r\n\
Content-Length: 2\r\nConnection: close\r\n\r\n{}";
/// Longest first line of an answer, bytes.
const ANSWER_MAX: usize = 128;

#[derive(Debug)]
enum State {
    Connecting(Connecting),
    Answer(OwnedFd, Vec<u8>),
    Over,
}

/// The request, on its way.
#[derive(Debug)]
pub struct Call(State);

impl Call {
    /// Begins to ask.
    ///
    /// # Errors
    /// When no connection can even be begun.
    pub fn start(guest: &Guest) -> io::Result<Self> {
        Ok(Self(State::Connecting(Connecting::start(guest, GUEST_API_PORT)?)))
    }

    /// The descriptor to poll, and what for.
    #[must_use]
    pub fn interest(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        match &self.0 {
            State::Connecting(connecting) => Some((connecting.as_fd(), connecting.interest())),
            State::Answer(fd, _) => Some((fd.as_fd(), PollFlags::IN)),
            State::Over => None,
        }
    }

    /// Goes on when the descriptor is ready. `Some` once: whether the guest has accepted.
    pub fn ready(&mut self) -> Option<bool> {
        let answer = match self.step() {
            Ok(None) => return None,
            Ok(Some(accepted)) => accepted,
            Err(_) => false,
        };
        self.0 = State::Over;
        Some(answer)
    }

    fn step(&mut self) -> io::Result<Option<bool>> {
        match &mut self.0 {
            State::Over => Ok(None),
            State::Answer(fd, answer) => read(fd.as_fd(), answer),
            State::Connecting(connecting) => {
                if connecting.advance()?.is_none() {
                    return Ok(None);
                }
                self.send()
            }
        }
    }

    /// A fresh stream takes the whole request at once.
    fn send(&mut self) -> io::Result<Option<bool>> {
        let State::Connecting(connecting) = std::mem::replace(&mut self.0, State::Over) else {
            return Ok(None);
        };
        let fd = connecting.into_stream();
        if send(&fd, REQUEST, SendFlags::NOSIGNAL)? != REQUEST.len() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.0 = State::Answer(fd, Vec::new());
        Ok(None)
    }
}

fn read(fd: BorrowedFd<'_>, answer: &mut Vec<u8>) -> io::Result<Option<bool>> {
    let mut chunk = [0; ANSWER_MAX];
    let count = match rustix::io::read(fd, &mut chunk) {
        Ok(count) => count,
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(None),
        Err(e) => return Err(e.into()),
    };
    answer.extend_from_slice(chunk.get(..count).unwrap_or_default());
    let whole = count == 0 || answer.len() >= ANSWER_MAX || answer.contains(&b'\n');
    Ok(whole.then(|| accepted(answer)))
}

/// Whether it is a status line of success.
fn accepted(answer: &[u8]) -> bool {
    let mut words = answer.split(|b| *b == b' ' || *b == b'\r' || *b == b'\n');
    let version = words.next().unwrap_or_default();
    version.starts_with(b"HTTP/1.")
        && words.next().is_some_and(|code| code.len() == 3 && code.starts_with(b"2"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;

    #[test]
    fn answers() {
        for good in ["HTTP/1.1 200 OK\r\n", "HTTP/1.0 204\r\n"] {
            assert!(accepted(good.as_bytes()), "{good:?}");
        }
        for bad in ["", "HTTP/1.1", "HTTP/1.1 500 x\r\n", "HTTP/2 200\r\n", "200", "HTTP/1.1 2000\r\n"] {
            assert!(!accepted(bad.as_bytes()), "{bad:?}");
        }
    }

    #[test]
    fn a_call() {
        for (answer, accepted) in
            [("HTTP/1.1 200 OK\r\n\r\n{}", true), ("HTTP/1.1 503 no\r\n", false), ("", false)]
        {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("vsock");
            let listener = UnixListener::bind(&path).unwrap();
            let mut call = Call::start(&Guest::User(path)).unwrap();
            assert_eq!(call.ready(), None);
            let mut server = listener.accept().unwrap().0;
            server.read_exact(&mut [0; 13]).unwrap();
            server.write_all(b"OK 1\n").unwrap();
            assert_eq!(call.ready(), None);
            let mut request = vec![0; REQUEST.len()];
            server.read_exact(&mut request).unwrap();
            assert!(request.starts_with(b"POST /api/Shutdown HTTP/1.1\r\n"));
            server.write_all(answer.as_bytes()).unwrap();
            drop(server);
            assert_eq!(call.ready(), Some(accepted), "{answer:?}");
            assert!(call.interest().is_none());
        }
    }
}
