// SPDX-License-Identifier: Apache-2.0
//! One TLS session without I/O: bytes in, bytes out. It holds no buffer between calls but an unfinished record.

use dstack_sys::ktls::Version;
use rustls::ExtractedSecrets;
use rustls::kernel::KernelConnection;
use rustls::server::{ServerConfig, ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus};
use std::sync::Arc;

/// Room that sealing a piece takes beyond its bytes: one record header, tag and inner type per 16 KiB, and messages
/// of TLS itself.
#[must_use]
pub const fn sealed_max(plain: usize) -> usize {
    plain + (plain / 16_384 + 1) * 64 + 256
}

/// Bytes that go one way before the kernel takes a session over: small answers keep the cheap path, and idle
/// connections their memory.
pub const BULK: u64 = 256 * 1024;
/// Type of a sealed record.
const SEALED: u8 = 23;
/// Bytes of a record's header.
const HEADER: usize = 5;
/// Bytes of a TLS 1.3 record's body beside what it carries, without padding: inner type and tag.
const INNER: usize = 1 + 16;

/// A session of a client.
pub struct Session {
    tls: UnbufferedServerConnection,
    /// Bytes of a record that has not come whole.
    pub partial: Vec<u8>,
    /// The handshake is over.
    pub established: bool,
    /// The client has closed its direction.
    pub ended: bool,
    /// `close_notify` was sent.
    pub closed: bool,
    /// The kernel has refused to take it over.
    pub stays: bool,
    /// Bytes carried, up and down.
    carried: [u64; 2],
    /// rustls owes the client nothing: no key update may wait for the next byte that is sent, as it would be lost.
    settled: bool,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Session(established: {}, ended: {})", self.established, self.ended)
    }
}

impl Session {
    /// A session before its first byte.
    ///
    /// # Errors
    /// What rustls says of the settings.
    pub fn new(config: Arc<ServerConfig>) -> Result<Self, rustls::Error> {
        let tls = UnbufferedServerConnection::new(config)?;
        let (established, ended, closed, stays, settled) = Default::default();
        Ok(Self { tls, partial: Vec::new(), established, ended, closed, stays, carried: [0; 2], settled })
    }

    /// Takes bytes from the client; what it says is added to `plain`, what it must be told to `out`. Returns how many
    /// bytes were used up; the rest is the beginning of a record.
    ///
    /// # Errors
    /// What the client did wrong; `out` has the alert then.
    pub fn open(
        &mut self,
        bytes: &mut [u8],
        plain: &mut Vec<u8>,
        out: &mut Vec<u8>,
    ) -> Result<usize, rustls::Error> {
        let (mut used, before, was_established) = (0, plain.len(), self.established);
        let sealed = data_in(bytes);
        loop {
            let rest = bytes.get_mut(used..).unwrap_or_default();
            let (discard, more) = match self.turn(rest, plain, out) {
                Ok(turn) => turn,
                Err(error) => {
                    self.alerts(out);
                    return Err(error);
                }
            };
            used += discard;
            if !more {
                break;
            }
        }
        let opened = plain.len().saturating_sub(before);
        // TLS 1.2 answers at once. In TLS 1.3 the sizes tell whether there was anything but the app's bytes, and what ends
        // the handshake.
        let settled = self.is_tls12() || opened + if was_established { 0 } else { self.finished() } == sealed;
        self.settled = self.established && settled && (self.settled || !was_established);
        self.carried[0] = self.carried[0].saturating_add(opened as u64);
        Ok(used)
    }

    /// Bytes of a TLS 1.3 client's last message of the handshake.
    fn finished(&self) -> usize {
        match self.suite() {
            Some(rustls::CipherSuite::TLS13_AES_256_GCM_SHA384) => 4 + 48,
            _ => 4 + 32,
        }
    }

    /// One state of rustls: bytes used, and whether there may be another.
    fn turn(
        &mut self,
        bytes: &mut [u8],
        plain: &mut Vec<u8>,
        out: &mut Vec<u8>,
    ) -> Result<(usize, bool), rustls::Error> {
        let UnbufferedStatus { discard, state, .. } = self.tls.process_tls_records(bytes);
        let more = match state? {
            ConnectionState::ReadTraffic(mut traffic) => {
                while let Some(record) = traffic.next_record() {
                    plain.extend_from_slice(record?.payload);
                }
                true
            }
            ConnectionState::EncodeTlsData(mut data) => {
                encode(|room| data.encode(room), out)?;
                true
            }
            ConnectionState::TransmitTlsData(data) => {
                data.done();
                true
            }
            ConnectionState::PeerClosed => {
                self.ended = true;
                true
            }
            ConnectionState::WriteTraffic(_) => {
                self.established = true;
                false
            }
            ConnectionState::Closed => {
                self.ended = true;
                false
            }
            // Early data is never allowed.
            _ => false,
        };
        Ok((discard, more))
    }

    /// After an error: the alert, as far as there is one.
    fn alerts(&mut self, out: &mut Vec<u8>) {
        while let Ok(ConnectionState::EncodeTlsData(mut data)) = self.tls.process_tls_records(&mut []).state {
            if encode(|room| data.encode(room), out).is_err() {
                return;
            }
        }
    }

