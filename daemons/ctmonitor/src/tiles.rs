// SPDX-License-Identifier: Apache-2.0
//! What a static log says (c2sp.org/static-ct-api): checkpoints, tiles, and the entries inside. Pure.

use crate::head::Unchecked;
use crate::limits::{BATCH_MAX, CHECKPOINT_LINES_MAX, HEAD_MAX, TILE_WIDTH};
use crate::merkle::{Hash, Subtree, node};
use crate::rfc6962::{FormError, Reader, timestamped_entry};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use sha2::{Digest, Sha256};

/// Height of a full tile.
const TILE_HEIGHT: u32 = 8;
/// Highest level of tiles.
const LEVEL_MAX: u32 = 5;
/// Type of a note's signature that is a tree head of RFC 6962.
const TREE_HEAD: u8 = 5;

/// The key id of a log's signature in a note.
#[must_use]
pub fn key_id(origin: &str, log_id: &[u8; 32]) -> [u8; 4] {
    let digest =
        Sha256::new().chain_update(origin).chain_update([b'\n', TREE_HEAD]).chain_update(log_id).finalize();
    let [a, b, c, d, ..]: [u8; 32] = digest.into();
    [a, b, c, d]
}

/// Reads a checkpoint: a signed note with the tree head of the log `origin`. Signatures of others are skipped.
///
/// # Errors
/// [`FormError`]; also when the note is another log's, or has no signature of this one.
pub fn parse_checkpoint(bytes: &[u8], origin: &str, log_id: &[u8; 32]) -> Result<Unchecked, FormError> {
    if bytes.len() > HEAD_MAX {
        return Err(FormError::TooLarge(HEAD_MAX));
    }
    let text = std::str::from_utf8(bytes).map_err(|_| FormError::Value("the checkpoint"))?;
    let (body, signatures) = text.split_once("\n\n").ok_or(FormError::Value("the checkpoint"))?;
    let mut lines = body.split('\n');
    let (name, size, root) = (lines.next(), lines.next(), lines.next());
    if name != Some(origin) {
        return Err(FormError::Value("the checkpoint is of another log: its origin"));
    }
    if lines.next().is_some() {
        return Err(FormError::Value("an extension of the checkpoint"));
    }
    let root = root.and_then(|root| BASE64_STANDARD.decode(root).ok()?.try_into().ok());
    let (timestamp, signature) = signature(signatures, origin, key_id(origin, log_id))?;
    Ok(Unchecked {
        size: size.and_then(number).ok_or(FormError::Value("the size of the checkpoint"))?,
        timestamp,
        root: root.map(Hash).ok_or(FormError::Value("the root of the checkpoint"))?,
        signature,
    })
}

/// A decimal number in its one form.
fn number(text: &str) -> Option<u64> {
    let number: u64 = text.parse().ok()?;
    (number.to_string() == text).then_some(number)
}

/// The signature of the log with this key id: its time, and the `digitally-signed` structure.
fn signature(lines: &str, origin: &str, id: [u8; 4]) -> Result<(u64, Vec<u8>), FormError> {
    let lines = lines.strip_suffix('\n').ok_or(FormError::Value("the end of the checkpoint"))?;
    for line in lines.split('\n').take(CHECKPOINT_LINES_MAX) {
        let wrong = FormError::Value("a signature of the checkpoint");
        let (name, encoded) =
            line.strip_prefix("\u{2014} ").and_then(|l| l.split_once(' ')).ok_or(wrong.clone())?;
        let bytes = BASE64_STANDARD.decode(encoded).map_err(|_| wrong.clone())?;
        let (found, rest) = bytes.split_first_chunk::<4>().ok_or(wrong.clone())?;
        if name == origin && *found == id {
            let (time, signed) = rest.split_first_chunk::<8>().ok_or(wrong)?;
            return Ok((u64::from_be_bytes(*time), signed.to_vec()));
        }
    }
    Err(FormError::Value("the checkpoint has no signature by the key of the log: it"))
}

/// A tile of hashes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tile {
    /// Its level.
    pub level: u32,
    /// Which one of the level.
    pub index: u64,
    /// Hashes in it, 1 to 256.
    pub width: u64,
}

