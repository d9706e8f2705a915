// SPDX-License-Identifier: Apache-2.0
//! What a proxy must know of a plain HTTP/1 request, from the first bytes of a stream.
//!
//! The parser is total and strict: one reading only, so that no app sees another request than the one that was routed.
//! Lines end in CR LF, nothing is folded, there is one `Host`, and the target is a path (or `*`, or for `CONNECT` no
//! request of ours). Format: RFC 9112 sections 2 to 5.

/// Largest request head, bytes, with the empty line.
pub const HEAD_MAX: usize = 16 * 1024;
/// Most header fields.
pub const FIELDS_MAX: usize = 100;
/// Longest method, bytes.
pub const METHOD_MAX: usize = 20;

/// What a prefix of a stream is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// A whole head.
    Done {
        /// Host name in lower case, without port.
        host: String,
        /// Bytes of the head.
        length: usize,
    },
    /// So far so good.
    NeedMore,
}

/// Why a stream does not begin with a request that can be routed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// The first line is no HTTP/1 request with a path.
    #[error("not an HTTP/1 request for a path")]
    Request,
    /// Larger than [`HEAD_MAX`], or more than [`FIELDS_MAX`] fields.
    #[error("request head is larger than {HEAD_MAX} bytes or has more than {FIELDS_MAX} fields")]
    TooLarge,
    /// A header field that is none.
    #[error("malformed header field")]
    Field,
    /// No `Host`, more than one, or one that is no host name.
    #[error("request has not one Host that is a name")]
    Host,
}

/// Looks at a prefix of a stream.
///
/// # Errors
/// [`HeadError`] as soon as no continuation can be routed.
pub fn parse(prefix: &[u8]) -> Result<Progress, HeadError> {
    method(prefix)?;
    let seen = prefix.get(..HEAD_MAX).unwrap_or(prefix);
    let Some(end) = seen.windows(4).position(|window| window == b"\r\n\r\n") else {
        let full = prefix.len() >= HEAD_MAX;
        return if full { Err(HeadError::TooLarge) } else { Ok(Progress::NeedMore) };
    };
    let text = seen.get(..end).unwrap_or_default();
    let text = std::str::from_utf8(text).map_err(|_| HeadError::Field)?;
    let mut lines = text.split("\r\n");
    request_line(lines.next().unwrap_or_default())?;
    let mut host = None;
    for (count, line) in lines.enumerate() {
        let (name, value) = field(line)?;
        if count >= FIELDS_MAX {
            return Err(HeadError::TooLarge);
        }
        if name.eq_ignore_ascii_case("host") && host.replace(value).is_some() {
            return Err(HeadError::Host);
        }
    }
    let host = host_name(host.ok_or(HeadError::Host)?)?;
    Ok(Progress::Done { host, length: end + 4 })
}

const fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(byte, b'!' | b'#'..=b'\'' | b'*' | b'+' | b'-' | b'.' | b'^'..=b'`' | b'|' | b'~')
}

/// Refuses what is not HTTP at its first bytes.
fn method(prefix: &[u8]) -> Result<(), HeadError> {
    let length = prefix.iter().take_while(|byte| is_token(**byte)).count();
    let whole = prefix.get(length).is_some_and(|byte| *byte != b' ');
    if length > METHOD_MAX || whole || (length == 0 && !prefix.is_empty()) {
        return Err(HeadError::Request);
    }
    Ok(())
}

fn request_line(line: &str) -> Result<(), HeadError> {
    let mut words = line.split(' ');
    let (_, target, version) = (words.next(), words.next(), words.next());
    let path = target.is_some_and(|target| target == "*" || target.starts_with('/'));
    let graphic = target.is_some_and(|target| target.bytes().all(|byte| byte.is_ascii_graphic()));
    let version = matches!(version, Some("HTTP/1.1" | "HTTP/1.0"));
    if path && graphic && version && words.next().is_none() { Ok(()) } else { Err(HeadError::Request) }
}

