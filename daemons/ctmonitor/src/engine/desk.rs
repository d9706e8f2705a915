// SPDX-License-Identifier: Apache-2.0
//! Where what a source finds is judged and kept: alerts first, then the place in the source, then whoever must hear of it.

use super::Inner;
use crate::alert::{Alert, Decision, Rules, decide};
use crate::certificate::KeyId;
use crate::source::{Found, Sink};
use crate::store::{Cursor, Position};
use dstack_service::jobs::Context;
use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What a look brought.
#[derive(Debug, Default)]
pub struct Gains {
    /// Alerts that are new.
    pub new_alerts: Vec<Alert>,
    /// Certificates that were looked at.
    pub looked_at: u64,
    /// What people should know.
    pub troubles: Vec<String>,
}

/// The desk of one look at one source.
pub struct Desk<'a> {
    inner: &'a Inner,
    known: &'a BTreeSet<KeyId>,
    now: u64,
    context: &'a Context,
    state: Mutex<(Position, Gains)>,
}

impl<'a> Desk<'a> {
    /// A desk.
    pub fn new(
        inner: &'a Inner,
        position: Position,
        known: &'a BTreeSet<KeyId>,
        now: u64,
        context: &'a Context,
    ) -> Self {
        Self { inner, known, now, context, state: Mutex::new((position, Gains::default())) }
    }

    fn state(&self) -> MutexGuard<'_, (Position, Gains)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the look begins.
    pub fn cursor(&self) -> Cursor {
        self.state().0.cursor.clone()
    }

    /// Where it ended, and what it brought.
    pub fn finish(self) -> (Position, Gains) {
        self.state.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// The alert over something that was found, if it is one.
    fn judge(&self, found: &Found) -> Option<Alert> {
        let parts = &self.inner.parts;
        let rules = Rules {
            known: self.known,
            domains: &parts.domains,
            skip_expired: parts.skip_expired,
            now: self.now,
        };
        let certificate = match &found.what {
            Ok(certificate) => certificate,
            Err((id, reason)) => return Some(Alert::unreadable(*id, reason, &found.place, self.now)),
        };
        let decision = decide(certificate, &rules);
        tracing::info!("looked at {}: {decision:?}, key {}", found.place, certificate.key_id());
        (decision == Decision::Unknown).then(|| Alert::unknown_key(certificate, &found.place, self.now))
    }
}

impl Sink for Desk<'_> {
    fn take(&self, found: Vec<Found>, cursor: Cursor) -> Result<(), String> {
        let alerts: Vec<Alert> = found.iter().filter_map(|found| self.judge(found)).collect();
        let mut state = self.state();
        state.1.looked_at += u64::try_from(found.len()).unwrap_or(u64::MAX);
        let new = self.inner.alert(alerts).map_err(|e| e.to_string())?;
        state.1.new_alerts.extend(new);
        if state.0.cursor != cursor {
            state.0.cursor = cursor;
            self.inner.parts.store.put_position(&state.0).map_err(|e| e.to_string())?;
        }
        Ok(())
    }

    fn trouble(&self, text: String) {
        self.state().1.troubles.push(text);
    }

    fn stage(&self, text: String, pending: u64) {
        self.context.stage(text, -1.0);
        self.state().0.pending = pending;
    }
}
