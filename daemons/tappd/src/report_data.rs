// SPDX-License-Identifier: Apache-2.0
//! The 64 bytes that a quote carries for an app, as each of the two services makes them.
//!
//! `Tappd` hashes `<prefix>:<data>`, or takes 64 bytes as they are; `DstackGuest` takes up to 64 bytes and pads them with
//! zeros on the right.

use sha2::{Digest, Sha256, Sha384, Sha512};
use sha3::{Keccak256, Keccak384, Keccak512, Sha3_256, Sha3_384, Sha3_512};

/// Report data of a quote.
pub type ReportData = [u8; 64];

/// What is hashed before an app's data when it names no prefix.
pub const APP_DATA: &str = "app-data";
/// Longest prefix, bytes.
pub const PREFIX_MAX: usize = 256;

/// Why data do not become report data.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReportDataError {
    /// `raw` takes exactly 64 bytes.
    #[error("report_data has {0} bytes; with hash_algorithm \"raw\" it must have exactly 64")]
    Raw(usize),
    /// More than 64 bytes where none are hashed.
    #[error("report_data has {0} bytes; at most 64 fit into a quote, hash them first")]
    TooLong(usize),
    /// An algorithm that does not exist.
    #[error(
        "hash_algorithm {0:?} is not known; use sha256, sha384, sha512, sha3-256, sha3-384, sha3-512, keccak256, \
         keccak384, keccak512 or raw"
    )]
    Algorithm(String),
    /// A prefix over [`PREFIX_MAX`].
    #[error("prefix is longer than {PREFIX_MAX} bytes")]
    Prefix,
}

/// Report data and the name of the algorithm that made it.
///
/// # Errors
/// [`ReportDataError`].
pub fn hashed(
    algorithm: &str,
    prefix: &str,
    data: &[u8],
) -> Result<(ReportData, &'static str), ReportDataError> {
    if prefix.len() > PREFIX_MAX {
        return Err(ReportDataError::Prefix);
    }
    let prefix = if prefix.is_empty() { APP_DATA } else { prefix };
    let of = |name, hash: fn(&[&[u8]]) -> ReportData| Ok((hash(&[prefix.as_bytes(), b":", data]), name));
    match algorithm {
        "" | "sha512" => of("sha512", digest::<Sha512>),
        "sha256" => of("sha256", digest::<Sha256>),
        "sha384" => of("sha384", digest::<Sha384>),
        "sha3-256" => of("sha3-256", digest::<Sha3_256>),
        "sha3-384" => of("sha3-384", digest::<Sha3_384>),
        "sha3-512" => of("sha3-512", digest::<Sha3_512>),
        "keccak256" => of("keccak256", digest::<Keccak256>),
        "keccak384" => of("keccak384", digest::<Keccak384>),
        "keccak512" => of("keccak512", digest::<Keccak512>),
        "raw" => Ok((exact(data)?, "raw")),
        other => Err(ReportDataError::Algorithm(other.chars().take(32).collect())),
    }
}

/// Exactly 64 bytes as they are.
///
/// # Errors
/// [`ReportDataError::Raw`].
pub fn exact(data: &[u8]) -> Result<ReportData, ReportDataError> {
    data.try_into().map_err(|_| ReportDataError::Raw(data.len()))
}

/// At most 64 bytes, with zeros after them.
///
/// # Errors
/// [`ReportDataError::TooLong`].
pub fn padded(data: &[u8]) -> Result<ReportData, ReportDataError> {
    if data.len() > 64 { Err(ReportDataError::TooLong(data.len())) } else { Ok(right_padded(data)) }
}

fn digest<H: Digest>(parts: &[&[u8]]) -> ReportData {
    let mut hash = H::new();
    parts.iter().for_each(|part| hash.update(part));
    right_padded(&hash.finalize())
}

fn right_padded(data: &[u8]) -> ReportData {
    let mut out = [0; 64];
    out.iter_mut().zip(data).for_each(|(to, from)| *to = *from);
    out
}

#[cfg(test)]
#[path = "report_data_tests.rs"]
mod tests;
