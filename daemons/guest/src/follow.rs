// SPDX-License-Identifier: Apache-2.0
//! One host connection of the status port: greets, sends the status file, follows it by inotify.
//!
//! The host only reads. Whatever it sends, also its end, closes the connection: through a user-space vsock a
//! half-close does not arrive, so there is nothing to wait for after it.

use dstack_core::boot::{Line, VERSION};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// Bytes of the file that wait for a slow reader at most.
const CHUNK: usize = 4096;

/// Streams until the host closes. `delivered` is made when an `ERROR` line has been sent.
///
/// # Errors
/// The error of reading the file or of the connection.
pub fn serve(connection: BorrowedFd<'_>, file: &Path, delivered: &Path) -> io::Result<()> {
    rustix::io::ioctl_fionbio(connection, true)?;
    let changes = watch(file, WatchFlags::MODIFY)?;
    let mut source = File::open(file)?;
    let mut pending = Pending::greeting();
    loop {
        if pending.bytes.is_empty() {
            pending.fill(&mut source)?;
        }
        if !pending.send(connection)? {
            return Ok(());
        }
        if pending.sent_error {
            mark(delivered)?;
            pending.sent_error = false;
        }
        if pending.bytes.is_empty() && pending.fill(&mut source)? {
            continue;
        }
        if !wait(connection, &changes, !pending.bytes.is_empty())? {
            return Ok(());
        }
    }
}

/// What has been read from the file and not yet sent.
struct Pending {
    bytes: Vec<u8>,
    sent_error: bool,
}

impl Pending {
    fn greeting() -> Self {
        Self { bytes: format!("{}\n", Line::Hello(VERSION)).into_bytes(), sent_error: false }
    }

    /// Reads on; `false` at the file's present end.
    fn fill(&mut self, source: &mut File) -> io::Result<bool> {
        let mut chunk = Vec::with_capacity(CHUNK);
        source.take(CHUNK as u64).read_to_end(&mut chunk)?;
        self.bytes.append(&mut chunk);
        Ok(!self.bytes.is_empty())
    }

    /// Sends what the connection takes; `false` when the host is gone.
    fn send(&mut self, connection: BorrowedFd<'_>) -> io::Result<bool> {
        while !self.bytes.is_empty() {
            match rustix::io::write(connection, &self.bytes) {
                Ok(n) => {
                    self.sent_error |= self.bytes.get(..n).is_some_and(has_error);
                    self.bytes.drain(..n);
                }
                Err(Errno::AGAIN | Errno::INTR) => return Ok(true),
                Err(Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN) => return Ok(false),
                Err(e) => return Err(e.into()),
            }
        }
        Ok(true)
    }
}

fn has_error(bytes: &[u8]) -> bool {
    bytes.split(|b| *b == b'\n').any(|l| matches!(Line::parse(l), Ok(Some(Line::Error(_)))))
}

/// Waits for the file, for room, or for the host's end; `false` for the last.
fn wait(connection: BorrowedFd<'_>, changes: &OwnedFd, blocked: bool) -> io::Result<bool> {
    let host = if blocked { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
    let mut fds = [PollFd::new(&connection, host), PollFd::new(changes, PollFlags::IN)];
    match poll(&mut fds, None) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(e) => return Err(e.into()),
    }
    let [host, file] = fds.map(|fd| fd.revents());
    if file.contains(PollFlags::IN) {
        drain(changes)?;
    }
    Ok(!host.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR))
}

fn watch(path: &Path, flags: WatchFlags) -> io::Result<OwnedFd> {
    let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    inotify::add_watch(&fd, path, flags)?;
    Ok(fd)
}

/// Forgets the events; the file itself says what changed.
fn drain(changes: &OwnedFd) -> io::Result<()> {
    let mut buffer = [0; CHUNK];
    match rustix::io::read(changes, &mut buffer) {
        Ok(_) | Err(Errno::AGAIN | Errno::INTR) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

fn mark(path: &Path) -> io::Result<()> {
    File::create(path).map(drop)
}

/// Waits until the host has been sent an `ERROR` line, at most `seconds`. `false` when the time is up.
///
/// # Errors
/// The error of watching the directory of the mark.
pub fn await_delivery(delivered: &Path, seconds: i64) -> io::Result<bool> {
    let directory = delivered.parent().unwrap_or(Path::new("/"));
    let changes = watch(directory, WatchFlags::CREATE | WatchFlags::MOVED_TO)?;
    let limit = Timespec { tv_sec: seconds, tv_nsec: 0 };
    while !delivered.exists() {
        if poll(&mut [PollFd::new(&changes.as_fd(), PollFlags::IN)], Some(&limit))? == 0 {
            return Ok(false);
        }
        drain(&changes)?;
    }
    Ok(true)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "follow_tests.rs"]
mod tests;
