// SPDX-License-Identifier: Apache-2.0
//! What is sealed at bootstrap, in one piece: both root keys with the realm, custody and domain they are for.
//!
//! One JSON object. It is either there whole or not at all, so a bootstrap that is killed leaves nothing half done, and
//! realm and custody cannot be changed without the keys (trust rule T4).

use dstack_keys::Secret;
use dstack_keys::derive::Roots;
use dstack_ra_tls::Label;
use dstack_ra_tls::certificate::Custody;
use serde::{Deserialize, Serialize};
use std::str::FromStr;
use zeroize::{Zeroize, Zeroizing};

/// Newest format of the record. Format 1 has no `onboarded`; it is still what is written where that is false, so that an
/// older package can be installed again.
const VERSION: u32 = 2;
/// Largest record, bytes.
pub const RECORD_MAX: usize = 4096;
/// Longest domain, bytes.
pub const DOMAIN_MAX: usize = 253;

/// A DNS name in lower case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Domain(String);

impl Domain {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Domain {
    type Err = RecordError;

    fn from_str(text: &str) -> Result<Self, RecordError> {
        let label = |l: &str| {
            let edges = !l.starts_with('-') && !l.ends_with('-');
            let known = l.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
            (1..=63).contains(&l.len()) && edges && known
        };
        let text = text.to_ascii_lowercase();
        if text.len() <= DOMAIN_MAX && text.split('.').all(label) {
            Ok(Self(text))
        } else {
            Err(RecordError::Domain)
        }
    }
}

/// Both root keys, and what they are for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Domain of this key service.
    pub domain: Domain,
    /// Realm.
    pub realm: Label,
    /// Custody.
    pub custody: Custody,
    /// When the keys were made, Unix seconds.
    pub created_at: u64,
    /// Whether they came from another key service, which remembers the apps' disks then (trust rule T13).
    pub onboarded: bool,
    /// The keys.
    pub roots: Roots,
}

/// Why a record cannot be used. No message carries a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// A domain that is no DNS name.
    #[error("the domain must be a DNS name, e.g. kms.example.com")]
    Domain,
    /// Larger than [`RECORD_MAX`].
    #[error("the sealed root keys are larger than {RECORD_MAX} bytes")]
    TooLarge,
    /// Not what this program seals.
    #[error("the sealed root keys are damaged: {0}")]
    Damaged(&'static str),
    /// Sealed by a newer version.
    #[error(
        "the root keys were sealed in format {0}, this version knows {VERSION}; install the newer package again"
    )]
    Newer(u32),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    version: u32,
    domain: String,
    realm: String,
    custody: String,
    created_at: u64,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    onboarded: bool,
    ca_key: String,
    k256_key: String,
}

impl Drop for Text {
    fn drop(&mut self) {
        self.ca_key.zeroize();
        self.k256_key.zeroize();
    }
}

impl Record {
    /// The record as it is sealed.
    #[must_use]
    pub fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        let text = Text {
            version: if self.onboarded { VERSION } else { 1 },
            domain: self.domain.as_str().to_owned(),
            realm: self.realm.to_string(),
            custody: self.custody.text().to_owned(),
            created_at: self.created_at,
            onboarded: self.onboarded,
            ca_key: self.roots.ca.expose_hex().to_string(),
            k256_key: self.roots.k256.expose_hex().to_string(),
        };
        // Room for all of it, so that nothing is copied while it grows.
        let mut bytes = Zeroizing::new(Vec::with_capacity(RECORD_MAX));
        // Strings and numbers always have a JSON form, and memory takes what is written.
        let written = serde_json::to_writer(&mut *bytes, &text);
        debug_assert!(written.is_ok(), "plain values");
        bytes
    }

    /// Parses a record.
    ///
    /// # Errors
    /// [`RecordError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, RecordError> {
        if bytes.len() > RECORD_MAX {
            return Err(RecordError::TooLarge);
        }
        // The parser's own words could quote a key.
        let text: Text =
            serde_json::from_slice(bytes).map_err(|_| RecordError::Damaged("not the JSON it should be"))?;
        if !(1..=VERSION).contains(&text.version) {
            return Err(RecordError::Newer(text.version));
        }
        if text.onboarded != (text.version == VERSION) {
            return Err(RecordError::Damaged("its version"));
        }
        Ok(Self {
            domain: text.domain.parse()?,
            realm: text.realm.parse().map_err(|_| RecordError::Damaged("its realm"))?,
            custody: Custody::from_text(&text.custody).ok_or(RecordError::Damaged("its custody"))?,
            created_at: text.created_at,
            onboarded: text.onboarded,
            roots: Roots { ca: scalar(&text.ca_key)?, k256: scalar(&text.k256_key)? },
        })
    }
}

