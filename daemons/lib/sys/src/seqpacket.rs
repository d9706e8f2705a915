// SPDX-License-Identifier: Apache-2.0
//! `SOCK_SEQPACKET` Unix sockets: whole packets, with descriptors beside them (`SCM_RIGHTS`).
//!
//! All functions follow the descriptor's blocking mode; sockets made here are non-blocking and close-on-exec. To use
//! one with tokio: `AsyncFd::new(fd)?.async_io(Interest::READABLE, |fd| seqpacket::receive(fd.as_fd(), max))`.

use crate::socket::set_nonblocking;
use rustix::net::{
    self, AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

/// Most descriptors in one packet.
pub const FDS_MAX: usize = 4;

/// A received packet.
#[derive(Debug)]
pub struct Packet {
    /// Its bytes, at least one.
    pub bytes: Vec<u8>,
    /// The descriptors beside it, close-on-exec.
    pub fds: Vec<OwnedFd>,
}

fn socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

/// Two connected sockets.
///
/// # Errors
/// The error of `socketpair(2)`.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

/// Connects to a listening socket. Never waits: `WouldBlock` when the listener's backlog is full.
///
/// # Errors
/// The error of `connect(2)`: `NotFound` and `ConnectionRefused` when nobody listens.
pub fn connect(path: &Path) -> io::Result<OwnedFd> {
    let fd = socket()?;
    net::connect(&fd, &SocketAddrUnix::new(path)?)?;
    Ok(fd)
}

/// Listens at a path that must not exist yet. (Daemons get theirs from systemd: [`crate::fds::take`].)
///
/// # Errors
/// The error of `bind(2)` or `listen(2)`.
pub fn listen(path: &Path) -> io::Result<OwnedFd> {
    let fd = socket()?;
    net::bind(&fd, &SocketAddrUnix::new(path)?)?;
    net::listen(&fd, 64)?;
    Ok(fd)
}

/// Accepts one connection, non-blocking whatever the listener is.
///
/// # Errors
/// `WouldBlock` when there is none and the listener is non-blocking, else the error of `accept4(2)`.
pub fn accept(listener: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let fd = net::accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
    set_nonblocking(&fd)?;
    Ok(fd)
}

/// Sends one packet with up to [`FDS_MAX`] descriptors. The peer gets duplicates; the caller keeps its own.
///
/// # Errors
/// `InvalidInput` for an empty packet (it would read as the end) or too many descriptors, `WouldBlock` when the peer's
/// buffer is full, `BrokenPipe` when it is gone (never a signal), else the error of `sendmsg(2)`.
pub fn send(fd: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    if bytes.is_empty() || fds.len() > FDS_MAX {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "packet is empty or has too many descriptors",
        ));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors for one packet"));
    }
    let sent = net::sendmsg(fd, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?;
    if sent == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// Receives one packet of at most `max` bytes; `None` when the peer has closed.
///
/// # Errors
/// `InvalidData` for a packet larger than `max` or with more than [`FDS_MAX`] descriptors (it is lost, the connection
/// goes on), `WouldBlock` when there is none, else the error of `recvmsg(2)`.
pub fn receive(fd: BorrowedFd<'_>, max: usize) -> io::Result<Option<Packet>> {
    let mut bytes = vec![0; max];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let slices = &mut [IoSliceMut::new(&mut bytes)];
    let message = net::recvmsg(fd, slices, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    // Taken before anything can fail, so that no descriptor leaks.
    let fds = control
        .drain()
        .filter_map(|m| if let RecvAncillaryMessage::ScmRights(fds) = m { Some(fds) } else { None })
        .flatten()
        .collect();
    if message.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "packet is too large"));
    }
    if message.bytes == 0 {
        return Ok(None);
    }
    bytes.truncate(message.bytes);
    Ok(Some(Packet { bytes, fds }))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::fd::AsFd;

    #[test]
    fn packets_keep_their_borders() {
        let (a, b) = pair().unwrap();
        send(a.as_fd(), b"one", &[]).unwrap();
        send(a.as_fd(), b"two", &[]).unwrap();
        assert_eq!(receive(b.as_fd(), 100).unwrap().unwrap().bytes, b"one");
        assert_eq!(receive(b.as_fd(), 100).unwrap().unwrap().bytes, b"two");
        assert_eq!(receive(b.as_fd(), 100).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(a);
        assert!(receive(b.as_fd(), 100).unwrap().is_none());
        assert_eq!(send(b.as_fd(), b"x", &[]).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn descriptors_travel() {
        let (a, b) = pair().unwrap();
        let (read, write) = rustix::pipe::pipe().unwrap();
        send(a.as_fd(), b"fd", &[write.as_fd()]).unwrap();
        drop(write);
        let fd = receive(b.as_fd(), 100).unwrap().unwrap().fds.pop().unwrap();
        File::from(fd).write_all(b"hello").unwrap();
        let mut text = String::new();
        File::from(read).read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
    }

    #[test]
    fn too_large_is_an_error_and_not_the_end() {
        let (a, b) = pair().unwrap();
        send(a.as_fd(), b"0123456789", &[a.as_fd()]).unwrap();
        send(a.as_fd(), b"ok", &[]).unwrap();
        assert_eq!(receive(b.as_fd(), 9).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(receive(b.as_fd(), 9).unwrap().unwrap().bytes, b"ok");
        assert!(send(a.as_fd(), b"", &[]).is_err());
        assert!(send(a.as_fd(), b"x", &[a.as_fd(); FDS_MAX + 1]).is_err());
    }

    #[test]
    fn listen_and_connect() {
        let path = std::env::temp_dir().join(format!("dstack-sys-{}", std::process::id()));
        let listener = listen(&path).unwrap();
        assert_eq!(accept(listener.as_fd()).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let client = connect(&path).unwrap();
        let server = accept(listener.as_fd()).unwrap();
        send(client.as_fd(), b"hi", &[]).unwrap();
        assert_eq!(receive(server.as_fd(), 10).unwrap().unwrap().bytes, b"hi");
        drop(listener);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(connect(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
