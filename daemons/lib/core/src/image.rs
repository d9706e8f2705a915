// SPDX-License-Identifier: Apache-2.0
//! A guest image: a directory with `metadata.json`, `sha256sum.txt` and the files they name.

use crate::ids::OsImageHash;
use crate::limits::{IMAGE_FILES_MAX, IMAGE_METADATA_MAX};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// `metadata.json` of an image. File names are plain names inside the image's directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metadata {
    /// `dstack` or `dstack-dev`.
    pub name: String,
    /// Version of the image, e.g. `0.1.0`.
    pub version: String,
    /// Whether people can log in: such an image protects nothing from its operator.
    #[serde(default)]
    pub is_dev: bool,
    /// The unified kernel image, with kernel, initrd and the whole command line.
    pub uki: String,
    /// The root file system's data, verified by dm-verity.
    pub root: String,
    /// The hash tree, when it is not inside `root`.
    #[serde(default)]
    pub verity: Option<String>,
    /// Root hash of the tree, 64 hex digits; also in the UKI's command line.
    pub root_hash: String,
    /// TDVF or OVMF image to boot with, when the image brings one.
    #[serde(default)]
    pub firmware: Option<String>,
    /// Kernel version, for people.
    #[serde(default)]
    pub kernel_version: String,
}

/// Why an image's metadata is not valid.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// Larger than [`IMAGE_METADATA_MAX`].
    #[error("{0} is larger than {IMAGE_METADATA_MAX} bytes")]
    TooLarge(&'static str),
    /// Not the JSON it should be.
    #[error("metadata.json is not valid: {0}")]
    Json(#[from] serde_json::Error),
    /// A field that is not a plain file name, hash or version.
    #[error("metadata.json: {field} is {text:?}; {expected}")]
    Field {
        /// The key.
        field: &'static str,
        /// The refused text.
        text: String,
        /// What it should be.
        expected: &'static str,
    },
    /// A line of `sha256sum.txt` that is not `<64 hex>  <name>`.
    #[error("sha256sum.txt line {0} is not `<64 hex digits>  <file name>`")]
    Sum(usize),
    /// A file of the metadata without a sum.
    #[error("sha256sum.txt does not list {0}; build the image again")]
    Unlisted(String),
}

/// A file's SHA-256.
pub type Sha256Sum = [u8; 32];

/// An image's parsed texts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// `metadata.json`.
    pub metadata: Metadata,
    /// `sha256sum.txt`: sum by file name.
    pub sums: BTreeMap<String, Sha256Sum>,
    /// SHA-256 of `sha256sum.txt`.
    pub hash: OsImageHash,
}

impl Manifest {
    /// Parses and cross-checks both texts.
    ///
    /// # Errors
    /// [`ImageError`] names the first wrong field, line or file.
    pub fn parse(metadata: &[u8], sums: &[u8]) -> Result<Self, ImageError> {
        let parsed = Metadata::parse(metadata)?;
        let by_name = parse_sums(sums)?;
        let listed = |name: &str| by_name.contains_key(name);
        let missing = parsed.files().chain(["metadata.json"]).find(|name| !listed(name));
        if let Some(name) = missing {
            return Err(ImageError::Unlisted(name.to_owned()));
        }
        Ok(Self { metadata: parsed, sums: by_name, hash: OsImageHash::of(sums) })
    }
}

impl Metadata {
    /// Parses `metadata.json`.
    ///
    /// # Errors
    /// [`ImageError`] when it is too large, not JSON, or a field is out of form.
    pub fn parse(bytes: &[u8]) -> Result<Self, ImageError> {
        if bytes.len() > IMAGE_METADATA_MAX {
            return Err(ImageError::TooLarge("metadata.json"));
        }
        let metadata: Self = serde_json::from_slice(bytes)?;
        metadata.check()?;
        Ok(metadata)
    }

    /// The directory name of this image: `<name>-<version>`.
    #[must_use]
    pub fn directory(&self) -> String {
        format!("{}-{}", self.name, self.version)
    }

    /// Names of the files that QEMU opens.
    pub fn files(&self) -> impl Iterator<Item = &str> {
        let optional = [self.verity.as_deref(), self.firmware.as_deref()];
        [self.uki.as_str(), self.root.as_str()].into_iter().chain(optional.into_iter().flatten())
    }

