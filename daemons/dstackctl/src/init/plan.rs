// SPDX-License-Identifier: Apache-2.0
//! What is to be done: from the files as they are to be and the host as it is found, to steps. Pure.
//!
//! Whatever is restarted is first noted in a file of `/run`, and the note goes when all of it is restarted: who is
//! interrupted in between runs `init` again, which finds the files right and the note still there. A reboot forgets the
//! note, and starts everything anyway.

use super::settings::Wanted;
use super::units::{ALL, CERTBOT, Component, KMS, State, TPROXY, of};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// What a step does. Each may be the last one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Notes which units are to be restarted.
    Note(BTreeSet<String>),
    /// Encrypts a secret and puts it into the credential store.
    Store(&'static str),
    /// Writes a file as a whole; `old` is what was there.
    Write {
        /// Where.
        path: &'static str,
        /// What.
        text: String,
        /// What was there.
        old: Option<String>,
    },
    /// Removes a file.
    Remove {
        /// Where.
        path: &'static str,
        /// What was there.
        old: String,
    },
    /// Has systemd read its units again.
    Reload,
    /// Has units started at boot.
    Enable(Vec<&'static str>),
    /// Stops units, so that their sockets can be closed; patterns stand for all that run.
    Stop(Vec<&'static str>),
    /// Restarts a unit, or starts it.
    Restart(&'static str),
    /// Restarts a unit if it runs.
    TryRestart(&'static str),
    /// Has a unit read its files again.
    ReloadUnit(&'static str),
    /// Starts a unit.
    Start(&'static str),
    /// Makes the root keys of the key service, for this domain.
    Bootstrap(String),
    /// Trusts this host's key service, for all users of this host.
    Trust,
    /// Forgets what was to be restarted.
    Done,
    /// Has the certificate for this name ordered.
    Certificate(String),
}

/// What is known of this host's key service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Keys {
    /// It is not installed.
    #[default]
    Absent,
    /// It has no keys yet.
    None,
    /// It does not answer.
    Unknown,
    /// It has keys, and serves nobody: they are of another realm, or cannot be opened.
    Unusable,
    /// It has keys, and nobody was told to trust it.
    Untrusted,
    /// It is trusted.
    Trusted,
}

/// What is known of a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Secret {
    /// It is stored as it is to be.
    Stored,
    /// It is to be stored.
    New,
}

/// The host as it is found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// Texts of the files that are there.
    pub files: BTreeMap<&'static str, String>,
    /// Units.
    pub units: BTreeMap<&'static str, State>,
    /// Units that an interrupted run was to restart.
    pub noted: BTreeSet<String>,
    /// Secrets that are needed.
    pub secrets: BTreeMap<&'static str, Secret>,
    /// The key service.
    pub keys: Keys,
    /// Whether certbot has a certificate for the name that is to be served.
    pub certified: bool,
    /// Whether the ingress runs, and could not load the operator's certificate.
    pub unshown: bool,
}

impl Found {
    fn state(&self, unit: &str) -> State {
        self.units.get(unit).cloned().unwrap_or_default()
    }

    /// Whether a daemon is installed.
    #[must_use]
    pub fn has(&self, component: &Component) -> bool {
        self.state(component.service).loaded
    }
}

/// What is wanted beside files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Goal {
    /// Files.
    pub files: Vec<Wanted>,
    /// Domain of the key service.
    pub kms_domain: String,
    /// Name of the certificate that certbot is to have, `*.DOMAIN`.
    pub certificate: Option<String>,
    /// What to do when it is not to be had.
    pub remedy: String,
    /// Whether the ingress shows a certificate of the operator's own files.
    pub own_files: bool,
}

/// The steps that are left; none when everything is as it is to be.
#[must_use]
pub fn plan(goal: &Goal, found: &Found) -> Vec<Step> {
    let changes = changes(goal, found);
    let secrets = secrets(found);
    let stale = stale(goal, found, &changes, !secrets.is_empty());
    let mut steps = Vec::new();
    if !stale.is_empty() && stale != found.noted {
        steps.push(Step::Note(stale.clone()));
    }
    steps.extend(secrets);
    steps.extend(changes.into_iter().map(|(_, step)| step));
    steps.extend(unit_steps(goal, found, &stale));
    steps.extend(certificate(goal, found, &stale));
    if !stale.is_empty() || !found.noted.is_empty() {
        steps.push(Step::Done);
    }
    steps
}

/// With other settings certbot looks again whether the certificate is right. From here on that alone is left to be done.
fn certificate(goal: &Goal, found: &Found, stale: &BTreeSet<String>) -> Vec<Step> {
    let Some(name) = goal.certificate.clone() else { return Vec::new() };
    let only = BTreeSet::from([CERTBOT.service.to_owned()]);
    match (stale.contains(CERTBOT.service), found.certified) {
        (true, _) if *stale != only => vec![Step::Note(only), Step::Certificate(name)],
        (false, true) => Vec::new(),
        _ => vec![Step::Certificate(name)],
    }
}

/// Files that are not as they are to be.
fn changes<'g>(goal: &'g Goal, found: &Found) -> Vec<(&'g Wanted, Step)> {
    let change = |wanted: &'g Wanted| {
        if wanted.of.is_some_and(|of| !found.has(of)) {
            return None;
        }
        let (path, old) = (wanted.path, found.files.get(wanted.path).cloned());
        match (&wanted.text, old) {
            (None, Some(old)) => Some((wanted, Step::Remove { path, old })),
            (Some(text), old) if old.as_ref() != Some(text) => {
                Some((wanted, Step::Write { path, text: text.clone(), old }))
            }
            _ => None,
        }
    };
    goal.files.iter().filter_map(change).collect()
}

