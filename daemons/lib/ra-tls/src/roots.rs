// SPDX-License-Identifier: Apache-2.0
//! Trust roots with labels, and the realm that a set of them makes (trust rule T4).

use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Where root certificates are looked for; a file in the first directory hides one of the same name in the second.
pub const DIRECTORIES: [&str; 2] = ["/etc/dstack/trust.d", "/usr/lib/dstack/trust.d"];
/// Largest root file, bytes.
pub const ROOT_MAX: u64 = 64 * 1024;

/// Which root a quote stands under.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Label {
    /// Intel's production root: a genuine TDX machine.
    Intel,
    /// A test root: nothing is protected. The text is the first 16 hex digits of the SHA-256 of its certificate.
    Test(String),
}

impl Label {
    /// Whether evidence under this root is simulated.
    #[must_use]
    pub const fn is_simulated(&self) -> bool {
        matches!(self, Self::Test(_))
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Intel => f.write_str("intel"),
            Self::Test(fingerprint) => write!(f, "test:{fingerprint}"),
        }
    }
}

/// A text that is no label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a realm is \"intel\" or \"test:\" and 16 lower-case hexadecimal digits")]
pub struct LabelError;

impl FromStr for Label {
    type Err = LabelError;

    fn from_str(text: &str) -> Result<Self, LabelError> {
        if text == "intel" {
            return Ok(Self::Intel);
        }
        let digits = text.strip_prefix("test:").ok_or(LabelError)?;
        let hex = digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if hex && digits.len() == 16 { Ok(Self::Test(digits.to_owned())) } else { Err(LabelError) }
    }
}

/// A root certificate with its label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Root {
    pub(crate) label: Label,
    /// DER; `None` for the root that is compiled in.
    pub(crate) der: Option<Vec<u8>>,
}

/// The roots that a verifier trusts: Intel's, or one test root, never both (T4: one realm).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Roots {
    pub(crate) root: Root,
}

/// Why a root cannot be trusted.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// Not a single PEM certificate.
    #[error("not one PEM certificate; a test root is installed by dstack-testroot")]
    NotACertificate,
    /// Not a single PEM certificate, in this file.
    #[error("{}: not one PEM certificate; a test root is installed by dstack-testroot", .0.display())]
    NotARoot(PathBuf),
    /// A file or directory cannot be read.
    #[error("{}: cannot be read: {error}", path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// More than one root: an installation has one realm (trust rule T4).
    #[error("{} and {} both name a trust root; an installation has one realm: remove one", .0.display(), .1.display())]
    TwoRealms(PathBuf, PathBuf),
}

impl RootError {
    fn unreadable(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |error| Self::Unreadable { path, error }
    }
}

impl Roots {
    /// Trusts Intel's production root, and it alone.
    #[must_use]
    pub const fn intel() -> Self {
        Self { root: Root { label: Label::Intel, der: None } }
    }

    /// Trusts this test root (DER), and it alone. Its label always says `test:`.
    #[must_use]
    pub fn test(der: Vec<u8>) -> Self {
        let fingerprint = Sha256::digest(&der).iter().take(8).map(|b| format!("{b:02x}")).collect();
        Self { root: Root { label: Label::Test(fingerprint), der: Some(der) } }
    }

    /// Trusts a test root from a PEM file.
    ///
    /// # Errors
    /// [`RootError::NotACertificate`].
    pub fn test_pem(pem: &str) -> Result<Self, RootError> {
        let blocks = certificates(pem).ok_or(RootError::NotACertificate)?;
        match <[Vec<u8>; 1]>::try_from(blocks) {
            Ok([der]) => Ok(Self::test(der)),
            Err(_) => Err(RootError::NotACertificate),
        }
    }

    /// The roots of this machine: Intel's when no directory has a `*.pem`, that test root when there is exactly one.
    ///
    /// # Errors
    /// [`RootError`] for a second root, and for one that cannot be read: it never counts as absent.
    pub fn load(directories: &[impl AsRef<Path>]) -> Result<Self, RootError> {
        let mut files = BTreeMap::new();
        for directory in directories.iter().rev() {
            for path in pem_files(directory.as_ref())? {
                files.insert(path.file_name().map(ToOwned::to_owned), path);
            }
        }
        let mut files = files.into_values();
        match (files.next(), files.next()) {
            (None, _) => Ok(Self::intel()),
            (Some(path), None) => Self::test_pem(&read(&path)?).map_err(|_| RootError::NotARoot(path)),
            (Some(one), Some(other)) => Err(RootError::TwoRealms(one, other)),
        }
    }

