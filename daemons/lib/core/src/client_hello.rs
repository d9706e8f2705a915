// SPDX-License-Identifier: Apache-2.0
//! What a proxy must know of a TLS ClientHello, from the first bytes of a stream.
//!
//! The parser is total: it takes any prefix of a stream, and says what it is, how many bytes it needs to say more, or
//! why it is no ClientHello. A hello may be split over many records, as post-quantum key shares and careful clients do.
//! Formats: RFC 8446 sections 4 and 5, RFC 6066 section 3 (server name), RFC 7301 (ALPN).

/// Largest ClientHello, bytes, without record headers.
pub const HELLO_MAX: usize = 16 * 1024;
/// Most records that one hello may be split over.
pub const RECORDS_MAX: usize = 1024;
/// Largest prefix of a stream that a hello can take.
pub const PREFIX_MAX: usize = HELLO_MAX + RECORDS_MAX * RECORD_HEADER;
/// Most ALPN protocols that are kept.
pub const ALPN_MAX: usize = 16;

const RECORD_HEADER: usize = 5;
const RECORD_MAX: usize = 16 * 1024;
const HANDSHAKE_HEADER: usize = 4;
const CONTENT_HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const EXTENSION_SERVER_NAME: u16 = 0;
const EXTENSION_ALPN: u16 = 16;

/// The parts of a ClientHello that decide where a connection goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientHello {
    /// Server name in lower case, as sent: letters, digits, `-`, `_` and dots only, at most 253 bytes.
    pub server_name: Option<String>,
    /// ALPN protocols in the client's order.
    pub alpn: Vec<Vec<u8>>,
    /// Bytes of the stream that the hello took, with record headers.
    pub length: usize,
}

/// What a prefix of a stream is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// A hello, whole.
    Done(ClientHello),
    /// So far so good; ask again when this many bytes are there in all.
    NeedMore(usize),
}

/// Why a stream does not begin with a ClientHello.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HelloError {
    /// The first byte is not a TLS handshake record.
    #[error("not TLS")]
    NotTls,
    /// A record is empty, too large, or not a handshake record.
    #[error("malformed TLS record")]
    Record,
    /// The first message is not a ClientHello.
    #[error("first TLS message is not a ClientHello")]
    NotHello,
    /// Larger than [`HELLO_MAX`] or split over more than [`RECORDS_MAX`] records.
    #[error("ClientHello is larger than {HELLO_MAX} bytes or in more than {RECORDS_MAX} records")]
    TooLarge,
    /// A length inside the hello leads outside it, or an extension comes twice.
    #[error("malformed ClientHello")]
    Malformed,
    /// The server name is not a DNS name.
    #[error("server name is not a DNS name")]
    ServerName,
}

/// Looks at a prefix of a stream.
///
/// # Errors
/// [`HelloError`] as soon as no continuation can be a ClientHello.
pub fn parse(prefix: &[u8]) -> Result<Progress, HelloError> {
    let mut message = Vec::new();
    let mut at = 0;
    for _ in 0..RECORDS_MAX {
        let fragment = match record(prefix, at)? {
            Record::Whole(fragment) => fragment,
            Record::Partial { fragment, needed } => {
                // A bad message is refused before the rest of its record arrives.
                message_length(&[message.as_slice(), fragment].concat())?;
                return Ok(Progress::NeedMore(needed));
            }
        };
        message.extend_from_slice(fragment);
        at += RECORD_HEADER + fragment.len();
        match message_length(&message)? {
            Some(length) if message.len() > length => return Err(HelloError::Malformed),
            Some(length) if message.len() == length => {
                let body = message.get(HANDSHAKE_HEADER..).unwrap_or_default();
                return hello(body, at).map(Progress::Done);
            }
            _ => {}
        }
    }
    Err(HelloError::TooLarge)
}

enum Record<'a> {
    Whole(&'a [u8]),
    Partial { fragment: &'a [u8], needed: usize },
}

/// The handshake record at a position, as far as it is there.
fn record(prefix: &[u8], at: usize) -> Result<Record<'_>, HelloError> {
    let rest = prefix.get(at..).unwrap_or_default();
    let wrong = if at == 0 { HelloError::NotTls } else { HelloError::Record };
    let expected = [Some(CONTENT_HANDSHAKE), Some(3)];
    if rest.iter().zip(expected).any(|(byte, want)| want.is_some_and(|w| w != *byte)) {
        return Err(wrong);
    }
    let &[_, _, _, high, low, ref body @ ..] = rest else {
        return Ok(Record::Partial { fragment: &[], needed: at + RECORD_HEADER });
    };
    let length = usize::from(u16::from_be_bytes([high, low]));
    if length == 0 || length > RECORD_MAX {
        return Err(HelloError::Record);
    }
    Ok(match body.get(..length) {
        Some(fragment) => Record::Whole(fragment),
        None => Record::Partial { fragment: body, needed: at + RECORD_HEADER + length },
    })
}

