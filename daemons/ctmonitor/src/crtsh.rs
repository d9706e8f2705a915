// SPDX-License-Identifier: Apache-2.0
//! What crt.sh says: the JSON of a search.
//!
//! ```text
//! GET /?q=<domain>&output=json&limit=10000              [{"id": …, "issuer_ca_id": …, …}, …]
//! GET /?q=<name>&match=%3D&output=json&limit=10000      the same, for exactly this name
//! GET /?d=<id>                                          the certificate or precertificate, PEM
//! ```

use crate::certificate::printable;
use crate::limits::{SEARCH_ENTRIES_MAX, SEARCH_MAX, SEARCH_TEXT_MAX};
use serde::Deserialize;
use std::collections::BTreeMap;

/// An entry of a search. crt.sh gives all fields; the last two were not always there.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Entry {
    /// crt.sh's own number of the certificate.
    pub id: u64,
    /// crt.sh's own number of the issuer.
    pub issuer_ca_id: u64,
    /// Distinguished name of the issuer.
    pub issuer_name: String,
    /// Common name; crt.sh says null where there is none.
    pub common_name: Option<String>,
    /// All names that matched, one a line.
    pub name_value: String,
    /// Begin of its validity, UTC without a zone.
    pub not_before: Stamp,
    /// End of its validity.
    pub not_after: Stamp,
    /// Serial number, hex.
    pub serial_number: String,
    /// How many names matched.
    #[serde(default)]
    pub result_count: Option<u64>,
    /// When a log got it.
    #[serde(default)]
    pub entry_timestamp: Option<Stamp>,
}

impl Entry {
    /// Whether it has exactly this name, in lower case.
    #[must_use]
    pub fn has_name(&self, name: &str) -> bool {
        let names = self.name_value.lines().chain(self.common_name.as_deref());
        names.map(str::trim).any(|found| found.eq_ignore_ascii_case(name))
    }
}

/// A time as crt.sh writes it: `2024-09-24T02:23:15` with or without a fraction, UTC. Unix seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct Stamp(pub u64);

impl TryFrom<String> for Stamp {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let wrong = || format!("{:?} is no time", printable(&text));
        let civil: jiff::civil::DateTime = text.trim_end_matches('Z').parse().map_err(|_| wrong())?;
        let zoned = civil.to_zoned(jiff::tz::TimeZone::UTC).map_err(|_| wrong())?;
        Ok(Self(u64::try_from(zoned.timestamp().as_second()).unwrap_or(0)))
    }
}

/// Why an answer is no list of entries.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SearchError {
    /// It is too large.
    #[error(
        "the list is larger than {SEARCH_MAX} bytes, has more than {SEARCH_ENTRIES_MAX} entries, or a text over {SEARCH_TEXT_MAX} bytes"
    )]
    TooLarge,
    /// It is no JSON of that kind, e.g. an error page.
    #[error("the answer is no list of certificates ({reason}); it begins with {head:?}")]
    Json {
        /// What is wrong.
        reason: String,
        /// How it begins.
        head: String,
    },
}

/// Reads the answer to a search: its entries by number.
///
/// # Errors
/// [`SearchError`]. An answer that cannot be read is never an empty list.
pub fn parse(bytes: &[u8]) -> Result<BTreeMap<u64, Entry>, SearchError> {
    if bytes.len() > SEARCH_MAX {
        return Err(SearchError::TooLarge);
    }
    let head = || printable(&String::from_utf8_lossy(bytes.get(..bytes.len().min(60)).unwrap_or_default()));
    let json = |e: serde_json::Error| SearchError::Json { reason: printable(&e.to_string()), head: head() };
    let list: Vec<Entry> = serde_json::from_slice(bytes).map_err(json)?;
    let fits = |e: &Entry| e.name_value.len() <= SEARCH_TEXT_MAX && e.issuer_name.len() <= SEARCH_TEXT_MAX;
    if list.len() > SEARCH_ENTRIES_MAX || !list.iter().all(fits) {
        return Err(SearchError::TooLarge);
    }
    Ok(list.into_iter().map(|entry| (entry.id, entry)).collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const ONE: &str = r#"{"issuer_ca_id":295815,"issuer_name":"C=US, O=Let's Encrypt, CN=R11","common_name":"kvin.wang","name_value":"*.app.kvin.wang\nkvin.wang","id":14666084839,"entry_timestamp":"2024-09-24T03:21:45.825","not_before":"2024-09-24T02:23:15","not_after":"2024-12-23T02:23:14","serial_number":"03ae796f56a933c8ff7e32c7c0d662a253d4","result_count":1}"#;

    #[test]
    fn entries_are_read_whole() {
        let list = parse(format!("[{ONE},{ONE}]").as_bytes()).unwrap();
        let entry = list.get(&14_666_084_839).unwrap();
        assert_eq!((list.len(), entry.issuer_ca_id, entry.result_count), (1, 295_815, Some(1)));
        assert_eq!((entry.not_before.0, entry.not_after.0), (1_727_144_595, 1_734_920_594));
        assert_eq!(entry.entry_timestamp, Some(Stamp(1_727_148_105)));
        assert_eq!(entry.common_name.as_deref(), Some("kvin.wang"));
        let null =
            ONE.replace("\"kvin.wang\",\"name", "null,\"name").replace("\"2024-09-24T03:21:45.825\"", "null");
        assert_eq!(parse(format!("[{null}]").as_bytes()).unwrap().len(), 1);
        assert!(parse(b"[]").unwrap().is_empty());
    }

    #[test]
    fn p30_an_error_page_is_no_empty_list() {
        for bad in ["", "<html><h1>404 Not Found</h1></html>", "{}", "null", "[{}]", "[1]"] {
            assert!(matches!(parse(bad.as_bytes()), Err(SearchError::Json { .. })), "{bad}");
        }
        let cut = format!("[{ONE},");
        assert!(parse(cut.as_bytes()).is_err(), "half a list");
        for (from, to) in [("2024-12-23T02:23:14", "soon"), ("\"id\":1", "\"id\":-1"), ("\"id\":", "\"ID\":")]
        {
            assert!(parse(format!("[{}]", ONE.replace(from, to)).as_bytes()).is_err(), "{to}");
        }
    }

    #[test]
    fn p15_lists_are_bounded() {
        let long = ONE.replace("*.app", &"a".repeat(SEARCH_TEXT_MAX));
        assert_eq!(parse(format!("[{long}]").as_bytes()), Err(SearchError::TooLarge));
        let many = vec![ONE; SEARCH_ENTRIES_MAX + 1].join(",");
        assert_eq!(parse(format!("[{many}]").as_bytes()), Err(SearchError::TooLarge));
    }
}
