// SPDX-License-Identifier: Apache-2.0
//! A rehearsal proves that the next renewal will work, long before it is due: the account, the CAA records, writing DNS,
//! and an order at an authority for tries. It works at a name of its own, `dstack-rehearsal.<domain>`, whose CAA records
//! name the account for tries, and touches neither the live certificate nor its records.

use super::order::Work;
use super::{Engine, EngineError, Observer, Turn};
use crate::account;
use crate::acme::{Acme, Challenge};
use crate::files::FileError;
use crate::http;
use crate::names::{CertName, DnsName};
use crate::settings::{AuthorityAt, Certificate};
use crate::workdir::Workdir;
use dstack_service::state;
use serde::{Deserialize, Serialize};

const FILE: &str = "rehearsal.json";
const VERSION: u32 = 1;

/// What came of the last rehearsal.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rehearsed {
    /// When, Unix seconds; 0: never.
    pub when: i64,
    /// What was found, by certificate; empty when all is well.
    pub problems: Vec<String>,
}

impl Engine {
    /// The last rehearsal.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn rehearsed(&self) -> Result<Rehearsed, EngineError> {
        let path = self.parts().workdir.join(FILE);
        Ok(state::load(&path, VERSION).map_err(FileError::from)?.unwrap_or_default())
    }

    /// Rehearses for all certificates, and remembers what came of it.
    ///
    /// # Errors
    /// [`EngineError::Rehearsal`] with everything that was found.
    pub async fn rehearse(&self, turn: &Turn<'_>, observer: &dyn Observer) -> Result<(), EngineError> {
        self.may_ask_both()?;
        let mut problems = Vec::new();
        for wanted in &self.settings().certificates {
            if let Err(error) = self.rehearse_one(turn, wanted, observer).await {
                problems.push(format!("{}: {error}", wanted.domain));
            }
            self.note_both()?;
        }
        let rehearsed = Rehearsed { when: http::now(), problems };
        state::store(&self.parts().workdir.join(FILE), VERSION, &rehearsed).map_err(FileError::from)?;
        match rehearsed.problems.is_empty() {
            true => Ok(()),
            false => Err(EngineError::Rehearsal(rehearsed.problems.join("; "))),
        }
    }

    fn may_ask_both(&self) -> Result<(), EngineError> {
        let parts = self.parts();
        self.may_ask(&*parts.acme, &parts.settings.authority.url)?;
        match (&parts.rehearsal, &parts.settings.rehearsal) {
            (Some(acme), Some(at)) => self.may_ask(&**acme, &at.url),
            _ => Ok(()),
        }
    }

    fn note_both(&self) -> Result<(), EngineError> {
        let parts = self.parts();
        self.note_quiet(&*parts.acme, &parts.settings.authority.url)?;
        match (&parts.rehearsal, &parts.settings.rehearsal) {
            (Some(acme), Some(at)) => self.note_quiet(&**acme, &at.url),
            _ => Ok(()),
        }
    }

    async fn rehearse_one(
        &self,
        turn: &Turn<'_>,
        wanted: &Certificate,
        observer: &dyn Observer,
    ) -> Result<(), EngineError> {
        self.may_ask_both()?;
        self.check_account().await?;
        observer.step("rehearsal: account");
        self.check_caa(turn, wanted, observer).await?;
        observer.step("rehearsal: caa");
        let workdir = Workdir::open(&self.parts().workdir.join("rehearsal").join(wanted.domain.as_str()))?;
        self.clean(&workdir, observer).await?;
        for base in wanted.bases() {
            let stage: DnsName = format!("dstack-rehearsal.{base}")
                .parse()
                .map_err(|e| EngineError::Rehearsal(format!("{e}")))?;
            self.remove_caa(&workdir, &stage).await?;
            let result = self.play(&workdir, &stage, observer).await;
            let removed = self.remove_caa(&workdir, &stage).await;
            result.and(removed)?;
        }
        Ok(())
    }

    /// The account is known to the authority, and is the one of our key.
    async fn check_account(&self) -> Result<(), EngineError> {
        let parts = self.parts();
        let found = account::load(&parts.workdir, &parts.settings.authority.url)?;
        let found = found.ok_or_else(|| {
            EngineError::Rehearsal("there is no account yet; run: dstackctl cert renew".into())
        })?;
        let id = parts.acme.find(&found.key).await?;
        if id != found.id {
            let text = format!(
                "the authority knows the account's key as {id}, and credentials.json says {}",
                found.id
            );
            return Err(EngineError::Rehearsal(text));
        }
        Ok(())
    }

    async fn check_caa(
        &self,
        turn: &Turn<'_>,
        wanted: &Certificate,
        observer: &dyn Observer,
    ) -> Result<(), EngineError> {
        if !self.settings().auto_set_caa {
            return Ok(());
        }
        let account = self.account(turn, observer).await?;
        let records = self.caa_wanted(&*self.parts().acme, &account).await?;
        let workdir = self.workdir(&wanted.domain)?;
        for base in wanted.bases() {
            let lacks = self.caa_lacks(&workdir, &base, &records).await?;
            if !lacks.is_empty() {
                let text = format!("{base} {}; run: dstackctl cert caa {}", lacks.join(", "), wanted.domain);
                return Err(EngineError::Rehearsal(text));
            }
        }
        Ok(())
    }

    async fn play(
        &self,
        workdir: &Workdir,
        stage: &DnsName,
        observer: &dyn Observer,
    ) -> Result<(), EngineError> {
        let parts = self.parts();
        match (&parts.rehearsal, &parts.settings.rehearsal) {
            (Some(acme), Some(at)) => self.play_order(workdir, stage, (&**acme, at), observer).await,
            _ => self.play_write(workdir, stage, observer).await,
        }
    }

    /// An order for names of the rehearsal's own; the certificate is thrown away.
    async fn play_order(
        &self,
        workdir: &Workdir,
        stage: &DnsName,
        (acme, at): (&dyn Acme, &AuthorityAt),
        observer: &dyn Observer,
    ) -> Result<(), EngineError> {
        let dir = self.parts().workdir.join("rehearsal");
        // The external account is one at the authority itself; another one does not know it, and is not told of it.
        let is_same = at.url == self.settings().authority.url;
        let external = self.parts().external.as_ref().filter(|_| is_same);
        let account = self.account_in(&dir, acme, &at.url, external, observer).await?;
        if self.settings().auto_set_caa {
            let records = self.caa_wanted(acme, &account).await?;
            self.reconcile_name(workdir, stage, &records, observer).await?;
        }
        let names = [false, true].map(|wildcard| CertName { base: stage.clone(), wildcard });
        let wanted = Certificate { domain: stage.clone(), names: names.into() };
        let work = Work { wanted: &wanted, workdir, account: &account, observer };
        let mut session = acme.log_in(&account).await?;
        self.obtain(&mut *session, &work, None, None).await?;
        crate::files::remove(&workdir.file("order.json"))?;
        observer.step("rehearsal: order");
        Ok(())
    }

    /// Without an authority for tries: a record that says nothing.
    async fn play_write(
        &self,
        workdir: &Workdir,
        stage: &DnsName,
        observer: &dyn Observer,
    ) -> Result<(), EngineError> {
        let challenge = Challenge { name: stage.clone(), value: format!("dstack-rehearsal-{}", http::now()) };
        let shown = self.present(workdir, &[challenge], observer).await;
        self.clean(workdir, observer).await.and(shown)
    }
}