fn field(line: &str) -> Result<(&str, &str), HeadError> {
    let (name, value) = line.split_once(':').ok_or(HeadError::Field)?;
    let plain = |byte: u8| byte == b'\t' || (byte >= b' ' && byte != 0x7f);
    if name.is_empty() || !name.bytes().all(is_token) || !value.bytes().all(plain) {
        return Err(HeadError::Field);
    }
    Ok((name, value.trim_matches([' ', '\t'])))
}

/// The name in a `Host` value: letters, digits, `-`, `_` and dots, at most 253 bytes, perhaps with a port.
fn host_name(value: &str) -> Result<String, HeadError> {
    let (name, port) = value.split_once(':').unwrap_or((value, "80"));
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let digits = !port.is_empty() && port.len() <= 5 && port.bytes().all(|byte| byte.is_ascii_digit());
    if name.is_empty() || name.len() > 253 || !name.bytes().all(allowed) || !digits {
        return Err(HeadError::Host);
    }
    Ok(name.to_ascii_lowercase())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn head(text: &str) -> Result<Progress, HeadError> {
        parse(text.as_bytes())
    }

    #[test]
    fn the_host_of_a_request() {
        for (text, name) in [
            ("GET / HTTP/1.1\r\nHost: App.Example.org\r\n\r\n", "app.example.org"),
            ("POST /a?b=c HTTP/1.0\r\nA: b\r\nhost:\t x.y:9090 \r\nC:\r\n\r\nbody", "x.y"),
            ("OPTIONS * HTTP/1.1\r\nHOST: x\r\n\r\n", "x"),
        ] {
            let length = text.find("\r\n\r\n").unwrap() + 4;
            assert_eq!(head(text), Ok(Progress::Done { host: name.into(), length }));
            for end in 0..length {
                assert_eq!(parse(&text.as_bytes()[..end]), Ok(Progress::NeedMore), "{end} of {text:?}");
            }
        }
    }

    #[test]
    fn p29_what_can_be_read_in_two_ways_is_refused() {
        for (text, error) in [
            ("\x16\x03\x01", HeadError::Request),
            ("GET\t/ HTTP/1.1\r\nHost: x\r\n\r\n", HeadError::Request),
            ("GET http://y/ HTTP/1.1\r\nHost: x\r\n\r\n", HeadError::Request),
            ("CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n", HeadError::Request),
            ("GET  / HTTP/1.1\r\nHost: x\r\n\r\n", HeadError::Request),
            ("GET / HTTP/2.0\r\nHost: x\r\n\r\n", HeadError::Request),
            ("GET / HTTP/1.1 x\r\nHost: x\r\n\r\n", HeadError::Request),
            ("PRI * HTTP/2.0\r\n\r\n", HeadError::Request),
            ("GET / HTTP/1.1\r\n\r\n", HeadError::Host),
            ("GET / HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n", HeadError::Host),
            ("GET / HTTP/1.1\r\nHost:\r\n\r\n", HeadError::Host),
            ("GET / HTTP/1.1\r\nHost: x:\r\n\r\n", HeadError::Host),
            ("GET / HTTP/1.1\r\nHost: x:80:80\r\n\r\n", HeadError::Host),
            ("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", HeadError::Host),
            ("GET / HTTP/1.1\r\nHost : x\r\n\r\n", HeadError::Field),
            ("GET / HTTP/1.1\r\nHost: x\r\n folded\r\n\r\n", HeadError::Field),
            ("GET / HTTP/1.1\r\nHost: x\nEvil: y\r\n\r\n", HeadError::Field),
            ("GET / HTTP/1.1\r\nHost: x\r\nA\r\n\r\n", HeadError::Field),
        ] {
            assert_eq!(head(text), Err(error), "{text:?}");
        }
        let long = format!("GET / HTTP/1.1\r\nA: {}", "a".repeat(HEAD_MAX));
        assert_eq!(head(&long), Err(HeadError::TooLarge));
        let many = format!("GET / HTTP/1.1\r\n{}Host: x\r\n\r\n", "a: b\r\n".repeat(FIELDS_MAX));
        assert_eq!(head(&many), Err(HeadError::TooLarge));
        assert_eq!(head(&"A".repeat(METHOD_MAX + 1)), Err(HeadError::Request));
    }
}
