// SPDX-License-Identifier: Apache-2.0
//! The TEE and the event log, of which this daemon is the owner once the boot has ended (trust rule T14).
//!
//! One request at a time has them, on a thread that may block. A caller that goes away does not give its turn back
//! before its work is done, so nobody comes between an event's intent and its commit.

use crate::quote::Facts;
use crate::timing::{Quotes, Timed};
use crate::trust::TrustError;
use dstack_core::event_log::{Event, Milestone, TRUSTED, Trusted};
use dstack_core::quote_sim_wire::{Certified, Registers};
use dstack_tdx_attest::{AttestError, Attested, EventLog, LogError, Platform, log};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;
use tokio::sync::Mutex;

/// Gives the TEE of this machine.
pub type Detect = Arc<dyn Fn() -> Result<Box<dyn Platform>, AttestError> + Send + Sync>;

/// How far the boot has come, as its event log says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Boot {
    /// No log: nothing attests this guest.
    Unattested,
    /// The log has begun and not ended.
    Running,
    /// `system-ready` is recorded.
    Done,
}

/// What is measured, at one moment.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// `tdx` or `simulated`.
    pub platform: &'static str,
    /// The registers.
    pub registers: Registers,
    /// The whole event log, JSON.
    pub event_log: Vec<u8>,
    /// What the trusted prefix says.
    pub boot: Trusted,
    /// What the last quote said beside its registers.
    pub facts: Facts,
}

/// The TEE and the log, once they are taken over.
struct Taken {
    platform: Arc<dyn Platform>,
    log: EventLog,
}

/// The door to the TEE for everything else in this daemon.
pub struct Attestor {
    directory: PathBuf,
    detect: Detect,
    taken: Arc<Mutex<Option<Taken>>>,
    done: AtomicBool,
    facts: Arc<OnceLock<Facts>>,
    quotes: Arc<Quotes>,
}

impl std::fmt::Debug for Attestor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Attestor({})", self.directory.display())
    }
}

impl Attestor {
    /// The log in this directory, on the TEE that `detect` gives. Nothing is opened before it is needed.
    #[must_use]
    pub fn new(directory: &Path, detect: Detect) -> Self {
        Self {
            directory: directory.to_owned(),
            detect,
            taken: Arc::default(),
            done: AtomicBool::new(false),
            facts: Arc::default(),
            quotes: Arc::default(),
        }
    }

    /// How far the boot has come. Small files in memory are read until it has ended, and nothing afterwards.
    ///
    /// # Errors
    /// When the log is there and cannot be read.
    pub fn boot(&self) -> Result<Boot, TrustError> {
        if self.done.load(Ordering::Acquire) {
            return Ok(Boot::Done);
        }
        let boot = boot_of(&log::peek(&self.directory)?);
        self.done.store(boot == Boot::Done, Ordering::Release);
        Ok(boot)
    }

    /// A quote over the report data, with its log.
    ///
    /// # Errors
    /// [`TrustError`], among them a log that is poisoned.
    pub async fn attest(&self, report_data: [u8; 64]) -> Result<Attested, TrustError> {
        let (facts, began) = (Arc::clone(&self.facts), Instant::now());
        let attested = self.with(move |taken| attest(taken, &report_data, &facts)).await?;
        self.quotes.whole.add(began.elapsed());
        Ok(attested)
    }

    /// How long quotes took.
    #[must_use]
    pub fn quotes(&self) -> &Quotes {
        &self.quotes
    }

    /// Adds an event of the app. Names of the boot are refused, and names with a `:` (trust rule T7).
    ///
    /// # Errors
    /// [`TrustError::Log`]; the event is then in neither log nor register, or the log is poisoned.
    pub async fn emit(&self, name: String, payload: Vec<u8>) -> Result<(), TrustError> {
        self.with(move |taken| Ok(taken.log.append(&name, &payload)?)).await
    }

    /// Registers and log.
    ///
    /// # Errors
    /// [`TrustError`].
    pub async fn snapshot(&self) -> Result<Snapshot, TrustError> {
        let facts = Arc::clone(&self.facts);
        self.with(move |taken| snapshot(taken, &facts)).await
    }

    /// Root and collateral of a simulated TEE; `None` for a real one.
    ///
    /// # Errors
    /// [`TrustError::Attest`].
    pub async fn certified(&self) -> Result<Option<Certified>, TrustError> {
        self.with(|taken| Ok(taken.platform.certified()?)).await
    }

    /// Runs work that may block, with the TEE and the log to itself.
    async fn with<T, W>(&self, work: W) -> Result<T, TrustError>
    where
        T: Send + 'static,
        W: FnOnce(&mut Taken) -> Result<T, TrustError> + Send + 'static,
    {
        if self.boot()? != Boot::Done {
            return Err(TrustError::NotReady);
        }
        let mut turn = Arc::clone(&self.taken).lock_owned().await;
        let (detect, directory) = (Arc::clone(&self.detect), self.directory.clone());
        let quotes = Arc::clone(&self.quotes);
        let done = tokio::task::spawn_blocking(move || {
            let mut taken = match turn.take() {
                Some(taken) => taken,
                None => take_over(&detect, &directory, quotes)?,
            };
            let result = work(&mut taken);
            *turn = Some(taken);
            result
        });
        done.await?.inspect_err(report)
    }
}

/// Only what an operator must hear of: apps are told the rest.
fn report(error: &TrustError) {
    if let TrustError::Attest(_) | TrustError::Log(LogError::Poisoned | LogError::Platform(_)) = error {
        tracing::error!("this guest cannot be attested: {error}");
    }
}

fn take_over(detect: &Detect, directory: &Path, quotes: Arc<Quotes>) -> Result<Taken, TrustError> {
    let platform: Arc<dyn Platform> = Arc::new(Timed::new(detect()?, quotes));
    let log = match EventLog::open(directory, Arc::clone(&platform)) {
        // The boot has written its last event and not ended yet.
        Err(LogError::Owned) => return Err(TrustError::NotReady),
        other => other?,
    };
    Ok(Taken { platform, log })
}

fn boot_of(events: &[Event]) -> Boot {
    match events.len() {
        0 => Boot::Unattested,
        recorded if recorded < TRUSTED.len() => Boot::Running,
        _ => Boot::Done,
    }
}

fn attest(
    taken: &mut Taken,
    report_data: &[u8; 64],
    facts: &OnceLock<Facts>,
) -> Result<Attested, TrustError> {
    let attested = taken.log.attest(report_data)?;
    if let Some(seen) = Facts::of(&attested.quote) {
        let _ = facts.set(seen);
    }
    Ok(attested)
}

fn snapshot(taken: &mut Taken, facts: &OnceLock<Facts>) -> Result<Snapshot, TrustError> {
    if facts.get().is_none() {
        attest(taken, &[0; 64], facts)?;
    }
    let facts = facts.get().ok_or(AttestError::Malformed("a quote of an unknown version"))?;
    let boot = Trusted::of(taken.log.events()).map_err(LogError::Event)?;
    if boot.milestone != Milestone::Ready {
        return Err(TrustError::NotReady);
    }
    Ok(Snapshot {
        platform: taken.log.label(),
        registers: taken.platform.registers()?,
        event_log: taken.log.json()?,
        boot,
        facts: *facts,
    })
}
