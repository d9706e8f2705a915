// SPDX-License-Identifier: Apache-2.0
//! crt.sh: all certificates of a domain that it lists, the newest first. Each is looked at once, a few in each check.

use super::{Found, Sink, Source, SourceError};
use crate::certificate::{Certificate, KeyId, pem_contents, serial};
use crate::crtsh::{self, Entry};
use crate::domain::Domain;
use crate::http::{Base, Http};
use crate::limits::{PEM_MAX, SEARCH_ENTRIES_MAX, SEARCH_MAX};
use crate::store::Cursor;
use dstack_ra_rpc::peer::BoxFuture;
use std::collections::{BTreeMap, BTreeSet};

/// How many downloads may fail in a row before crt.sh is given up for now.
const FAILURES_MAX: usize = 3;

/// A search of crt.sh.
#[derive(Debug)]
pub struct Search {
    name: String,
    server: String,
    http: Http,
    base: Base,
    domain: Domain,
    skip_expired: bool,
    downloads: usize,
}

impl Search {
    /// The search for a domain at a server that speaks as crt.sh does, with at most `downloads` certificates a check.
    #[must_use]
    pub fn new(http: Http, base: Base, domain: Domain, skip_expired: bool, downloads: usize) -> Self {
        let server = base.schemeless();
        Self { name: format!("{server} {domain}"), server, http, base, domain, skip_expired, downloads }
    }

    async fn list(&self) -> Result<BTreeMap<u64, Entry>, SourceError> {
        let target = format!("?q={}&output=json&limit={SEARCH_ENTRIES_MAX}", self.domain);
        let answer = self.http.get(&self.base, &target, SEARCH_MAX).await?;
        crtsh::parse(&answer).map_err(|e| SourceError::failed(e.to_string()))
    }

    async fn download(&self, entry: &Entry) -> Result<Found, SourceError> {
        let pem = self.http.get(&self.base, &format!("?d={}", entry.id), PEM_MAX).await?;
        let der = pem_contents(&pem).map_err(|e| SourceError::failed(e.to_string()))?;
        let what = Certificate::from_der(&der).map_err(|e| (KeyId::of(&der), e));
        if what.as_ref().is_ok_and(|found| found.serial != serial(&entry.serial_number)) {
            return Err(SourceError::failed("it gave another certificate than the listed one"));
        }
        Ok(Found { place: format!("{}/?id={}", self.base, entry.id), what })
    }

    /// Forgets what is not listed any more, so that it is looked at again if it comes back.
    fn forget(&self, checked: &mut BTreeSet<u64>, list: &BTreeMap<u64, Entry>, sink: &dyn Sink) -> usize {
        let before = checked.len();
        checked.retain(|id| list.contains_key(id));
        let gone = before - checked.len();
        if gone > 0 {
            sink.trouble(format!(
                "{gone} certificates that were listed before are not any more: the list is not whole"
            ));
        }
        if list.len() >= SEARCH_ENTRIES_MAX {
            let text = "the list is cut off: older certificates are not looked at; watch a narrower domain, or read logs";
            sink.trouble(text.to_owned());
        }
        gone
    }

    async fn run(&self, cursor: Cursor, sink: &dyn Sink, now: u64) -> Result<(), SourceError> {
        sink.stage(format!("Searching {}", self.name), 0);
        let list = self.list().await.map_err(|e| e.at("search"))?;
        let mut checked = if let Cursor::Search { checked } = cursor { checked } else { BTreeSet::new() };
        if self.forget(&mut checked, &list, sink) > 0 {
            keep(&checked, Vec::new(), sink)?;
        }
        let is_due = |e: &&Entry| !(checked.contains(&e.id) || self.skip_expired && e.not_after.0 < now);
        let due: Vec<&Entry> = list.values().rev().filter(is_due).collect();
        self.check(&due, &mut checked, sink).await
    }

    /// One that fails does not keep others from being looked at.
    async fn check(
        &self,
        due: &[&Entry],
        checked: &mut BTreeSet<u64>,
        sink: &dyn Sink,
    ) -> Result<(), SourceError> {
        let (mut failed, mut in_a_row) = (None, 0);
        let mut pending = due.len();
        for entry in due.iter().take(self.downloads) {
            sink.stage(
                format!("Looking at {} of {}", entry.id, self.name),
                u64::try_from(pending).unwrap_or(u64::MAX),
            );
            match self.download(entry).await {
                Ok(found) => {
                    checked.insert(entry.id);
                    keep(checked, vec![found], sink)?;
                    (pending, in_a_row) = (pending - 1, 0);
                }
                Err(error) => {
                    in_a_row += 1;
                    let error = error.at(&format!("certificate {}", entry.id));
                    if error.is_busy() || in_a_row >= FAILURES_MAX {
                        return Err(error);
                    }
                    failed = failed.or(Some(error));
                }
            }
        }
        sink.stage(format!("Looked at {}", self.name), u64::try_from(pending).unwrap_or(u64::MAX));
        failed.map_or(Ok(()), Err)
    }
}

fn keep(checked: &BTreeSet<u64>, found: Vec<Found>, sink: &dyn Sink) -> Result<(), SourceError> {
    sink.take(found, Cursor::Search { checked: checked.clone() }).map_err(SourceError::Sink)
}

impl Source for Search {
    fn name(&self) -> &str {
        &self.name
    }

    fn server(&self) -> &str {
        &self.server
    }

    fn look<'a>(
        &'a self,
        cursor: Cursor,
        sink: &'a dyn Sink,
        now: u64,
    ) -> BoxFuture<'a, Result<(), SourceError>> {
        Box::pin(self.run(cursor, sink, now))
    }
}
