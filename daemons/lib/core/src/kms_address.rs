// SPDX-License-Identifier: Apache-2.0
//! Addresses of key services and tproxies, as the host's hints give them.

use std::fmt;

/// Port of a key service whose address names none.
pub const PORT: u16 = 9043;
/// Port of a tproxy's registration whose address names none.
pub const TPROXY_PORT: u16 = 9070;
/// Most addresses that are tried; further ones are passed over.
pub const ADDRESSES_MAX: usize = 16;
/// Longest URL, bytes.
const URL_MAX: usize = 512;

/// Where a service may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// Name or IP address, without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Path before `/prpc`, without a slash at its end.
    pub base: String,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl Address {
    /// Reads `https://HOST[:PORT][/PATH][/prpc]`; `None` for whatever else.
    #[must_use]
    pub fn parse(url: &str) -> Option<Self> {
        Self::parse_with(url, PORT)
    }

    /// The same with another port for whoever names none.
    #[must_use]
    pub fn parse_with(url: &str, default: u16) -> Option<Self> {
        let rest = url.strip_prefix("https://").filter(|_| url.len() <= URL_MAX)?;
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let base = path.trim_end_matches('/');
        let base = base.strip_suffix("/prpc").unwrap_or(base);
        let (host, port) = match authority.strip_prefix('[') {
            Some(v6) => v6.split_once(']')?,
            None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
        };
        let port = if port.is_empty() { default } else { port.strip_prefix(':')?.parse().ok()? };
        let good = |b: u8| b.is_ascii_alphanumeric() || b"-._:".contains(&b);
        let path = |b: u8| b.is_ascii_alphanumeric() || b"-._~/".contains(&b);
        let valid = !host.is_empty() && host.bytes().all(good) && base.bytes().all(path) && port != 0;
        valid.then(|| Self { host: host.to_owned(), port, base: base.to_owned() })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read() {
        for (url, host, port, base) in [
            ("https://kms.example", "kms.example", 9043, ""),
            ("https://192.0.2.7:8000/", "192.0.2.7", 8000, ""),
            ("https://[2001:db8::1]:9043/prpc", "2001:db8::1", 9043, ""),
            ("https://kms.example/a/b/prpc/", "kms.example", 9043, "/a/b"),
        ] {
            let expected = Address { host: host.into(), port, base: base.into() };
            assert_eq!(Address::parse(url), Some(expected), "{url}");
        }
        assert_eq!(Address::parse("https://[::1]:1").unwrap().to_string(), "[::1]:1");
    }

    #[test]
    fn t06_other_texts_are_none() {
        let long = format!("https://{}", "a".repeat(URL_MAX));
        for url in [
            "",
            "kms.example",
            "http://kms.example",
            "https://",
            "https://:1",
            "https://a:0",
            "https://a:70000",
            "https://a b",
            "https://a\r\nX: y",
            "https://a/\r\nX:",
            "https://[::1",
            "https://[::1]x",
            "https://a:1:2",
            &long,
        ] {
            assert_eq!(Address::parse(url), None, "{url:?}");
        }
    }
}
