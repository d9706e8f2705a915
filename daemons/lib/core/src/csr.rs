// SPDX-License-Identifier: Apache-2.0
//! The request by which a guest asks the key service for a certificate, in SCALE encoding.
//!
//! ```text
//! confirm      String       always "please sign cert:"
//! pubkey       Vec<u8>      SubjectPublicKeyInfo, DER
//! org_name     Option<String>
//! subject      String       common name
//! alt_names    Vec<String>  DNS names and IP addresses
//! server_auth  bool
//! client_auth  bool
//! ext_quote    bool         put the quote into the certificate
//! quote        Vec<u8>
//! event_log    Vec<u8>      JSON
//! not_before   Option<u64>  Unix seconds, little-endian; this and the next only when one of them is set
//! not_after    Option<u64>
//! ```
//!
//! Lengths are SCALE's compact integers in their shortest form; a bool or an option's tag is 0 or 1. So there is one
//! encoding of each request. Nothing in it is believed: the key service composes the certificate from the verdict.

use crate::event_log::LOG_MAX;
use std::net::IpAddr;

/// What every request begins with.
pub const CONFIRM: &str = "please sign cert:";
/// Largest request, bytes.
pub const CSR_MAX: usize = LOG_MAX + 64 * 1024;
/// Largest SubjectPublicKeyInfo, bytes.
pub const PUBLIC_KEY_MAX: usize = 512;
/// Largest quote, bytes.
pub const QUOTE_MAX: usize = 16 * 1024;
/// Longest subject or organisation, bytes: X.520's limit.
pub const NAME_MAX: usize = 64;
/// Most alternative names.
pub const ALT_NAMES_MAX: usize = 64;
/// Longest alternative name, bytes.
pub const ALT_NAME_MAX: usize = 253;

/// Subject by which the ingress, running as an app, asks for a certificate of role `gateway:rpc`.
pub const GATEWAY_SUBJECT: &str = "dstack gateway";

/// First labels of names that belong to the infrastructure; apps do not get them (trust rule T20, known attack P22).
const RESERVED: [&str; 5] = ["kms", "tproxy", "gateway", "dstack-kms", "dstack-tproxy"];

/// A request.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Csr {
    /// SubjectPublicKeyInfo, DER.
    pub public_key: Vec<u8>,
    /// What the certificate is to say.
    pub config: Config,
    /// Quote.
    pub quote: Vec<u8>,
    /// Event log, JSON.
    pub event_log: Vec<u8>,
}

/// What the certificate is to say; wishes, of which the key service grants what an app may have.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Config {
    /// Organisation.
    pub org_name: Option<String>,
    /// Common name.
    pub subject: String,
    /// DNS names and IP addresses.
    pub subject_alt_names: Vec<String>,
    /// For servers.
    pub usage_server_auth: bool,
    /// For clients.
    pub usage_client_auth: bool,
    /// Put quote and event log into the certificate.
    pub ext_quote: bool,
    /// Valid from, Unix seconds.
    pub not_before: Option<u64>,
    /// Valid until, Unix seconds.
    pub not_after: Option<u64>,
}