impl Tile {
    /// The tile of a whole subtree in a tree of `size` leaves, and where the subtree's hashes are in it.
    #[must_use]
    pub fn of(subtree: Subtree, size: u64) -> Option<(Self, std::ops::Range<usize>)> {
        let (level, above) = (subtree.height / TILE_HEIGHT, subtree.height % TILE_HEIGHT);
        let first = subtree.index.checked_shl(above)?;
        let index = first / TILE_WIDTH;
        // Hashes of this level that the tree has, counted from the tile on.
        let known = size.checked_shr(level * TILE_HEIGHT).unwrap_or(0);
        let width = known.checked_sub(index * TILE_WIDTH)?.min(TILE_WIDTH);
        let start = first % TILE_WIDTH;
        let end = start + (1_u64 << above);
        let range = usize::try_from(start).ok()?..usize::try_from(end).ok()?;
        (level <= LEVEL_MAX && end <= width).then_some((Self { level, index, width }, range))
    }

    /// Its path below the monitoring prefix.
    #[must_use]
    pub fn path(&self) -> String {
        format!("tile/{}/{}", self.level, numbered(self.index, self.width))
    }
}

/// The path of the entries from 256·`index` on, of which there are `width`.
#[must_use]
pub fn data_path(index: u64, width: u64) -> String {
    format!("tile/data/{}", numbered(index, width))
}

/// `x001/x234/067`, and `.p/W` for one that is not full.
fn numbered(index: u64, width: u64) -> String {
    let mut text = format!("{:03}", index % 1000);
    let mut rest = index / 1000;
    while rest > 0 {
        text = format!("x{:03}/{text}", rest % 1000);
        rest /= 1000;
    }
    if width < TILE_WIDTH { format!("{text}.p/{width}") } else { text }
}

/// Reads a tile with at least `width` hashes: a full one may come for one that was not.
///
/// # Errors
/// [`FormError::Value`].
pub fn parse_tile(bytes: &[u8], width: u64) -> Result<Vec<Hash>, FormError> {
    let (hashes, rest) = bytes.as_chunks::<32>();
    let count = u64::try_from(hashes.len()).unwrap_or(u64::MAX);
    if !rest.is_empty() || count < width || count > TILE_WIDTH {
        return Err(FormError::Value("a tile"));
    }
    Ok(hashes.iter().copied().map(Hash).collect())
}

/// The hash over a power of two of neighbouring hashes.
#[must_use]
pub fn fold(hashes: &[Hash]) -> Option<Hash> {
    let mut level = hashes.to_vec();
    while level.len() > 1 {
        level = level.as_chunks::<2>().0.iter().map(|[left, right]| node(left, right)).collect();
    }
    level.first().copied()
}

/// Reads the entries of a data tile, at least `width`, into leaves as they are hashed.
///
/// # Errors
/// [`FormError`].
pub fn parse_data(bytes: &[u8], width: u64) -> Result<Vec<Vec<u8>>, FormError> {
    if bytes.len() > BATCH_MAX {
        return Err(FormError::TooLarge(BATCH_MAX));
    }
    let (mut reader, mut leaves) = (Reader(bytes), Vec::new());
    while !reader.0.is_empty() {
        leaves.push(data_entry(&mut reader)?);
    }
    let count = u64::try_from(leaves.len()).unwrap_or(u64::MAX);
    if count < width || count > TILE_WIDTH {
        return Err(FormError::Value("the number of entries of a data tile"));
    }
    Ok(leaves)
}

