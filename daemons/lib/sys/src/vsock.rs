// SPDX-License-Identifier: Apache-2.0
//! Streams between host and guest.
//!
//! Inside a guest and on a host with `vhost_vsock` it is `AF_VSOCK`. On a host without, a vhost-user process beside QEMU
//! offers a Unix socket: connect, send `CONNECT <port>\n`, read `OK <number>\n`, and the stream leads to the guest.
//! [`Connecting`] does either without blocking. Half-close does not arrive through the latter: frame messages, close
//! at once.

use crate::socket::{option, set_nonblocking, socklen};
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};

/// The host's CID, as guests see it: the only peer that a guest's control ports may serve.
pub const HOST: u32 = 2;
/// Listens on every CID of this machine.
pub const ANY: u32 = u32::MAX;
/// Longest answer to `CONNECT`, bytes.
const ANSWER_MAX: usize = 32;

/// A vsock address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Address {
    /// Context id.
    pub cid: u32,
    /// Port.
    pub port: u32,
}

impl Address {
    #[allow(clippy::cast_possible_truncation)] // AF_VSOCK is 40
    fn raw(self) -> libc::sockaddr_vm {
        // SAFETY: all zeros is a valid sockaddr_vm.
        let mut raw: libc::sockaddr_vm = unsafe { MaybeUninit::zeroed().assume_init() };
        raw.svm_family = libc::AF_VSOCK as libc::sa_family_t;
        raw.svm_cid = self.cid;
        raw.svm_port = self.port;
        raw
    }
}

fn socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(net::socket_with(AddressFamily::VSOCK, SocketType::STREAM, flags, None)?)
}

