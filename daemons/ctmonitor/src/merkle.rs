// SPDX-License-Identifier: Apache-2.0
//! The Merkle tree of a log (RFC 6962, 2.1) and its proofs (RFC 9162, 2.1.3 and 2.1.4). Pure.

use crate::limits::PROOF_HASHES_MAX;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fmt;

/// A hash of a tree.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Hash(pub [u8; 32]);

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hash({self})")
    }
}

impl From<Hash> for String {
    fn from(hash: Hash) -> Self {
        hash.to_string()
    }
}

impl TryFrom<String> for Hash {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(&text, &mut bytes).map_err(|e| format!("no hash: {e}"))?;
        Ok(Self(bytes))
    }
}

/// The hash of a leaf.
#[must_use]
pub fn leaf(bytes: &[u8]) -> Hash {
    Hash(Sha256::new().chain_update([0]).chain_update(bytes).finalize().into())
}

/// The hash of a node.
#[must_use]
pub fn node(left: &Hash, right: &Hash) -> Hash {
    Hash(Sha256::new().chain_update([1]).chain_update(left.0).chain_update(right.0).finalize().into())
}

/// The hash of the tree without leaves.
#[must_use]
pub fn empty() -> Hash {
    Hash(Sha256::digest([]).into())
}

/// Why a proof is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    /// The sizes do not fit each other.
    #[error("a proof for such sizes does not exist")]
    Sizes,
    /// It has another number of hashes than a proof for these sizes.
    #[error("the proof has the wrong length")]
    Length,
    /// It leads to another root.
    #[error("the proof leads to another root")]
    Root,
}

/// The root that an inclusion proof leads to.
///
/// # Errors
/// [`ProofError`] for an index outside the tree, or a proof of the wrong length.
pub fn root_of_inclusion(index: u64, size: u64, leaf: &Hash, path: &[Hash]) -> Result<Hash, ProofError> {
    if index >= size {
        return Err(ProofError::Sizes);
    }
    if path.len() > PROOF_HASHES_MAX {
        return Err(ProofError::Length);
    }
    let (mut number, mut last, mut root) = (index, size - 1, *leaf);
    for hash in path {
        if last == 0 {
            return Err(ProofError::Length);
        }
        if number & 1 == 1 || number == last {
            root = node(hash, &root);
            while number & 1 == 0 && number != 0 {
                (number, last) = (number >> 1, last >> 1);
            }
        } else {
            root = node(&root, hash);
        }
        (number, last) = (number >> 1, last >> 1);
    }
    if last == 0 { Ok(root) } else { Err(ProofError::Length) }
}

/// Checks that the leaf `index` is in the tree of `size` leaves with this root.
///
/// # Errors
/// [`ProofError`].
pub fn check_inclusion(
    index: u64,
    size: u64,
    leaf: &Hash,
    path: &[Hash],
    root: &Hash,
) -> Result<(), ProofError> {
    if root_of_inclusion(index, size, leaf, path)? == *root { Ok(()) } else { Err(ProofError::Root) }
}

/// Checks that the tree of `second.0` leaves begins with that of `first.0` leaves.
///
/// # Errors
/// [`ProofError`].
pub fn check_consistency(
    first: (u64, &Hash),
    second: (u64, &Hash),
    proof: &[Hash],
) -> Result<(), ProofError> {
    let ((size1, root1), (size2, root2)) = (first, second);
    if size1 > size2 {
        return Err(ProofError::Sizes);
    }
    if size1 == 0 || size1 == size2 {
        let same = if size1 == 0 { *root1 == empty() } else { root1 == root2 };
        return match (same, proof.is_empty()) {
            (true, true) => Ok(()),
            (true, false) => Err(ProofError::Length),
            (false, _) => Err(ProofError::Root),
        };
    }
    if proof.len() > PROOF_HASHES_MAX {
        return Err(ProofError::Length);
    }
    let (old, new) = roots_of_consistency(size1, root1, size2, proof)?;
    if old == *root1 && new == *root2 { Ok(()) } else { Err(ProofError::Root) }
}

/// Both roots that a consistency proof leads to.
fn roots_of_consistency(
    size1: u64,
    root1: &Hash,
    size2: u64,
    proof: &[Hash],
) -> Result<(Hash, Hash), ProofError> {
    let (mut number, mut last) = (size1 - 1, size2 - 1);
    while number & 1 == 1 {
        (number, last) = (number >> 1, last >> 1);
    }
    // A whole left subtree is its own first hash, and so it is left out.
    let mut hashes = proof.iter();
    let start = if size1.is_power_of_two() { root1 } else { hashes.next().ok_or(ProofError::Length)? };
    let (mut old, mut new) = (*start, *start);
    for hash in hashes {
        if last == 0 {
            return Err(ProofError::Length);
        }
        if number & 1 == 1 || number == last {
            (old, new) = (node(hash, &old), node(hash, &new));
            while number & 1 == 0 && number != 0 {
                (number, last) = (number >> 1, last >> 1);
            }
        } else {
            new = node(&new, hash);
        }
        (number, last) = (number >> 1, last >> 1);
    }
    if last == 0 { Ok((old, new)) } else { Err(ProofError::Length) }
}