/// Length of the handshake message with its header, once that is there.
fn message_length(message: &[u8]) -> Result<Option<usize>, HelloError> {
    if message.first().is_some_and(|kind| *kind != CLIENT_HELLO) {
        return Err(HelloError::NotHello);
    }
    let &[_, a, b, c, ..] = message else { return Ok(None) };
    let length = HANDSHAKE_HEADER + usize::from(a) * 65536 + usize::from(b) * 256 + usize::from(c);
    if length > HELLO_MAX { Err(HelloError::TooLarge) } else { Ok(Some(length)) }
}

/// A reader that cannot leave its bytes.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], HelloError> {
        let (head, tail) = self.0.split_at_checked(count).ok_or(HelloError::Malformed)?;
        self.0 = tail;
        Ok(head)
    }

    fn u8(&mut self) -> Result<u8, HelloError> {
        self.take(1)?.first().copied().ok_or(HelloError::Malformed)
    }

    fn u16(&mut self) -> Result<u16, HelloError> {
        Ok(u16::from_be_bytes([self.u8()?, self.u8()?]))
    }

    /// Bytes after a one-byte length.
    fn short(&mut self) -> Result<Reader<'a>, HelloError> {
        let length = usize::from(self.u8()?);
        self.take(length).map(Reader)
    }

    /// Bytes after a two-byte length.
    fn long(&mut self) -> Result<Reader<'a>, HelloError> {
        let length = usize::from(self.u16()?);
        self.take(length).map(Reader)
    }

    const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn hello(body: &[u8], length: usize) -> Result<ClientHello, HelloError> {
    let mut reader = Reader(body);
    reader.take(2 + 32)?; // version, random
    reader.short()?; // session id
    reader.long()?; // cipher suites
    reader.short()?; // compression methods
    let mut found = ClientHello { server_name: None, alpn: Vec::new(), length };
    if reader.is_empty() {
        return Ok(found);
    }
    let mut extensions = reader.long()?;
    if !reader.is_empty() {
        return Err(HelloError::Malformed);
    }
    let (mut names, mut protocols) = (0, 0);
    while !extensions.is_empty() {
        let kind = extensions.u16()?;
        let content = extensions.long()?;
        match kind {
            EXTENSION_SERVER_NAME => {
                names += 1;
                found.server_name = server_name(content)?;
            }
            EXTENSION_ALPN => {
                protocols += 1;
                found.alpn = alpn(content)?;
            }
            _ => {}
        }
    }
    if names > 1 || protocols > 1 { Err(HelloError::Malformed) } else { Ok(found) }
}

/// The one host name of the extension; other kinds of names are skipped.
fn server_name(mut content: Reader<'_>) -> Result<Option<String>, HelloError> {
    let mut list = content.long()?;
    if !content.is_empty() || list.is_empty() {
        return Err(HelloError::Malformed);
    }
    let mut found = None;
    while !list.is_empty() {
        let kind = list.u8()?;
        let name = list.long()?.0;
        if kind == 0 {
            if found.is_some() {
                return Err(HelloError::Malformed);
            }
            found = Some(dns_name(name)?);
        }
    }
    Ok(found)
}

fn dns_name(bytes: &[u8]) -> Result<String, HelloError> {
    let allowed = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let text = std::str::from_utf8(bytes).map_err(|_| HelloError::ServerName)?;
    let labels = text.split('.').all(|label| (1..=63).contains(&label.len()));
    if bytes.len() > 253 || !labels || !bytes.iter().all(allowed) {
        return Err(HelloError::ServerName);
    }
    Ok(text.to_ascii_lowercase())
}

fn alpn(mut content: Reader<'_>) -> Result<Vec<Vec<u8>>, HelloError> {
    let mut list = content.long()?;
    let mut found = Vec::new();
    while !list.is_empty() {
        let protocol = list.short()?.0;
        if protocol.is_empty() {
            return Err(HelloError::Malformed);
        }
        if found.len() < ALPN_MAX {
            found.push(protocol.to_vec());
        }
    }
    if content.is_empty() { Ok(found) } else { Err(HelloError::Malformed) }
}

#[cfg(test)]
#[path = "client_hello_tests.rs"]
mod tests;
