// SPDX-License-Identifier: Apache-2.0
//! A TLS session whose records the kernel makes and opens (kTLS). What is no data is still ours: alerts, key updates, and
//! the refusal of another handshake, all as rustls does it.

use crate::session::Session;
use dstack_core::flow::Ktls;
use dstack_sys::ktls::{self, Cipher, Direction, Keys, Support, Version};
use rustls::kernel::KernelConnection;
use rustls::server::ServerConnectionData;
use rustls::{CipherSuite, ConnectionTrafficSecrets};
use std::io;
use std::os::fd::AsFd;

/// Record type of alerts.
const ALERT: u8 = 21;
/// Record type of handshake messages.
const HANDSHAKE: u8 = 22;
/// `close_notify`, a warning.
const CLOSE_NOTIFY: [u8; 2] = [1, 0];
/// `no_renegotiation`, a warning.
const NO_RENEGOTIATION: [u8; 2] = [1, 100];
/// A KeyUpdate that asks for none.
const KEY_UPDATE: [u8; 5] = [24, 0, 0, 1, 0];
/// A ClientHello's message type.
const CLIENT_HELLO: u8 = 1;
/// Level of a warning.
const WARNING: u8 = 1;
/// Level of a fatal alert.
const FATAL: u8 = 2;
/// The alert `user_canceled`.
const USER_CANCELED: u8 = 90;

/// Warnings that are borne.
const WARNINGS_MAX: u8 = 4;
/// Renegotiations that are refused in a friendly way.
const RENEGOTIATIONS_MAX: u8 = 1;
/// Key updates that are borne without data between them.
const KEY_UPDATES_MAX: u8 = 32;

/// Records that AES-GCM may seal with one key, as rustls counts (RFC 8446 section 5.5).
const RECORDS_MAX: u64 = 1 << 24;
/// Records after which new keys are made.
const RECORDS_WORN: u64 = RECORDS_MAX / 2;
/// Calls that send something between two looks at the number of records.
const CALLS: u64 = 1024;
/// Records of a call: it moves a pipe of 256 pieces at most.
const RECORDS_PER_CALL: u64 = 256;

/// Alerts that end a session (RFC 8446 section 6).
pub mod alert {
    /// A message that does not fit here.
    pub const UNEXPECTED_MESSAGE: u8 = 10;
    /// A record that does not open.
    pub const BAD_RECORD_MAC: u8 = 20;
    /// A record that is too long.
    pub const RECORD_OVERFLOW: u8 = 22;
    /// A value that is not allowed.
    pub const ILLEGAL_PARAMETER: u8 = 47;
    /// A message that cannot be read.
    pub const DECODE_ERROR: u8 = 50;
    /// Something on our side.
    pub const INTERNAL_ERROR: u8 = 80;
}

/// What a record that is no data asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// Nothing.
    Nothing,
    /// The client has said all.
    End,
    /// Its next records have other keys.
    NewKeys,
    /// Another handshake.
    Renegotiation,
}

/// Why a session ends: the alert that says so, if any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wrong(pub Option<u8>);

const fn wrong(alert: u8) -> Wrong {
    Wrong(Some(alert))
}

/// What a client may do only so often.
#[derive(Debug)]
struct Patience {
    warnings: u8,
    renegotiations: u8,
    key_updates: u8,
}

impl Patience {
    const FULL: Self =
        Self { warnings: WARNINGS_MAX, renegotiations: RENEGOTIATIONS_MAX, key_updates: KEY_UPDATES_MAX };

    fn less(left: &mut u8) -> Result<(), Wrong> {
        // Whoever does too much is not told what.
        *left = left.checked_sub(1).ok_or(Wrong(None))?;
        Ok(())
    }
}

/// What was given to the kernel, and what it must have made of it.
#[derive(Debug, Default)]
struct Wire {
    /// Bytes of the stream before the first record.
    base: u64,
    /// Bytes given to the kernel.
    plain: u64,
    /// Number of the first record with the present keys.
    first: u64,
    /// Records with earlier keys.
    records: u64,
    /// Calls since the number of records was looked at.
    calls: u64,
}

impl Wire {
    /// Where the stream must be when the next record has number `sequence` and none is open.
    const fn end(&self, sequence: u64, overhead: u64) -> u64 {
        let records = self.records + sequence.saturating_sub(self.first);
        self.base + self.plain + records * overhead
    }
}

/// A session of the kernel.
pub struct Kernel {
    keys: KernelConnection<ServerConnectionData>,
    version: Version,
    cipher: Cipher,
    /// There may be new keys.
    rekey: bool,
    patience: Patience,
    wire: Wire,
    /// A key update is due before the next byte to the client.
    pub owes: bool,
    /// `close_notify` was sent.
    pub closed: bool,
    /// How far the stream was when it was looked at last.
    pub seen: u64,
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Kernel({:?}, {:?})", self.version, self.cipher)
    }
}

