// SPDX-License-Identifier: Apache-2.0
//! The LUKS2 header of a data disk, and what else its header area may hold.
//!
//! The host can write anything there (P01). A header is read into memory once, must be exactly of the kind that the
//! guest makes, and the disk is then opened from that copy (trust rule T13):
//!
//! ```text
//! 0        binary header (one sector used), JSON        16 KiB
//! 16 KiB   the same again, with another magic           16 KiB
//! 32 KiB   key slot 0                                   252 KiB, of 1 MiB for key slots
//! 2 MiB    data, to the end of the disk
//! ```
//!
//! A disk of a first boot that did not come to its end has a [`marker`] in its first sector instead.

use serde::Deserialize;
use sha2::{Digest, Sha256};

/// Size of one binary header with its JSON, bytes.
pub const METADATA_SIZE: usize = 16 * 1024;
/// Size of the area for key slots, bytes.
pub const KEYSLOTS_SIZE: usize = 1024 * 1024;
/// Size of everything that belongs to the header, bytes.
pub const HEADER_SIZE: usize = 2 * METADATA_SIZE + KEYSLOTS_SIZE;
/// Where the data begins; everything before is the header area.
pub const DATA_OFFSET: usize = 2 * 1024 * 1024;
/// What a disk writes whole or not at all, bytes.
pub const SECTOR: usize = 512;
/// `subsystem` of the headers that guests make.
pub const SUBSYSTEM: &str = "dstack-data";
/// Rounds of PBKDF2; the passphrase has 256 random bits, so that stretching it adds nothing.
pub const ITERATIONS: u32 = 1000;
/// Most rounds that are accepted: each costs time before the key is known to be right.
pub const ITERATIONS_MAX: u32 = 1_000_000;
/// Cipher of data and key slot.
pub const CIPHER: &str = "aes-xts-plain64";
/// Size of the key, bytes.
pub const KEY_SIZE: u32 = 64;
/// Sector size of the encryption, bytes.
pub const SECTOR_SIZE: u32 = 4096;

const BINARY: usize = 4096;
const CHECKSUM: std::ops::Range<usize> = 448..480;
const AREA_OFFSET: usize = 2 * METADATA_SIZE;
/// 4000 stripes of the key, in whole blocks of 4096 bytes.
const AREA_SIZE: usize = 258_048;
const MARKER_MAGIC: &[u8; 16] = b"dstack-unfinish1";

/// A header that is of the one accepted kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Its label.
    pub label: String,
    /// Its UUID.
    pub uuid: String,
    /// Its sequence number.
    pub sequence: u64,
}

/// Why a header is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LuksError {
    /// Fewer than [`HEADER_SIZE`] bytes.
    #[error("the LUKS header is cut off")]
    Truncated,
    /// A binary header is not one, or not of this size and place.
    #[error("the {0} LUKS header has a wrong {1}")]
    Binary(&'static str, &'static str),
    /// Both copies are well-formed, and differ.
    #[error("the two copies of the LUKS header differ")]
    Copies,
    /// The JSON is not of the accepted form.
    #[error("the LUKS metadata is not of the accepted form: {0}")]
    Json(String),
    /// A value is not the only accepted one.
    #[error("the LUKS metadata has another {0} than this guest makes")]
    Value(&'static str),
}

/// Parses the header area of a disk: both copies, their checksums, and every value of the JSON.
///
/// # Errors
/// [`LuksError`] names the first thing that is not as this guest makes it.
pub fn parse(area: &[u8]) -> Result<Header, LuksError> {
    let copy = |at: usize| area.get(at..at + METADATA_SIZE).ok_or(LuksError::Truncated);
    if area.len() < HEADER_SIZE {
        return Err(LuksError::Truncated);
    }
    let (header, json) = binary(copy(0)?, "first", b"LUKS\xba\xbe", 0)?;
    let (second, second_json) = binary(copy(METADATA_SIZE)?, "second", b"SKUL\xba\xbe", METADATA_SIZE)?;
    if header != second || json != second_json {
        return Err(LuksError::Copies);
    }
    check_json(json)?;
    Ok(header)
}

