// SPDX-License-Identifier: Apache-2.0
//! A log of RFC 6962 over HTTP.

use super::SourceError;
use super::log::{Answer, Client};
use crate::head::{Head, LogKey};
use crate::http::{Base, Http};
use crate::limits::{BATCH_ENTRIES, BATCH_MAX, HEAD_MAX, PROOF_MAX};
use crate::merkle::Hash;
use crate::rfc6962::{FormError, parse_consistency, parse_entries, parse_entry_and_proof, parse_head};

/// Such a log.
#[derive(Debug)]
pub struct Rfc6962 {
    http: Http,
    base: Base,
    key: LogKey,
}

impl Rfc6962 {
    /// The log at a URL, with its key.
    #[must_use]
    pub const fn new(http: Http, base: Base, key: LogKey) -> Self {
        Self { http, base, key }
    }

    async fn get<T>(
        &self,
        what: &str,
        max: usize,
        parse: impl FnOnce(&[u8]) -> Result<T, FormError>,
    ) -> Result<T, SourceError> {
        let bytes = self.http.get(&self.base, &format!("ct/v1/{what}"), max).await?;
        parse(&bytes).map_err(|e| SourceError::failed(e.to_string()))
    }
}

impl Client for Rfc6962 {
    fn head(&self) -> Answer<'_, Head> {
        Box::pin(async {
            let head = self.get("get-sth", HEAD_MAX, parse_head).await?;
            head.check(&self.key).map_err(|e| SourceError::failed(e.to_string()))
        })
    }

    fn consistency<'a>(&'a self, first: u64, second: &'a Head) -> Answer<'a, Vec<Hash>> {
        Box::pin(async move {
            let what = format!("get-sth-consistency?first={first}&second={}", second.size);
            self.get(&what, PROOF_MAX, parse_consistency).await
        })
    }

    fn last_leaf<'a>(&'a self, size: u64, _: &'a Head) -> Answer<'a, (Hash, Vec<Hash>)> {
        Box::pin(async move {
            let what = format!("get-entry-and-proof?leaf_index={}&tree_size={size}", size.saturating_sub(1));
            self.get(&what, BATCH_MAX, parse_entry_and_proof).await
        })
    }

    fn entries<'a>(&'a self, from: u64, to: u64, _: &'a Head) -> Answer<'a, Vec<Vec<u8>>> {
        Box::pin(async move {
            let last = to.min(from.saturating_add(BATCH_ENTRIES)).saturating_sub(1);
            self.get(&format!("get-entries?start={from}&end={last}"), BATCH_MAX, parse_entries).await
        })
    }
}
