// SPDX-License-Identifier: Apache-2.0
//! What a log of RFC 6962 says: JSON of its tree heads, proofs and entries, and the leaves inside. Pure.

use crate::certificate::{Certificate, CertificateError, printable};
use crate::head::Unchecked;
use crate::limits::{BATCH_ENTRIES, BATCH_MAX, HEAD_MAX, PROOF_HASHES_MAX, PROOF_MAX};
use crate::merkle::{Hash, leaf};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// Why bytes of a log cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormError {
    /// More than the limit.
    #[error("the answer is larger than {0} bytes, or has too many elements")]
    TooLarge(usize),
    /// It is not the JSON it should be.
    #[error("the answer is not what a log says ({reason}); it begins with {head:?}")]
    Json {
        /// What is wrong.
        reason: String,
        /// How it begins.
        head: String,
    },
    /// A value in it is out of form.
    #[error("{0} is out of form")]
    Value(&'static str),
}

#[derive(Deserialize)]
struct HeadJson {
    tree_size: u64,
    timestamp: u64,
    sha256_root_hash: String,
    tree_head_signature: String,
}

#[derive(Deserialize)]
struct ConsistencyJson {
    consistency: Vec<String>,
}

#[derive(Deserialize)]
struct ProvenJson {
    leaf_input: String,
    audit_path: Vec<String>,
}

#[derive(Deserialize)]
struct EntriesJson {
    entries: Vec<EntryJson>,
}

#[derive(Deserialize)]
struct EntryJson {
    leaf_input: String,
}

fn json<T: DeserializeOwned>(bytes: &[u8], max: usize) -> Result<T, FormError> {
    if bytes.len() > max {
        return Err(FormError::TooLarge(max));
    }
    serde_json::from_slice(bytes).map_err(|e| FormError::Json {
        reason: printable(&e.to_string()),
        head: printable(&String::from_utf8_lossy(bytes.get(..bytes.len().min(60)).unwrap_or_default())),
    })
}

fn base64(text: &str, what: &'static str) -> Result<Vec<u8>, FormError> {
    BASE64_STANDARD.decode(text).map_err(|_| FormError::Value(what))
}

fn hash(text: &str) -> Result<Hash, FormError> {
    let bytes = base64(text, "a hash")?;
    bytes.try_into().map(Hash).map_err(|_| FormError::Value("a hash"))
}

fn hashes(texts: &[String]) -> Result<Vec<Hash>, FormError> {
    if texts.len() > PROOF_HASHES_MAX {
        return Err(FormError::TooLarge(PROOF_MAX));
    }
    texts.iter().map(|text| hash(text)).collect()
}

/// Reads the answer of `get-sth`.
///
/// # Errors
/// [`FormError`].
pub fn parse_head(bytes: &[u8]) -> Result<Unchecked, FormError> {
    let head: HeadJson = json(bytes, HEAD_MAX)?;
    Ok(Unchecked {
        size: head.tree_size,
        timestamp: head.timestamp,
        root: hash(&head.sha256_root_hash)?,
        signature: base64(&head.tree_head_signature, "the signature")?,
    })
}

/// Reads the answer of `get-sth-consistency`.
///
/// # Errors
/// [`FormError`].
pub fn parse_consistency(bytes: &[u8]) -> Result<Vec<Hash>, FormError> {
    let proof: ConsistencyJson = json(bytes, PROOF_MAX)?;
    hashes(&proof.consistency)
}

/// Reads the answer of `get-entry-and-proof`: the hash of the leaf, and its path. The answer has the whole entry in it.
///
/// # Errors
/// [`FormError`].
pub fn parse_entry_and_proof(bytes: &[u8]) -> Result<(Hash, Vec<Hash>), FormError> {
    let proven: ProvenJson = json(bytes, BATCH_MAX)?;
    Ok((leaf(&base64(&proven.leaf_input, "a leaf")?), hashes(&proven.audit_path)?))
}

/// Reads the answer of `get-entries`: the leaves as they are hashed.
///
/// # Errors
/// [`FormError`].
pub fn parse_entries(bytes: &[u8]) -> Result<Vec<Vec<u8>>, FormError> {
    let list: EntriesJson = json(bytes, BATCH_MAX)?;
    if u64::try_from(list.entries.len()).is_ok_and(|n| n <= BATCH_ENTRIES) {
        return list.entries.iter().map(|entry| base64(&entry.leaf_input, "a leaf")).collect();
    }
    Err(FormError::TooLarge(BATCH_MAX))
}

/// What is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Logged<'a> {
    /// A certificate, DER.
    Certificate(&'a [u8]),
    /// The TBSCertificate of a precertificate, DER, without the poison.
    Precertificate(&'a [u8]),
}

impl Logged<'_> {
    /// Its bytes.
    #[must_use]
    pub const fn bytes(&self) -> &[u8] {
        match self {
            Self::Certificate(der) | Self::Precertificate(der) => der,
        }
    }

    /// Reads it.
    ///
    /// # Errors
    /// [`CertificateError`].
    pub fn certificate(&self) -> Result<Certificate, CertificateError> {
        match self {
            Self::Certificate(der) => Certificate::from_der(der),
            Self::Precertificate(tbs) => Certificate::from_precertificate(tbs),
        }
    }
}