fn scalar(text: &str) -> Result<Secret, RecordError> {
    let mut bytes = Zeroizing::new([0; 32]);
    hex::decode_to_slice(text, bytes.as_mut_slice()).map_err(|_| RecordError::Damaged("a key"))?;
    Ok(Secret::from(*bytes))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            domain: "kms.example.com".parse().unwrap(),
            realm: Label::Test("0011223344556677".into()),
            custody: Custody::Host,
            created_at: 1_700_000_000,
            onboarded: false,
            roots: Roots { ca: Secret::from([0x11; 32]), k256: Secret::from([0x22; 32]) },
        }
    }

    #[test]
    fn what_is_sealed_is_read() {
        assert_eq!(Record::parse(&record().to_bytes()), Ok(record()));
        let onboarded = Record { onboarded: true, ..record() };
        assert_eq!(Record::parse(&onboarded.to_bytes()), Ok(onboarded));
    }

    #[test]
    fn an_older_package_reads_what_was_made_here() {
        let text = String::from_utf8(record().to_bytes().to_vec()).unwrap();
        assert!(text.contains("\"version\":1") && !text.contains("onboarded"));
        for (from, to) in
            [("\"version\":1", "\"version\":2"), ("\"version\":1", "\"version\":1,\"onboarded\":true")]
        {
            let mixed = Record::parse(text.replacen(from, to, 1).as_bytes());
            assert_eq!(mixed, Err(RecordError::Damaged("its version")), "{to}");
        }
    }

    #[test]
    fn p23_half_a_record_is_none() {
        let whole = record().to_bytes();
        for end in 0..whole.len() {
            assert!(Record::parse(whole.get(..end).unwrap()).is_err(), "{end}");
        }
        let text = String::from_utf8(whole.to_vec()).unwrap();
        for (from, to) in
            [("host", "cloud"), ("test:", "tost:"), ("1111", "xxxx"), ("kms.", "-."), ("{", "{\"x\":1,")]
        {
            assert!(Record::parse(text.replacen(from, to, 1).as_bytes()).is_err(), "{to}");
        }
        let newer = text.replacen("\"version\":1", "\"version\":3", 1);
        assert_eq!(Record::parse(newer.as_bytes()), Err(RecordError::Newer(3)));
        assert_eq!(Record::parse(&[b' '; RECORD_MAX + 1]), Err(RecordError::TooLarge));
    }

    #[test]
    fn p02_no_error_quotes_a_key() {
        let text = String::from_utf8(record().to_bytes().to_vec()).unwrap();
        let error = Record::parse(text.replacen("\"1111", "\"x111", 1).as_bytes()).unwrap_err();
        assert!(!error.to_string().contains("111"), "{error}");
        assert!(!format!("{:?}", record()).contains("1111"));
    }

    #[test]
    fn domains_are_dns_names() {
        assert_eq!("KMS.Example.com".parse::<Domain>().unwrap().as_str(), "kms.example.com");
        for bad in ["", ".", "a..b", "-a", "a_b", "a b", "a/b", &"x".repeat(64), &"a.".repeat(200)] {
            assert!(bad.parse::<Domain>().is_err(), "{bad:?}");
        }
    }
}
