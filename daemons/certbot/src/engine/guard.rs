// SPDX-License-Identifier: Apache-2.0
//! CAA records: planned from what is there, carried out in order, and known as ours again later.

use super::{Engine, EngineError, Observer, Turn};
use crate::account::Credentials;
use crate::acme::Acme;
use crate::caa::{self, Caa, Plan, Step};
use crate::dns::{Data, DnsError, Kind};
use crate::files::FileError;
use crate::names::DnsName;
use crate::settings::Certificate;
use crate::workdir::Workdir;
use dstack_service::state;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

const FILE: &str = "caa.json";
const VERSION: u32 = 1;

/// What is known of the records at one name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    /// Records that we ever made, and guards that we raised and have not taken back.
    owned: BTreeSet<Caa>,
    /// Whether steps are under way.
    busy: bool,
}

type Book = BTreeMap<String, Known>;

fn load(workdir: &Workdir) -> Result<Book, FileError> {
    Ok(state::load(&workdir.file(FILE), VERSION)?.unwrap_or_default())
}

fn store(workdir: &Workdir, book: &Book) -> Result<(), FileError> {
    Ok(state::store(&workdir.file(FILE), VERSION, book)?)
}

fn records(data: Vec<Data>) -> Vec<Caa> {
    data.into_iter()
        .filter_map(|data| match data {
            Data::Caa(caa) => Some(caa),
            Data::Txt(_) => None,
        })
        .collect()
}

impl Engine {
    /// Brings the CAA records of a certificate to what they are to be, now.
    ///
    /// # Errors
    /// [`EngineError`].
    pub async fn set_caa(
        &self,
        turn: &Turn<'_>,
        wanted: &Certificate,
        observer: &dyn Observer,
    ) -> Result<(), EngineError> {
        let workdir = self.workdir(&wanted.domain)?;
        let account = self.account(turn, observer).await?;
        self.reconcile(&workdir, wanted, &account, observer).await
    }

    pub(super) async fn reconcile(
        &self,
        workdir: &Workdir,
        wanted: &Certificate,
        account: &Credentials,
        observer: &dyn Observer,
    ) -> Result<(), EngineError> {
        let records = self.caa_wanted(&*self.parts().acme, account).await?;
        for name in wanted.bases() {
            self.reconcile_name(workdir, &name, &records, observer).await?;
        }
        Ok(())
    }

    /// The records that a name is to have.
    pub(super) async fn caa_wanted(
        &self,
        acme: &dyn Acme,
        account: &Credentials,
    ) -> Result<Vec<Caa>, EngineError> {
        let issuer = match &self.settings().issuer {
            Some(issuer) => issuer.clone(),
            None => issuer_of(acme.directory().await?.caa_identities, &account.directory)?,
        };
        Ok(caa::wanted(&issuer, &account.id)?.to_vec())
    }

    /// Looks at the zone's servers first, which is free; the provider is asked only when something has to be done.
    pub(super) async fn reconcile_name(
        &self,
        workdir: &Workdir,
        name: &DnsName,
        wanted: &[Caa],
        observer: &dyn Observer,
    ) -> Result<(), EngineError> {
        let known = load(workdir)?.remove(name.as_str()).unwrap_or_default();
        if !known.busy {
            let seen = records(self.parts().servers.look(name, Kind::Caa).await?);
            let plan = self.plan(&seen, wanted, &known);
            if plan.steps.is_empty() {
                tell(name, &plan);
                return Ok(());
            }
        }
        let plan = self.plan(&records(self.parts().provider.list(name, Kind::Caa).await?), wanted, &known);
        tell(name, &plan);
        if plan.steps.is_empty() && !known.busy {
            return Ok(());
        }
        self.change(workdir, name, (wanted, &plan), known, observer).await
    }

    /// What is ours is on the disk before it is in the zone.
    async fn change(
        &self,
        workdir: &Workdir,
        name: &DnsName,
        (wanted, plan): (&[Caa], &Plan),
        mut known: Known,
        observer: &dyn Observer,
    ) -> Result<(), EngineError> {
        let mut book = load(workdir)?;
        let raised = plan.raised();
        known.owned.extend(wanted.iter().chain(&raised).cloned());
        known.busy = true;
        book.insert(name.to_string(), known.clone());
        store(workdir, &book)?;
        observer.step("caa: written down");
        let failed = self.carry_out_all(name, plan, observer).await.err();
        if failed.is_none() || self.take_back(name, &raised).await {
            let stays = |caa: &Caa| !caa.is_guard() || failed.is_some() && !raised.contains(caa);
            known.owned.retain(stays);
            known.busy = false;
            book.insert(name.to_string(), known);
            store(workdir, &book)?;
        }
        observer.step("caa: done");
        failed.map_or(Ok(()), |error| Err(error.into()))
    }

    async fn carry_out_all(
        &self,
        name: &DnsName,
        plan: &Plan,
        observer: &dyn Observer,
    ) -> Result<(), DnsError> {
        for step in &plan.steps {
            self.carry_out(name, step).await?;
            observer.step("caa: record changed");
        }
        Ok(())
    }

    /// Takes the guards of a run that failed back, as far as it goes; what is left is written down for the next run.
    /// Gives whether none is left.
    async fn take_back(&self, name: &DnsName, raised: &[Caa]) -> bool {
        let mut all = true;
        for guard in raised {
            if let Err(error) = self.carry_out(name, &Step::Remove(guard.clone())).await {
                tracing::warn!("CAA {guard} of {name} is left for the next run: {error}");
                all = false;
            }
        }
        all
    }

