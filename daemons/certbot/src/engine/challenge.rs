// SPDX-License-Identifier: Apache-2.0
//! TXT records for dns-01: written down before they are made, and forgotten after they are removed.

use super::{Engine, EngineError, Observer};
use crate::acme::Challenge;
use crate::dns::Data;
use crate::files;
use crate::names::DnsName;
use crate::settings::Certificate;
use crate::workdir::Workdir;
use dstack_service::state;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

const FILE: &str = "dns.json";
const VERSION: u32 = 1;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Made {
    name: String,
    value: String,
}

fn load(workdir: &Workdir) -> Result<Vec<Made>, EngineError> {
    Ok(state::load(&workdir.file(FILE), VERSION).map_err(files::FileError::from)?.unwrap_or_default())
}

impl Engine {
    /// Makes the records, and waits until every server of the zone shows them.
    pub(super) async fn present(
        &self,
        workdir: &Workdir,
        challenges: &[Challenge],
        observer: &dyn Observer,
    ) -> Result<(), EngineError> {
        let mut values: BTreeMap<DnsName, Vec<Data>> = BTreeMap::new();
        for challenge in challenges {
            values.entry(challenge.name.challenge()).or_default().push(Data::Txt(challenge.value.clone()));
        }
        let mut made = load(workdir)?;
        made.extend(
            challenges.iter().map(|c| Made { name: c.name.challenge().to_string(), value: c.value.clone() }),
        );
        state::store(&workdir.file(FILE), VERSION, &made).map_err(files::FileError::from)?;
        observer.step("challenge: written down");
        for (name, data) in &values {
            for record in data {
                self.parts().provider.add(name, record).await?;
                observer.step("challenge: record made");
            }
        }
        for (name, data) in &values {
            self.parts().servers.wait(name, data, self.settings().propagation).await?;
        }
        observer.step("challenge: at every server");
        Ok(())
    }

    /// Removes what earlier runs left, as far as it goes. A record of a name that is not wanted any more (its zone may be
    /// gone) stays written down, and keeps nothing from being done.
    pub(super) async fn clean_before(
        &self,
        workdir: &Workdir,
        wanted: &Certificate,
        observer: &dyn Observer,
    ) -> Result<(), EngineError> {
        let Err(error) = self.clean(workdir, observer).await else { return Ok(()) };
        let names: Vec<String> = wanted.bases().iter().map(|base| base.challenge().to_string()).collect();
        if !matches!(error, EngineError::Dns(_))
            || load(workdir)?.iter().any(|made| names.contains(&made.name))
        {
            return Err(error);
        }
        tracing::warn!(
            "TXT records of names that are not wanted any more are left for the next run: {error}"
        );
        Ok(())
    }

    /// Removes the records that this or an earlier run made; those that cannot be removed stay written down.
    pub(super) async fn clean(&self, workdir: &Workdir, observer: &dyn Observer) -> Result<(), EngineError> {
        let (mut left, mut failed) = (Vec::new(), None);
        for made in load(workdir)? {
            let name: DnsName =
                made.name.parse().map_err(|e| files::FileError::new(&workdir.file(FILE), e))?;
            match self.parts().provider.remove(&name, &Data::Txt(made.value.clone())).await {
                Ok(()) => observer.step("challenge: record removed"),
                Err(error) => {
                    left.push(made);
                    failed.get_or_insert(error);
                }
            }
        }
        if let Some(error) = failed {
            state::store(&workdir.file(FILE), VERSION, &left).map_err(files::FileError::from)?;
            return Err(error.into());
        }
        files::remove(&workdir.file(FILE))?;
        observer.step("challenge: forgotten");
        Ok(())
    }
}
