// SPDX-License-Identifier: Apache-2.0
//! TLS records made and opened by the kernel (kTLS, `tls(7)` of its documentation): a TCP socket is given the keys of a
//! session, and carries plain bytes for us from then on.
//!
//! A kernel offers this when its module `tls` is loaded, which only a privileged process brings about. Before 6.14 a
//! session of TLS 1.3 keeps its first keys for ever ([`Support::rekey`]).
//!
//! All functions follow the descriptor's blocking mode.

use crate::socket::set_option;
use rustix::net::{RecvFlags, SendFlags};
use std::io;
use std::mem::size_of;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use zeroize::Zeroizing;

/// Type of a record that carries bytes of the application.
pub const DATA: u8 = 23;
/// `TLS_SET_RECORD_TYPE`, beside a message that is sent.
const SET_RECORD_TYPE: libc::c_int = 1;
/// `TLS_GET_RECORD_TYPE`, beside a message that is received.
const GET_RECORD_TYPE: libc::c_int = 2;
/// Bytes of a record's sequence number.
const SEQUENCE: usize = 8;
/// Bytes of the longest description of keys.
const KEYS_MAX: usize = 56;
/// Where `tcpi_bytes_acked` is in `struct tcp_info`, which only grows.
const BYTES_ACKED: usize = 120;
/// How often a number that moves is looked at.
const LOOKS: usize = 64;

/// A version of TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// 1.2
    Tls12,
    /// 1.3
    Tls13,
}

/// A cipher.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cipher {
    /// AES-128-GCM.
    Aes128Gcm,
    /// AES-256-GCM.
    Aes256Gcm,
    /// ChaCha20-Poly1305.
    ChaCha20Poly1305,
}

/// All that are known.
const VERSIONS: [Version; 2] = [Version::Tls12, Version::Tls13];
/// All that are known.
const CIPHERS: [Cipher; 3] = [Cipher::Aes128Gcm, Cipher::Aes256Gcm, Cipher::ChaCha20Poly1305];

/// A direction of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// What is sent.
    Transmit,
    /// What is received.
    Receive,
}

impl Version {
    /// As records name it.
    const fn number(self) -> u16 {
        match self {
            Self::Tls12 => 0x0303,
            Self::Tls13 => 0x0304,
        }
    }
}

impl Cipher {
    /// Its number in `linux/tls.h`, bytes of its key, and bytes of the nonce that the kernel calls salt.
    const fn shape(self) -> (u16, usize, usize) {
        match self {
            Self::Aes128Gcm => (51, 16, 4),
            Self::Aes256Gcm => (52, 32, 4),
            Self::ChaCha20Poly1305 => (54, 32, 0),
        }
    }

    /// Bytes of its keys' description.
    const fn size(self) -> usize {
        // Version and number, 12 bytes of nonce in two parts, key, sequence number.
        4 + 12 + self.shape().1 + SEQUENCE
    }

    /// Bytes that a record takes beside what it carries.
    #[must_use]
    pub const fn overhead(self, version: Version) -> u64 {
        match (version, self) {
            (Version::Tls13, _) => 5 + 1 + 16, // header, inner type, tag
            (Version::Tls12, Self::ChaCha20Poly1305) => 5 + 16,
            (Version::Tls12, _) => 5 + 8 + 16, // header, explicit nonce, tag
        }
    }
}

/// Keys of one direction, as the kernel takes them; erased when dropped, and never printed.
pub struct Keys(Zeroizing<Vec<u8>>);

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Keys")
    }
}

impl Keys {
    /// Keys for the record with number `sequence` and those after it. `iv` is the 12 bytes that nonces are made of;
    /// with AES-GCM in TLS 1.2, whose records carry 8 bytes of their nonce, the kernel counts on from its last 8 bytes.
    ///
    /// `None` for a key that is not as long as the cipher's.
    #[must_use]
    pub fn new(version: Version, cipher: Cipher, key: &[u8], iv: &[u8; 12], sequence: u64) -> Option<Self> {
        let (number, key_size, salt_size) = cipher.shape();
        if key.len() != key_size {
            return None;
        }
        let (salt, rest) = iv.split_at_checked(salt_size)?;
        // It never grows, so that no copy of the key is left behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(cipher.size()));
        bytes.extend_from_slice(&version.number().to_ne_bytes());
        bytes.extend_from_slice(&number.to_ne_bytes());
        for part in [rest, key, salt, &sequence.to_be_bytes()] {
            bytes.extend_from_slice(part);
        }
        Some(Self(bytes))
    }

    /// The bytes: `struct tls12_crypto_info_*` of `linux/tls.h`.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

/// What the kernel can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Support {
    /// A bit per version and cipher.
    carries: u8,
    /// Keys of TLS 1.3 can be changed, as both sides may wish.
    pub rekey: bool,
}