    /// Removes guards that an earlier run left, although the records are nobody's business any more. A name that is not
    /// wanted any more (its zone may be gone) keeps nothing from being done.
    pub(super) async fn remove_guards(
        &self,
        workdir: &Workdir,
        wanted: &Certificate,
    ) -> Result<(), EngineError> {
        let mut book = load(workdir)?;
        let guarded = |(_, known): &(&String, &Known)| known.owned.iter().any(Caa::is_guard);
        let names: Vec<String> = book.iter().filter(guarded).map(|(name, _)| name.clone()).collect();
        for text in names {
            let name: DnsName = text.parse().map_err(|e| FileError::new(&workdir.file(FILE), e))?;
            let Some(known) = book.get_mut(&text) else { continue };
            match self.remove_records(&name, |caa| caa.is_guard() && known.owned.contains(caa)).await {
                Ok(()) => {
                    known.owned.retain(|caa| !caa.is_guard());
                    known.busy = false;
                    store(workdir, &book)?;
                }
                Err(error) if wanted.bases().contains(&name) => return Err(error.into()),
                Err(error) => tracing::warn!("guards of {name} are left for the next run: {error}"),
            }
        }
        Ok(())
    }

    async fn remove_records(&self, name: &DnsName, ours: impl Fn(&Caa) -> bool) -> Result<(), DnsError> {
        let there = records(self.parts().provider.list(name, Kind::Caa).await?);
        for caa in there.into_iter().filter(|caa| ours(caa)) {
            self.carry_out(name, &Step::Remove(caa)).await?;
        }
        Ok(())
    }

    fn plan(&self, existing: &[Caa], wanted: &[Caa], known: &Known) -> Plan {
        let owned: Vec<Caa> = known.owned.iter().cloned().collect();
        caa::plan(existing, wanted, &owned, self.settings().foreign_caa)
    }

    async fn carry_out(&self, name: &DnsName, step: &Step) -> Result<(), DnsError> {
        let provider = &self.parts().provider;
        match step {
            Step::Add(caa) => {
                tracing::info!("adding CAA {caa} of {name}");
                provider.add(name, &Data::Caa(caa.clone())).await
            }
            Step::Remove(caa) => {
                tracing::info!("removing CAA {caa} of {name}");
                provider.remove(name, &Data::Caa(caa.clone())).await
            }
        }
    }

    /// Removes all records that we made at a name.
    pub(super) async fn remove_caa(&self, workdir: &Workdir, name: &DnsName) -> Result<(), EngineError> {
        let mut book = load(workdir)?;
        let Some(known) = book.remove(name.as_str()) else { return Ok(()) };
        self.remove_records(name, |caa| known.owned.contains(caa)).await?;
        Ok(store(workdir, &book)?)
    }

    /// What the records at a name lack, by its servers; empty when they are as they are to be.
    pub(super) async fn caa_lacks(
        &self,
        workdir: &Workdir,
        name: &DnsName,
        wanted: &[Caa],
    ) -> Result<Vec<String>, EngineError> {
        let known = load(workdir)?.remove(name.as_str()).unwrap_or_default();
        let seen = records(self.parts().servers.look(name, Kind::Caa).await?);
        let plan = self.plan(&seen, wanted, &known);
        // Guards are there only while something is changed.
        let raised = plan.raised();
        let steps = plan.steps.iter().filter_map(|step| match step {
            Step::Add(caa) | Step::Remove(caa) if raised.contains(caa) => None,
            Step::Add(caa) => Some(format!("lacks CAA {caa}")),
            Step::Remove(caa) => Some(format!("has CAA {caa}")),
        });
        Ok(steps.collect())
    }
}

/// The authority's own word, or else the host of its directory: a private authority often says nothing. One that goes by
/// another name refuses to issue, in words, and the rehearsal finds that.
fn issuer_of(identities: Vec<String>, directory: &str) -> Result<String, EngineError> {
    if let Some(first) = identities.into_iter().next() {
        return Ok(first);
    }
    let host = directory.parse::<::http::Uri>().ok().and_then(|uri| uri.host().map(str::to_ascii_lowercase));
    let is_name =
        |host: &String| host.parse::<std::net::IpAddr>().is_err() && host.parse::<DnsName>().is_ok();
    let host = host.filter(is_name).ok_or_else(|| EngineError::NoIssuer(directory.to_owned()))?;
    tracing::debug!("{directory} does not say by which name CAA records mean it; {host} is taken");
    Ok(host)
}

fn tell(name: &DnsName, plan: &Plan) {
    for caa in &plan.foreign {
        tracing::warn!(
            "{name} has CAA {caa}, which lets others issue; remove it, or set foreign_caa in certbot.toml"
        );
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_issuer_is_what_the_authority_says_or_its_host() {
        let issuer =
            |said: &[&str], url: &str| issuer_of(said.iter().map(|s| (*s).to_owned()).collect(), url);
        assert_eq!(
            issuer(&["letsencrypt.org", "le.example"], "https://acme.example/d").unwrap(),
            "letsencrypt.org"
        );
        assert_eq!(issuer(&[], "https://ACME.example:14000/dir").unwrap(), "acme.example");
        for url in ["https://127.0.0.1:14000/dir", "https://localhost/dir", "https://[::1]/dir"] {
            assert!(issuer(&[], url).unwrap_err().to_string().contains("issuer"), "{url}");
        }
    }
}