    /// Seals bytes into a buffer with room for [`sealed_max`]; returns the length.
    ///
    /// # Errors
    /// When the session cannot carry data (any more).
    pub fn seal(&mut self, plain: &[u8], room: &mut [u8]) -> Result<usize, rustls::Error> {
        let sealed = match self.tls.process_tls_records(&mut []).state? {
            ConnectionState::WriteTraffic(mut traffic) => traffic.encrypt(plain, room).map_err(exhausted)?,
            _ => return Err(rustls::Error::HandshakeNotComplete),
        };
        self.settled = true;
        self.carried[1] = self.carried[1].saturating_add(plain.len() as u64);
        Ok(sealed)
    }

    /// Says that nothing more will come; adds it to `out`.
    ///
    /// # Errors
    /// When the session cannot carry data (any more).
    pub fn close(&mut self, out: &mut Vec<u8>) -> Result<(), rustls::Error> {
        self.closed = true;
        let mut room = [0; 256];
        let length = match self.tls.process_tls_records(&mut []).state? {
            ConnectionState::WriteTraffic(mut traffic) => {
                traffic.queue_close_notify(&mut room).map_err(exhausted)?
            }
            _ => return Err(rustls::Error::HandshakeNotComplete),
        };
        out.extend_from_slice(room.get(..length).unwrap_or_default());
        Ok(())
    }

    /// Whether so much has gone over it that the kernel should take it over, and nothing stands in the way but the
    /// rest of a record.
    #[must_use]
    pub fn is_bulk(&self) -> bool {
        self.carried.iter().any(|count| *count >= BULK)
            && self.settled
            && !(self.stays || self.ended || self.closed)
    }

    /// Bytes from here to the end of the record that has not come whole, or of its header; 0 when there is none.
    #[must_use]
    pub fn missing(&self) -> usize {
        let length = |header: &[u8; HEADER]| HEADER + usize::from(u16::from_be_bytes([header[3], header[4]]));
        let end = match self.partial.len() {
            0 => 0,
            _ => self.partial.first_chunk().map_or(HEADER, length),
        };
        end.saturating_sub(self.partial.len())
    }

    /// Version, once it is agreed on.
    #[must_use]
    pub fn version(&self) -> Option<Version> {
        match self.tls.protocol_version()? {
            rustls::ProtocolVersion::TLSv1_2 => Some(Version::Tls12),
            rustls::ProtocolVersion::TLSv1_3 => Some(Version::Tls13),
            _ => None,
        }
    }

    /// The cipher suite, once it is agreed on.
    #[must_use]
    pub fn suite(&self) -> Option<rustls::CipherSuite> {
        self.tls.negotiated_cipher_suite().map(|suite| suite.suite())
    }

    /// Gives up the keys, for records from here on both ways.
    ///
    /// # Errors
    /// When something waits to be sent, or the settings do not allow it.
    pub fn into_keys(
        self,
    ) -> Result<(ExtractedSecrets, KernelConnection<ServerConnectionData>), rustls::Error> {
        self.tls.dangerous_into_kernel_connection()
    }

    /// Whether the client and we have agreed on HTTP/1.1.
    #[must_use]
    pub fn speaks_http1(&self) -> bool {
        self.tls.alpn_protocol() == Some(b"http/1.1")
    }

    /// Whether TLS 1.2 was agreed on, where a client may ask for another handshake.
    #[must_use]
    pub fn is_tls12(&self) -> bool {
        self.tls.protocol_version() == Some(rustls::ProtocolVersion::TLSv1_2)
    }

    /// Whether the handshake resumed an earlier session.
    #[must_use]
    pub fn resumed(&self) -> bool {
        self.tls.handshake_kind() == Some(rustls::HandshakeKind::Resumed)
    }
}

/// Bytes that the sealed records of a stream carry, those that are whole, if they are TLS 1.3 without padding.
fn data_in(mut bytes: &[u8]) -> usize {
    let mut sum = 0;
    while let Some((header, rest)) = bytes.split_first_chunk::<HEADER>()
        && let Some((body, rest)) =
            rest.split_at_checked(usize::from(u16::from_be_bytes([header[3], header[4]])))
    {
        sum += if header[0] == SEALED { body.len().saturating_sub(INNER) } else { 0 };
        bytes = rest;
    }
    sum
}

fn exhausted(error: EncryptError) -> rustls::Error {
    rustls::Error::General(error.to_string())
}

/// Adds what a state has to say to `out`, which grows by what it asks for.
fn encode(
    mut write: impl FnMut(&mut [u8]) -> Result<usize, EncodeError>,
    out: &mut Vec<u8>,
) -> Result<(), rustls::Error> {
    let start = out.len();
    let needed = match write(&mut []) {
        Ok(_) => return Ok(()),
        Err(EncodeError::InsufficientSize(size)) => size.required_size,
        Err(error) => return Err(rustls::Error::General(error.to_string())),
    };
    out.resize(start + needed, 0);
    let room = out.get_mut(start..).unwrap_or_default();
    write(room).map(|_| ()).map_err(|error| rustls::Error::General(error.to_string()))
}