/// Why a request is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CsrError {
    /// Over [`CSR_MAX`], or a part over its own limit.
    #[error("certificate request: its {0} is over the limit")]
    TooLarge(&'static str),
    /// It ends too early, goes on too long, or has a value in another form than the only one.
    #[error("certificate request: its {0} is malformed")]
    Malformed(&'static str),
    /// It does not begin with [`CONFIRM`].
    #[error("certificate request does not begin with {CONFIRM:?}")]
    Confirm,
    /// A name that cannot stand in a certificate.
    #[error("certificate request: {0:?} is neither a DNS name nor an IP address")]
    Name(String),
    /// A name of the infrastructure.
    #[error("certificate request: the name {0:?} belongs to the infrastructure and is not for apps")]
    Reserved(String),
}

impl Csr {
    /// Parses a request.
    ///
    /// # Errors
    /// [`CsrError`] with the first thing that is wrong.
    pub fn parse(bytes: &[u8]) -> Result<Self, CsrError> {
        if bytes.len() > CSR_MAX {
            return Err(CsrError::TooLarge("length"));
        }
        let mut reader = Reader(bytes);
        if reader.bytes("confirmation", NAME_MAX)? != CONFIRM.as_bytes() {
            return Err(CsrError::Confirm);
        }
        let public_key = reader.bytes("public key", PUBLIC_KEY_MAX)?.to_vec();
        let mut config = reader.config()?;
        let quote = reader.bytes("quote", QUOTE_MAX)?.to_vec();
        let event_log = reader.bytes("event log", LOG_MAX)?.to_vec();
        (config.not_before, config.not_after) = reader.dates()?;
        config.check()?;
        Ok(Self { public_key, config, quote, event_log })
    }

    /// The bytes of a request.
    ///
    /// # Errors
    /// [`CsrError`] when the key service would refuse it.
    pub fn encode(&self) -> Result<Vec<u8>, CsrError> {
        self.config.check()?;
        let mut out = Vec::with_capacity(self.event_log.len() + self.quote.len() + 1024);
        put(&mut out, CONFIRM.as_bytes());
        put(&mut out, &self.public_key);
        self.config.encode(&mut out);
        put(&mut out, &self.quote);
        put(&mut out, &self.event_log);
        if self.config.not_before.is_some() || self.config.not_after.is_some() {
            put_date(&mut out, self.config.not_before);
            put_date(&mut out, self.config.not_after);
        }
        // What encodes is what parses, limits included.
        Self::parse(&out).map(|_| out)
    }
}

impl Config {
    fn encode(&self, out: &mut Vec<u8>) {
        match &self.org_name {
            Some(name) => {
                out.push(1);
                put(out, name.as_bytes());
            }
            None => out.push(0),
        }
        put(out, self.subject.as_bytes());
        compact(out, self.subject_alt_names.len());
        self.subject_alt_names.iter().for_each(|name| put(out, name.as_bytes()));
        out.extend([self.usage_server_auth, self.usage_client_auth, self.ext_quote].map(u8::from));
    }

    fn check(&self) -> Result<(), CsrError> {
        for text in self.org_name.iter().chain([&self.subject]) {
            if text.chars().any(char::is_control) {
                return Err(CsrError::Name(text.escape_debug().to_string()));
            }
        }
        for name in &self.subject_alt_names {
            if name.parse::<IpAddr>().is_err() && !is_dns_name(name) {
                return Err(CsrError::Name(name.escape_debug().take(80).collect()));
            }
        }
        let names = self.subject_alt_names.iter().chain([&self.subject]);
        match names.into_iter().find(|name| is_reserved(name)) {
            Some(name) => Err(CsrError::Reserved(name.clone())),
            None => Ok(()),
        }
    }
}

/// Whether a name is one of the infrastructure's, alone or with a domain behind it.
#[must_use]
pub fn is_reserved(name: &str) -> bool {
    let first = name.trim().trim_start_matches("*.").split('.').next().unwrap_or_default();
    RESERVED.iter().any(|reserved| first.eq_ignore_ascii_case(reserved))
}

/// Letters, digits, `-`, `_` and dots, perhaps with a first label of `*`.
fn is_dns_name(name: &str) -> bool {
    let rest = name.strip_prefix("*.").unwrap_or(name);
    let label = |l: &str| {
        (1..=63).contains(&l.len()) && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    !rest.is_empty() && rest.split('.').all(label)
}

fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    compact(out, bytes.len());
    out.extend_from_slice(bytes);
}

fn put_date(out: &mut Vec<u8>, date: Option<u64>) {
    out.push(u8::from(date.is_some()));
    date.iter().for_each(|seconds| out.extend(seconds.to_le_bytes()));
}

/// SCALE's compact integer, shortest form; every length here is below 2^30.
fn compact(out: &mut Vec<u8>, length: usize) {
    let value = u32::try_from(length).unwrap_or(u32::MAX) << 2;
    let [a, b, c, d] = value.to_le_bytes();
    match length {
        0..0x40 => out.push(a),
        0x40..0x4000 => out.extend([a | 1, b]),
        _ => out.extend([a | 2, b, c, d]),
    }
}

/// What is left of the request.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize, what: &'static str) -> Result<&'a [u8], CsrError> {
        let (head, rest) = self.0.split_at_checked(count).ok_or(CsrError::Malformed(what))?;
        self.0 = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], CsrError> {
        self.take(N, what)?.try_into().map_err(|_| CsrError::Malformed(what))
    }

    fn length(&mut self, what: &'static str) -> Result<usize, CsrError> {
        let [first] = self.array(what)?;
        let (value, least) = match first & 3 {
            0 => (u32::from(first), 0),
            1 => {
                let [second] = self.array(what)?;
                (u32::from(u16::from_le_bytes([first, second])), 0x40)
            }
            2 => {
                let [b, c, d] = self.array(what)?;
                (u32::from_le_bytes([first, b, c, d]), 0x4000)
            }
            _ => return Err(CsrError::TooLarge(what)),
        };
        let length = usize::try_from(value >> 2).map_err(|_| CsrError::TooLarge(what))?;
        if length < least { Err(CsrError::Malformed(what)) } else { Ok(length) }
    }

    fn bytes(&mut self, what: &'static str, max: usize) -> Result<&'a [u8], CsrError> {
        let length = self.length(what)?;
        if length > max { Err(CsrError::TooLarge(what)) } else { self.take(length, what) }
    }

    fn text(&mut self, what: &'static str, max: usize) -> Result<String, CsrError> {
        let bytes = self.bytes(what, max)?;
        std::str::from_utf8(bytes).map(ToOwned::to_owned).map_err(|_| CsrError::Malformed(what))
    }

    fn flag(&mut self, what: &'static str) -> Result<bool, CsrError> {
        match self.array(what)? {
            [0] => Ok(false),
            [1] => Ok(true),
            [_] => Err(CsrError::Malformed(what)),
        }
    }

    fn config(&mut self) -> Result<Config, CsrError> {
        let has_org = self.flag("organisation")?;
        let org_name = has_org.then(|| self.text("organisation", NAME_MAX)).transpose()?;
        let subject = self.text("subject", NAME_MAX)?;
        let count = self.length("alternative names")?;
        if count > ALT_NAMES_MAX {
            return Err(CsrError::TooLarge("number of alternative names"));
        }
        let names = (0..count).map(|_| self.text("alternative name", ALT_NAME_MAX)).collect::<Result<_, _>>();
        Ok(Config {
            org_name,
            subject,
            subject_alt_names: names?,
            usage_server_auth: self.flag("server usage")?,
            usage_client_auth: self.flag("client usage")?,
            ext_quote: self.flag("wish for a quote")?,
            not_before: None,
            not_after: None,
        })
    }

    fn dates(&mut self) -> Result<(Option<u64>, Option<u64>), CsrError> {
        if self.0.is_empty() {
            return Ok((None, None));
        }
        let dates = (self.date()?, self.date()?);
        if !self.0.is_empty() || dates == (None, None) {
            return Err(CsrError::Malformed("end"));
        }
        Ok(dates)
    }

    fn date(&mut self) -> Result<Option<u64>, CsrError> {
        let there = self.flag("date")?;
        there.then(|| self.array("date").map(u64::from_le_bytes)).transpose()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    fn sample() -> Csr {
        Csr {
            public_key: vec![0x30; 91],
            config: Config {
                org_name: Some("Org".into()),
                subject: "app.example.com".into(),
                subject_alt_names: vec!["a.example.com".into(), "*.b.example".into(), "10.0.0.1".into()],
                usage_server_auth: true,
                ext_quote: true,
                ..Config::default()
            },
            quote: vec![7; 5000],
            event_log: b"[]".to_vec(),
        }
    }

    #[test]
    fn the_layout_is_scales() {
        let small = Csr {
            public_key: vec![0xaa],
            config: Config { subject: "s".into(), usage_client_auth: true, ..Config::default() },
            quote: vec![],
            event_log: vec![0xbb; 64],
        };
        let expected = [
            &[17 << 2][..],
            CONFIRM.as_bytes(),
            &[4, 0xaa],
            &[0],
            &[4, b's'],
            &[0],
            &[0, 1, 0],
            &[0],
            &[0x01, 0x01],
            &[0xbb; 64],
        ];
        assert_eq!(small.encode().unwrap(), expected.concat());
    }

    #[test]
    fn what_is_written_is_read() {
        let mut csr = sample();
        assert_eq!(Csr::parse(&csr.encode().unwrap()), Ok(csr.clone()));
        csr.config.not_after = Some(1_900_000_000);
        assert_eq!(Csr::parse(&csr.encode().unwrap()), Ok(csr.clone()));
        csr.event_log = vec![b' '; 70_000];
        assert_eq!(Csr::parse(&csr.encode().unwrap()), Ok(csr));
    }

    #[test]
    fn p15_there_is_one_encoding_and_everything_has_a_limit() {
        let good = sample().encode().unwrap();
        for cut in 0..good.len() {
            assert!(Csr::parse(&good[..cut]).is_err(), "{cut}");
        }
        for tail in [&[0][..], &[0, 0], &[1], &[0, 0, 0]] {
            assert!(Csr::parse(&[&good, tail].concat()).is_err(), "{tail:?}");
        }
        let long_form = [&[(17 << 2) | 1, 0][..], &good[1..]].concat();
        assert_eq!(Csr::parse(&long_form), Err(CsrError::Malformed("confirmation")));
        let huge = [&good[..18], &[0xfe, 0xff, 0xff, 0xff]].concat();
        assert_eq!(Csr::parse(&huge), Err(CsrError::TooLarge("public key")));
        assert_eq!(Csr::parse(&vec![0; CSR_MAX + 1]), Err(CsrError::TooLarge("length")));
        assert_eq!(Csr::parse(b"\x04x"), Err(CsrError::Confirm));
        let many = Config { subject_alt_names: vec!["a".into(); ALT_NAMES_MAX + 1], ..Config::default() };
        assert!(Csr { config: many, ..sample() }.encode().is_err());
    }

    #[test]
    fn p22_names_of_the_infrastructure_are_not_for_apps() {
        for name in ["kms", "KMS.example.com", "tproxy.local", "*.gateway.example.com", "dstack-kms"] {
            let alt = Config { subject_alt_names: vec![name.into()], ..Config::default() };
            let subject = Config { subject: name.into(), ..Config::default() };
            for config in [alt, subject] {
                let error = Csr { config, ..sample() }.encode();
                assert_eq!(error, Err(CsrError::Reserved(name.into())));
            }
        }
        for name in ["kms2.example.com", "my-kms", "gatewayed"] {
            let config = Config { subject_alt_names: vec![name.into()], ..Config::default() };
            assert!(Csr { config, ..sample() }.encode().is_ok(), "{name}");
        }
    }

    #[test]
    fn names_must_be_names() {
        for name in ["", "a b", "a..b", "a/b", "é", "a\n"] {
            let config = Config { subject_alt_names: vec![name.into()], ..Config::default() };
            assert!(Csr { config, ..sample() }.encode().is_err(), "{name:?}");
        }
        let config = Config { subject: "a\u{7}".into(), ..Config::default() };
        assert!(Csr { config, ..sample() }.encode().is_err());
    }
}
