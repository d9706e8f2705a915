// SPDX-License-Identifier: Apache-2.0
//! Who will be refused (trust rule T22): what got keys lately is judged again by the policy and collateral of now.

use super::{Engine, internal};
use crate::forecast::{Ahead, Cause, Outlook, ahead, collateral_ends};
use crate::instances::{Instance, KeepError, Unreadable};
use dstack_core::event_log::Trusted;
use dstack_ra_rpc::peer::PeerError;
use dstack_ra_rpc::{Peer, Shown};
use dstack_service::api::kms1::Error;
use dstack_service::logging::message_id;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A forecast is given again for this long: each instance costs a verification.
const FRESH: Duration = Duration::from_secs(60);
/// Most instances that one forecast names in the journal.
const TOLD_MAX: usize = 100;

impl Engine {
    /// Keeps what an instance showed when it got its keys. A failure is told and stops nothing.
    pub(super) async fn keep_evidence(&self, peer: &Peer, boot: &Trusted) {
        let Some(shown) = peer.shown.clone() else { return };
        let (this, seen) = (self.clone(), self.now());
        let (app, id, hash) = (boot.app_id, boot.instance_id, boot.compose_hash);
        let kept = tokio::task::spawn_blocking(move || {
            Instance::of(seen, app, id, hash, &shown).map_or(Ok(false), |i| this.0.instances.keep(&i))
        });
        let failed = match kept.await {
            Ok(Ok(_)) => return,
            Ok(Err(KeepError::Full)) if !self.is_news("the forecast is full".to_owned(), false) => return,
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        tracing::warn!("the forecast will not know an instance of app {app}: {failed}");
    }

    /// Who will be refused, the soonest first; at most a minute old.
    ///
    /// # Errors
    /// `StateUnreadable`.
    pub async fn forecast(&self) -> Result<Arc<Vec<Outlook>>, Error> {
        let mut last = self.0.forecast.lock().await;
        if let Some((at, rows)) = &*last
            && at.elapsed() < FRESH
        {
            return Ok(Arc::clone(rows));
        }
        let rows = Arc::new(self.look_ahead().await?);
        *last = Some((Instant::now(), Arc::clone(&rows)));
        Ok(rows)
    }

    /// The same, made now.
    ///
    /// # Errors
    /// `StateUnreadable`.
    pub async fn look_ahead(&self) -> Result<Vec<Outlook>, Error> {
        let (this, now) = (self.clone(), self.now());
        let kept =
            tokio::task::spawn_blocking(move || this.0.instances.lately(now)).await.map_err(internal)?;
        let kept = kept.map_err(|e| Error::StateUnreadable(format!("instances: {e}")))?;
        let mut rows = Vec::new();
        for instance in kept {
            match instance {
                Ok(instance) => {
                    let ahead = self.ahead_of(&instance, now).await;
                    rows.extend(ahead.map(|ahead| Outlook::of(&instance, ahead)));
                }
                Err(error) => rows.push(unreadable(&error, now)),
            }
        }
        rows.sort_by_key(|row| (row.ahead.when, row.app, row.instance));
        Ok(rows)
    }

    async fn ahead_of(&self, instance: &Instance, now: u64) -> Option<Ahead> {
        let shown = instance.shown();
        let told = |cause, error: &PeerError| Some(Ahead { when: now, cause, reason: error.to_string() });
        match self.verifier().judge_again(shown.clone(), now).await {
            Ok(verdict) => ahead(&verdict, now),
            Err(error @ PeerError::Collateral(_)) => told(Cause::NoCollateral, &error),
            Err(error) => match self.ended(shown, instance.seen, now).await {
                Some(when) => Some(collateral_ends(when)),
                None => told(Cause::NotGenuine, &error),
            },
        }
    }

    /// When the collateral ended by which the evidence was good before.
    async fn ended(&self, shown: Shown, before: u64, now: u64) -> Option<u64> {
        let verdict = self.verifier().judge_again(shown, before).await.ok()?;
        Some(verdict.collateral_expires).filter(|expires| *expires <= now)
    }

    /// The daily forecast, into the journal.
    pub async fn tell_forecast(&self) {
        let rows = match self.forecast().await {
            Ok(rows) => rows,
            Err(error) => return tracing::error!("who will be refused cannot be forecast: {error}"),
        };
        rows.iter().take(TOLD_MAX).for_each(tell);
        match rows.len() {
            0 => tracing::info!("forecast: nobody who got keys lately will be refused"),
            all if all > TOLD_MAX => {
                tracing::warn!("forecast: {} more; see: dstackctl kms forecast", all - TOLD_MAX);
            }
            _ => {}
        }
    }
}

fn unreadable(error: &Unreadable, now: u64) -> Outlook {
    let (app, instance) = error.name.split_once('-').unwrap_or((&error.name, ""));
    let ahead = Ahead { when: now, cause: Cause::Unreadable, reason: error.to_string() };
    Outlook { app: app.parse().ok(), instance: instance.parse().ok(), compose_hash: None, seen: 0, ahead }
}

fn tell(row: &Outlook) {
    let text = |value: Option<String>| value.unwrap_or_default();
    let app = text(row.app.map(|app| app.to_string()));
    let instance = text(row.instance.map(|id| id.to_string()));
    tracing::warn!(
        MESSAGE_ID = message_id::KEYS_FORECAST,
        DSTACK_APP = app,
        DSTACK_INSTANCE = instance,
        DSTACK_COMPOSE_HASH = text(row.compose_hash.map(|hash| hash.to_string())),
        DSTACK_CAUSE = row.ahead.cause.word(),
        DSTACK_WHEN = row.ahead.when,
        "instance {instance} of app {app} will be refused its keys from {} on ({}): {}",
        row.ahead.when,
        row.ahead.cause.word(),
        row.ahead.reason
    );
}