/// Checks the metadata alone.
///
/// # Errors
/// [`LuksError::Json`] or [`LuksError::Value`].
pub fn check_json(json: &[u8]) -> Result<(), LuksError> {
    let json: Json = serde_json::from_slice(json).map_err(|e| LuksError::Json(e.to_string()))?;
    json.check()
}

/// One copy: its binary header, and its JSON without the zeros after it.
fn binary<'a>(
    copy: &'a [u8],
    which: &'static str,
    magic: &[u8; 6],
    offset: usize,
) -> Result<(Header, &'a [u8]), LuksError> {
    let wrong = |what| LuksError::Binary(which, what);
    let field = |from: usize, length: usize| copy.get(from..from + length).unwrap_or_default();
    let number = |from: usize| field(from, 8).iter().fold(0_u64, |n, b| n << 8 | u64::from(*b));
    let expected = |value: usize| u64::try_from(value).unwrap_or(u64::MAX);
    if field(0, 6) != magic {
        return Err(wrong("magic"));
    }
    if field(6, 2) != [0, 2] {
        return Err(wrong("version"));
    }
    if number(8) != expected(METADATA_SIZE) || number(256) != expected(offset) {
        return Err(wrong("size or place"));
    }
    if text(field(72, 32)).as_deref() != Some("sha256") || field(CHECKSUM.start, 32) != checksum(copy) {
        return Err(wrong("checksum"));
    }
    if field(CHECKSUM.end, BINARY - CHECKSUM.end).iter().any(|b| *b != 0) {
        return Err(wrong("padding"));
    }
    if text(field(208, 48)).as_deref() != Some(SUBSYSTEM) {
        return Err(wrong("subsystem"));
    }
    let label = text(field(24, 48)).ok_or(wrong("label"))?;
    let uuid = text(field(168, 40)).ok_or(wrong("UUID"))?;
    let json = json_text(copy.get(BINARY..).unwrap_or_default()).ok_or(wrong("JSON area"))?;
    Ok((Header { label, uuid, sequence: number(16) }, json))
}

/// SHA-256 over a copy whose checksum field is zero.
fn checksum(copy: &[u8]) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(copy.get(..CHECKSUM.start).unwrap_or_default());
    hash.update([0; 64]);
    hash.update(copy.get(CHECKSUM.start + 64..).unwrap_or_default());
    hash.finalize().into()
}

/// A text field: printable ASCII, then only zeros.
fn text(field: &[u8]) -> Option<String> {
    let (text, zeros) = field.split_at_checked(field.iter().position(|b| *b == 0)?)?;
    let good = text.iter().all(u8::is_ascii_graphic) && zeros.iter().all(|b| *b == 0);
    good.then(|| String::from_utf8_lossy(text).into_owned())
}

/// The JSON up to its end mark; only zeros may follow.
fn json_text(area: &[u8]) -> Option<&[u8]> {
    let (json, zeros) = area.split_at_checked(area.iter().position(|b| *b == 0)?)?;
    zeros.iter().all(|b| *b == 0).then_some(json)
}

/// The metadata. Unknown and repeated keys are errors, so that no other reader finds more in it than this one.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Json {
    keyslots: Only<Keyslot>,
    tokens: Nothing,
    segments: Only<Segment>,
    digests: Only<DigestOf>,
    config: Config,
}

/// An object with the one key `0`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Only<T> {
    #[serde(rename = "0")]
    item: T,
}

