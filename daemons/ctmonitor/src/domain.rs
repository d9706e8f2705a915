// SPDX-License-Identifier: Apache-2.0
//! A watched domain, and which names of certificates concern it.

use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// Longest name.
const NAME_MAX: usize = 253;
/// Longest label.
const LABEL_MAX: usize = 63;

/// A domain in lower case, without a wildcard and without a dot at its end.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Domain(String);

/// Why a text is no domain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no domain: use labels of letters, digits and hyphens, e.g. \"apps.example.com\"")]
pub struct DomainError(String);

impl FromStr for Domain {
    type Err = DomainError;

    fn from_str(text: &str) -> Result<Self, DomainError> {
        let wrong = || DomainError(text.chars().take(NAME_MAX).collect());
        let name = text.strip_suffix('.').unwrap_or(text);
        let name = name.strip_prefix("*.").unwrap_or(name).to_ascii_lowercase();
        let (rest, last) = name.rsplit_once('.').ok_or_else(wrong)?;
        let valid = name.len() <= NAME_MAX && rest.split('.').all(is_label) && is_top_level(last);
        valid.then_some(Self(name)).ok_or_else(wrong)
    }
}

fn is_label(label: &str) -> bool {
    let known = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
    (1..=LABEL_MAX).contains(&label.len())
        && label.bytes().all(known)
        && !label.starts_with('-')
        && !label.ends_with('-')
}

fn is_top_level(label: &str) -> bool {
    let letters = label.len() >= 2 && label.bytes().all(|b| b.is_ascii_alphabetic());
    is_label(label) && (letters || label.starts_with("xn--"))
}

impl TryFrom<String> for Domain {
    type Error = DomainError;

    fn try_from(text: String) -> Result<Self, DomainError> {
        text.parse()
    }
}

impl From<Domain> for String {
    fn from(domain: Domain) -> Self {
        domain.0
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Domain {
    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether a certificate with this name could pass for the domain or for a name below it. A wildcard one level up
    /// covers the domain itself.
    #[must_use]
    pub fn is_concerned_by(&self, name: &str) -> bool {
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        match name.strip_prefix("*.") {
            Some(base) => self.has(base) || self.parent() == Some(base),
            None => self.has(&name),
        }
    }

    fn has(&self, name: &str) -> bool {
        name.strip_suffix(self.0.as_str()).is_some_and(|front| front.is_empty() || front.ends_with('.'))
    }

    /// The name one level up, unless nobody can have a wildcard there.
    fn parent(&self) -> Option<&str> {
        self.0.split_once('.').map(|(_, parent)| parent).filter(|parent| parent.contains('.'))
    }

    /// The wildcard that covers the domain itself from one level up.
    #[must_use]
    pub fn wildcard_above(&self) -> Option<String> {
        self.parent().map(|parent| format!("*.{parent}"))
    }

    /// Whether bytes contain a name that could concern the domain: cheap, and never `false` for one that does.
    #[must_use]
    pub fn is_mentioned_in(&self, bytes: &[u8]) -> bool {
        let needle = self.parent().unwrap_or(&self.0).as_bytes();
        bytes.windows(needle.len()).any(|window| window.eq_ignore_ascii_case(needle))
    }
}

/// Wildcards one level above the domains that a search for the domains themselves does not find, each once.
#[must_use]
pub fn wildcards_above(domains: &[Domain]) -> BTreeSet<String> {
    let is_found = |name: &String| domains.iter().any(|domain| domain.has(name));
    domains.iter().filter_map(Domain::wildcard_above).filter(|name| !is_found(name)).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn domain(text: &str) -> Domain {
        text.parse().unwrap()
    }

    #[test]
    fn only_names_are_domains() {
        assert_eq!(domain("*.Apps.Example.COM.").as_str(), "apps.example.com");
        assert_eq!(domain("a.xn--p1ai").as_str(), "a.xn--p1ai");
        let long = format!("{}.com", "a".repeat(64));
        for bad in ["", "com", ".", "a..com", "a.c", "a.1", "-a.com", "a-.com", "a b.com", "a.com/x", &long] {
            assert!(bad.parse::<Domain>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn which_names_concern_it() {
        let apps = domain("apps.example.com");
        for name in [
            "apps.example.com",
            "*.APPS.example.com",
            "x.y.apps.example.com",
            "*.example.com",
            "apps.example.com.",
        ] {
            assert!(apps.is_concerned_by(name), "{name}");
            assert!(apps.is_mentioned_in(format!("\x01{name}\x02").as_bytes()), "{name}");
        }
        for name in [
            "example.com",
            "www.example.com",
            "notapps.example.com",
            "apps.example.com.evil.org",
            "*.com",
            "",
        ] {
            assert!(!apps.is_concerned_by(name), "{name}");
        }
        assert!(!domain("example.com").is_concerned_by("*.com"));
    }

    #[test]
    fn wildcards_above_are_those_that_no_search_finds() {
        let above = |texts: &[&str]| {
            wildcards_above(&texts.iter().map(|text| domain(text)).collect::<Vec<_>>())
                .into_iter()
                .collect::<Vec<_>>()
        };
        assert_eq!(
            above(&["apps.example.com", "b.example.com", "x.example.org"]),
            ["*.example.com", "*.example.org"]
        );
        assert!(above(&["example.com"]).is_empty(), "nobody has a wildcard of a top-level domain");
        assert!(above(&["example.com", "apps.example.com", "a.apps.example.com"]).is_empty());
    }

    proptest! {
        #[test]
        fn what_concerns_it_is_mentioned(front in "([a-z*]{1,5}\\.){0,3}", name in "(apps\\.)?[Ee]xample\\.com") {
            let full = format!("{front}{name}");
            let apps = domain("apps.example.com");
            prop_assert!(!apps.is_concerned_by(&full) || apps.is_mentioned_in(full.as_bytes()));
        }
    }
}
