// SPDX-License-Identifier: Apache-2.0
//! Which CAA records a name is to have (RFC 8659, RFC 8657), and the order of the steps that lead there. Pure.
//!
//! ```text
//! 0 issue     "letsencrypt.org;validationmethods=dns-01;accounturi=https://…/acct/1"
//! 0 issuewild "letsencrypt.org;validationmethods=dns-01;accounturi=https://…/acct/1"
//! ```
//!
//! A name without any `issue` lets every authority issue. So guards (`issue ";"`, `issuewild ";"`: nobody) come first and
//! go last. A plan is made of what is there, so one that was cut off at any step is finished by the next.

use serde::{Deserialize, Serialize};
use std::fmt;

/// What a guard says: nobody.
const NOBODY: &str = ";";

/// A CAA record.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Caa {
    /// 128: an authority that does not know the tag must not issue.
    pub flags: u8,
    /// Lower case, `issue`, `issuewild`, `iodef`, ….
    pub tag: String,
    /// Its value, without quotes.
    pub value: String,
}

impl Caa {
    /// With flags 0.
    #[must_use]
    pub fn new(tag: &str, value: &str) -> Self {
        Self { flags: 0, tag: tag.to_ascii_lowercase(), value: value.to_owned() }
    }

    fn guard(tag: &str) -> Self {
        Self::new(tag, NOBODY)
    }

    /// Whether nobody may issue by it.
    #[must_use]
    pub fn is_guard(&self) -> bool {
        self.decides() && self.value.trim() == NOBODY
    }

    /// Whether it says who may issue.
    #[must_use]
    pub fn decides(&self) -> bool {
        self.tag == "issue" || self.tag == "issuewild"
    }
}

impl fmt::Display for Caa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {:?}", self.flags, self.tag, self.value)
    }
}

/// What happens to records that somebody else made and that let others issue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Foreign {
    /// They stay, and are told of.
    #[default]
    Report,
    /// They stay, and nothing is said.
    Keep,
    /// They are removed.
    Remove,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Add a record.
    Add(Caa),
    /// Remove a record.
    Remove(Caa),
}

/// What to do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// In this order.
    pub steps: Vec<Step>,
    /// Records of others that stay and let others issue, to be told of.
    pub foreign: Vec<Caa>,
}

impl Plan {
    /// The guards that it raises.
    #[must_use]
    pub fn raised(&self) -> Vec<Caa> {
        let raised = self.steps.iter().filter_map(|step| match step {
            Step::Add(caa) => Some(caa).filter(|caa| caa.is_guard()),
            Step::Remove(_) => None,
        });
        raised.cloned().collect()
    }
}

/// Issuer and account cannot be written as CAA.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{what} {text:?} of the certificate authority cannot be in a CAA record; set auto_set_caa = false in certbot.toml"
)]
pub struct CaaError {
    what: &'static str,
    text: String,
}

/// The two records that let one account issue, by dns-01 alone.
///
/// # Errors
/// [`CaaError`] for texts that would say something else in a record.
pub fn wanted(issuer: &str, account: &str) -> Result<[Caa; 2], CaaError> {
    let is_issuer = |b: u8| b.is_ascii_alphanumeric() || b == b'.' || b == b'-';
    if issuer.is_empty() || !issuer.bytes().all(is_issuer) {
        return Err(CaaError { what: "the issuer name", text: issuer.to_owned() });
    }
    // RFC 8659: values are visible characters without a semicolon.
    let is_value = |b: u8| (0x21..=0x7e).contains(&b) && b != b';' && b != b'"' && b != b'\\';
    if account.is_empty() || !account.bytes().all(is_value) {
        return Err(CaaError { what: "the account URL", text: account.to_owned() });
    }
    let value = format!("{issuer};validationmethods=dns-01;accounturi={account}");
    Ok(["issue", "issuewild"].map(|tag| Caa::new(tag, &value)))
}

/// Plans from what is there. `owned` are the records that we ever made at this name, and the guards that we raised and
/// have not taken back. What is missing comes before what goes: a provider that fails in between costs nobody a record.
#[must_use]
pub fn plan(existing: &[Caa], wanted: &[Caa], owned: &[Caa], foreign: Foreign) -> Plan {
    let ours = |r: &Caa| wanted.contains(r) || owned.contains(r) || r.is_guard();
    let others: Vec<Caa> = existing.iter().filter(|r| r.decides() && !ours(r)).cloned().collect();
    let goes = |r: &&Caa| {
        r.decides()
            && !r.is_guard()
            && !wanted.contains(r)
            && (foreign == Foreign::Remove || owned.contains(r))
    };
    let going: Vec<&Caa> = existing.iter().filter(goes).collect();
    let missing: Vec<&Caa> = wanted.iter().filter(|r| !existing.contains(r)).collect();
    let told = if foreign == Foreign::Report { others } else { Vec::new() };
    // A guard of somebody else closes nothing that we open, and stays.
    let guards = existing.iter().filter(|r| r.is_guard() && owned.contains(r)).cloned();
    if going.is_empty() && missing.is_empty() {
        return Plan { steps: guards.map(Step::Remove).collect(), foreign: told };
    }
    let raised: Vec<Caa> =
        ["issue", "issuewild"].map(Caa::guard).into_iter().filter(|g| !existing.contains(g)).collect();
    let mut steps: Vec<Step> = raised.iter().cloned().map(Step::Add).collect();
    steps.extend(missing.into_iter().cloned().map(Step::Add));
    steps.extend(going.into_iter().cloned().map(Step::Remove));
    steps.extend(guards.chain(raised).map(Step::Remove));
    Plan { steps, foreign: told }
}

#[cfg(test)]
#[path = "caa_tests.rs"]
mod tests;
