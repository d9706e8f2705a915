// SPDX-License-Identifier: Apache-2.0
//! One TLS session without I/O: bytes in, bytes out. It holds no buffer between calls but an unfinished record.

use rustls::server::{ServerConfig, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus};
use std::sync::Arc;

/// Room that sealing a piece takes beyond its bytes: one record header, tag and inner type per 16 KiB, and messages
/// of TLS itself.
#[must_use]
pub const fn sealed_max(plain: usize) -> usize {
    plain + (plain / 16_384 + 1) * 64 + 256
}

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
        Ok(Self { tls, partial: Vec::new(), established: false, ended: false, closed: false })
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
        let mut used = 0;
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
                return Ok(used);
            }
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
        match self.tls.process_tls_records(&mut []).state? {
            ConnectionState::WriteTraffic(mut traffic) => traffic.encrypt(plain, room).map_err(exhausted),
            _ => Err(rustls::Error::HandshakeNotComplete),
        }
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