/// The right edge of a tree: enough to add leaves and to tell the root. Its hashes are those of the whole subtrees that
/// make up the tree, the largest first: one for each bit of the size.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Edge")]
pub struct Frontier {
    size: u64,
    hashes: Vec<Hash>,
}

#[derive(Deserialize)]
struct Edge {
    size: u64,
    hashes: Vec<Hash>,
}

impl TryFrom<Edge> for Frontier {
    type Error = ProofError;

    fn try_from(edge: Edge) -> Result<Self, ProofError> {
        let fits = usize::try_from(edge.size.count_ones()).is_ok_and(|bits| bits == edge.hashes.len());
        fits.then_some(Self { size: edge.size, hashes: edge.hashes }).ok_or(ProofError::Length)
    }
}

impl Frontier {
    /// The edge of the tree of `size` leaves, from the inclusion proof of its last leaf: all hashes of that proof are
    /// whole subtrees to the left of it.
    ///
    /// # Errors
    /// [`ProofError`] when the proof has the wrong length. Compare [`Self::root`] with the tree's.
    pub fn from_last_leaf(size: u64, leaf: Hash, path: &[Hash]) -> Result<Self, ProofError> {
        let before = size.checked_sub(1).ok_or(ProofError::Sizes)?;
        let hashes = path.iter().rev().copied().collect();
        let mut frontier = Self::try_from(Edge { size: before, hashes })?;
        frontier.push(leaf);
        Ok(frontier)
    }

    /// Leaves in the tree.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Adds a leaf.
    pub fn push(&mut self, leaf: Hash) {
        let mut hash = leaf;
        // Each whole subtree of the same height as the new one joins it.
        for _ in 0..self.size.trailing_ones() {
            if let Some(left) = self.hashes.pop() {
                hash = node(&left, &hash);
            }
        }
        self.hashes.push(hash);
        self.size += 1;
    }

    /// The root of the tree.
    #[must_use]
    pub fn root(&self) -> Hash {
        let mut hashes = self.hashes.iter().rev();
        let Some(last) = hashes.next() else { return empty() };
        hashes.fold(*last, |root, left| node(left, &root))
    }
}

/// A whole subtree: 2^`height` leaves from leaf `index`·2^`height` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subtree {
    /// Its height.
    pub height: u32,
    /// Which one of that height.
    pub index: u64,
}

/// A node of a proof: the whole subtrees that it is made of, the largest first.
pub type Parts = Vec<Subtree>;

/// The largest power of two below `n`, which is at least 2.
const fn split(n: u64) -> u64 {
    1 << (u64::BITS - 1 - (n - 1).leading_zeros())
}

/// The whole subtrees that make up the leaves from `low` to `high`.
fn parts(low: u64, high: u64) -> Parts {
    let (mut parts, mut from) = (Vec::new(), low);
    while from < high {
        let fits = u64::BITS - 1 - (high - from).leading_zeros();
        let height = if from == 0 { fits } else { fits.min(from.trailing_zeros()) };
        parts.push(Subtree { height, index: from >> height });
        from += 1 << height;
    }
    parts
}

/// The hash of a node of a proof from those of its parts.
#[must_use]
pub fn join(parts: &[Hash]) -> Hash {
    let mut hashes = parts.iter().rev();
    let Some(last) = hashes.next() else { return empty() };
    hashes.fold(*last, |root, left| node(left, &root))
}

/// The nodes of the inclusion proof of leaf `index` in a tree of `size` leaves (RFC 6962, 2.1.1).
#[must_use]
pub fn inclusion_nodes(index: u64, size: u64) -> Vec<Parts> {
    let (mut nodes, mut low, mut high) = (Vec::new(), 0, size);
    while high.saturating_sub(low) > 1 {
        let middle = low + split(high - low);
        if index < middle {
            nodes.push(parts(middle, high));
            high = middle;
        } else {
            nodes.push(parts(low, middle));
            low = middle;
        }
    }
    nodes.reverse();
    nodes
}

/// The nodes of the consistency proof between trees of `first` and `second` leaves (RFC 6962, 2.1.2).
#[must_use]
pub fn consistency_nodes(first: u64, second: u64) -> Vec<Parts> {
    if first == 0 || first >= second {
        return Vec::new();
    }
    let (mut nodes, mut low, mut high, mut whole) = (Vec::new(), 0, second, true);
    while first != high {
        let middle = low + split(high - low);
        if first <= middle {
            nodes.push(parts(middle, high));
            high = middle;
        } else {
            nodes.push(parts(low, middle));
            low = middle;
            whole = false;
        }
    }
    if !whole {
        nodes.push(parts(low, high));
    }
    nodes.reverse();
    nodes
}

#[cfg(test)]
#[path = "merkle_tests.rs"]
mod tests;
