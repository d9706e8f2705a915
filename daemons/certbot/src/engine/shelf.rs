// SPDX-License-Identifier: Apache-2.0
//! What is kept, to be read without changing anything: it takes neither credentials nor, in need, settings.

use super::{EngineError, order};
use crate::account;
use crate::certificate::{Leaf, Pair};
use crate::files::FileError;
use crate::limits::CERTIFICATES_MAX;
use crate::names::DnsName;
use crate::settings::Certificate;
use crate::workdir::Workdir;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Certificates and the account in a working directory.
#[derive(Debug, Clone)]
pub struct Shelf {
    workdir: PathBuf,
    /// As the settings have them; `None`: they cannot be read, and what is there counts.
    certificates: Option<Vec<Certificate>>,
}

impl Shelf {
    /// With the certificates of the settings, or with what is there.
    #[must_use]
    pub const fn new(workdir: PathBuf, certificates: Option<Vec<Certificate>>) -> Self {
        Self { workdir, certificates }
    }

    /// The directory.
    #[must_use]
    pub fn workdir(&self) -> &Path {
        &self.workdir
    }

    /// The certificates that a call means: the one of this name, or all for an empty name.
    ///
    /// # Errors
    /// [`EngineError::NoSuchCertificate`].
    pub fn select(&self, domain: &str) -> Result<Vec<Certificate>, EngineError> {
        let all = match &self.certificates {
            Some(all) => all.clone(),
            None => self.found()?,
        };
        let wanted = domain.strip_prefix("*.").unwrap_or(domain).to_ascii_lowercase();
        let known: Vec<String> = all.iter().map(|c| c.domain.to_string()).collect();
        let found: Vec<Certificate> =
            all.into_iter().filter(|c| wanted.is_empty() || c.domain.as_str() == wanted).collect();
        if found.is_empty() {
            return Err(EngineError::NoSuchCertificate(domain.to_owned(), known.join(" ")));
        }
        Ok(found)
    }

    /// What is there. One that cannot be read is told of when it is asked for.
    fn found(&self) -> Result<Vec<Certificate>, EngineError> {
        let first = Workdir::existing(&self.workdir).live()?.map(|pair| pair.leaf.names);
        let first = first.and_then(|names| {
            let domain = names.first()?.base.clone();
            Some(Certificate { domain, names })
        });
        let mut all: Vec<Certificate> = first.into_iter().collect();
        for place in self.others()? {
            let name = place.file_name().and_then(|name| name.to_str()).map(str::parse::<DnsName>);
            let Some(Ok(domain)) = name else { continue };
            let names = Workdir::existing(&place).live().ok().flatten().map(|pair| pair.leaf.names);
            all.push(Certificate { domain, names: names.unwrap_or_default() });
        }
        Ok(all)
    }

    fn others(&self) -> Result<Vec<PathBuf>, FileError> {
        let directory = self.workdir.join("domains");
        let entries = match std::fs::read_dir(&directory) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(FileError::at(&directory))?,
        };
        let paths = entries.take(CERTIFICATES_MAX).map(|entry| entry.map(|e| e.path()));
        paths.collect::<Result<_, _>>().map_err(FileError::at(&directory))
    }

    /// Where a certificate is kept: the first one as the original has it, others below `domains`.
    #[must_use]
    pub fn place(&self, domain: &DnsName) -> PathBuf {
        match self.certificates.as_ref().and_then(|all| all.first()) {
            Some(first) if first.domain == *domain => self.workdir.clone(),
            _ => self.below(domain),
        }
    }

    fn below(&self, domain: &DnsName) -> PathBuf {
        self.workdir.join("domains").join(domain.as_str())
    }

    /// Its own place, and the one that it has had while the settings named another one first.
    fn places(&self, domain: &DnsName) -> BTreeSet<PathBuf> {
        BTreeSet::from([self.workdir.clone(), self.below(domain)])
    }

    /// The live chain and key of a certificate.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn live(&self, domain: &str) -> Result<Option<Pair>, EngineError> {
        match self.select(domain)?.first() {
            Some(wanted) => Ok(self.live_of(wanted)?),
            None => Ok(None),
        }
    }

    /// The same, of a certificate of the settings. A pair for other names is none of it: which certificate has the first
    /// place is a matter of the order of the settings.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn live_of(&self, wanted: &Certificate) -> Result<Option<Pair>, FileError> {
        let own = self.place(&wanted.domain);
        let others = self.places(&wanted.domain).into_iter().filter(|place| *place != own);
        for place in std::iter::once(own.clone()).chain(others) {
            if let Some(pair) = Workdir::existing(&place).live()?.filter(|pair| wanted.has(&pair.leaf)) {
                return Ok(Some(pair));
            }
        }
        Ok(None)
    }

    /// Every public key that was in a certificate or is in an order, of one or of all, SubjectPublicKeyInfo in DER,
    /// sorted.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn history(&self, domain: &str) -> Result<Vec<Vec<u8>>, EngineError> {
        let mut keys = BTreeSet::new();
        if domain.is_empty() {
            // Those of certificates that the settings do not name any more, too.
            for place in self.others()?.into_iter().chain([self.workdir.clone()]) {
                keys.extend(keys_in(&place, |_| true)?);
            }
            return Ok(keys.into_iter().collect());
        }
        for wanted in self.select(domain)? {
            keys.extend(keys_in(&self.place(&wanted.domain), |leaf| wanted.has(leaf))?);
            for place in self.places(&wanted.domain) {
                keys.extend(Workdir::existing(&place).history(|leaf| wanted.has(leaf))?);
            }
        }
        Ok(keys.into_iter().collect())
    }

    /// URL of the account; `None` when there is none yet.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn account_uri(&self) -> Result<Option<String>, EngineError> {
        Ok(account::read(&self.workdir)?.map(|found| found.id))
    }
}

/// The order first: one that is fulfilled in between is in the history then.
fn keys_in(place: &Path, such: impl Fn(&Leaf) -> bool) -> Result<BTreeSet<Vec<u8>>, FileError> {
    let workdir = Workdir::existing(place);
    let ordered = order::public_key(&workdir)?;
    let mut keys = workdir.history(such)?;
    keys.extend(ordered);
    Ok(keys)
}
