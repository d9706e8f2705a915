// SPDX-License-Identifier: Apache-2.0
//! The key services a user trusts (trust rule T15): one JSON file each, named by the fingerprint of its CA key.
//!
//! The user's own are in `$XDG_CONFIG_HOME/dstack/trust`, those that root trusts for everybody in `/etc/dstack/trust`. A
//! link `default` beside them names the one that is used when none is asked for; the user's comes first.

use crate::errors::{Exit, Failure};
use crate::places;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Where root's are.
const SYSTEM: &str = "/etc/dstack/trust";
/// Fewest hex digits by which a key service may be named.
const PREFIX_MIN: usize = 8;

/// A trusted key service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trusted {
    /// 1.
    pub version: u32,
    /// Where it is reached.
    pub url: String,
    /// The domain it was bootstrapped for.
    #[serde(default)]
    pub domain: String,
    /// `intel` or `test:<16 hex>`.
    pub realm: String,
    /// `host` or `cvm`.
    pub custody: String,
    /// SubjectPublicKeyInfo of its CA.
    #[serde(with = "hex::serde")]
    pub ca_public_key: Vec<u8>,
    /// Its compressed secp256k1 root key.
    #[serde(with = "hex::serde")]
    pub k256_public_key: [u8; 33],
    /// Whether a quote over both keys was verified.
    pub attested: bool,
    /// When that was, Unix seconds.
    pub trusted_at: u64,
}

/// SHA-256 over a CA's SubjectPublicKeyInfo, 64 hex digits.
#[must_use]
pub fn fingerprint(ca_public_key: &[u8]) -> String {
    hex::encode(Sha256::digest(ca_public_key))
}

/// A fingerprint as people write it: with or without `sha256:`, colons and spaces, in either case.
///
/// # Errors
/// What it needs.
pub fn parse_fingerprint(text: &str) -> Result<String, String> {
    let lower = text.to_ascii_lowercase();
    let digits: String =
        lower.strip_prefix("sha256:").unwrap_or(&lower).chars().filter(|c| !matches!(c, ':' | ' ')).collect();
    let wrong =
        "a fingerprint has 64 hexadecimal digits; `dstackctl kms status` on the key service's host shows it";
    hex::decode(&digits).ok().filter(|b| b.len() == 32).map(hex::encode).ok_or_else(|| wrong.to_owned())
}

impl Trusted {
    /// Its fingerprint.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        fingerprint(&self.ca_public_key)
    }

    /// Whether a user means it: by URL, domain, or the beginning of its fingerprint.
    fn is_meant(&self, name: &str) -> bool {
        let digits = name.strip_prefix("sha256:").unwrap_or(name).to_ascii_lowercase();
        let by_prefix = digits.len() >= PREFIX_MIN && self.fingerprint().starts_with(&digits);
        by_prefix || name.trim_end_matches('/') == self.url || (!name.is_empty() && name == self.domain)
    }
}

/// The directories of trusted key services.
#[derive(Debug, Clone)]
pub struct Store {
    /// The user's first.
    directories: Vec<PathBuf>,
}

impl Store {
    /// The user's and root's.
    ///
    /// # Errors
    /// When the user has no home.
    pub fn open() -> Result<Self, Failure> {
        Ok(Self { directories: vec![places::config()?.join("trust"), SYSTEM.into()] })
    }

    /// Root's alone.
    #[must_use]
    pub fn system() -> Self {
        Self { directories: vec![SYSTEM.into()] }
    }

    fn directory(&self, system: bool) -> Result<&Path, Failure> {
        let directory = if system { self.directories.last() } else { self.directories.first() };
        directory
            .map(PathBuf::as_path)
            .ok_or_else(|| Failure::new("there is no directory for trusted key services"))
    }

    /// All, each once, the user's first.
    ///
    /// # Errors
    /// A file that cannot be read or is not one of these: it never counts as absent.
    pub fn all(&self) -> Result<Vec<Trusted>, Failure> {
        let mut all: Vec<Trusted> = Vec::new();
        for directory in &self.directories {
            for path in files(directory)? {
                let trusted = load(&path)?;
                if all.iter().all(|t| t.ca_public_key != trusted.ca_public_key) {
                    all.push(trusted);
                }
            }
        }
        Ok(all)
    }