    fn check(&self) -> Result<(), ImageError> {
        let expected = "use a plain file name of letters, digits, '.', '_' and '-'";
        let fields =
            [("uki", &self.uki), ("root", &self.root), ("name", &self.name), ("version", &self.version)];
        let optional = [("verity", self.verity.as_ref()), ("firmware", self.firmware.as_ref())];
        let optional = optional.into_iter().filter_map(|(k, v)| Some((k, v?)));
        for (field, text) in fields.into_iter().chain(optional) {
            if !plain(text) {
                return Err(ImageError::Field { field, text: text.clone(), expected });
            }
        }
        if hex::decode(&self.root_hash).map(|h| h.len()) != Ok(32) {
            let text = self.root_hash.clone();
            return Err(ImageError::Field {
                field: "root_hash",
                text,
                expected: "use 64 hexadecimal digits",
            });
        }
        Ok(())
    }
}

/// A file name without a path, short enough for a directory entry.
fn plain(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let first = name.chars().next().is_some_and(|c| c.is_ascii_alphanumeric());
    first && name.len() <= 64 && name.chars().all(allowed)
}

/// Parses `sha256sum.txt`.
///
/// # Errors
/// [`ImageError`] when it is too large or a line is out of form, repeated, or names a path.
pub fn parse_sums(bytes: &[u8]) -> Result<BTreeMap<String, Sha256Sum>, ImageError> {
    if bytes.len() > IMAGE_METADATA_MAX {
        return Err(ImageError::TooLarge("sha256sum.txt"));
    }
    let text = std::str::from_utf8(bytes).map_err(|_| ImageError::Sum(1))?;
    let mut sums = BTreeMap::new();
    for (index, line) in text.lines().enumerate() {
        let (name, sum) = parse_sum(line).ok_or(ImageError::Sum(index + 1))?;
        if sums.len() == IMAGE_FILES_MAX || sums.insert(name, sum).is_some() {
            return Err(ImageError::Sum(index + 1));
        }
    }
    Ok(sums)
}

fn parse_sum(line: &str) -> Option<(String, Sha256Sum)> {
    let (digits, name) = line.split_once("  ")?;
    let mut sum = [0; 32];
    hex::decode_to_slice(digits, &mut sum).ok()?;
    plain(name).then(|| (name.to_owned(), sum))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{"name":"dstack","version":"0.1.0","uki":"guest.efi","root":"root.img",
        "root_hash":"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"}"#;

    fn sums(names: &[&str]) -> String {
        names.iter().map(|n| format!("{}  {n}\n", "ab".repeat(32))).collect()
    }

    #[test]
    fn good() {
        let sums = sums(&["guest.efi", "metadata.json", "root.img"]);
        let manifest = Manifest::parse(GOOD.as_bytes(), sums.as_bytes()).unwrap();
        assert_eq!(manifest.metadata.directory(), "dstack-0.1.0");
        assert!(!manifest.metadata.is_dev);
        assert_eq!(manifest.hash, OsImageHash::of(sums.as_bytes()));
    }

    #[test]
    fn p26_no_path_leaves_the_image() {
        for bad in ["../root.img", "/root.img", "a/b", ".hidden", "", "root img"] {
            let text = GOOD.replace("root.img", bad);
            assert!(matches!(Metadata::parse(text.as_bytes()), Err(ImageError::Field { .. })), "{bad}");
            assert!(parse_sums(format!("{}  {bad}\n", "ab".repeat(32)).as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn every_file_must_be_listed_once() {
        let few = sums(&["guest.efi", "metadata.json"]);
        assert!(matches!(Manifest::parse(GOOD.as_bytes(), few.as_bytes()), Err(ImageError::Unlisted(_))));
        assert!(matches!(parse_sums(sums(&["a", "a"]).as_bytes()), Err(ImageError::Sum(2))));
        assert!(matches!(parse_sums(b"abc  name"), Err(ImageError::Sum(1))));
        assert!(Metadata::parse(GOOD.replace("aaaa", "aa").as_bytes()).is_err());
    }
}