fn data_entry(reader: &mut Reader<'_>) -> Result<Vec<u8>, FormError> {
    let before = reader.0;
    let logged = timestamped_entry(reader)?;
    let used = before.len() - reader.0.len();
    if matches!(logged, crate::rfc6962::Logged::Precertificate(_)) {
        let _precertificate = reader.sized(3)?;
    }
    let chain = reader.sized(2)?;
    if chain.len() % 32 != 0 {
        return Err(FormError::Value("the chain of an entry"));
    }
    // A leaf of version 1 and of the one kind there is.
    Ok([&[0, 0], before.get(..used).unwrap_or_default()].concat())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::rfc6962::{Logged, parse_leaf};

    const ORIGIN: &str = "rome.ct.example.com/2024h1";

    fn note(origin: &str, size: &str, name: &str, id: [u8; 4]) -> String {
        let signed = [&id[..], &7_u64.to_be_bytes(), b"signed"].concat();
        let other = BASE64_STANDARD.encode(b"witnessed");
        format!(
            "{origin}\n{size}\n{}\n\n\u{2014} witness.example {other}\n\u{2014} {name} {}\n",
            BASE64_STANDARD.encode([3; 32]),
            BASE64_STANDARD.encode(signed)
        )
    }

    #[test]
    fn a_checkpoint_is_read_and_only_its_logs_signature_counts() {
        let (log, id) = ([8; 32], key_id(ORIGIN, &[8; 32]));
        let good = note(ORIGIN, "256", ORIGIN, id);
        let head = parse_checkpoint(good.as_bytes(), ORIGIN, &log).unwrap();
        let expected =
            Unchecked { size: 256, timestamp: 7, root: Hash([3; 32]), signature: b"signed".to_vec() };
        assert_eq!(head, expected);
        for bad in [
            note("other.example/log", "256", ORIGIN, id),
            note(ORIGIN, "0256", ORIGIN, id),
            note(ORIGIN, "+256", ORIGIN, id),
            note(ORIGIN, "256", "other.example", id),
            note(ORIGIN, "256", ORIGIN, [0; 4]),
            good.replace("\n\n", "\nextension\n\n"),
            good.trim_end().to_owned(),
            good.replace('\u{2014}', "-"),
            String::new(),
        ] {
            assert!(parse_checkpoint(bad.as_bytes(), ORIGIN, &log).is_err(), "{bad}");
        }
        assert!(parse_checkpoint(good.as_bytes(), ORIGIN, &[9; 32]).is_err(), "another key");
    }

    #[test]
    fn paths_are_those_of_the_specification() {
        assert_eq!(data_path(1_234_067, 256), "tile/data/x001/x234/067");
        assert_eq!(data_path(0, 1), "tile/data/000.p/1");
        assert_eq!(Tile { level: 1, index: 1000, width: 255 }.path(), "tile/1/x001/000.p/255");
        // A tree of 70,000: 273 full tiles and one of 112; then 1 full and one of 17; then one of 1.
        for (height, index, expected) in [
            (0, 69_999, Some((0, 273, 112, 111..112))),
            (0, 255, Some((0, 0, 256, 255..256))),
            (8, 256, Some((1, 1, 17, 0..1))),
            (9, 136, None),
            (16, 0, Some((2, 0, 1, 0..1))),
            (10, 3, Some((1, 0, 256, 12..16))),
            (0, 70_000, None),
            (8, 273, None),
        ] {
            let found = Tile::of(Subtree { height, index }, 70_000);
            let found = found.map(|(t, range)| (t.level, t.index, t.width, range));
            assert_eq!(found, expected, "{height} {index}");
        }
    }

    #[test]
    fn tiles_are_read_and_folded() {
        let bytes = [[1_u8; 32], [2; 32]].concat();
        let hashes = parse_tile(&bytes, 2).unwrap();
        assert_eq!(fold(&hashes), Some(node(&Hash([1; 32]), &Hash([2; 32]))));
        assert!(parse_tile(&bytes, 3).is_err() && parse_tile(bytes.get(1..).unwrap(), 1).is_err());
        assert!(parse_tile(&vec![0; 257 * 32], 256).is_err());
        assert_eq!(fold(&[]), None);
    }

    #[test]
    fn entries_become_leaves() {
        let certificate = [&[0; 8][..], &[0, 0], &[0, 0, 2], b"ab", &[0, 0]].concat();
        let pre = [&[0; 8][..], &[0, 1], &[9; 32], &[0, 0, 1], b"t", &[0, 0]].concat();
        let tile = [&certificate[..], &[0, 32], &[5; 32], &pre, &[0, 0, 3], b"pre", &[0, 0]].concat();
        let leaves = parse_data(&tile, 2).unwrap();
        let read: Vec<_> = leaves.iter().map(|l| parse_leaf(l).unwrap()).collect();
        assert_eq!(read, [Logged::Certificate(b"ab"), Logged::Precertificate(b"t")]);
        assert!(parse_data(&tile, 3).is_err() && parse_data(tile.get(..tile.len() - 1).unwrap(), 1).is_err());
    }
}
