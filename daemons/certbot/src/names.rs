// SPDX-License-Identifier: Apache-2.0
//! Names of certificates and of DNS, parsed at the edge.

use std::fmt;
use std::str::FromStr;

/// Longest name, bytes.
const NAME_MAX: usize = 253;
/// Longest label, bytes.
const LABEL_MAX: usize = 63;

/// A text that is no name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no domain name; give two or more labels of letters, digits and hyphens, e.g. \"apps.example.com\""
)]
pub struct NameError(String);

/// A domain name: lower case, without the last dot, two or more labels.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DnsName(String);

impl DnsName {
    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Where the answers to dns-01 challenges are.
    #[must_use]
    pub fn challenge(&self) -> Self {
        Self(format!("_acme-challenge.{}", self.0))
    }

    /// The name one label shorter; `None` at the top.
    #[must_use]
    pub fn parent(&self) -> Option<Self> {
        self.0.split_once('.').map(|(_, rest)| Self(rest.to_owned()))
    }

    /// Whether it is `zone` or below it.
    #[must_use]
    pub fn is_in(&self, zone: &Self) -> bool {
        self == zone || self.0.strip_suffix(&zone.0).is_some_and(|rest| rest.ends_with('.'))
    }
}

impl FromStr for DnsName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        // The longest name that is made of it has to fit, too.
        let fits = name.len() + "_acme-challenge.".len() <= NAME_MAX && name.contains('.');
        match fits && name.split('.').all(is_label) {
            true => Ok(Self(name)),
            false => Err(NameError(text.to_owned())),
        }
    }
}

fn is_label(label: &str) -> bool {
    let known = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    (1..=LABEL_MAX).contains(&label.len())
        && label.bytes().all(known)
        && !label.starts_with('-')
        && !label.ends_with('-')
}

impl fmt::Display for DnsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A name in a certificate: a domain name, or `*.` and one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CertName {
    /// Without `*.`.
    pub base: DnsName,
    /// Whether it stands for all names one label below.
    pub wildcard: bool,
}

impl FromStr for CertName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let (base, wildcard) = text.strip_prefix("*.").map_or((text, false), |rest| (rest, true));
        let base = base.parse().map_err(|_| NameError(text.to_owned()))?;
        Ok(Self { base, wildcard })
    }
}

impl fmt::Display for CertName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", if self.wildcard { "*." } else { "" }, self.base)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names_are_of_one_form() {
        let name: CertName = "*.Apps.Example.COM.".parse().unwrap();
        assert_eq!(name.to_string(), "*.apps.example.com");
        assert_eq!(name.base.challenge().as_str(), "_acme-challenge.apps.example.com");
        for bad in [
            "", ".", "com", "*.com", "a..b", "*.*.a.b", "a.b/c", "-a.b", "a-.b", "a b.c", "..", "*a.b.c",
            "ä.b",
        ] {
            assert!(bad.parse::<CertName>().is_err(), "{bad}");
        }
        assert!(format!("{}.com", "a".repeat(64)).parse::<DnsName>().is_err());
        assert!(["a"; 125].join(".").parse::<DnsName>().is_err());
    }

    #[test]
    fn p26_a_name_is_never_a_path() {
        for bad in ["../../etc", "a.b/../../x", "..", "./a.b", "a.b\0", "/etc.d"] {
            assert!(bad.parse::<DnsName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_zone_contains_whole_labels() {
        let zone: DnsName = "example.com".parse().unwrap();
        for (name, inside) in
            [("example.com", true), ("a.example.com", true), ("anexample.com", false), ("com.example", false)]
        {
            assert_eq!(name.parse::<DnsName>().unwrap().is_in(&zone), inside, "{name}");
        }
    }
}