fn secrets(found: &Found) -> Vec<Step> {
    let new = found.secrets.iter().filter(|(_, state)| **state == Secret::New);
    new.map(|(name, _)| Step::Store(name)).collect()
}

/// Units that run with what was there before, and those that an interrupted run left so.
fn stale(goal: &Goal, found: &Found, changes: &[(&Wanted, Step)], secret: bool) -> BTreeSet<String> {
    let of = changes.iter().flat_map(|(wanted, _)| {
        let service = wanted.of.map(|c| c.service);
        service.into_iter().chain(wanted.socket)
    });
    let certbot = (secret && goal.certificate.is_some()).then_some(CERTBOT.service);
    let left = found.noted.iter().filter(|unit| found.state(unit).loaded).cloned();
    of.chain(certbot).map(str::to_owned).chain(left).collect()
}

/// Sockets first, then services, the key service first and with its keys.
fn unit_steps(goal: &Goal, found: &Found, stale: &BTreeSet<String>) -> Vec<Step> {
    // Certificates may be somebody else's business.
    let wanted = |c: &Component| goal.files.iter().any(|file| file.of == Some(c) && file.text.is_some());
    let served = |c: &Component| found.has(c) && wanted(c);
    let served: Vec<&'static Component> = ALL.into_iter().filter(|c| served(c)).collect();
    let mut steps = triggers(&served, found, stale);
    for component in ALL.into_iter().filter(|c| found.has(c)) {
        let restart = stale.contains(component.service) || is_moved(component, stale);
        steps.extend(service(component.service, found, restart, served.contains(&component)));
        // The files may be right by now; it looks at them only when it is told to.
        if component == &TPROXY && found.unshown && !restart && found.state(TPROXY.service).active {
            steps.push(Step::ReloadUnit(TPROXY.service));
        }
        if component == &KMS {
            steps.extend(keys(goal, found, restart));
        }
    }
    steps
}

/// Whether a socket of a daemon is to listen elsewhere.
fn is_moved(component: &Component, stale: &BTreeSet<String>) -> bool {
    component.triggers.iter().any(|unit| stale.contains(*unit))
}

