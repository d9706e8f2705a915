// SPDX-License-Identifier: Apache-2.0
//! Sockets that systemd passes, told apart by their `FileDescriptorName=`.

use dstack_sys::fds::{self, Inherited};
use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;

/// Why the passed sockets cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// A socket that the daemon needs was not passed.
    #[error("no socket named {0:?} was passed; start the daemon by `systemctl start` of its .socket unit")]
    Missing(&'static str),
    /// Passing them failed.
    #[error("sockets cannot be taken over: {0}")]
    Io(#[from] io::Error),
}

/// The passed sockets.
#[derive(Debug)]
pub struct Sockets(Vec<Inherited>);

impl Sockets {
    /// Takes over whatever was passed; call it once, before any thread starts.
    ///
    /// # Errors
    /// When a descriptor is not open.
    pub fn take() -> Result<Self, SocketError> {
        Ok(Self(fds::take()?))
    }

    /// All sockets of this name.
    pub fn named(&mut self, name: &str) -> Vec<OwnedFd> {
        let (wanted, rest) = std::mem::take(&mut self.0).into_iter().partition(|i| i.name == name);
        self.0 = rest;
        let wanted: Vec<Inherited> = wanted;
        wanted.into_iter().map(|i| i.fd).collect()
    }

    /// The one socket of this name.
    ///
    /// # Errors
    /// [`SocketError::Missing`] when there is none.
    pub fn one(&mut self, name: &'static str) -> Result<OwnedFd, SocketError> {
        self.named(name).into_iter().next().ok_or(SocketError::Missing(name))
    }

    /// All TCP listeners of this name, ready for tokio.
    ///
    /// # Errors
    /// When a socket cannot be made non-blocking.
    pub fn tcp(&mut self, name: &str) -> Result<Vec<TcpListener>, SocketError> {
        let prepare = |fd: OwnedFd| {
            let listener = TcpListener::from(fd);
            listener.set_nonblocking(true).map(|()| listener)
        };
        Ok(self.named(name).into_iter().map(prepare).collect::<io::Result<_>>()?)
    }

    /// All Unix stream listeners of this name, ready for tokio.
    ///
    /// # Errors
    /// When a socket cannot be made non-blocking.
    pub fn unix(&mut self, name: &str) -> Result<Vec<UnixListener>, SocketError> {
        let prepare = |fd: OwnedFd| {
            let listener = UnixListener::from(fd);
            listener.set_nonblocking(true).map(|()| listener)
        };
        Ok(self.named(name).into_iter().map(prepare).collect::<io::Result<_>>()?)
    }
}
