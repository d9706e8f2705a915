// SPDX-License-Identifier: Apache-2.0
//! Trust roots with labels, and the realm that a set of them makes (trust rule T4).

use sha2::{Digest, Sha256};
use std::fmt;

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
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RootError {
    /// Not a single PEM certificate.
    #[error("not one PEM certificate; a test root is installed by dstack-testroot")]
    NotACertificate,
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

    /// The realm: the label of the root.
    #[must_use]
    pub const fn realm(&self) -> &Label {
        &self.root.label
    }
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
        assert_eq!(Roots::test_pem(&block("CERTIFICATE")), Ok(Roots::test(vec![1, 2, 3])));
        let two = block("CERTIFICATE") + &block("CERTIFICATE");
        for bad in ["", "x", &block("PRIVATE KEY"), &two] {
            assert_eq!(Roots::test_pem(bad), Err(RootError::NotACertificate), "{bad}");
        }
    }
}