impl Support {
    /// Whether sessions of this kind can be handed over.
    #[must_use]
    pub const fn carries(&self, version: Version, cipher: Cipher) -> bool {
        self.carries & Self::bit(version, cipher) != 0
    }

    const fn bit(version: Version, cipher: Cipher) -> u8 {
        1 << (version as u8 * 4 + cipher as u8)
    }

    /// Whether any session can.
    #[must_use]
    pub const fn any(&self) -> bool {
        self.carries != 0
    }
}

/// Finds out what the kernel can do, on connections of the loopback interface.
///
/// # Errors
/// `NotFound` when the kernel has no kTLS or its module is not loaded; else what the system says.
pub fn probe() -> io::Result<Support> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let mut support = Support::default();
    for version in VERSIONS {
        for cipher in CIPHERS {
            let socket = Pair::new(&listener)?;
            attach(&socket.0)?;
            if both(&socket.0, version, cipher).is_err() {
                continue;
            }
            support.carries |= Support::bit(version, cipher);
            if version == Version::Tls13 && cipher == Cipher::Aes128Gcm {
                support.rekey = both(&socket.0, version, cipher).is_ok();
            }
        }
    }
    Ok(support)
}

/// Two ends of a connection.
struct Pair(TcpStream, #[allow(dead_code, reason = "keeps the other end open")] TcpStream);

impl Pair {
    fn new(listener: &TcpListener) -> io::Result<Self> {
        let near = TcpStream::connect(listener.local_addr()?)?;
        Ok(Self(near, listener.accept()?.0))
    }
}

/// Gives a socket of the probe keys that are no secret and carry nothing.
fn both(socket: &TcpStream, version: Version, cipher: Cipher) -> io::Result<()> {
    for direction in [Direction::Transmit, Direction::Receive] {
        let key = [0; 32];
        let key = key.get(..cipher.shape().1).unwrap_or_default();
        let keys = Keys::new(version, cipher, key, &[0; 12], 0).ok_or(io::ErrorKind::InvalidInput)?;
        install(socket, direction, &keys)?;
    }
    Ok(())
}

/// Prepares a connected TCP socket for keys; until it has some it works as before.
///
/// # Errors
/// `NotFound` when the kernel has no kTLS, `NotConnected` when the peer has ended its direction, else the error of
/// `setsockopt(2)`.
pub fn attach(socket: impl AsFd) -> io::Result<()> {
    set_option(socket.as_fd(), libc::IPPROTO_TCP, libc::TCP_ULP, b"tls")
}

/// Gives a socket that [`attach`] has prepared the keys of a direction, the first ones or those after a key update. The
/// kernel takes the bytes that come next for the beginning of a record.
///
/// # Errors
/// `ResourceBusy` when it has keys already and cannot change them, else the error of `setsockopt(2)`.
pub fn install(socket: impl AsFd, direction: Direction, keys: &Keys) -> io::Result<()> {
    set_option(socket.as_fd(), libc::SOL_TLS, name(direction), &keys.0)
}

const fn name(direction: Direction) -> libc::c_int {
    match direction {
        Direction::Transmit => 1, // TLS_TX
        Direction::Receive => 2,  // TLS_RX
    }
}

/// Number of the next record that is sent.
///
/// # Errors
/// The error of `getsockopt(2)`.
pub fn sequence(socket: impl AsFd, cipher: Cipher) -> io::Result<u64> {
    let mut room = Zeroizing::new([0; KEYS_MAX]);
    let room = room.get_mut(..cipher.size()).unwrap_or_default();
    get_option(socket.as_fd(), libc::SOL_TLS, name(Direction::Transmit), room)?;
    room.last_chunk().map(|bytes| u64::from_be_bytes(*bytes)).ok_or(io::ErrorKind::InvalidData.into())
}

/// Bytes of the stream that were given to TCP until now, from an unknown beginning.
///
/// # Errors
/// `WouldBlock` when so much is acknowledged at this moment that it cannot be told, else the error of `getsockopt(2)` or
/// `ioctl(2)`.
pub fn written(socket: impl AsFd) -> io::Result<u64> {
    let fd = socket.as_fd();
    let mut before = acked(fd)?;
    for _ in 0..LOOKS {
        let mut queued: libc::c_int = 0;
        // SAFETY: TIOCOUTQ writes one int, which outlives the call.
        if unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCOUTQ, &raw mut queued) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let after = acked(fd)?;
        // What is acknowledged between the two questions would be in neither answer.
        if after == before {
            return Ok(before.saturating_add(u64::try_from(queued).unwrap_or(0)));
        }
        before = after;
    }
    Err(io::ErrorKind::WouldBlock.into())
}

