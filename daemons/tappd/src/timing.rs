// SPDX-License-Identifier: Apache-2.0
//! How long quotes take: the TEE's part, and the whole, so that what this daemon adds can be read from `/metrics`.

use dstack_core::event_log::{Digest, Event};
use dstack_core::quote_sim_wire::{Certified, Registers};
use dstack_tdx_attest::{AttestError, Platform};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Durations of one kind: how many, their sum, and the last.
#[derive(Debug, Default)]
pub struct Durations {
    count: AtomicU64,
    sum: AtomicU64,
    last: AtomicU64,
}

/// The same at one moment; times in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sum {
    /// How many.
    pub count: u64,
    /// All together, microseconds.
    pub sum: u64,
    /// The last, microseconds.
    pub last: u64,
}

impl Durations {
    /// Adds one.
    pub fn add(&self, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.sum.fetch_add(micros, Ordering::Relaxed);
        self.last.store(micros, Ordering::Relaxed);
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    /// What was added so far.
    #[must_use]
    pub fn sum(&self) -> Sum {
        let read = |value: &AtomicU64| value.load(Ordering::Relaxed);
        Sum { count: read(&self.count), sum: read(&self.sum), last: read(&self.last) }
    }
}

/// How long quotes took since the start of the agent. Quotes that failed do not count.
#[derive(Debug, Default)]
pub struct Quotes {
    /// In the TEE: its driver and quoting service, or the simulated one.
    pub platform: Durations,
    /// From the request to quote and log: the wait for a turn, and the check of the register, too.
    pub whole: Durations,
}

/// A TEE whose quotes are timed.
pub struct Timed {
    inner: Box<dyn Platform>,
    quotes: Arc<Quotes>,
}

impl std::fmt::Debug for Timed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Timed({})", self.inner.label())
    }
}

impl Timed {
    /// This TEE, with its quotes counted there.
    #[must_use]
    pub fn new(inner: Box<dyn Platform>, quotes: Arc<Quotes>) -> Self {
        Self { inner, quotes }
    }
}

impl Platform for Timed {
    fn label(&self) -> &'static str {
        self.inner.label()
    }

    fn quote(&self, report_data: &[u8; 64]) -> Result<Vec<u8>, AttestError> {
        let began = Instant::now();
        let quote = self.inner.quote(report_data)?;
        self.quotes.platform.add(began.elapsed());
        Ok(quote)
    }

    fn extend(&self, digest: &Digest) -> Result<(), AttestError> {
        self.inner.extend(digest)
    }

    fn registers(&self) -> Result<Registers, AttestError> {
        self.inner.registers()
    }

    fn firmware_events(&self) -> Result<Vec<Event>, AttestError> {
        self.inner.firmware_events()
    }

    fn certified(&self) -> Result<Option<Certified>, AttestError> {
        self.inner.certified()
    }
}