fn check(rc: libc::c_int) -> io::Result<()> {
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Listens on a port, non-blocking; `cid` is [`ANY`] as a rule.
///
/// # Errors
/// The error of `socket(2)` (no vsock in this kernel), `bind(2)` or `listen(2)`.
pub fn listen(address: Address) -> io::Result<OwnedFd> {
    let fd = socket()?;
    let raw = address.raw();
    // SAFETY: `raw` is a sockaddr_vm of the given length and outlives the call.
    check(unsafe { libc::bind(fd.as_raw_fd(), (&raw const raw).cast(), socklen::<libc::sockaddr_vm>()) })?;
    net::listen(&fd, 64)?;
    Ok(fd)
}

/// Accepts one connection, non-blocking, with the peer's address.
///
/// # Errors
/// `WouldBlock` when there is none and the listener is non-blocking; `InvalidData` when the listener is not a vsock.
pub fn accept(listener: BorrowedFd<'_>) -> io::Result<(OwnedFd, Address)> {
    let mut raw = Address { cid: 0, port: 0 }.raw();
    let mut len = socklen::<libc::sockaddr_vm>();
    let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: `raw` is writable for `len` bytes, both outlive the call.
    let fd = unsafe { libc::accept4(listener.as_raw_fd(), (&raw mut raw).cast(), &mut len, flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just opened this descriptor for us.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    Ok((fd, address(raw)?))
}

/// The peer of a connected vsock stream.
///
/// # Errors
/// The error of `getpeername(2)`; `InvalidData` when it is not a vsock.
pub fn peer(fd: BorrowedFd<'_>) -> io::Result<Address> {
    let mut raw = Address { cid: 0, port: 0 }.raw();
    let mut len = socklen::<libc::sockaddr_vm>();
    // SAFETY: `raw` is writable for `len` bytes, both outlive the call.
    check(unsafe { libc::getpeername(fd.as_raw_fd(), (&raw mut raw).cast(), &mut len) })?;
    address(raw)
}

fn address(raw: libc::sockaddr_vm) -> io::Result<Address> {
    if i32::from(raw.svm_family) != libc::AF_VSOCK {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a vsock peer"));
    }
    Ok(Address { cid: raw.svm_cid, port: raw.svm_port })
}

/// How to reach a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Guest {
    /// By the kernel, with the guest's CID.
    Kernel(u32),
    /// By the Unix socket of a vhost-user process.
    User(PathBuf),
}

/// A connection to a guest's port that is being made.
#[derive(Debug)]
pub struct Connecting {
    fd: OwnedFd,
    state: State,
}

#[derive(Debug)]
enum State {
    /// `connect(2)` is in progress.
    Kernel,
    /// The bytes of `CONNECT` that are still to be sent.
    Asking(Vec<u8>),
    /// The answer so far.
    Answer(Vec<u8>),
}

impl Connecting {
    /// Begins to connect.
    ///
    /// # Errors
    /// The error of `socket(2)` or `connect(2)`, when it fails at once.
    pub fn start(guest: &Guest, port: u32) -> io::Result<Self> {
        match guest {
            Guest::Kernel(cid) => Self::kernel(Address { cid: *cid, port }),
            Guest::User(path) => Self::user(path, port),
        }
    }

    fn kernel(address: Address) -> io::Result<Self> {
        let fd = socket()?;
        let raw = address.raw();
        let len = socklen::<libc::sockaddr_vm>();
        // SAFETY: `raw` is a sockaddr_vm of the given length and outlives the call.
        match check(unsafe { libc::connect(fd.as_raw_fd(), (&raw const raw).cast(), len) }) {
            Err(e) if e.raw_os_error() != Some(libc::EINPROGRESS) => Err(e),
            _ => Ok(Self { fd, state: State::Kernel }),
        }
    }

    fn user(path: &Path, port: u32) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        net::connect(&fd, &SocketAddrUnix::new(path)?)?;
        Ok(Self { fd, state: State::Asking(format!("CONNECT {port}\n").into_bytes()) })
    }

    /// What to poll [`Self::as_fd`] for.
    #[must_use]
    pub const fn interest(&self) -> PollFlags {
        match self.state {
            State::Kernel | State::Asking(_) => PollFlags::OUT,
            State::Answer(_) => PollFlags::IN,
        }
    }

    /// Goes on as far as it can without waiting; call it when the descriptor is ready. `None`: not there yet.
    ///
    /// # Errors
    /// `ConnectionRefused` or `ConnectionReset` when nobody listens in the guest, `TimedOut` when the guest does not
    /// answer; the connection is useless then.
    pub fn advance(&mut self) -> io::Result<Option<()>> {
        let step = match &mut self.state {
            State::Kernel => finished(self.fd.as_fd()),
            State::Asking(rest) => ask(self.fd.as_fd(), rest),
            State::Answer(answer) => read_answer(self.fd.as_fd(), answer),
        };
        match step {
            Ok(()) if matches!(self.state, State::Asking(_)) => {
                self.state = State::Answer(Vec::new());
                self.advance()
            }
            Ok(()) => Ok(Some(())),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// The stream, non-blocking; call it when [`Self::advance`] has returned `Some`.
    #[must_use]
    pub fn into_stream(self) -> OwnedFd {
        self.fd
    }
}

impl AsFd for Connecting {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Whether `connect(2)` has ended, and how.
fn finished(fd: BorrowedFd<'_>) -> io::Result<()> {
    match option::<libc::c_int>(fd, libc::SOL_SOCKET, libc::SO_ERROR)? {
        0 => peer(fd).map(drop).map_err(|e| match e.raw_os_error() {
            Some(libc::ENOTCONN) => io::ErrorKind::WouldBlock.into(),
            _ => e,
        }),
        code => Err(io::Error::from_raw_os_error(code)),
    }
}

fn ask(fd: BorrowedFd<'_>, rest: &mut Vec<u8>) -> io::Result<()> {
    while !rest.is_empty() {
        let sent = net::send(fd, rest, SendFlags::NOSIGNAL)?;
        rest.drain(..sent);
    }
    Ok(())
}

/// Reads `OK <number>\n` byte by byte: what follows belongs to the stream.
fn read_answer(fd: BorrowedFd<'_>, answer: &mut Vec<u8>) -> io::Result<()> {
    while answer.last() != Some(&b'\n') {
        let mut byte = [0; 1];
        match rustix::io::read(fd, &mut byte) {
            Ok(0) => return Err(io::ErrorKind::ConnectionReset.into()),
            Ok(_) if answer.len() < ANSWER_MAX => answer.extend_from_slice(&byte),
            Ok(_) => return Err(io::Error::new(io::ErrorKind::InvalidData, "answer to CONNECT is too long")),
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    if answer.starts_with(b"OK ") {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::ConnectionRefused, "the vsock process did not answer OK"))
}

/// Listens where a vhost-user process delivers the guest's connections to the host's `port`: `<uds>_<port>`.
///
/// # Errors
/// The error of `bind(2)` or `listen(2)`.
pub fn listen_user(uds: &Path, port: u32) -> io::Result<OwnedFd> {
    let mut path = uds.as_os_str().to_owned();
    path.push(format!("_{port}"));
    let listener = std::os::unix::net::UnixListener::bind(path)?;
    set_nonblocking(&listener)?;
    Ok(listener.into())
}

#[cfg(test)]
#[path = "vsock_tests.rs"]
mod tests;
