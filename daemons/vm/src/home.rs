// SPDX-License-Identifier: Apache-2.0
//! The connection to teepod: state goes out, requests for streams come in. teepod may be away at any time.

use dstack_core::home::{FromVm, PROTOCOL, Status, ToVm, format, parse};
use dstack_core::ids::VmName;
use dstack_core::limits::HOME_PACKET_MAX;
use dstack_sys::seqpacket;
use dstack_sys::vsock::{Connecting, Guest};
use rustix::event::PollFlags;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

/// Time between two attempts to reach teepod.
pub const RETRY: Duration = Duration::from_secs(1);
/// Most streams that are being opened at a time.
const PENDING_MAX: usize = 16;
/// Time that opening one may take.
const OPEN_MAX: Duration = Duration::from_secs(5);
/// Most answers that wait for teepod to read.
const QUEUE_MAX: usize = 64;

#[derive(Debug)]
struct Pending {
    id: u64,
    connecting: Connecting,
    until: Duration,
}

#[derive(Debug)]
struct Answer {
    bytes: Vec<u8>,
    fd: Option<OwnedFd>,
}

/// The connection, in whatever state.
#[derive(Debug)]
pub struct Home {
    path: PathBuf,
    vm: VmName,
    fd: Option<OwnedFd>,
    retry_at: Duration,
    queue: VecDeque<Answer>,
    /// The newest state, when it has not been sent yet: older ones do not matter.
    status: Option<Status>,
    pending: Vec<Pending>,
}

impl Home {
    /// Not connected yet; the first attempt is due at once.
    #[must_use]
    pub const fn new(path: PathBuf, vm: VmName) -> Self {
        Self {
            path,
            vm,
            fd: None,
            retry_at: Duration::ZERO,
            queue: VecDeque::new(),
            status: None,
            pending: Vec::new(),
        }
    }

    /// The connection's descriptor and what to poll it for.
    #[must_use]
    pub fn interest(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        let waiting = !self.queue.is_empty() || self.status.is_some();
        let out = if waiting { PollFlags::OUT } else { PollFlags::empty() };
        self.fd.as_ref().map(|fd| (fd.as_fd(), PollFlags::IN | out))
    }

    /// The descriptors of streams that are being opened, by index.
    pub fn pending(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        self.pending.iter().map(|p| (p.connecting.as_fd(), p.connecting.interest()))
    }

    /// When to call [`Self::tick`] at the latest.
    #[must_use]
    pub fn deadline(&self) -> Option<Duration> {
        let retry = self.fd.is_none().then_some(self.retry_at);
        self.pending.iter().map(|p| p.until).chain(retry).min()
    }

    /// Connects when it is time to, with a greeting and the `status`; gives up streams that take too long.
    pub fn tick(&mut self, now: Duration, status: impl FnOnce() -> Status) {
        while let Some(index) = self.pending.iter().position(|p| p.until <= now) {
            let late = self.pending.remove(index);
            self.fail(late.id, "the guest does not answer");
        }
        if self.fd.is_some() || self.retry_at > now {
            return;
        }
        self.retry_at = now + RETRY;
        if let Ok(fd) = seqpacket::connect(&self.path) {
            self.fd = Some(fd);
            let build = env!("CARGO_PKG_VERSION").to_owned();
            self.answer(&FromVm::Hello { protocol: PROTOCOL, vm: self.vm.clone(), build }, None);
            self.publish(status());
        }
        self.flush(now);
    }

    /// Sends the state, when there is somebody to send it to.
    pub fn publish(&mut self, status: Status) {
        self.status = self.fd.is_some().then_some(status);
    }

    /// Sends what waits.
    pub fn flush(&mut self, now: Duration) {
        let sent = self.try_flush();
        if sent.is_err_and(|e| e.kind() != io::ErrorKind::WouldBlock) {
            self.lose(now);
        }
    }

    fn try_flush(&mut self) -> io::Result<()> {
        let Some(fd) = &self.fd else { return Ok(()) };
        while let Some(answer) = self.queue.front() {
            let beside: Vec<BorrowedFd<'_>> = answer.fd.iter().map(AsFd::as_fd).collect();
            seqpacket::send(fd.as_fd(), &answer.bytes, &beside)?;
            self.queue.pop_front();
        }
        if let Some(status) = &self.status {
            // Bounded by construction, so this always has a format.
            if let Ok(bytes) = format(&FromVm::Status(status.clone())) {
                seqpacket::send(fd.as_fd(), &bytes, &[])?;
            }
            self.status = None;
        }
        Ok(())
    }

    /// Reads what has come when the connection is ready; returns the ids of requests for the console.
    pub fn ready(&mut self, now: Duration, guest: &Guest) -> Vec<u64> {
        let mut consoles = Vec::new();
        self.flush(now);
        while let Some(fd) = &self.fd {
            match seqpacket::receive(fd.as_fd(), HOME_PACKET_MAX) {
                Ok(Some(packet)) => consoles.extend(self.request(&packet.bytes, now, guest)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                // A packet that is too large is a word of a newer teepod.
                Err(e) if e.kind() == io::ErrorKind::InvalidData => {}
                Ok(None) | Err(_) => self.lose(now),
            }
        }
        consoles
    }

    fn request(&mut self, bytes: &[u8], now: Duration, guest: &Guest) -> Option<u64> {
        match parse::<ToVm>(bytes) {
            Ok(ToVm::Console { id }) => return Some(id),
            Ok(ToVm::Connect { id, port }) => self.open(id, port, now, guest),
            Ok(ToVm::Unknown) | Err(_) => {}
        }
        None
    }

    fn open(&mut self, id: u64, port: u32, now: Duration, guest: &Guest) {
        if self.pending.len() >= PENDING_MAX {
            return self.fail(id, "too many streams are being opened; try again");
        }
        match Connecting::start(guest, port) {
            Ok(connecting) => self.pending.push(Pending { id, connecting, until: now + OPEN_MAX }),
            Err(e) => self.fail(id, &format!("the guest cannot be reached: {e}")),
        }
    }

    /// Goes on with a stream that is being opened.
    pub fn pending_ready(&mut self, index: usize, now: Duration) {
        let Some(pending) = self.pending.get_mut(index) else { return };
        match pending.connecting.advance() {
            Ok(None) => return,
            Ok(Some(())) => {
                let pending = self.pending.remove(index);
                self.opened(pending.id, pending.connecting.into_stream());
            }
            Err(e) => {
                let pending = self.pending.remove(index);
                self.fail(pending.id, &format!("the guest refused the connection: {e}"));
            }
        }
        self.flush(now);
    }

    /// Answers a request with a stream.
    pub fn opened(&mut self, id: u64, fd: OwnedFd) {
        self.answer(&FromVm::Opened { id }, Some(fd));
    }

    /// Answers a request with an error.
    pub fn fail(&mut self, id: u64, error: &str) {
        self.answer(&FromVm::Failed { id, error: error.to_owned() }, None);
    }

    fn answer(&mut self, packet: &FromVm, fd: Option<OwnedFd>) {
        if self.fd.is_none() || self.queue.len() >= QUEUE_MAX {
            return;
        }
        if let Ok(bytes) = format(packet) {
            self.queue.push_back(Answer { bytes, fd });
        }
    }

    /// teepod is away: forget what it wanted, try again later.
    fn lose(&mut self, now: Duration) {
        self.fd = None;
        self.retry_at = now + RETRY;
        self.queue.clear();
        self.status = None;
        self.pending.clear();
    }
}

#[cfg(test)]
#[path = "home_tests.rs"]
mod tests;