/// Takes bytes from the front of others.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    /// The next `count` bytes.
    ///
    /// # Errors
    /// [`FormError::Value`] when there are not so many.
    pub fn take(&mut self, count: usize) -> Result<&'a [u8], FormError> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(FormError::Value("a log entry"))?;
        self.0 = rest;
        Ok(taken)
    }

    /// A number of `count` bytes, at most eight.
    ///
    /// # Errors
    /// As [`Self::take`].
    pub fn number(&mut self, count: usize) -> Result<u64, FormError> {
        Ok(self.take(count)?.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    /// Bytes after a length of `count` bytes.
    ///
    /// # Errors
    /// As [`Self::take`].
    pub fn sized(&mut self, count: usize) -> Result<&'a [u8], FormError> {
        let length = usize::try_from(self.number(count)?).map_err(|_| FormError::Value("a length"))?;
        self.take(length)
    }
}

/// Reads a `TimestampedEntry` (RFC 6962, 3.4) from the front of bytes.
///
/// # Errors
/// [`FormError::Value`].
pub fn timestamped_entry<'a>(reader: &mut Reader<'a>) -> Result<Logged<'a>, FormError> {
    let _timestamp = reader.number(8)?;
    let logged = match reader.number(2)? {
        0 => Logged::Certificate(reader.sized(3)?),
        1 => {
            let _issuer_key_hash = reader.take(32)?;
            Logged::Precertificate(reader.sized(3)?)
        }
        _ => return Err(FormError::Value("the kind of a log entry")),
    };
    let _extensions = reader.sized(2)?;
    Ok(logged)
}

/// Reads a `MerkleTreeLeaf`.
///
/// # Errors
/// [`FormError::Value`] also for versions and kinds of leaves that RFC 6962 does not know.
pub fn parse_leaf(bytes: &[u8]) -> Result<Logged<'_>, FormError> {
    let mut reader = Reader(bytes);
    if reader.take(2)? != [0, 0] {
        return Err(FormError::Value("the version of a log entry"));
    }
    let logged = timestamped_entry(&mut reader)?;
    if reader.0.is_empty() { Ok(logged) } else { Err(FormError::Value("the end of a log entry")) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn b64(bytes: &[u8]) -> String {
        BASE64_STANDARD.encode(bytes)
    }

    #[test]
    fn answers_are_read() {
        let text = format!(
            r#"{{"tree_size":5,"timestamp":6,"sha256_root_hash":"{}","tree_head_signature":"{}"}}"#,
            b64(&[1; 32]),
            b64(b"sig")
        );
        let head = parse_head(text.as_bytes()).unwrap();
        assert_eq!(
            (head.size, head.timestamp, head.root, head.signature.as_slice()),
            (5, 6, Hash([1; 32]), &b"sig"[..])
        );
        let proof = format!(r#"{{"consistency":["{}"]}}"#, b64(&[2; 32]));
        assert_eq!(parse_consistency(proof.as_bytes()).unwrap(), [Hash([2; 32])]);
        let both = format!(r#"{{"leaf_input":"{}","extra_data":"","audit_path":[]}}"#, b64(b"x"));
        assert_eq!(parse_entry_and_proof(both.as_bytes()).unwrap(), (leaf(b"x"), vec![]));
        let entries = format!(r#"{{"entries":[{{"leaf_input":"{}","extra_data":"AA=="}}]}}"#, b64(b"x"));
        assert_eq!(parse_entries(entries.as_bytes()).unwrap(), [b"x"]);
        for bad in ["", "<html>", "{}", r#"{"consistency":["AA=="]}"#, r#"{"entries":[{"leaf_input":"?"}]}"#]
        {
            assert!(parse_head(bad.as_bytes()).is_err() && parse_consistency(bad.as_bytes()).is_err());
            assert!(parse_entries(bad.as_bytes()).is_err() && parse_entry_and_proof(bad.as_bytes()).is_err());
        }
    }

    #[test]
    fn p15_proofs_and_batches_are_bounded() {
        let long = vec![format!("\"{}\"", b64(&[0; 32])); PROOF_HASHES_MAX + 1].join(",");
        assert!(matches!(
            parse_consistency(format!(r#"{{"consistency":[{long}]}}"#).as_bytes()),
            Err(FormError::TooLarge(_))
        ));
        let many = vec![r#"{"leaf_input":""}"#; 257].join(",");
        assert!(matches!(
            parse_entries(format!(r#"{{"entries":[{many}]}}"#).as_bytes()),
            Err(FormError::TooLarge(_))
        ));
    }

    #[test]
    fn leaves_are_read_to_their_end() {
        let certificate = [&[0, 0][..], &[0; 8], &[0, 0], &[0, 0, 2], b"ab", &[0, 0]].concat();
        assert_eq!(parse_leaf(&certificate).unwrap(), Logged::Certificate(b"ab"));
        let pre = [&[0, 0][..], &[0; 8], &[0, 1], &[9; 32], &[0, 0, 1], b"t", &[0, 1], b"e"].concat();
        assert_eq!(parse_leaf(&pre).unwrap(), Logged::Precertificate(b"t"));
        for cut in 0..pre.len() {
            assert!(parse_leaf(pre.get(..cut).unwrap()).is_err(), "{cut}");
        }
        assert!(parse_leaf(&[pre.as_slice(), b"x"].concat()).is_err());
        for (at, value) in [(0, 1), (1, 1), (11, 2)] {
            let mut other = pre.clone();
            *other.get_mut(at).unwrap() = value;
            assert!(parse_leaf(&other).is_err(), "{at}");
        }
    }
}
