// SPDX-License-Identifier: Apache-2.0
//! crt.sh: all certificates of a domain that it lists, the newest first. Each is looked at once, a few in each check.

use super::progress::{Due, Progress};
use super::{Found, Sink, Source, SourceError};
use crate::certificate::{Certificate, KeyId, pem_contents, serial};
use crate::crtsh::{self, Entry};
use crate::domain::Domain;
use crate::http::{Base, Http};
use crate::limits::{PEM_MAX, SEARCH_ENTRIES_MAX, SEARCH_MAX};
use crate::store::Cursor;
use dstack_ra_rpc::peer::BoxFuture;
use std::collections::BTreeMap;

/// How many downloads may fail in a row before crt.sh is given up for now.
const FAILURES_MAX: usize = 3;

/// What is searched for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Query {
    /// A domain, and all names below it.
    Below(Domain),
    /// Exactly this name: a wildcard above a domain, of which no other name is anybody's business here.
    Exactly(String),
}

impl Query {
    fn name(&self) -> &str {
        match self {
            Self::Below(domain) => domain.as_str(),
            Self::Exactly(name) => name,
        }
    }

    fn target(&self) -> String {
        let exactly = if let Self::Exactly(_) = self { "&match=%3D" } else { "" };
        format!("?q={}{exactly}&output=json&limit={SEARCH_ENTRIES_MAX}", self.name())
    }

    /// A server that does not know `match` lists more than was asked for.
    fn wants(&self, entry: &Entry) -> bool {
        match self {
            Self::Below(_) => true,
            Self::Exactly(name) => entry.has_name(name),
        }
    }
}

/// A search of crt.sh.
#[derive(Debug)]
pub struct Search {
    name: String,
    server: String,
    http: Http,
    base: Base,
    query: Query,
    skip_expired: bool,
    downloads: usize,
}

impl Search {
    /// A search at a server that speaks as crt.sh does, with at most `downloads` certificates a check.
    #[must_use]
    pub fn new(http: Http, base: Base, query: Query, skip_expired: bool, downloads: usize) -> Self {
        let server = base.schemeless();
        let name = format!("{server} {}", query.name());
        Self { name, server, http, base, query, skip_expired, downloads }
    }

    async fn list(&self, sink: &dyn Sink) -> Result<BTreeMap<u64, Entry>, SourceError> {
        let answer = self.http.get(&self.base, &self.query.target(), SEARCH_MAX).await?;
        let mut list = crtsh::parse(&answer).map_err(|e| SourceError::failed(e.to_string()))?;
        if list.len() >= SEARCH_ENTRIES_MAX {
            let text = "the list is cut off: older certificates are not looked at; watch a narrower domain, or read logs";
            sink.trouble(text.to_owned());
        }
        list.retain(|_, entry| self.query.wants(entry));
        Ok(list)
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

    async fn run(&self, cursor: Cursor, sink: &dyn Sink, now: u64) -> Result<(), SourceError> {
        sink.stage(format!("Searching {}", self.name), 0);
        let list = self.list(sink).await.map_err(|e| e.at("search"))?;
        let mut progress = Progress::of(cursor);
        let skipped = |e: &Entry| self.skip_expired && e.not_after.0 < now;
        let gone = progress.forget(&list, skipped);
        if gone > 0 {
            sink.trouble(format!(
                "{gone} certificates that were listed before are not any more: the list is not whole"
            ));
            keep(&progress, Vec::new(), sink)?;
        }
        let due = progress.due(&list, skipped, now);
        let pending = due.fresh.len() + progress.failed();
        Look { search: self, progress, sink, now, pending, first: None }.all(&due).await
    }
}

/// One pass over what is due.
struct Look<'a> {
    search: &'a Search,
    progress: Progress,
    sink: &'a dyn Sink,
    now: u64,
    /// Certificates that nobody has looked at.
    pending: usize,
    /// What failed first.
    first: Option<SourceError>,
}

impl Look<'_> {
    /// One that fails keeps no other from being looked at, now or in the next checks.
    async fn all(mut self, due: &Due<'_>) -> Result<(), SourceError> {
        let downloads = self.search.downloads;
        if let Some(error) = self.some(first(&due.fresh, downloads)).await? {
            return Err(error);
        }
        // That these fail again says nothing of the server.
        self.some(first(&due.again, downloads.saturating_sub(due.fresh.len()))).await?;
        self.stage("Looked at");
        let text = match (self.progress.failed(), self.first) {
            (0, _) => return Ok(()),
            (1, Some(error)) => error.to_string(),
            (count, Some(error)) => format!("{error}; {count} could not be looked at"),
            (count, None) => format!("{count} could not be looked at before; they are tried again later"),
        };
        Err(SourceError::Incomplete(text))
    }

    /// Gives the error after which it is no use to go on.
    async fn some(&mut self, entries: &[&Entry]) -> Result<Option<SourceError>, SourceError> {
        let mut in_a_row = 0;
        for entry in entries {
            self.stage(&format!("Looking at {} of", entry.id));
            let Err(error) = self.one(entry).await? else {
                in_a_row = 0;
                continue;
            };
            in_a_row += 1;
            if in_a_row >= FAILURES_MAX {
                return Ok(Some(error));
            }
        }
        Ok(None)
    }

    /// Looks at one, or notes that it could not be.
    async fn one(&mut self, entry: &Entry) -> Result<Result<(), SourceError>, SourceError> {
        let error = match self.search.download(entry).await {
            Ok(found) => {
                self.progress.done(entry.id);
                self.pending -= 1;
                return keep(&self.progress, vec![found], self.sink).map(Ok);
            }
            Err(error) => error.at(&format!("certificate {}", entry.id)),
        };
        if error.is_busy() {
            return Err(error);
        }
        self.progress.fail(entry.id, self.now);
        self.first.get_or_insert_with(|| error.clone());
        keep(&self.progress, Vec::new(), self.sink).map(|()| Err(error))
    }

    fn stage(&self, what: &str) {
        let pending = u64::try_from(self.pending).unwrap_or(u64::MAX);
        self.sink.stage(format!("{what} {}", self.search.name), pending);
    }
}

fn first<'a, 'b>(entries: &'b [&'a Entry], count: usize) -> &'b [&'a Entry] {
    entries.get(..count).unwrap_or(entries)
}

fn keep(progress: &Progress, found: Vec<Found>, sink: &dyn Sink) -> Result<(), SourceError> {
    sink.take(found, progress.cursor()).map_err(SourceError::Sink)
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
