// SPDX-License-Identifier: Apache-2.0
//! An engine from settings: who is asked for keys, and what is looked at.

use crate::domain::wildcards_above;
use crate::engine::Parts;
use crate::http::Http;
use crate::keys::{Certbot, Fixed, Keys, Pin, Tproxy};
use crate::settings::{LogKind, Settings};
use crate::source::Source;
use crate::source::log::{Log, Reading};
use crate::source::rfc6962::Rfc6962;
use crate::source::search::{Query, Search};
use crate::source::statics::Static;
use crate::store::Store;
use dstack_ra_rpc::Verifier;
use dstack_ra_rpc::collateral::{Cache, QuoteSim};
use dstack_ra_tls::{Label, Policy, Roots, dropins};
use dstack_service::config::Directories;
use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use zbus::Connection;

/// The parts of an engine. `bus` is needed where certbot or this host's key service is asked.
///
/// # Errors
/// What is missing.
pub fn parts(
    settings: &Settings,
    directories: &Directories,
    cache: Option<PathBuf>,
    bus: Option<&Connection>,
    store: Store,
) -> Result<Parts, Box<dyn Error>> {
    Ok(Parts {
        domains: settings.domains.clone(),
        skip_expired: settings.skip_expired,
        blind_after: settings.blind_after,
        keys: keys(settings, directories, cache, bus)?,
        sources: sources(settings)?,
        store,
    })
}

fn keys(
    settings: &Settings,
    directories: &Directories,
    cache: Option<PathBuf>,
    bus: Option<&Connection>,
) -> Result<Vec<Box<dyn Keys>>, Box<dyn Error>> {
    let mut keys: Vec<Box<dyn Keys>> = Vec::new();
    let bus = || bus.cloned().ok_or("the system bus is needed and cannot be reached");
    if !settings.known_keys.is_empty() {
        keys.push(Box::new(Fixed(settings.known_keys.clone())));
    }
    if settings.certbot {
        keys.push(Box::new(Certbot(bus()?)));
    }
    if settings.tproxies.is_empty() {
        return Ok(keys);
    }
    let verifier = Arc::new(verifier(settings, directories, cache)?);
    for tproxy in &settings.tproxies {
        let pin = match &tproxy.kms_public_key {
            Some(key) => Pin::Key(key.clone()),
            None => Pin::HostKms(bus()?),
        };
        let verifier = Arc::clone(&verifier);
        keys.push(Box::new(Tproxy::new(tproxy.address.clone(), pin, tproxy.app, verifier)));
    }
    Ok(keys)
}

fn verifier(
    settings: &Settings,
    directories: &Directories,
    cache: Option<PathBuf>,
) -> Result<Verifier, Box<dyn Error>> {
    let Directories { vendor, operator } = directories;
    let roots = Roots::load(&[operator.join("trust.d"), vendor.join("trust.d")])?;
    let policy: Policy = dropins::load(vendor, operator)?;
    let cache = match roots.realm() {
        Label::Test(_) => Cache::new(cache, QuoteSim(settings.quote_sim.clone())),
        Label::Intel => Cache::new(cache, settings.pccs.clone()),
    };
    Ok(Verifier::new(roots, policy, cache))
}

fn sources(settings: &Settings) -> Result<Vec<Box<dyn Source>>, Box<dyn Error>> {
    let http = Http::new()?;
    let mut sources: Vec<Box<dyn Source>> = Vec::new();
    if let Some(crtsh) = &settings.crtsh {
        let below = settings.domains.iter().cloned().map(Query::Below);
        for query in below.chain(wildcards_above(&settings.domains).into_iter().map(Query::Exactly)) {
            let base = crtsh.base.clone();
            let search = Search::new(http.clone(), base, query, settings.skip_expired, crtsh.downloads);
            sources.push(Box::new(search));
        }
    }
    for log in &settings.logs {
        let (base, key) = (log.base.clone(), log.key.clone());
        let reading = Reading {
            name: log.name.clone(),
            server: log.base.schemeless(),
            id: *log.key.id(),
            start: log.start,
            entries: log.entries,
            domains: settings.domains.clone(),
        };
        sources.push(match &log.kind {
            LogKind::Rfc6962 => Box::new(Log::new(Rfc6962::new(http.clone(), base, key), reading)),
            LogKind::Static(origin) => {
                let client = Static::new(http.clone(), base, origin.clone(), key);
                Box::new(Log::new(client, reading))
            }
        });
    }
    Ok(sources)
}