/// An object without keys.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Keyslot {
    r#type: String,
    key_size: u32,
    af: Af,
    area: Area,
    kdf: Kdf,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Af {
    r#type: String,
    stripes: u32,
    hash: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Area {
    r#type: String,
    offset: String,
    size: String,
    encryption: String,
    key_size: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Kdf {
    r#type: String,
    hash: String,
    iterations: u32,
    salt: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Segment {
    r#type: String,
    offset: String,
    size: String,
    iv_tweak: String,
    encryption: String,
    sector_size: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DigestOf {
    r#type: String,
    keyslots: [String; 1],
    segments: [String; 1],
    hash: String,
    iterations: u32,
    salt: String,
    digest: String,
}

/// No `flags` and no `requirements`: either is an unknown key here.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    json_size: String,
    keyslots_size: String,
}

impl Json {
    fn check(&self) -> Result<(), LuksError> {
        self.keyslots.item.check()?;
        self.segments.item.check()?;
        self.digests.item.check()?;
        let Nothing {} = self.tokens;
        same("JSON size", &self.config.json_size, METADATA_SIZE - BINARY)?;
        same("size for key slots", &self.config.keyslots_size, KEYSLOTS_SIZE)
    }
}

impl Keyslot {
    fn check(&self) -> Result<(), LuksError> {
        let (af, area, kdf) = (&self.af, &self.area, &self.kdf);
        is("type of key slot", self.r#type == "luks2" && self.key_size == KEY_SIZE)?;
        is("anti-forensic splitter", af.r#type == "luks1" && af.stripes == 4000 && af.hash == "sha256")?;
        is("cipher of the key slot", area.encryption == CIPHER && area.key_size == KEY_SIZE)?;
        is("area of the key slot", area.r#type == "raw")?;
        same("offset of the key slot", &area.offset, AREA_OFFSET)?;
        same("size of the key slot", &area.size, AREA_SIZE)?;
        stretched("key derivation", &kdf.r#type, &kdf.hash, kdf.iterations)?;
        is("salt", base64(&kdf.salt))
    }
}

impl Segment {
    fn check(&self) -> Result<(), LuksError> {
        is("type of segment", self.r#type == "crypt")?;
        is("cipher", self.encryption == CIPHER && self.sector_size == SECTOR_SIZE)?;
        is("start of the sectors' numbers", self.iv_tweak == "0")?;
        is("size of the segment", self.size == "dynamic")?;
        same("offset of the segment", &self.offset, DATA_OFFSET)
    }
}

impl DigestOf {
    fn check(&self) -> Result<(), LuksError> {
        is("digest", self.keyslots == ["0"] && self.segments == ["0"])?;
        is("digest", base64(&self.salt) && base64(&self.digest))?;
        stretched("digest", &self.r#type, &self.hash, self.iterations)
    }
}

fn is(what: &'static str, good: bool) -> Result<(), LuksError> {
    if good { Ok(()) } else { Err(LuksError::Value(what)) }
}

fn same(what: &'static str, text: &str, value: usize) -> Result<(), LuksError> {
    is(what, *text == value.to_string())
}

fn stretched(what: &'static str, kind: &str, hash: &str, iterations: u32) -> Result<(), LuksError> {
    let rounds = (ITERATIONS..=ITERATIONS_MAX).contains(&iterations);
    is(what, kind == "pbkdf2" && hash == "sha256" && rounds)
}

/// 32 bytes as base64.
fn base64(text: &str) -> bool {
    let digits = text.strip_suffix('=').unwrap_or_default();
    digits.len() == 43 && digits.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'+' || b == b'/')
}

/// The first sector of a disk that is being made for `label`: no data can be on it yet. `mac` comes from the disk's
/// key, so that nobody but the same instance makes such a sector.
#[must_use]
pub fn marker(label: &str, mac: &[u8; 32]) -> [u8; SECTOR] {
    let mut sector = [0; SECTOR];
    let content = MARKER_MAGIC.iter().chain(mac).chain(label.as_bytes());
    sector.iter_mut().zip(content).for_each(|(to, from)| *to = *from);
    sector
}

#[cfg(test)]
#[path = "luks_tests.rs"]
mod tests;
