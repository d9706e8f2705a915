// SPDX-License-Identifier: Apache-2.0
//! The config disk: a read-only block device whose bytes are a POSIX (ustar) tar of known files.
//!
//! The host writes it, the guest reads it once into memory and parses that buffer; no file system of the host is ever
//! mounted. Every byte is hostile until measured, so there is exactly one accepted encoding of each set of files: the
//! one [`write`] makes. Whatever else tar can express (links, paths, sparse files, extensions) is an error.

use crate::limits::{
    APP_COMPOSE_MAX, CONFIG_DISK_MAX, ENCRYPTED_ENV_MAX, ENCRYPTED_ENV_SIG_MAX, INSTANCE_INFO_MAX,
    SYS_CONFIG_MAX, USER_CONFIG_MAX,
};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;

const BLOCK: usize = 512;

/// A file that the config disk may carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum File {
    /// `app-compose.json`: the measured description of the app, byte for byte as deployed.
    AppCompose,
    /// `encrypted-env`: the deployer's secrets, encrypted for the app's key.
    EncryptedEnv,
    /// `encrypted-env.sig`: who sent them (T9).
    EncryptedEnvSig,
    /// `instance-info.json`: app id and instance seed, kept by the host.
    InstanceInfo,
    /// `sys-config.json`: the host's hints, such as key service addresses.
    SysConfig,
    /// `user-config`: bytes that the deployer passes to the app unmeasured.
    UserConfig,
}

impl File {
    /// Every file, in the order of the disk.
    pub const ALL: [Self; 6] = [
        Self::AppCompose,
        Self::EncryptedEnv,
        Self::EncryptedEnvSig,
        Self::InstanceInfo,
        Self::SysConfig,
        Self::UserConfig,
    ];

    /// The name in the tar.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::AppCompose => "app-compose.json",
            Self::EncryptedEnv => "encrypted-env",
            Self::EncryptedEnvSig => "encrypted-env.sig",
            Self::InstanceInfo => "instance-info.json",
            Self::SysConfig => "sys-config.json",
            Self::UserConfig => "user-config",
        }
    }

    /// The largest accepted size, bytes.
    #[must_use]
    pub const fn cap(self) -> usize {
        match self {
            Self::AppCompose => APP_COMPOSE_MAX,
            Self::EncryptedEnv => ENCRYPTED_ENV_MAX,
            Self::EncryptedEnvSig => ENCRYPTED_ENV_SIG_MAX,
            Self::InstanceInfo => INSTANCE_INFO_MAX,
            Self::SysConfig => SYS_CONFIG_MAX,
            Self::UserConfig => USER_CONFIG_MAX,
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|f| f.name() == name)
    }
}

/// The files of a config disk.
pub type Files = BTreeMap<File, Vec<u8>>;

/// Why bytes are not a config disk.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigDiskError {
    /// The device is larger than any valid one.
    #[error("config disk of {0} bytes is larger than {CONFIG_DISK_MAX}")]
    DiskTooLarge(usize),
    /// The bytes end inside a header, a file, or before the end mark.
    #[error("config disk is truncated at byte {0}")]
    Truncated(usize),
    /// A header whose checksum or fixed fields are wrong.
    #[error("config disk has a damaged or foreign tar header at byte {0}")]
    Header(usize),
    /// A name that is not on the list: also over-long names, `..` and absolute paths.
    #[error("config disk has a file {0:?} that is not on the list")]
    UnknownFile(String),
    /// A link, directory, device or extension record.
    #[error("config disk has {name:?} as tar type {kind:?}; only regular files are allowed")]
    NotAFile {
        /// The entry's name.
        name: String,
        /// Its tar type flag.
        kind: char,
    },
    /// A file larger than its cap.
    #[error("{name} of {size} bytes is larger than {cap}")]
    FileTooLarge {
        /// The file.
        name: &'static str,
        /// Its size, bytes.
        size: usize,
        /// Its cap, bytes.
        cap: usize,
    },
    /// A file twice or out of order.
    #[error("config disk has {0} twice or out of order")]
    Order(&'static str),
    /// Something follows the end mark, or padding is not zero.
    #[error("config disk has unexpected bytes at byte {0}")]
    Trailing(usize),
}

/// Writes the tar of `files`, padded with zeros to whole 512-byte sectors.
///
/// # Errors
/// [`ConfigDiskError::FileTooLarge`] for a file over its cap.
pub fn write(files: &Files) -> Result<Vec<u8>, ConfigDiskError> {
    let mut out = Vec::new();
    for (file, content) in files {
        check_size(*file, content.len())?;
        out.extend_from_slice(&header(*file, content.len()));
        out.extend_from_slice(content);
        out.resize(out.len().next_multiple_of(BLOCK), 0);
    }
    out.resize(out.len() + 2 * BLOCK, 0);
    Ok(out)
}

