// SPDX-License-Identifier: Apache-2.0
//! Reading what is there, without changing anything.

use super::state::Renewal;
use super::{Engine, EngineError, order};
use crate::account;
use crate::certificate::{Leaf, Pair};
use crate::files::FileError;
use crate::settings::Certificate;
use crate::workdir::Workdir;
use std::collections::BTreeSet;
use std::path::Path;

/// What can be seen of a certificate.
#[derive(Debug)]
pub struct View {
    /// As it is to be.
    pub wanted: Certificate,
    /// The live one; a sentence when it cannot be read.
    pub live: Result<Option<Leaf>, String>,
    /// Failures and suggestions; a sentence when they cannot be read.
    pub renewal: Result<Renewal, String>,
}

impl Engine {
    /// What can be seen of all certificates, without changing anything.
    #[must_use]
    pub fn views(&self) -> Vec<View> {
        let each = self.settings().certificates.iter().map(|wanted| {
            let place = self.place(&wanted.domain);
            let live =
                Workdir::existing(&place).live().map(|pair| pair.map(|p| p.leaf)).map_err(|e| e.to_string());
            let renewal = Renewal::load(&Workdir::existing(&place)).map_err(|e| e.to_string());
            View { wanted: wanted.clone(), live, renewal }
        });
        each.collect()
    }

    /// The live chain and key of a certificate.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn live(&self, domain: &str) -> Result<Option<Pair>, EngineError> {
        let wanted = self.select(domain)?;
        let Some(first) = wanted.first() else { return Ok(None) };
        Ok(Workdir::existing(&self.place(&first.domain)).live()?)
    }

    /// Every public key that was in a certificate or is in an order, of one or of all, SubjectPublicKeyInfo in DER,
    /// sorted.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn history(&self, domain: &str) -> Result<Vec<Vec<u8>>, EngineError> {
        let mut keys = BTreeSet::new();
        for wanted in self.select(domain)? {
            keys.extend(keys_in(&self.place(&wanted.domain))?);
        }
        if domain.is_empty() {
            keys.extend(self.retired()?);
        }
        Ok(keys.into_iter().collect())
    }

    /// Keys of certificates that the settings do not name any more.
    fn retired(&self) -> Result<BTreeSet<Vec<u8>>, EngineError> {
        let directory = self.parts().workdir.join("domains");
        let entries = match std::fs::read_dir(&directory) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
            other => other.map_err(FileError::at(&directory))?,
        };
        let mut keys = keys_in(&self.parts().workdir)?;
        for entry in entries.take(crate::limits::CERTIFICATES_MAX) {
            keys.extend(keys_in(&entry.map_err(FileError::at(&directory))?.path())?);
        }
        Ok(keys)
    }

    /// URL of the account; `None` when there is none yet.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn account_uri(&self) -> Result<Option<String>, EngineError> {
        Ok(account::read(&self.parts().workdir)?.map(|found| found.id))
    }
}

/// The order first: one that is fulfilled in between is in the history then.
fn keys_in(place: &Path) -> Result<BTreeSet<Vec<u8>>, FileError> {
    let workdir = Workdir::existing(place);
    let ordered = order::public_key(&workdir)?;
    let mut keys = workdir.history()?;
    keys.extend(ordered);
    Ok(keys)
}