    /// The realm: the label of the root.
    #[must_use]
    pub const fn realm(&self) -> &Label {
        &self.root.label
    }
}

fn pem_files(directory: &Path) -> Result<Vec<PathBuf>, RootError> {
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(RootError::unreadable(directory))?,
    };
    let paths: Result<Vec<_>, _> = entries.map(|entry| entry.map(|e| e.path())).collect();
    let is_pem = |p: &PathBuf| p.extension().is_some_and(|e| e == "pem");
    Ok(paths.map_err(RootError::unreadable(directory))?.into_iter().filter(is_pem).collect())
}

fn read(path: &Path) -> Result<String, RootError> {
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(RootError::unreadable(path))?;
    file.take(ROOT_MAX).read_to_string(&mut text).map_err(RootError::unreadable(path))?;
    Ok(text)
}

/// Decodes `CERTIFICATE` blocks; any other block makes the text unusable.
fn certificates(text: &str) -> Option<Vec<Vec<u8>>> {
    let blocks = pem::parse_many(text).ok()?;
    let certificates = blocks.iter().all(|b| b.tag() == "CERTIFICATE");
    certificates.then(|| blocks.into_iter().map(pem::Pem::into_contents).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p17_a_test_root_is_always_labelled() {
        assert_eq!(Roots::intel().realm().to_string(), "intel");
        let test = Roots::test(vec![1, 2, 3]);
        assert_eq!(test.realm().to_string(), "test:039058c6f2c0cb49");
        assert!(test.realm().is_simulated() && !Roots::intel().realm().is_simulated());
    }

    #[test]
    fn only_one_certificate_is_a_root() {
        let block = |tag: &str| format!("-----BEGIN {tag}-----\nAQID\n-----END {tag}-----\n");
        assert_eq!(Roots::test_pem(&block("CERTIFICATE")).unwrap(), Roots::test(vec![1, 2, 3]));
        let two = block("CERTIFICATE") + &block("CERTIFICATE");
        for bad in ["", "x", &block("PRIVATE KEY"), &two] {
            assert!(matches!(Roots::test_pem(bad), Err(RootError::NotACertificate)), "{bad}");
        }
    }

    #[test]
    fn t04_a_machine_has_one_realm() {
        let dir = tempfile::tempdir().unwrap();
        let directories = [dir.path().join("etc"), dir.path().join("lib")];
        assert_eq!(Roots::load(&directories).unwrap(), Roots::intel());
        directories.iter().for_each(|d| std::fs::create_dir(d).unwrap());
        let pem = |text: &str| format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n");
        std::fs::write(directories[1].join("README"), "no root").unwrap();
        std::fs::write(directories[1].join("test.pem"), pem("AQID")).unwrap();
        assert_eq!(Roots::load(&directories).unwrap(), Roots::test(vec![1, 2, 3]));
        std::fs::write(directories[0].join("test.pem"), pem("AQIE")).unwrap();
        assert_eq!(Roots::load(&directories).unwrap(), Roots::test(vec![1, 2, 4]), "hidden by the first");
        std::fs::write(directories[0].join("other.pem"), pem("AQID")).unwrap();
        assert!(matches!(Roots::load(&directories), Err(RootError::TwoRealms(..))));
    }

    #[test]
    fn p30_an_unreadable_root_is_not_an_absent_one() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("nowhere", dir.path().join("test.pem")).unwrap();
        assert!(matches!(Roots::load(&[dir.path()]), Err(RootError::Unreadable { .. })));
        std::fs::remove_file(dir.path().join("test.pem")).unwrap();
        std::fs::write(dir.path().join("test.pem"), "").unwrap();
        assert!(matches!(Roots::load(&[dir.path()]), Err(RootError::NotARoot(_))));
    }

    #[test]
    fn labels_are_read_as_they_are_written() {
        for label in [Label::Intel, Label::Test("039058c6f2c0cb49".into())] {
            assert_eq!(label.to_string().parse(), Ok(label));
        }
    }
}