/// Digest of everything the host gave (event `host-inputs`, trust rule T6): SHA-256 over each file in the order of
/// their names as `length of name (4 bytes, big-endian) ‖ name ‖ size (8 bytes, big-endian) ‖ SHA-256 of the content`.
#[must_use]
pub fn digest(files: &Files) -> [u8; 32] {
    let mut hash = Sha256::new();
    let mut sorted: Vec<_> = files.iter().map(|(file, content)| (file.name(), content)).collect();
    sorted.sort_unstable_by_key(|(name, _)| *name);
    for (name, content) in sorted {
        // Names and contents are far below these widths.
        hash.update(u32::try_from(name.len()).unwrap_or(u32::MAX).to_be_bytes());
        hash.update(name.as_bytes());
        hash.update(u64::try_from(content.len()).unwrap_or(u64::MAX).to_be_bytes());
        hash.update(Sha256::digest(content));
    }
    hash.finalize().into()
}

/// Parses a whole config disk.
///
/// # Errors
/// [`ConfigDiskError`] names the first thing that is not as [`write`] makes it.
pub fn parse(disk: &[u8]) -> Result<Files, ConfigDiskError> {
    if disk.len() > CONFIG_DISK_MAX {
        return Err(ConfigDiskError::DiskTooLarge(disk.len()));
    }
    let mut files = Files::new();
    let mut at = 0;
    loop {
        let block = disk.get(at..at + BLOCK).ok_or(ConfigDiskError::Truncated(at))?;
        if block.iter().all(|b| *b == 0) {
            return end(disk, at).map(|()| files);
        }
        let (file, size) = entry(block, at)?;
        if files.last_key_value().is_some_and(|(last, _)| *last >= file) {
            return Err(ConfigDiskError::Order(file.name()));
        }
        let start = at + BLOCK;
        let content = disk.get(start..start + size).ok_or(ConfigDiskError::Truncated(disk.len()))?;
        let next = start + size.next_multiple_of(BLOCK);
        let padding = disk.get(start + size..next).ok_or(ConfigDiskError::Truncated(disk.len()))?;
        if padding.iter().any(|b| *b != 0) {
            return Err(ConfigDiskError::Trailing(start + size));
        }
        files.insert(file, content.to_vec());
        at = next;
    }
}

fn check_size(file: File, size: usize) -> Result<(), ConfigDiskError> {
    if size > file.cap() {
        return Err(ConfigDiskError::FileTooLarge { name: file.name(), size, cap: file.cap() });
    }
    Ok(())
}

/// The end mark is two zero blocks; only zeros may follow (the device may be larger than the tar).
fn end(disk: &[u8], at: usize) -> Result<(), ConfigDiskError> {
    let rest = disk.get(at..).unwrap_or_default();
    if rest.len() < 2 * BLOCK {
        return Err(ConfigDiskError::Truncated(disk.len()));
    }
    match rest.iter().position(|b| *b != 0) {
        Some(offset) => Err(ConfigDiskError::Trailing(at + offset)),
        None => Ok(()),
    }
}

/// Reads one header: which file, how long.
fn entry(block: &[u8], at: usize) -> Result<(File, usize), ConfigDiskError> {
    let foreign = ConfigDiskError::Header(at);
    let field = |from: usize, to: usize| block.get(from..to).ok_or(ConfigDiskError::Header(at));
    if field(257, 263)? != b"ustar\0" {
        return Err(foreign);
    }
    let name = text(field(0, 100)?);
    let kind = field(156, 157)?.first().copied().unwrap_or_default();
    if kind != b'0' {
        return Err(ConfigDiskError::NotAFile { name, kind: char::from(kind) });
    }
    let file = File::from_name(&name).ok_or(ConfigDiskError::UnknownFile(name))?;
    let size = octal(field(124, 136)?).ok_or(ConfigDiskError::Header(at))?;
    check_size(file, size)?;
    // One encoding only: whatever the checks above did not look at must be what `write` writes.
    if block == header(file, size) { Ok((file, size)) } else { Err(foreign) }
}

/// The text up to the first NUL, for errors at most 100 characters.
fn text(field: &[u8]) -> String {
    let end = field.iter().position(|b| *b == 0).unwrap_or(field.len());
    String::from_utf8_lossy(field.get(..end).unwrap_or_default()).into_owned()
}

/// An octal field as ustar writes it: digits and a final NUL.
fn octal(field: &[u8]) -> Option<usize> {
    let (last, digits) = field.split_last()?;
    let text = std::str::from_utf8(digits).ok()?;
    if *last != 0 || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    usize::from_str_radix(text, 8).ok()
}

/// The only header this format has for a file of this size: mode 0444, owner and time zero.
fn header(file: File, size: usize) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| {
        block.iter_mut().skip(at).zip(bytes).for_each(|(to, from)| *to = *from);
    };
    put(0, file.name().as_bytes());
    put(100, b"0000444\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(124, format!("{size:011o}\0").as_bytes());
    put(136, b"00000000000\0");
    put(148, b"        ");
    put(156, b"0");
    put(257, b"ustar\x0000");
    let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
    let sum = format!("{sum:06o}\0 ");
    block.iter_mut().skip(148).zip(sum.as_bytes()).for_each(|(to, from)| *to = *from);
    block
}

#[cfg(test)]
#[path = "config_disk_tests.rs"]
mod tests;
