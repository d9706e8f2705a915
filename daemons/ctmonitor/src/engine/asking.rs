// SPDX-License-Identifier: Apache-2.0
//! One source in a check: whether it is asked, how its look ended, and for how long it has given nothing.

use super::desk::Desk;
use super::{Inner, Refusal, Summary};
use crate::alert::Alert;
use crate::certificate::KeyId;
use crate::limits::PAUSE_ASKED_MAX;
use crate::source::{Source, SourceError, pause};
use crate::store::Position;
use dstack_service::jobs::Context;
use std::collections::{BTreeMap, BTreeSet};

impl Inner {
    /// A check that cannot look at anything counts as time without a look.
    pub(super) fn idle(&self, why: &Refusal, summary: &mut Summary) -> Result<(), Refusal> {
        let now = (self.clock)();
        for source in &self.parts.sources {
            let position = self.begun(source.as_ref(), now)?;
            self.blind(&Position { error: why.to_string(), ..position }, now, summary)?;
        }
        Ok(())
    }

    /// The place in a source, which says since when it is asked.
    fn begun(&self, source: &dyn Source, now: u64) -> Result<Position, Refusal> {
        let mut position = self.parts.store.position(source.name())?;
        if position.since == 0 || position.since > now {
            position.since = now;
            self.parts.store.put_position(&position)?;
        }
        // A clock that was ahead then must not hide that nothing comes now.
        position.last_success = position.last_success.min(now);
        Ok(position)
    }

    /// Asks a source, unless it is to be left alone.
    pub(super) async fn ask(
        &self,
        source: &dyn Source,
        known: &BTreeSet<KeyId>,
        busy: &mut BTreeMap<String, u64>,
        context: &Context,
        summary: &mut Summary,
    ) -> Result<(), Refusal> {
        let now = (self.clock)();
        let position = self.begun(source, now)?;
        let until = position.retry_at.max(busy.get(source.server()).copied().unwrap_or(0));
        // A clock that was set back must not silence a source for longer than any pause is.
        if now < until && until - now <= PAUSE_ASKED_MAX {
            let why =
                if position.error.is_empty() { "the server asked for a pause" } else { &position.error };
            summary.troubles.push(format!("{}: left alone for {} s more: {why}", source.name(), until - now));
            return self.blind(&position, now, summary);
        }
        let desk = Desk::new(self, position, known, now, context);
        let cursor = desk.cursor();
        let result = tokio::select! {
            result = source.look(cursor, &desk, now) => Some(result),
            () = context.canceled() => None,
        };
        let (mut position, found) = desk.finish();
        summary.looked_at += found.looked_at;
        summary.new_alerts.extend(found.new_alerts);
        if let Some(result) = result {
            self.note(source, &mut position, result, &found.troubles, busy, summary)?;
        }
        self.parts.store.put_position(&position)?;
        self.blind(&position, now, summary)
    }

    /// Notes in a source's place how its look ended.
    fn note(
        &self,
        source: &dyn Source,
        position: &mut Position,
        result: Result<(), SourceError>,
        troubles: &[String],
        busy: &mut BTreeMap<String, u64>,
        summary: &mut Summary,
    ) -> Result<(), Refusal> {
        let now = (self.clock)();
        let mut words = troubles.to_vec();
        match result {
            Ok(()) => (position.failures, position.retry_at, position.last_success) = (0, 0, now),
            // No success: when it stays so, somebody must hear of it.
            Err(SourceError::Incomplete(text)) => {
                (position.failures, position.retry_at) = (0, 0);
                words.insert(0, text);
            }
            Err(error) => {
                words.insert(0, error.to_string());
                position.failures = position.failures.saturating_add(1);
                match error {
                    SourceError::Failed { retry_after, .. } => {
                        position.retry_at = now + pause(position.failures, retry_after);
                        if retry_after.is_some() {
                            busy.insert(source.server().to_owned(), position.retry_at);
                        }
                    }
                    SourceError::Lie { lie, evidence } => {
                        let alert = Alert::log_lies(&source.log_id(), source.name(), &lie, &evidence, now);
                        summary.new_alerts.extend(self.alert(vec![alert])?);
                    }
                    SourceError::Incomplete(_) | SourceError::Sink(_) => {}
                }
            }
        }
        position.error = words.join("; ");
        if !words.is_empty() {
            tracing::warn!("{}: {}", source.name(), position.error);
            summary.troubles.push(format!("{}: {}", source.name(), position.error));
        }
        Ok(())
    }

    /// An alert when a source has given nothing for too long, and its end.
    fn blind(&self, position: &Position, now: u64, summary: &mut Summary) -> Result<(), Refusal> {
        let since = position.last_success.max(position.since);
        if now.saturating_sub(since) < self.parts.blind_after {
            let settled = self.with_book(|book| Ok(book.settle_blind(&position.name, now)))?;
            settled.iter().for_each(|alert| tracing::info!("{} can be checked again", alert.place));
            return Ok(());
        }
        let alert = Alert::blind(&position.name, since, &position.error, now);
        summary.new_alerts.extend(self.alert(vec![alert])?);
        Ok(())
    }
}
