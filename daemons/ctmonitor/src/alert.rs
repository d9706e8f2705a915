// SPDX-License-Identifier: Apache-2.0
//! Alerts: each is told once, and stays until somebody has acknowledged it. Pure.

use crate::certificate::{Certificate, CertificateError, KeyId, printable};
use crate::domain::Domain;
use crate::head::Lie;
use crate::limits::{ACKNOWLEDGED_MAX, ALERTS_MAX};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};

/// What an alert is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A certificate for a key that nobody of ours has.
    UnknownKey,
    /// A certificate that seems to be for our names and cannot be read.
    Unreadable,
    /// A log that breaks its promise.
    LogLies,
    /// Nothing could be checked for too long.
    Blind,
}

impl Kind {
    /// The word that people and programs see.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::UnknownKey => "unknown-key",
            Self::Unreadable => "unreadable",
            Self::LogLies => "log-lies",
            Self::Blind => "blind",
        }
    }
}

/// An alert.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alert {
    /// 64 hex digits: for an unknown key the digest of its SubjectPublicKeyInfo.
    pub id: String,
    /// What it is about.
    pub kind: Kind,
    /// What happened, one sentence.
    pub text: String,
    /// Where it was seen first.
    pub place: String,
    /// Names in the certificate.
    pub names: Vec<String>,
    /// Who issued it.
    pub issuer: String,
    /// Its serial number, hex.
    pub serial: String,
    /// Begin of its validity, Unix seconds.
    pub not_before: u64,
    /// End of its validity, Unix seconds.
    pub not_after: u64,
    /// SubjectPublicKeyInfo, hex.
    pub public_key: String,
    /// When it was seen first, Unix seconds.
    pub first_seen: u64,
    /// Whether journal and bus have been told.
    pub told: bool,
    /// When somebody acknowledged it, Unix seconds; 0: nobody has.
    pub acknowledged: u64,
    /// Since when the key is known, or the trouble over; 0: it is not.
    pub settled: u64,
}

fn digest(parts: &[&str]) -> String {
    // Lengths keep two lists of parts from being one text.
    let text = parts.iter().map(|part| format!("{}:{part}", part.len()));
    hex::encode(Sha256::digest(text.collect::<String>()))
}

impl Alert {
    fn new(id: String, kind: Kind, text: String, place: &str, now: u64) -> Self {
        Self {
            id,
            kind,
            text,
            place: place.to_owned(),
            names: Vec::new(),
            issuer: String::new(),
            serial: String::new(),
            not_before: 0,
            not_after: 0,
            public_key: String::new(),
            first_seen: now,
            told: false,
            acknowledged: 0,
            settled: 0,
        }
    }

    /// A certificate for an unknown key.
    #[must_use]
    pub fn unknown_key(certificate: &Certificate, place: &str, now: u64) -> Self {
        let names = certificate.shown_names();
        let what = if certificate.is_precertificate { "precertificate" } else { "certificate" };
        let text = format!(
            "{} issued a {what} for {} to an unknown key",
            certificate.issuer,
            if names.is_empty() { "no name".to_owned() } else { names.join(" ") },
        );
        let id = certificate.key_id().to_string();
        Self {
            names,
            issuer: certificate.issuer.clone(),
            serial: certificate.serial.clone(),
            not_before: certificate.not_before,
            not_after: certificate.not_after,
            public_key: hex::encode(&certificate.public_key),
            ..Self::new(id, Kind::UnknownKey, text, place, now)
        }
    }

    /// Bytes that should be a certificate for our names, and cannot be read.
    #[must_use]
    pub fn unreadable(id: KeyId, reason: &CertificateError, place: &str, now: u64) -> Self {
        let text = format!("a certificate that may be for a watched domain cannot be read: {reason}");
        Self::new(digest(&[Kind::Unreadable.word(), &id.to_string()]), Kind::Unreadable, text, place, now)
    }

    /// A log that lies; `log` is its id in hex. Each kind of lie is told once per log.
    #[must_use]
    pub fn log_lies(log: &str, name: &str, lie: &Lie, evidence: &str, now: u64) -> Self {
        let text = format!("the log {name} cannot be trusted: {lie} ({})", printable_long(evidence));
        Self::new(digest(&[Kind::LogLies.word(), log, lie.word()]), Kind::LogLies, text, name, now)
    }

    /// Nothing, or not all, could be checked since `since`, for `why`.
    #[must_use]
    pub fn blind(place: &str, since: u64, why: &str, now: u64) -> Self {
        let hours = now.saturating_sub(since) / 3600;
        let text = format!("{place} could not be checked to the end for {hours} hours: {}", printable(why));
        Self::new(digest(&[Kind::Blind.word(), place]), Kind::Blind, text, place, now)
    }

    /// Whether somebody should still look at it.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        self.acknowledged == 0 && self.settled == 0
    }
}

/// Evidence has two roots and two signatures, so it is longer than other texts.
fn printable_long(text: &str) -> String {
    text.chars().filter(|c| c.is_ascii_graphic() || *c == ' ').take(4096).collect()
}

/// What is to be done with a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Its key is one of ours.
    Known,
    /// Nobody of ours has its key.
    Unknown,
    /// It has expired, and such are skipped.
    Expired,
    /// It has no name that concerns a watched domain.
    Foreign,
}

/// What decisions are made by.
#[derive(Debug)]
pub struct Rules<'a> {
    /// Keys of ours.
    pub known: &'a BTreeSet<KeyId>,
    /// What is watched.
    pub domains: &'a [Domain],
    /// Whether expired certificates are skipped.
    pub skip_expired: bool,
    /// The time, Unix seconds.
    pub now: u64,
}