/// Bytes of the stream that the peer has acknowledged.
fn acked(fd: BorrowedFd<'_>) -> io::Result<u64> {
    let mut info = [0; BYTES_ACKED + 8];
    get_option(fd, libc::IPPROTO_TCP, libc::TCP_INFO, &mut info)?;
    info.last_chunk().map(|bytes| u64::from_ne_bytes(*bytes)).ok_or(io::ErrorKind::InvalidData.into())
}

/// Reads an option into all of a buffer.
fn get_option(fd: BorrowedFd<'_>, level: i32, name: i32, room: &mut [u8]) -> io::Result<()> {
    let mut len = libc::socklen_t::try_from(room.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: `room` is writable for `len` bytes and both outlive the call; any bytes are valid.
    let rc = unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, room.as_mut_ptr().cast(), &raw mut len) };
    if rc != 0 {
        return Err(io::Error::last_os_error());
    }
    let whole = usize::try_from(len).is_ok_and(|len| len == room.len());
    if whole { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// Room for the one control message that is sent or received, aligned as the kernel wants.
#[repr(C, align(8))]
struct Control([u8; 64]);

/// A message header for one buffer; valid as long as what it points to.
fn header(slice: &mut libc::iovec, control: &mut Control) -> libc::msghdr {
    // SAFETY: a struct of integers and pointers, all of which may be zero.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    (header.msg_iov, header.msg_iovlen) = (slice, 1);
    (header.msg_control, header.msg_controllen) = (control.0.as_mut_ptr().cast(), size_of::<Control>() as _);
    header
}

/// Receives from a socket with keys: how many bytes, and the type of the record they are from. Bytes of the application
/// may be from several records, all others are from one, the whole of it if the buffer has 16 KiB; no bytes and type
/// [`DATA`] means that the peer has ended its direction.
///
/// # Errors
/// `WouldBlock` until a record is whole; code `EBADMSG` for one that does not open, `EMSGSIZE` for one that is too long,
/// else the error of `recvmsg(2)`.
pub fn receive(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<(usize, u8)> {
    let mut control = Control([0; 64]);
    let mut slice = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let mut message = header(&mut slice, &mut control);
    let flags = i32::try_from(RecvFlags::empty().bits()).unwrap_or_default();
    // SAFETY: the header points to `slice` and `control`, which outlive the call, and `slice` to all of `buffer`.
    let count = unsafe { libc::recvmsg(socket.as_fd().as_raw_fd(), &raw mut message, flags) };
    let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
    // SAFETY: the kernel has filled in the header's control message and its length.
    let kind = unsafe { record_type(&message) };
    Ok((count, kind.unwrap_or(DATA)))
}

/// The record type beside a received message.
///
/// # Safety
/// The header must be one that `recvmsg` has filled in, with its control buffer alive.
unsafe fn record_type(message: &libc::msghdr) -> Option<u8> {
    // SAFETY: the header is as `recvmsg` left it.
    let first = unsafe { libc::CMSG_FIRSTHDR(message) };
    // SAFETY: null, or a whole header inside the control buffer, which is aligned for it.
    let found = unsafe { first.as_ref() }?;
    if (found.cmsg_level, found.cmsg_type) != (libc::SOL_TLS, GET_RECORD_TYPE) {
        return None;
    }
    // SAFETY: a message of this type carries one byte, inside the control buffer.
    Some(unsafe { *libc::CMSG_DATA(first) })
}

/// Sends one record of a type that is not [`DATA`], after all that was sent before.
///
/// # Errors
/// `WouldBlock` when there is no room (nothing was taken then), else the error of `sendmsg(2)`.
pub fn send_record(socket: impl AsFd, kind: u8, body: &[u8]) -> io::Result<()> {
    let mut control = Control([0; 64]);
    let mut slice = libc::iovec { iov_base: body.as_ptr().cast_mut().cast(), iov_len: body.len() };
    let mut message = header(&mut slice, &mut control);
    // SAFETY: only computes sizes.
    let (space, len) = unsafe { (libc::CMSG_SPACE(1), libc::CMSG_LEN(1)) };
    message.msg_controllen = space as _;
    // SAFETY: the control buffer is aligned for, and larger than, one header with one byte.
    unsafe {
        let first = libc::CMSG_FIRSTHDR(&raw const message);
        (*first).cmsg_level = libc::SOL_TLS;
        (*first).cmsg_type = SET_RECORD_TYPE;
        (*first).cmsg_len = len as _;
        *libc::CMSG_DATA(first) = kind;
    }
    let flags = i32::try_from(SendFlags::NOSIGNAL.bits()).unwrap_or_default();
    // SAFETY: the header points to `slice` and `control`, which outlive the call; `body` is only read.
    let sent = unsafe { libc::sendmsg(socket.as_fd().as_raw_fd(), &raw const message, flags) };
    match usize::try_from(sent) {
        Ok(count) if count == body.len() => Ok(()),
        Ok(_) => Err(io::ErrorKind::WriteZero.into()),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
#[path = "ktls_tests.rs"]
mod tests;
