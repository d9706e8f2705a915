// SPDX-License-Identifier: Apache-2.0
//! Listeners and streams over Unix sockets, TCP and vsock, from descriptors that systemd or a peer passed.

use rustix::net::{AddressFamily, sockopt};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_vsock::{VsockListener, VsockStream};

/// After this long without a packet the kernel asks whether a TCP peer still lives.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
/// A TCP peer that acknowledges nothing, or takes nothing, for this many milliseconds is cut off.
const USER_TIMEOUT_MS: u32 = 60_000;
/// The vsock context id of the host.
pub const HOST_CID: u32 = 2;

/// Who is at the other end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer {
    /// A process on this machine.
    Unix {
        /// Its effective user id when it connected.
        uid: u32,
        /// Its effective group id when it connected.
        gid: u32,
        /// Its process id, if it is visible from here.
        pid: Option<i32>,
    },
    /// A network address.
    Tcp(SocketAddr),
    /// A machine of this host: a guest's CID, or [`HOST_CID`].
    Vsock {
        /// Context id.
        cid: u32,
        /// Port.
        port: u32,
    },
}

/// A bound, listening socket.
#[derive(Debug)]
pub enum Listener {
    /// `AF_UNIX`, stream.
    Unix(UnixListener),
    /// `AF_INET` or `AF_INET6`.
    Tcp(TcpListener),
    /// `AF_VSOCK`.
    Vsock(VsockListener),
}

impl Listener {
    /// Takes a listening descriptor, whatever its family; call it inside the runtime.
    ///
    /// # Errors
    /// When it is no listening stream socket of these families.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        if !sockopt::socket_acceptconn(&fd)? {
            return Err(unsupported("socket does not listen"));
        }
        Ok(match sockopt::socket_domain(&fd)? {
            AddressFamily::UNIX => {
                let listener = std::os::unix::net::UnixListener::from(fd);
                listener.set_nonblocking(true)?;
                Self::Unix(UnixListener::from_std(listener)?)
            }
            AddressFamily::INET | AddressFamily::INET6 => {
                let listener = std::net::TcpListener::from(fd);
                listener.set_nonblocking(true)?;
                Self::Tcp(TcpListener::from_std(listener)?)
            }
            AddressFamily::VSOCK => Self::Vsock(VsockListener::from(fd)),
            _ => return Err(unsupported("socket is neither Unix, TCP nor vsock")),
        })
    }

    /// Waits for a connection.
    ///
    /// # Errors
    /// Those of `accept`, e.g. too many open files.
    pub async fn accept(&self) -> io::Result<(Stream, Peer)> {
        match self {
            Self::Unix(l) => {
                let (stream, _) = l.accept().await?;
                let cred = stream.peer_cred()?;
                let peer = Peer::Unix { uid: cred.uid(), gid: cred.gid(), pid: cred.pid() };
                Ok((Stream::Unix(stream), peer))
            }
            Self::Tcp(l) => {
                let (stream, address) = l.accept().await?;
                tune(&stream)?;
                Ok((Stream::Tcp(stream), Peer::Tcp(address)))
            }
            Self::Vsock(l) => {
                let (stream, address) = l.accept().await?;
                Ok((Stream::Vsock(stream), Peer::Vsock { cid: address.cid(), port: address.port() }))
            }
        }
    }
}

fn unsupported(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what.to_owned())
}

/// Small writes go out at once; a peer that vanished is noticed also while nothing is sent; and one that takes nothing
/// does not hold its connection forever.
fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_user_timeout(stream, USER_TIMEOUT_MS)?;
    Ok(())
}

/// A connected stream.
#[derive(Debug)]
pub enum Stream {
    /// `AF_UNIX`.
    Unix(UnixStream),
    /// `AF_INET` or `AF_INET6`.
    Tcp(TcpStream),
    /// `AF_VSOCK`.
    Vsock(VsockStream),
}

impl Stream {
    /// Takes a connected descriptor, whatever its family; call it inside the runtime.
    ///
    /// # Errors
    /// When it is no stream socket of these families.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        Ok(match sockopt::socket_domain(&fd)? {
            AddressFamily::UNIX => {
                let stream = std::os::unix::net::UnixStream::from(fd);
                stream.set_nonblocking(true)?;
                Self::Unix(UnixStream::from_std(stream)?)
            }
            AddressFamily::INET | AddressFamily::INET6 => {
                let stream = std::net::TcpStream::from(fd);
                stream.set_nonblocking(true)?;
                Self::Tcp(TcpStream::from_std(stream)?)
            }
            AddressFamily::VSOCK => Self::Vsock(VsockStream::from(fd)),
            _ => return Err(unsupported("socket is neither Unix, TCP nor vsock")),
        })
    }
}

macro_rules! each {
    ($self:ident, $stream:ident => $call:expr) => {
        match $self.get_mut() {
            Self::Unix($stream) => $call,
            Self::Tcp($stream) => $call,
            Self::Vsock($stream) => $call,
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each!(self, s => Pin::new(s).poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        each!(self, s => Pin::new(s).poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, s => Pin::new(s).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, s => Pin::new(s).poll_shutdown(cx))
    }
}