/// Decides about a certificate.
#[must_use]
pub fn decide(certificate: &Certificate, rules: &Rules<'_>) -> Decision {
    let concerns = |name: &String| rules.domains.iter().any(|domain| domain.is_concerned_by(name));
    match () {
        () if !certificate.names.iter().any(concerns) => Decision::Foreign,
        () if rules.known.contains(&certificate.key_id()) => Decision::Known,
        () if rules.skip_expired && certificate.not_after < rules.now => Decision::Expired,
        () => Decision::Unknown,
    }
}

/// Why an alert is not kept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BookError {
    /// There are too many that nobody has acknowledged.
    #[error(
        "{ALERTS_MAX} alerts wait already; look at them (dstackctl ct alerts) and acknowledge them: dstackctl ct acknowledge --all"
    )]
    Full,
    /// There is no such alert.
    #[error("there is no alert {0:?}; list them with: dstackctl ct alerts")]
    NoSuchAlert(String),
}

/// All alerts, by their ids.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Book {
    alerts: BTreeMap<String, Alert>,
    /// Ids of alerts that were acknowledged and made room for others.
    #[serde(default)]
    acknowledged: BTreeSet<String>,
}

impl Book {
    /// Keeps an alert; `false` when it is there already. One whose trouble was over begins anew.
    ///
    /// # Errors
    /// [`BookError::Full`].
    pub fn note(&mut self, alert: Alert) -> Result<bool, BookError> {
        let again = alert.kind == Kind::Blind;
        let is_kept = self.alerts.get(&alert.id).is_some_and(|old| !again || old.settled == 0);
        if is_kept || self.acknowledged.contains(&alert.id) {
            return Ok(false);
        }
        if self.alerts.len() >= ALERTS_MAX && !self.forget_one() {
            return Err(BookError::Full);
        }
        self.alerts.insert(alert.id.clone(), alert);
        Ok(true)
    }

    /// Makes room by the oldest one that is over: a settled one, or else an acknowledged one. Of an acknowledged one the id
    /// stays, or it would alert again. Those of blindness are few, and must be there when it ends.
    fn forget_one(&mut self) -> bool {
        let has_room = self.acknowledged.len() < ACKNOWLEDGED_MAX;
        let may_go = |a: &&Alert| match a.kind {
            Kind::Blind => a.settled > 0,
            _ if a.acknowledged > 0 => has_room,
            _ => a.settled > 0,
        };
        let over = self.alerts.values().filter(may_go);
        let oldest = over.min_by_key(|a| (a.settled == 0, a.settled, a.acknowledged)).map(|a| a.id.clone());
        let Some(gone) = oldest.and_then(|id| self.alerts.remove(&id)) else { return false };
        if gone.acknowledged > 0 && gone.kind != Kind::Blind {
            self.acknowledged.insert(gone.id);
        }
        true
    }

    /// All alerts, the newest first.
    #[must_use]
    pub fn list(&self) -> Vec<Alert> {
        let mut list: Vec<Alert> = self.alerts.values().cloned().collect();
        list.sort_by(|a, b| b.first_seen.cmp(&a.first_seen).then_with(|| a.id.cmp(&b.id)));
        list
    }

    /// Those that have not been told.
    #[must_use]
    pub fn untold(&self) -> Vec<Alert> {
        self.alerts.values().filter(|a| !a.told).cloned().collect()
    }

    /// Remembers that these were told.
    pub fn told(&mut self, alerts: &[Alert]) {
        for alert in alerts {
            if let Some(kept) = self.alerts.get_mut(&alert.id) {
                kept.told = true;
            }
        }
    }

    /// How many somebody should look at.
    #[must_use]
    pub fn open(&self) -> usize {
        self.alerts.values().filter(|a| a.is_open()).count()
    }

    /// Remembers that somebody has looked at an alert, named by its id or the first eight or more digits of it.
    ///
    /// # Errors
    /// [`BookError::NoSuchAlert`], also when several begin so.
    pub fn acknowledge(&mut self, id: &str, now: u64) -> Result<(), BookError> {
        let mut found =
            self.alerts.values_mut().filter(|a| a.id == id || (id.len() >= 8 && a.id.starts_with(id)));
        match (found.next(), found.next()) {
            (Some(alert), None) => {
                alert.acknowledged = alert.acknowledged.max(now.max(1));
                Ok(())
            }
            _ => Err(BookError::NoSuchAlert(id.chars().take(64).collect())),
        }
    }

    /// Settles the alerts over keys that are known by now, and gives them.
    pub fn settle_keys(&mut self, known: &BTreeSet<KeyId>, now: u64) -> Vec<Alert> {
        let is_known = |a: &Alert| KeyId::from_hex(&a.id).is_some_and(|id| known.contains(&id));
        self.settle(|a| a.kind == Kind::UnknownKey && is_known(a), now)
    }

    /// Settles the alert that nothing of a place could be checked.
    pub fn settle_blind(&mut self, place: &str, now: u64) -> Vec<Alert> {
        self.settle(|a| a.kind == Kind::Blind && a.place == place, now)
    }

    fn settle(&mut self, which: impl Fn(&Alert) -> bool, now: u64) -> Vec<Alert> {
        let mut settled = Vec::new();
        for alert in self.alerts.values_mut().filter(|a| a.settled == 0 && which(a)) {
            alert.settled = now.max(1);
            settled.push(alert.clone());
        }
        settled
    }
}

#[cfg(test)]
#[path = "alert_tests.rs"]
mod tests;
