// SPDX-License-Identifier: Apache-2.0
//! Whether a record is at every server of its zone. Pure.

use std::fmt;
use std::net::SocketAddr;

/// What one server says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// It has the records, with these values.
    Values(Vec<String>),
    /// It does not answer, or with an error.
    Nothing(String),
}

/// What all of them say together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Every one has it.
    Everywhere,
    /// Some do not: who, and why.
    Missing(Vec<(SocketAddr, Why)>),
}

/// Why a server is waited for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// It has no such record yet.
    Absent,
    /// It has other values only.
    Other(usize),
    /// It does not answer.
    Silent(String),
}

/// Judges. Without any server nothing is anywhere.
#[must_use]
pub fn judge(expected: &[&str], said: &[(SocketAddr, Said)]) -> Verdict {
    let why = |said: &Said| match said {
        Said::Nothing(reason) => Some(Why::Silent(reason.clone())),
        Said::Values(values) if expected.iter().all(|e| values.iter().any(|v| v == e)) => None,
        Said::Values(values) if values.is_empty() => Some(Why::Absent),
        Said::Values(values) => Some(Why::Other(values.len())),
    };
    let missing: Vec<_> = said.iter().filter_map(|(server, said)| Some((*server, why(said)?))).collect();
    match missing.is_empty() && !said.is_empty() {
        true => Verdict::Everywhere,
        false => Verdict::Missing(missing),
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("does not have it"),
            Self::Other(count) => write!(f, "has {count} other values only"),
            Self::Silent(reason) => write!(f, "does not answer: {reason}"),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Everywhere => f.write_str("every server has it"),
            Self::Missing(missing) if missing.is_empty() => f.write_str("there is no server to ask"),
            Self::Missing(missing) => {
                let each: Vec<String> =
                    missing.iter().map(|(server, why)| format!("{server} {why}")).collect();
                f.write_str(&each.join("; "))
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_server_has_to_have_all() {
        let [a, b]: [SocketAddr; 2] = ["192.0.2.1:53", "192.0.2.2:53"].map(|s| s.parse().unwrap());
        let values = |v: &[&str]| Said::Values(v.iter().map(|s| (*s).to_owned()).collect());
        let judge = |said: &[(SocketAddr, Said)]| judge(&["x", "y"], said);
        assert_eq!(judge(&[(a, values(&["z", "y", "x"])), (b, values(&["x", "y"]))]), Verdict::Everywhere);
        let verdict = judge(&[(a, values(&["x", "y"])), (b, values(&["x"]))]);
        assert_eq!(verdict, Verdict::Missing(vec![(b, Why::Other(1))]));
        let verdict = judge(&[(a, values(&[])), (b, Said::Nothing("timed out".into()))]);
        assert_eq!(
            verdict.to_string(),
            "192.0.2.1:53 does not have it; 192.0.2.2:53 does not answer: timed out"
        );
        assert_eq!(judge(&[]).to_string(), "there is no server to ask");
        assert_ne!(judge(&[]), Verdict::Everywhere);
    }
}