/// Whether a session of this kind is handed over.
#[must_use]
pub fn is_wanted(session: &Session, support: Support, setting: Ktls) -> bool {
    let Some((version, cipher)) = session.version().zip(session.suite().and_then(cipher)) else {
        return false;
    };
    let whole = version == Version::Tls12 || support.rekey;
    let wanted = match setting {
        Ktls::Off => false,
        Ktls::Auto => whole,
        Ktls::Always => true,
    };
    wanted && support.carries(version, cipher)
}

const fn cipher(suite: CipherSuite) -> Option<Cipher> {
    Some(match suite {
        CipherSuite::TLS13_AES_128_GCM_SHA256
        | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
        | CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 => Cipher::Aes128Gcm,
        CipherSuite::TLS13_AES_256_GCM_SHA384
        | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384
        | CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384 => Cipher::Aes256Gcm,
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256
        | CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256
        | CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256 => Cipher::ChaCha20Poly1305,
        _ => return None,
    })
}

/// Keys of a direction as the kernel takes them.
fn keys(
    version: Version,
    direction: Direction,
    (sequence, secrets): &(u64, ConnectionTrafficSecrets),
) -> io::Result<(Cipher, Keys)> {
    let (cipher, key, iv) = match secrets {
        ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (Cipher::Aes128Gcm, key, iv),
        ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (Cipher::Aes256Gcm, key, iv),
        ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (Cipher::ChaCha20Poly1305, key, iv),
        _ => return Err(io::ErrorKind::Unsupported.into()),
    };
    let mut nonce = *iv.as_ref().first_chunk::<12>().ok_or(io::ErrorKind::InvalidData)?;
    let counts_on = version == Version::Tls12 && cipher != Cipher::ChaCha20Poly1305;
    if counts_on && direction == Direction::Transmit {
        // rustls has used `iv ^ sequence` until here, the kernel counts upwards from what it is given: in the other half
        // of all numbers they never meet, and a nonce that is used twice would give the key away.
        nonce[4] ^= 0x80;
    }
    let keys = Keys::new(version, cipher, key.as_ref(), &nonce, *sequence);
    keys.map(|keys| (cipher, keys)).ok_or(io::ErrorKind::InvalidData.into())
}

impl Kernel {
    /// Hands a session over to a socket that [`ktls::attach`] has prepared, and whose stream is at `base`
    /// ([`ktls::written`]).
    ///
    /// # Errors
    /// When the kernel refuses; the session cannot go on then.
    pub fn new(session: Session, socket: impl AsFd, base: u64, support: Support) -> io::Result<Self> {
        let version = session.version().ok_or(io::ErrorKind::InvalidData)?;
        let (secrets, connection) = session.into_keys().map_err(io::Error::other)?;
        let (cipher, transmit) = keys(version, Direction::Transmit, &secrets.tx)?;
        let (_, receive) = keys(version, Direction::Receive, &secrets.rx)?;
        let wire = Wire { base, first: secrets.tx.0, ..Wire::default() };
        ktls::install(&socket, Direction::Transmit, &transmit)?;
        ktls::install(&socket, Direction::Receive, &receive)?;
        let rekey = support.rekey && version == Version::Tls13;
        let (patience, owes, closed, seen) = (Patience::FULL, false, false, 0);
        Ok(Self { keys: connection, version, cipher, rekey, patience, wire, owes, closed, seen })
    }

    /// The kernel has taken so many bytes.
    pub const fn sent(&mut self, count: usize) {
        self.wire.plain += count as u64;
        self.wire.calls += 1;
    }

    /// The client has sent data.
    pub const fn heard(&mut self) {
        self.patience.key_updates = KEY_UPDATES_MAX;
    }

    /// Takes a record that is no data.
    ///
    /// # Errors
    /// [`Wrong`] when the session must end.
    pub fn record(&mut self, kind: u8, body: &[u8]) -> Result<Asked, Wrong> {
        let asked = judge(&mut self.patience, self.version, kind, body)?;
        // One answer is enough for several requests.
        self.owes |= asked == Asked::NewKeys && body.last() == Some(&1);
        Ok(asked)
    }

    /// Opens what comes next with new keys.
    ///
    /// # Errors
    /// When the kernel cannot.
    pub fn renew_receive(&mut self, socket: impl AsFd) -> io::Result<()> {
        let secrets = self.keys.update_rx_secret().map_err(io::Error::other)?;
        ktls::install(socket, Direction::Receive, &keys(self.version, Direction::Receive, &secrets)?.1)
    }

    /// Says that new keys follow, and seals with them from here on.
    ///
    /// # Errors
    /// `WouldBlock` when there is no room; else the session cannot go on.
    pub fn renew_transmit(&mut self, socket: impl AsFd) -> io::Result<()> {
        self.tell(&socket, HANDSHAKE, &KEY_UPDATE)?;
        self.owes = false;
        let sequence = ktls::sequence(&socket, self.cipher)?;
        let secrets = self.keys.update_tx_secret().map_err(io::Error::other)?;
        ktls::install(&socket, Direction::Transmit, &keys(self.version, Direction::Transmit, &secrets)?.1)?;
        self.wire.records += sequence.saturating_sub(self.wire.first);
        self.wire.first = secrets.0;
        Ok(())
    }

