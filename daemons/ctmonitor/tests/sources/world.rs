// SPDX-License-Identifier: Apache-2.0
//! An engine with a clock of the test.

use dstack_ctmonitor::alert::Alert;
use dstack_ctmonitor::certificate::KeyId;
use dstack_ctmonitor::domain::Domain;
use dstack_ctmonitor::engine::{Engine, Parts, Refusal, Summary};
use dstack_ctmonitor::http::{Base, Http};
use dstack_ctmonitor::keys::{Fixed, Keys};
use dstack_ctmonitor::source::Source;
use dstack_ctmonitor::source::search::{Query, Search};
use dstack_ctmonitor::store::Store;
use dstack_service::jobs::Context;
use rcgen::KeyPair;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use tokio::sync::mpsc;

pub const DOMAIN: &str = "apps.example.com";
pub const NAMES: [&str; 1] = ["*.apps.example.com"];

/// The key that is ours.
pub static OURS: LazyLock<KeyPair> = LazyLock::new(|| KeyPair::generate().unwrap());
/// A key that is not.
pub static THEIRS: LazyLock<KeyPair> = LazyLock::new(|| KeyPair::generate().unwrap());
/// Another one.
pub static OTHERS: LazyLock<KeyPair> = LazyLock::new(|| KeyPair::generate().unwrap());

pub fn domain() -> Domain {
    DOMAIN.parse().unwrap()
}

pub fn ours() -> Box<dyn Keys> {
    Box::new(Fixed([KeyId::from_hex(&crate::certs::key_id(&OURS)).unwrap()].into()))
}

pub fn http() -> Http {
    Http::new().unwrap()
}

pub fn search(url: &str, skip_expired: bool, downloads: usize) -> Box<dyn Source> {
    Box::new(Search::new(http(), Base::parse(url).unwrap(), Query::Below(domain()), skip_expired, downloads))
}

/// An engine over a directory, or memory.
pub struct World {
    pub engine: Engine,
    pub clock: Arc<AtomicU64>,
    /// What journal and bus are told.
    pub told: Option<mpsc::UnboundedReceiver<Alert>>,
}

impl World {
    pub fn new(sources: Vec<Box<dyn Source>>) -> Self {
        Self::with(sources, vec![ours()], false, Store::memory())
    }

    pub fn at(directory: &Path, sources: Vec<Box<dyn Source>>) -> Self {
        Self::with(sources, vec![ours()], false, Store::open(directory).unwrap())
    }

    pub fn with(
        sources: Vec<Box<dyn Source>>,
        keys: Vec<Box<dyn Keys>>,
        skip_expired: bool,
        store: Store,
    ) -> Self {
        let parts =
            Parts { domains: vec![domain()], skip_expired, blind_after: 86_400, keys, sources, store };
        let clock = Arc::new(AtomicU64::new(dstack_ctmonitor::daemon::now()));
        let shared = Arc::clone(&clock);
        let (engine, told) = Engine::open(parts, Arc::new(move || shared.load(Ordering::Relaxed))).unwrap();
        Self { engine, clock, told: Some(told) }
    }

    pub async fn try_check(&self) -> Result<Summary, Refusal> {
        self.engine.check(&Context::detached("check", "")).await
    }

    pub async fn check(&self) -> Summary {
        self.try_check().await.unwrap()
    }

    pub fn later(&self, seconds: u64) {
        self.clock.fetch_add(seconds, Ordering::Relaxed);
    }
}

/// Ids of alerts, sorted.
pub fn ids(alerts: &[Alert]) -> Vec<String> {
    let mut ids: Vec<String> = alerts.iter().map(|a| a.id.clone()).collect();
    ids.sort();
    ids
}

/// Sorted.
pub fn keys(keys: &[&KeyPair]) -> Vec<String> {
    let mut ids: Vec<String> = keys.iter().map(|key| crate::certs::key_id(key)).collect();
    ids.sort();
    ids
}