/// A socket whose service runs cannot be started, so what holds it is stopped, with all that could start it again.
fn triggers(components: &[&'static Component], found: &Found, stale: &BTreeSet<String>) -> Vec<Step> {
    let all = |c: &'static Component| c.triggers.iter().copied().chain([c.service]).chain(c.holders);
    let moved = components.iter().copied().filter(|c| is_moved(c, stale));
    let stop: Vec<&str> = moved.flat_map(all).collect();
    let enabled = |unit: &&str| found.state(unit).enabled;
    let disabled: Vec<&str> = components
        .iter()
        .flat_map(|c| c.triggers.iter().copied().chain([c.service]))
        .filter(|u| !enabled(u))
        .collect();
    let mut steps = Vec::new();
    if !stop.is_empty() {
        steps.push(Step::Reload);
    }
    if !disabled.is_empty() {
        steps.push(Step::Enable(disabled));
    }
    if !stop.is_empty() {
        steps.push(Step::Stop(stop));
    }
    for component in components {
        let down = |unit: &&str| is_moved(component, stale) || !found.state(unit).active;
        steps.extend(component.triggers.iter().copied().filter(down).map(Step::Start));
    }
    steps
}

/// One that serves nothing is not started, but shall not go on with what was before.
fn service(unit: &'static str, found: &Found, stale: bool, served: bool) -> Option<Step> {
    match (stale, served) {
        (true, true) => Some(Step::Restart(unit)),
        (true, false) => Some(Step::TryRestart(unit)),
        (false, true) if !found.state(unit).active => Some(Step::Start(unit)),
        (false, _) => None,
    }
}

/// What is trusted has the address in it, which may be another after a restart.
fn keys(goal: &Goal, found: &Found, restarted: bool) -> Vec<Step> {
    match found.keys {
        Keys::None | Keys::Unknown => vec![Step::Bootstrap(goal.kms_domain.clone()), Step::Trust],
        // It looks at its trust roots when it starts; then it works, or says what is wrong.
        Keys::Unusable if !restarted => vec![Step::Restart(KMS.service), Step::Trust],
        Keys::Untrusted | Keys::Unusable => vec![Step::Trust],
        Keys::Trusted if restarted => vec![Step::Trust],
        Keys::Absent | Keys::Trusted => Vec::new(),
    }
}

impl Step {
    /// The command that would do the same, as far as there is one.
    #[must_use]
    pub fn command(&self) -> String {
        match self {
            Self::Note(_) | Self::Done => String::new(),
            Self::Store(name) => {
                format!("systemd-creds encrypt --name={name} - /etc/credstore.encrypted/{name}")
            }
            Self::Write { path, .. } => format!("write {path}"),
            Self::Remove { path, .. } => format!("rm {path}"),
            Self::Reload => "systemctl daemon-reload".to_owned(),
            Self::Enable(units) => format!("systemctl enable {}", units.join(" ")),
            Self::Stop(units) => {
                let quoted =
                    units.iter().map(|u| if u.contains('*') { format!("'{u}'") } else { (*u).to_owned() });
                format!("systemctl stop {}", quoted.collect::<Vec<_>>().join(" "))
            }
            Self::Restart(unit) => format!("systemctl restart {unit}"),
            Self::TryRestart(unit) => format!("systemctl try-restart {unit}"),
            Self::ReloadUnit(unit) => format!("systemctl reload {unit}"),
            Self::Start(unit) => format!("systemctl start {unit}"),
            Self::Bootstrap(domain) => format!("dstackctl kms bootstrap {domain}"),
            Self::Trust => "dstackctl kms trust (this host's, for all users of this host)".to_owned(),
            Self::Certificate(name) => format!("dstackctl cert renew {}", name.trim_start_matches("*.")),
        }
    }

    /// Whether it is of interest to people, and not bookkeeping.
    #[must_use]
    pub const fn is_shown(&self) -> bool {
        !matches!(self, Self::Note(_) | Self::Done)
    }
}

/// Whether a unit of a note is one of ours; a note is a file, and may hold anything.
#[must_use]
pub fn is_ours(unit: &str) -> bool {
    of(unit).is_some()
}

#[cfg(test)]
#[path = "plan_tests.rs"]
pub(super) mod tests;
