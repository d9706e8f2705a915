// SPDX-License-Identifier: Apache-2.0
//! Records at Cloudflare, by its API.

use super::cloudflare_json::{self as api, Page, Refusal, Row};
use super::{Data, DnsError, Kind, Provider};
use crate::acme::BoxFuture;
use crate::http::{Answer, Http};
use crate::limits::{PAGE, PAGES_MAX, TTL};
use crate::names::DnsName;
use bytes::Bytes;
use http::{Method, Request};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::Mutex;
use zeroize::Zeroizing;

/// Where the API is.
pub const BASE: &str = "https://api.cloudflare.com/client/v4";
/// The record is there already, in words or just so.
const EXISTS: [u64; 2] = [81057, 81058];
/// It is not there.
const GONE: [u64; 1] = [81044];

/// The API, with a token.
#[derive(Clone)]
pub struct Cloudflare {
    http: Http,
    base: String,
    token: Arc<Zeroizing<String>>,
    zone: Option<String>,
    /// Zones that were found, by the name they were looked for.
    found: Arc<Mutex<BTreeMap<DnsName, String>>>,
}

impl std::fmt::Debug for Cloudflare {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cloudflare")
            .field("base", &self.base)
            .field("zone", &self.zone)
            .finish_non_exhaustive()
    }
}

impl Cloudflare {
    /// Without the id of a zone it is looked for.
    #[must_use]
    pub fn new(http: Http, base: &str, token: Zeroizing<String>, zone: Option<String>) -> Self {
        let base = base.trim_end_matches('/').to_owned();
        Self { http, base, token: Arc::new(token), zone, found: Arc::default() }
    }

    async fn call(&self, method: Method, path: &str, body: Option<String>) -> Result<Answer, DnsError> {
        let strange = |e: &dyn std::fmt::Display| {
            DnsError::Api(format!("the token or the address is out of form: {e}"))
        };
        let mut value =
            http::HeaderValue::from_str(&format!("Bearer {}", self.token.trim())).map_err(|e| strange(&e))?;
        value.set_sensitive(true);
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base))
            .header("authorization", value)
            .header("content-type", "application/json")
            .body(Bytes::from(body.unwrap_or_default()))
            .map_err(|e| strange(&e))?;
        Ok(self.http.ask(request).await?)
    }

    async fn zone(&self, name: &DnsName) -> Result<String, DnsError> {
        if let Some(zone) = &self.zone {
            return Ok(zone.clone());
        }
        let mut found = self.found.lock().await;
        if let Some(zone) = found.get(name) {
            return Ok(zone.clone());
        }
        let zone = self.find_zone(name).await?;
        found.insert(name.clone(), zone.clone());
        Ok(zone)
    }

    async fn find_zone(&self, name: &DnsName) -> Result<String, DnsError> {
        let mut candidate = Some(name.clone());
        while let Some(zone) = candidate {
            let answer = self.call(Method::GET, &format!("/zones?name={zone}"), None).await?;
            if let Some(id) = api::zones(&answer.body).map_err(|r| refused(&r))?.into_iter().next() {
                return Ok(id);
            }
            candidate = zone.parent();
        }
        let hint = "the token may read no zone that has it; it needs \"Zone / Zone / Read\", or set cf_zone_id in certbot.toml";
        Err(DnsError::NoZone(name.clone(), hint.into()))
    }

    async fn rows(&self, name: &DnsName, kind: Kind) -> Result<Vec<Row>, DnsError> {
        let zone = self.zone(name).await?;
        let (mut rows, mut page) = (Vec::new(), 1);
        loop {
            let path = format!(
                "/zones/{zone}/dns_records?type={}&name={name}&per_page={PAGE}&page={page}",
                kind.word()
            );
            let answer = self.call(Method::GET, &path, None).await?;
            let Page { rows: more, pages } = api::records(&answer.body, kind).map_err(|r| refused(&r))?;
            rows.extend(more.into_iter().filter(|row| row.name == name.as_str()));
            if page >= pages {
                return Ok(rows);
            }
            if page >= PAGES_MAX {
                return Err(DnsError::Api(format!(
                    "{name} has more than {PAGES_MAX} pages of {} records",
                    kind.word()
                )));
            }
            page += 1;
        }
    }

    async fn create(&self, name: &DnsName, data: &Data) -> Result<(), DnsError> {
        let path = format!("/zones/{}/dns_records", self.zone(name).await?);
        let body = api::creation(name.as_str(), data, TTL).to_string();
        let answer = self.call(Method::POST, &path, Some(body)).await?;
        match api::changed(&answer.body) {
            Err(refusal) if !refusal.has(&EXISTS) => Err(refused(&refusal)),
            _ => Ok(()),
        }
    }

    async fn delete(&self, name: &DnsName, data: &Data) -> Result<(), DnsError> {
        let zone = self.zone(name).await?;
        for row in self.rows(name, data.kind()).await?.into_iter().filter(|row| row.data == *data) {
            let answer =
                self.call(Method::DELETE, &format!("/zones/{zone}/dns_records/{}", row.id), None).await?;
            match api::changed(&answer.body) {
                Err(refusal) if !refusal.has(&GONE) => return Err(refused(&refusal)),
                _ => {}
            }
        }
        Ok(())
    }
}

fn refused(refusal: &Refusal) -> DnsError {
    DnsError::Api(refusal.words())
}

impl Provider for Cloudflare {
    fn list<'a>(&'a self, name: &'a DnsName, kind: Kind) -> BoxFuture<'a, Result<Vec<Data>, DnsError>> {
        Box::pin(async move { Ok(self.rows(name, kind).await?.into_iter().map(|row| row.data).collect()) })
    }

    fn add<'a>(&'a self, name: &'a DnsName, data: &'a Data) -> BoxFuture<'a, Result<(), DnsError>> {
        Box::pin(self.create(name, data))
    }

    fn remove<'a>(&'a self, name: &'a DnsName, data: &'a Data) -> BoxFuture<'a, Result<(), DnsError>> {
        Box::pin(self.delete(name, data))
    }
}
