// SPDX-License-Identifier: Apache-2.0
//! The simulated TEE: the host's `dstack-quote-sim` answers over vsock. The guest holds no key of it.

use crate::platform::{AttestError, Platform, QUOTE_MAX, Registers};
use dstack_core::event_log::Digest;
use dstack_core::quote_sim_wire::{self as wire, Certified, Extended, FRAME_MAX, Quoted, Request};
use dstack_sys::vsock::{Connecting, Guest, HOST};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::de::DeserializeOwned;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Time for one request, from connecting to its answer.
pub const TIMEOUT: Duration = Duration::from_secs(10);

/// A stream to the simulated TEE.
pub trait Channel: Read + Write + Send {}
impl<T: Read + Write + Send> Channel for T {}

/// How to reach the simulated TEE.
pub trait Connect: Send + Sync {
    /// A fresh stream, whose reads and writes end in [`TIMEOUT`].
    ///
    /// # Errors
    /// When nobody listens.
    fn connect(&self) -> io::Result<Box<dyn Channel>>;
}

/// The host's port, from inside a guest.
#[derive(Debug, Clone, Copy)]
pub struct Vsock;

impl Connect for Vsock {
    fn connect(&self) -> io::Result<Box<dyn Channel>> {
        let deadline = Instant::now() + TIMEOUT;
        let mut connecting = Connecting::start(&Guest::Kernel(HOST), wire::PORT)?;
        while connecting.advance()?.is_none() {
            wait(connecting.as_fd(), connecting.interest(), deadline)?;
        }
        Ok(Box::new(Polled { fd: connecting.into_stream(), deadline }))
    }
}

/// A Unix socket, for tools on the host itself.
#[derive(Debug, Clone)]
pub struct Unix(pub PathBuf);

impl Connect for Unix {
    fn connect(&self) -> io::Result<Box<dyn Channel>> {
        let stream = UnixStream::connect(&self.0)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        Ok(Box::new(stream))
    }
}

/// A non-blocking descriptor with a deadline.
struct Polled {
    fd: OwnedFd,
    deadline: Instant,
}

fn wait(fd: impl AsFd, interest: PollFlags, deadline: Instant) -> io::Result<()> {
    let left = deadline.saturating_duration_since(Instant::now());
    let timeout = Timespec::try_from(left).map_err(|_| ErrorKind::InvalidInput)?;
    match poll(&mut [PollFd::new(&fd, interest)], Some(&timeout)) {
        Ok(0) => Err(ErrorKind::TimedOut.into()),
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

impl Read for Polled {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match rustix::io::read(&self.fd, &mut *buffer) {
                Err(rustix::io::Errno::AGAIN) => wait(&self.fd, PollFlags::IN, self.deadline)?,
                other => return Ok(other?),
            }
        }
    }
}

impl Write for Polled {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match rustix::net::send(&self.fd, bytes, rustix::net::SendFlags::NOSIGNAL) {
                Err(rustix::io::Errno::AGAIN) => wait(&self.fd, PollFlags::OUT, self.deadline)?,
                other => return Ok(other?),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The simulated TEE, from inside a guest.
#[derive(Debug)]
pub struct Simulated<C> {
    connect: C,
    /// One request at a time.
    turn: Mutex<()>,
}

impl<C: Connect> Simulated<C> {
    /// Reached this way.
    pub const fn new(connect: C) -> Self {
        Self { connect, turn: Mutex::new(()) }
    }

    /// Collateral and root certificate of the test root.
    ///
    /// # Errors
    /// [`AttestError`].
    pub fn collateral(&self) -> Result<Certified, AttestError> {
        self.ask(&Request::Collateral)
    }

