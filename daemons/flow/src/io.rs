// SPDX-License-Identifier: Apache-2.0
//! Non-blocking system calls, and what came of them.

use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use rustix::pipe::{PipeFlags, SpliceFlags};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

/// Bytes of a pipe, as far as the kernel allows.
pub const PIPE_SIZE: usize = 1 << 20;

/// What came of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Io {
    /// So many bytes moved, at least one.
    Moved(usize),
    /// The peer has said all.
    End,
    /// Not now; an event will tell when.
    Blocked,
    /// The connection is broken.
    Failed,
}

fn outcome(call: impl Fn() -> Result<usize, Errno>) -> Io {
    loop {
        return match call() {
            Ok(0) => Io::End,
            Ok(count) => Io::Moved(count),
            Err(Errno::INTR) => continue,
            Err(Errno::AGAIN) => Io::Blocked,
            Err(_) => Io::Failed,
        };
    }
}

/// Receives into a buffer that is not empty.
pub fn receive(fd: impl AsFd, buffer: &mut [u8]) -> Io {
    loop {
        return match rustix::net::recv(&fd, &mut *buffer, RecvFlags::empty()) {
            Ok((0, _)) => Io::End,
            Ok((count, _)) => Io::Moved(count),
            Err(Errno::INTR) => continue,
            Err(Errno::AGAIN) => Io::Blocked,
            Err(_) => Io::Failed,
        };
    }
}

/// Sends bytes, at least one.
pub fn send(fd: impl AsFd, bytes: &[u8]) -> Io {
    outcome(|| rustix::net::send(&fd, bytes, SendFlags::NOSIGNAL))
}

/// A pipe that carries bytes from one socket to another without copying them to this process.
#[derive(Debug)]
pub struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
}

impl Pipe {
    /// A new pipe, as large as [`PIPE_SIZE`] when the user's limit allows.
    ///
    /// # Errors
    /// The error of `pipe2(2)`: no descriptors.
    pub fn new() -> io::Result<Self> {
        let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // Users have a limit of pipe memory; beyond it the pipe stays as it was made.
        let _ = rustix::pipe::fcntl_setpipe_size(&write, PIPE_SIZE);
        Ok(Self { read, write })
    }

    /// Moves bytes from a socket into the pipe, which is empty.
    pub fn fill(&self, socket: impl AsFd) -> Io {
        splice(socket, &self.write, PIPE_SIZE)
    }

    /// Moves bytes from the pipe to a socket.
    pub fn drain(&self, socket: impl AsFd, count: usize) -> Io {
        splice(&self.read, socket, count)
    }
}

fn splice(from: impl AsFd, to: impl AsFd, count: usize) -> Io {
    outcome(|| rustix::pipe::splice(&from, None, &to, None, count, SpliceFlags::MOVE | SpliceFlags::NONBLOCK))
}

/// Waits for events.
#[derive(Debug)]
pub struct Poller(OwnedFd);

/// Both directions, and the peer's end, told at each change.
const EDGES: epoll::EventFlags = epoll::EventFlags::IN
    .union(epoll::EventFlags::OUT)
    .union(epoll::EventFlags::RDHUP)
    .union(epoll::EventFlags::ET);

impl Poller {
    /// A poller of nothing.
    ///
    /// # Errors
    /// The error of `epoll_create1(2)`.
    pub fn new() -> io::Result<Self> {
        Ok(Self(epoll::create(epoll::CreateFlags::CLOEXEC)?))
    }

    fn add(&self, fd: impl AsFd, data: u64, flags: epoll::EventFlags) -> io::Result<()> {
        Ok(epoll::add(&self.0, fd, epoll::EventData::new_u64(data), flags)?)
    }

    /// Watches a connection, by edges.
    ///
    /// # Errors
    /// The error of `epoll_ctl(2)`.
    pub fn connection(&self, fd: impl AsFd, data: u64) -> io::Result<()> {
        self.add(fd, data, EDGES)
    }

    /// Watches a listening socket that others watch too; one of them is woken.
    ///
    /// # Errors
    /// The error of `epoll_ctl(2)`.
    pub fn listener(&self, fd: impl AsFd, data: u64) -> io::Result<()> {
        self.add(fd, data, epoll::EventFlags::IN | epoll::EventFlags::EXCLUSIVE)
    }

    /// Watches an event descriptor, by edges.
    ///
    /// # Errors
    /// The error of `epoll_ctl(2)`.
    pub fn wake(&self, fd: impl AsFd, data: u64) -> io::Result<()> {
        self.add(fd, data, epoll::EventFlags::IN | epoll::EventFlags::ET)
    }

    /// Stops watching.
    pub fn forget(&self, fd: impl AsFd) {
        // It was watched; if not, nothing is left to do.
        let _ = epoll::delete(&self.0, fd);
    }

    /// Waits for events, at most so long, and puts them into the emptied list, at most as many as it has room for.
    ///
    /// # Errors
    /// The error of `epoll_wait(2)`.
    pub fn wait(&self, events: &mut Vec<epoll::Event>, limit: Option<Duration>) -> io::Result<()> {
        events.clear();
        let limit = limit.and_then(|limit| rustix::event::Timespec::try_from(limit).ok());
        match epoll::wait(&self.0, rustix::buffer::spare_capacity(events), limit.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}