    /// Looks now and then whether the keys are worn out, and asks for new ones.
    ///
    /// # Errors
    /// When they are, and there can be none.
    pub fn spare(&mut self, socket: impl AsFd) -> io::Result<()> {
        if self.wire.calls < CALLS || self.cipher == Cipher::ChaCha20Poly1305 {
            return Ok(());
        }
        self.wire.calls = 0;
        let sequence = ktls::sequence(socket, self.cipher)?;
        match wear(sequence, self.rekey) {
            Wear::None => {}
            Wear::Renew => self.owes = true,
            Wear::Over => return Err(io::Error::other("the keys are worn out")),
        }
        Ok(())
    }

    /// Says that nothing more will come.
    ///
    /// # Errors
    /// `WouldBlock` when there is no room.
    pub fn close(&mut self, socket: impl AsFd) -> io::Result<()> {
        self.tell(socket, ALERT, &CLOSE_NOTIFY)?;
        self.closed = true;
        Ok(())
    }

    /// Refuses another handshake.
    ///
    /// # Errors
    /// When it cannot be said now.
    pub fn refuse_handshake(&mut self, socket: impl AsFd) -> io::Result<()> {
        self.tell(socket, ALERT, &NO_RENEGOTIATION)
    }

    /// Says why the session ends.
    ///
    /// # Errors
    /// When it cannot be said now.
    pub fn alert(&mut self, socket: impl AsFd, alert: u8) -> io::Result<()> {
        self.tell(socket, ALERT, &[FATAL, alert])
    }

    fn tell(&mut self, socket: impl AsFd, kind: u8, body: &[u8]) -> io::Result<()> {
        ktls::send_record(socket, kind, body)?;
        self.sent(body.len());
        Ok(())
    }

    /// Whether TCP has got all that was sent. A record may wait in the kernel for room, and by its source the
    /// kernel abandons it when the socket is shut down or closed meanwhile.
    ///
    /// # Errors
    /// `WouldBlock` when it cannot be told at this moment, else when the connection is broken.
    pub fn is_drained(&mut self, socket: impl AsFd) -> io::Result<bool> {
        let end = self.wire.end(ktls::sequence(&socket, self.cipher)?, self.cipher.overhead(self.version));
        self.seen = ktls::written(socket)?;
        Ok(self.seen >= end)
    }
}

/// What becomes of keys.
#[derive(Debug, PartialEq, Eq)]
enum Wear {
    None,
    Renew,
    Over,
}

const fn wear(sequence: u64, rekey: bool) -> Wear {
    let next_look = sequence.saturating_add(CALLS * RECORDS_PER_CALL);
    match rekey {
        true if sequence >= RECORDS_WORN => Wear::Renew,
        false if next_look > RECORDS_MAX => Wear::Over,
        _ => Wear::None,
    }
}

/// What a record that is no data means.
fn judge(patience: &mut Patience, version: Version, kind: u8, body: &[u8]) -> Result<Asked, Wrong> {
    match (kind, version) {
        (ALERT, _) => judge_alert(patience, version, body),
        (HANDSHAKE, Version::Tls13) => judge_key_update(patience, body),
        (HANDSHAKE, Version::Tls12) if body.first() == Some(&CLIENT_HELLO) => {
            Patience::less(&mut patience.renegotiations)?;
            Ok(Asked::Renegotiation)
        }
        _ => Err(wrong(alert::UNEXPECTED_MESSAGE)),
    }
}

fn judge_alert(patience: &mut Patience, version: Version, body: &[u8]) -> Result<Asked, Wrong> {
    match *body {
        [WARNING | FATAL, 0] => Ok(Asked::End),
        [WARNING, what] => {
            Patience::less(&mut patience.warnings)?;
            match version {
                Version::Tls13 if what != USER_CANCELED => Err(wrong(alert::DECODE_ERROR)),
                _ => Ok(Asked::Nothing),
            }
        }
        [FATAL, _] => Err(Wrong(None)),
        [_, _] => Err(wrong(alert::ILLEGAL_PARAMETER)),
        _ => Err(wrong(alert::DECODE_ERROR)),
    }
}

fn judge_key_update(patience: &mut Patience, body: &[u8]) -> Result<Asked, Wrong> {
    match *body {
        [24, 0, 0, 1, 0 | 1] => {
            Patience::less(&mut patience.key_updates)?;
            Ok(Asked::NewKeys)
        }
        [24, 0, 0, 1, _] => Err(wrong(alert::ILLEGAL_PARAMETER)),
        _ => Err(wrong(alert::UNEXPECTED_MESSAGE)),
    }
}

#[cfg(test)]
#[path = "kernel_tests.rs"]
mod tests;
