// SPDX-License-Identifier: Apache-2.0
//! Guest to simulated TEE, where vsock is in user space: what the guest connects to arrives at `<socket>_<port>`, and
//! each connection is passed on to dstack-quote-sim's Unix socket. It knows the VM by this process, so nothing that
//! passes here is looked at. With the kernel's vsock the guest reaches the service itself.

use dstack_core::quote_sim_wire::PORT;
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// Connections at a time; the guest needs one.
const CONNECTIONS_MAX: usize = 4;
/// Bytes that wait for a slow reader at most, each way.
const BUFFER: usize = 16 * 1024;

/// Whose descriptor is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ready {
    /// A guest connects.
    Listener,
    /// One end of a connection: its number, and 0 for the guest or 1 for the service.
    End(usize, usize),
}

/// One end: its stream, and what waits to be written to it.
#[derive(Debug)]
struct End {
    fd: OwnedFd,
    waiting: Vec<u8>,
}

/// A guest's connection and the one to the service.
#[derive(Debug)]
struct Pair {
    ends: [End; 2],
    /// One end is closed: what waits is still delivered, then both go. A half-close does not arrive through a vsock in
    /// user space, so there is nothing else to do.
    ending: bool,
    over: bool,
}

/// The listener and its connections.
#[derive(Debug)]
pub struct Relay {
    listener: UnixListener,
    service: PathBuf,
    pairs: Vec<Pair>,
}

impl Relay {
    /// Listens beside the socket of the vsock process.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn listen(vsock: &Path, service: &Path) -> io::Result<Self> {
        let mut path = vsock.as_os_str().to_owned();
        path.push(format!("_{PORT}"));
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let listener = UnixListener::bind(&path)?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener, service: service.to_owned(), pairs: Vec::new() })
    }

    /// The descriptors to poll, and what for.
    pub fn interests(&self) -> impl Iterator<Item = (Ready, BorrowedFd<'_>, PollFlags)> {
        let room = self.pairs.len() < CONNECTIONS_MAX;
        let listener = room.then(|| (Ready::Listener, self.listener.as_fd(), PollFlags::IN));
        let ends = self.pairs.iter().enumerate().flat_map(|(number, pair)| {
            pair.interests().map(move |(side, fd, flags)| (Ready::End(number, side), fd, flags))
        });
        listener.into_iter().chain(ends)
    }

    /// Goes on where a descriptor is ready. Numbers stay valid until [`Self::sweep`].
    pub fn ready(&mut self, ready: Ready) {
        match ready {
            Ready::Listener => self.accept(),
            Ready::End(number, side) => {
                if let Some(pair) = self.pairs.get_mut(number) {
                    pair.step(side);
                }
            }
        }
    }

    /// Forgets connections that are over.
    pub fn sweep(&mut self) {
        self.pairs.retain(|pair| !pair.over);
    }

    /// A guest that connects while the service is not there is closed at once: it says so and goes on or ends.
    fn accept(&mut self) {
        while self.pairs.len() < CONNECTIONS_MAX {
            let Ok((guest, _)) = self.listener.accept() else { return };
            if guest.set_nonblocking(true).is_err() {
                continue;
            }
            if let Ok(service) = connect(&self.service) {
                let end = |fd| End { fd, waiting: Vec::new() };
                self.pairs.push(Pair { ends: [end(guest.into()), end(service)], ending: false, over: false });
            }
        }
    }
}

/// Connects without waiting: a service whose queue is full counts as absent.
fn connect(path: &Path) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    net::connect(&fd, &SocketAddrUnix::new(path)?)?;
    Ok(fd)
}

impl Pair {
    fn interests(&self) -> impl Iterator<Item = (usize, BorrowedFd<'_>, PollFlags)> {
        let [guest, service] = &self.ends;
        [(0, guest, service), (1, service, guest)].into_iter().filter_map(|(side, end, other)| {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, !self.ending && other.waiting.len() < BUFFER);
            flags.set(PollFlags::OUT, !end.waiting.is_empty());
            // Without interest the kernel would still report a hang-up, again and again.
            (!flags.is_empty()).then_some((side, end.fd.as_fd(), flags))
        })
    }

    /// Writes what waits for this end, and reads from it for the other.
    fn step(&mut self, side: usize) {
        let [guest, service] = &mut self.ends;
        let (end, other) = if side == 0 { (guest, service) } else { (service, guest) };
        let moved = end.flush().and_then(|()| {
            if !self.ending && other.waiting.len() < BUFFER && end.read(&mut other.waiting)? {
                self.ending = true;
            }
            other.flush()
        });
        let drained = end.waiting.is_empty() && other.waiting.is_empty();
        self.over |= moved.is_err() || (self.ending && drained);
    }
}

impl End {
    /// Writes as much as the stream takes.
    fn flush(&mut self) -> io::Result<()> {
        while !self.waiting.is_empty() {
            match net::send(&self.fd, &self.waiting, SendFlags::NOSIGNAL) {
                Ok(count) => drop(self.waiting.drain(..count)),
                Err(Errno::AGAIN | Errno::INTR) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Reads once; whether the stream has ended.
    fn read(&self, into: &mut Vec<u8>) -> io::Result<bool> {
        let mut chunk = [0; 4096];
        match rustix::io::read(&self.fd, &mut chunk) {
            Ok(0) => Ok(true),
            Ok(count) => {
                into.extend_from_slice(chunk.get(..count).unwrap_or_default());
                Ok(false)
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
#[path = "relay_tests.rs"]
mod tests;