    /// The one that is used when none is asked for: the one that a link names, or the only one.
    ///
    /// # Errors
    /// When there are several and none was chosen, or a file cannot be read.
    pub fn default(&self) -> Result<Option<Trusted>, Failure> {
        for directory in &self.directories {
            match std::fs::read_link(directory.join("default")) {
                Ok(name) => return load(&directory.join(name)).map(Some),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(places::cannot("read", &directory.join("default"), &error)),
            }
        }
        let mut all = self.all()?.into_iter();
        match (all.next(), all.next()) {
            (only, None) => Ok(only),
            (_, Some(_)) => Err(Failure::new("several key services are trusted, and none is the default")
                .hint("choose one: dstackctl kms trust URL --default, or --kms NAME")),
        }
    }

    /// The one a user means.
    ///
    /// # Errors
    /// When there is none, or more than one.
    pub fn find(&self, name: &str) -> Result<Trusted, Failure> {
        let mut meant = self.all()?.into_iter().filter(|t| t.is_meant(name));
        match (meant.next(), meant.next()) {
            (Some(one), None) => Ok(one),
            (None, _) => Err(Failure::with(Exit::NotFound, format!("no key service {name:?} is trusted"))
                .hint("see which are: dstackctl kms status; trust one: dstackctl kms trust URL")),
            _ => Err(Failure::usage(format!("{name:?} means several key services"))
                .hint("give its fingerprint, see dstackctl kms status")),
        }
    }

    /// Adds one; the first becomes the default, and so does one that is to be.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn add(&self, trusted: &Trusted, system: bool, default: bool) -> Result<(), Failure> {
        let directory = self.directory(system)?;
        places::make_directory(directory, if system { 0o755 } else { 0o700 })?;
        let json = serde_json::to_vec_pretty(trusted)
            .map_err(|e| Failure::new(format!("cannot write a trusted key service: {e}")))?;
        let first = files(directory)?.is_empty();
        let name = format!("{}.json", trusted.fingerprint());
        places::replace(&directory.join(&name), &json, if system { 0o644 } else { 0o600 })?;
        if first || default {
            link(directory, &name)?;
        }
        Ok(())
    }

    /// Forgets one, wherever it is; its link goes first, so that no link leads nowhere.
    ///
    /// # Errors
    /// When it is not there or cannot be removed.
    pub fn remove(&self, trusted: &Trusted) -> Result<(), Failure> {
        let name = format!("{}.json", trusted.fingerprint());
        for directory in &self.directories {
            let default = directory.join("default");
            if std::fs::read_link(&default).is_ok_and(|to| to == Path::new(&name)) {
                std::fs::remove_file(&default).map_err(|e| places::cannot("remove", &default, &e))?;
            }
            let path = directory.join(&name);
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(places::cannot("remove", &path, &error));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn link(directory: &Path, name: &str) -> Result<(), Failure> {
    let temporary = directory.join(format!(".default-{}", std::process::id()));
    drop(std::fs::remove_file(&temporary));
    let made = std::os::unix::fs::symlink(name, &temporary);
    let made = made.and_then(|()| std::fs::rename(&temporary, directory.join("default")));
    made.map_err(|e| places::cannot("write", &directory.join("default"), &e))
}

/// The files of a directory, by name.
fn files(directory: &Path) -> Result<Vec<PathBuf>, Failure> {
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|e| places::cannot("read", directory, &e))?,
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| places::cannot("read", directory, &e))?.path();
        if path.extension().is_some_and(|e| e == "json") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn load(path: &Path) -> Result<Trusted, Failure> {
    let damaged = |why: &dyn std::fmt::Display| {
        Failure::new(format!("{} is no trusted key service: {why}", path.display()))
            .hint("remove the file, and trust the key service again: dstackctl kms trust URL")
    };
    let bytes = places::read(path)?.ok_or_else(|| damaged(&"it is gone"))?;
    let trusted: Trusted = serde_json::from_slice(&bytes).map_err(|e| damaged(&e))?;
    let named = path.file_stem().is_some_and(|s| *s == *trusted.fingerprint());
    if trusted.version != 1 || !named {
        return Err(damaged(&"its version or its name is another"));
    }
    Ok(trusted)
}

#[cfg(test)]
#[path = "trust_tests.rs"]
mod tests;
