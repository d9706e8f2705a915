// SPDX-License-Identifier: Apache-2.0
//! Carrying out a plan, step by step.

use super::certificate;
use super::files::{NOTE, Root};
use super::found::Secrets;
use super::plan::Step;
use super::systemd::{Systemd, Verb};
use crate::client::Client;
use crate::errors::Failure;
use crate::kms;
use crate::progress::Progress;
use crate::provider::{custody_words, presence, realm_words};
use crate::trust::{Store, Trusted};
use dstack_service::sealing;
use std::time::{SystemTime, UNIX_EPOCH};

/// Which key encrypts secrets: this installation's, as with the key service's root keys.
const WITH_KEY: &str = "host";

/// Who carries out steps.
#[allow(async_fn_in_trait)]
pub trait Hands {
    /// Carries out one step.
    ///
    /// # Errors
    /// Why it cannot be done; nothing of it is half done then.
    async fn take(&mut self, step: &Step) -> Result<(), Failure>;
}

/// Carries out a plan; what is left after an error is for the next run.
///
/// # Errors
/// The first step that fails, with what it was.
pub async fn carry_out(steps: &[Step], hands: &mut impl Hands) -> Result<(), Failure> {
    for step in steps {
        hands.take(step).await.map_err(|failure| match failure.hint {
            Some(_) => failure,
            None => failure
                .hint("what was done stays; mend this, and run `dstackctl init` again: it goes on from here"),
        })?;
    }
    Ok(())
}

/// Steps that are files, for both the real host and tests.
///
/// # Errors
/// When a file cannot be written.
pub fn write(step: &Step, root: &Root) -> Result<(), Failure> {
    match step {
        Step::Note(units) => root.note(units),
        Step::Done => root.remove(NOTE),
        Step::Write { path, text, .. } => root.write(path, text.as_bytes(), 0o644),
        Step::Remove { path, .. } => root.remove(path),
        _ => Ok(()),
    }
}

/// This host.
#[derive(Debug)]
pub struct Host<'a> {
    /// The bus.
    pub client: &'a Client,
    /// Units.
    pub systemd: &'a Systemd,
    /// Files.
    pub root: &'a Root,
    /// Secrets that are to be stored.
    pub secrets: &'a Secrets,
    /// What the user sees.
    pub progress: &'a mut Progress,
    /// What to do when the certificate is not to be had.
    pub remedy: &'a str,
}

impl Hands for Host<'_> {
    async fn take(&mut self, step: &Step) -> Result<(), Failure> {
        if step.is_shown() {
            self.progress.stage(&step.command(), None);
        }
        match step {
            Step::Note(_) | Step::Done | Step::Write { .. } | Step::Remove { .. } => write(step, self.root),
            Step::Store(name) => self.store(name),
            Step::Reload => self.systemd.reload().await,
            Step::Enable(units) => self.systemd.enable(units).await,
            Step::Stop(units) => self.systemd.stop(units).await,
            Step::Restart(unit) => self.systemd.change(Verb::Restart, unit).await,
            Step::TryRestart(unit) => self.systemd.change(Verb::TryRestart, unit).await,
            Step::ReloadUnit(unit) => self.systemd.change(Verb::Reload, unit).await,
            Step::Start(unit) => self.systemd.change(Verb::Start, unit).await,
            Step::Bootstrap(domain) => self.bootstrap(domain).await,
            Step::Trust => self.trust().await,
            Step::Certificate(name) => {
                certificate::order(self.client, name, self.remedy, self.progress).await
            }
        }
    }
}

impl Host<'_> {
    fn store(&self, name: &'static str) -> Result<(), Failure> {
        let secret =
            self.secrets.get(name).ok_or_else(|| Failure::new(format!("there is no secret for {name}")))?;
        let sealed =
            sealing::encrypt(secret.as_bytes(), name, WITH_KEY).map_err(|e| Failure::new(e.to_string()))?;
        self.root.write(&format!("{}/{name}", sealing::STORE), &sealed, 0o600)
    }

    /// Makes keys unless there are some: the plan may have been made while the key service could not answer.
    async fn bootstrap(&self, domain: &str) -> Result<(), Failure> {
        if matches!(presence(self.client).await?, Some(Some(_))) {
            return Ok(());
        }
        let made = kms::make_keys(self.client, domain).await?;
        self.progress.say(&format!(
            "the key service of {domain} has its root keys, sha256:{}\n  {}\n  {}",
            made.fingerprint,
            realm_words(&made.realm),
            custody_words(&made.custody)
        ));
        Ok(())
    }

    async fn trust(&self) -> Result<(), Failure> {
        let kms = presence(self.client).await?.flatten();
        let kms = kms.ok_or_else(|| Failure::new("this host's key service has no keys to trust"))?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let store = Store::system();
        let others: Vec<Trusted> = store.all()?;
        let other = others.into_iter().find(|t| t.ca_public_key != kms.ca_public_key);
        let has_default = other.is_some() && store.default().is_ok_and(|d| d.is_some());
        store.add(&Trusted { trusted_at: now, ..kms }, true, !has_default)?;
        if let (Some(other), true) = (other, has_default) {
            self.progress.say(&format!(
                "note: the default key service of this host's users may be another one ({}); see: dstackctl kms status",
                other.url
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "hands_tests.rs"]
mod tests;