    /// One request over a stream of its own: half-close does not arrive everywhere, closing does.
    fn ask<T: DeserializeOwned>(&self, request: &Request) -> Result<T, AttestError> {
        let frame = wire::frame(request)?;
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let mut channel = self.connect.connect().map_err(AttestError::Unreachable)?;
        channel.write_all(&frame).map_err(AttestError::Unreachable)?;
        let mut head = [0; 4];
        channel.read_exact(&mut head).map_err(AttestError::Unreachable)?;
        let mut body = vec![0; wire::length(head, FRAME_MAX)?];
        channel.read_exact(&mut body).map_err(AttestError::Unreachable)?;
        Ok(wire::parse_reply(&body)?)
    }
}

impl<C: Connect> Platform for Simulated<C> {
    fn label(&self) -> &'static str {
        "simulated"
    }

    fn quote(&self, report_data: &[u8; 64]) -> Result<Vec<u8>, AttestError> {
        let quoted: Quoted = self.ask(&Request::Quote { report_data: *report_data })?;
        if quoted.quote.len() > QUOTE_MAX {
            return Err(AttestError::Malformed("a quote over its limit"));
        }
        Ok(quoted.quote)
    }

    fn extend(&self, digest: &Digest) -> Result<(), AttestError> {
        self.ask::<Extended>(&Request::Extend { digest: *digest }).map(drop)
    }

    fn registers(&self) -> Result<Registers, AttestError> {
        self.ask(&Request::Registers)
    }

    fn certified(&self) -> Result<Option<Certified>, AttestError> {
        self.collateral().map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dstack_core::event_log;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Each connection is one end of a pair; a thread at the other end answers with these bytes.
    struct Answering {
        answer: Vec<u8>,
        asked: Arc<AtomicUsize>,
    }

    impl Connect for Answering {
        fn connect(&self) -> io::Result<Box<dyn Channel>> {
            let (ours, mut theirs) = UnixStream::pair()?;
            let (answer, asked) = (self.answer.clone(), Arc::clone(&self.asked));
            std::thread::spawn(move || {
                let mut head = [0; 4];
                theirs.read_exact(&mut head).unwrap();
                let mut body = vec![0; wire::length(head, wire::REQUEST_MAX).unwrap()];
                theirs.read_exact(&mut body).unwrap();
                wire::parse_request(&body).unwrap();
                asked.fetch_add(1, Ordering::SeqCst);
                let _ = theirs.write_all(&answer);
            });
            ours.set_nonblocking(true)?;
            Ok(Box::new(Polled { fd: ours.into(), deadline: Instant::now() + TIMEOUT }))
        }
    }

    fn with(answer: Vec<u8>) -> Simulated<Answering> {
        Simulated::new(Answering { answer, asked: Arc::default() })
    }

    #[test]
    fn answers_are_what_was_asked_for() {
        let quoted = with(wire::frame(&Quoted { quote: vec![1, 2, 3] }).unwrap());
        assert_eq!(quoted.quote(&[0; 64]).unwrap(), [1, 2, 3]);
        let extended = with(wire::frame(&Extended { rtmr3: [1; 48] }).unwrap());
        extended.extend(&event_log::digest(1, "a", b"")).unwrap();
        assert_eq!(extended.connect.asked.load(Ordering::SeqCst), 1);
        assert_eq!(extended.label(), "simulated");
    }

    #[test]
    fn a_refusal_names_its_reason_and_wrong_answers_are_errors() {
        let refused = with(wire::frame(&wire::Refused { error: "this VM is not known".into() }).unwrap());
        assert!(refused.quote(&[0; 64]).unwrap_err().to_string().contains("this VM is not known"));
        for bad in [vec![], vec![0, 0], vec![0xff; 8], vec![0, 0, 0, 9, b'{'], wire::frame(&1).unwrap()] {
            assert!(with(bad.clone()).registers().is_err(), "{bad:?}");
        }
        let long = wire::frame(&Quoted { quote: vec![0; QUOTE_MAX + 1] }).unwrap();
        assert!(matches!(with(long).quote(&[0; 64]), Err(AttestError::Malformed(_))));
    }

    #[test]
    fn nobody_there_is_said_with_the_remedy() {
        let nobody = Simulated::new(Unix("/nonexistent/quote-sim.sock".into()));
        assert!(nobody.registers().unwrap_err().to_string().contains("dstack-testroot"));
    }
}
