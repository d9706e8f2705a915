// SPDX-License-Identifier: Apache-2.0
//! A check: whose keys are ours, what is new in each source, and who must hear of it.

mod asking;
mod desk;
mod knowing;

use crate::alert::{Alert, Book, BookError, Kind};
use crate::certificate::KeyId;
use crate::domain::Domain;
use crate::keys::Keys;
use crate::source::Source;
use crate::store::{Check, Position, Store};
use dstack_service::jobs::Context;
use dstack_service::logging::message_id;
use dstack_service::state::StateError;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::mpsc;

/// Why there is no check, or no alert.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The state cannot be read or written.
    #[error(transparent)]
    State(#[from] StateError),
    /// There is no such alert, or there are too many.
    #[error(transparent)]
    Book(#[from] BookError),
    /// Nobody has told a key of ours yet, so every certificate would seem wrong.
    #[error("no certificate can be judged: {0}")]
    NoKeys(String),
}

/// Tells the time, Unix seconds.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// What an engine works with.
#[derive(Debug)]
pub struct Parts {
    /// What is watched.
    pub domains: Vec<Domain>,
    /// Whether expired certificates are skipped.
    pub skip_expired: bool,
    /// After how many seconds without success an alert says so.
    pub blind_after: u64,
    /// Who knows our keys.
    pub keys: Vec<Box<dyn Keys>>,
    /// Where certificates are heard of.
    pub sources: Vec<Box<dyn Source>>,
    /// What outlives a restart.
    pub store: Store,
}

/// How a check came out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// Alerts that this check told.
    pub new_alerts: Vec<Alert>,
    /// Certificates that were looked at.
    pub looked_at: u64,
    /// What went wrong, empty when nothing did.
    pub troubles: Vec<String>,
}

/// What can be seen without asking the disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct View {
    /// The last check.
    pub check: Check,
    /// Alerts that somebody should look at.
    pub open: usize,
    /// Keys of ours.
    pub known: usize,
}

/// The engine; clones share it.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Engine({} sources)", self.inner.parts.sources.len())
    }
}

struct Inner {
    parts: Parts,
    book: Mutex<Book>,
    view: Mutex<View>,
    told: mpsc::UnboundedSender<Alert>,
    /// Alerts of this check that found no room.
    unkept: AtomicUsize,
    turn: tokio::sync::Mutex<()>,
    clock: Clock,
}

impl Engine {
    /// Opens the state. What is told goes to the receiver, too.
    ///
    /// # Errors
    /// [`StateError`] for what is there and cannot be read.
    pub fn open(parts: Parts, clock: Clock) -> Result<(Self, mpsc::UnboundedReceiver<Alert>), StateError> {
        let (told, receiver) = mpsc::unbounded_channel();
        let book = parts.store.book()?;
        let known: BTreeSet<KeyId> = knowing::keys_of(&parts.store.known()?);
        let view = View { check: parts.store.check()?, open: book.open(), known: known.len() };
        let inner = Inner {
            parts,
            book: Mutex::new(book),
            view: Mutex::new(view),
            told,
            unkept: AtomicUsize::new(0),
            turn: tokio::sync::Mutex::new(()),
            clock,
        };
        Ok((Self { inner: Arc::new(inner) }, receiver))
    }

    /// What can be seen.
    #[must_use]
    pub fn view(&self) -> View {
        self.inner.view.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What is watched.
    #[must_use]
    pub fn domains(&self) -> &[Domain] {
        &self.inner.parts.domains
    }

    /// All alerts, the newest first.
    #[must_use]
    pub fn alerts(&self) -> Vec<Alert> {
        self.inner.book.lock().unwrap_or_else(PoisonError::into_inner).list()
    }

    /// The place in each source.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn positions(&self) -> Result<Vec<Position>, StateError> {
        let sources = self.inner.parts.sources.iter();
        sources.map(|source| self.inner.parts.store.position(source.name())).collect()
    }

    /// Remembers that somebody has looked at an alert.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn acknowledge(&self, id: &str) -> Result<(), Refusal> {
        let now = (self.inner.clock)();
        self.inner.with_book(|book| book.acknowledge(id, now).map_err(Refusal::Book))
    }

    /// Checks all sources once. A second call waits for the first.
    ///
    /// # Errors
    /// [`Refusal`]. Trouble of a source is no error: the others go on, and the summary says it.
    pub async fn check(&self, context: &Context) -> Result<Summary, Refusal> {
        let _turn = self.inner.turn.lock().await;
        let inner = &self.inner;
        // What a killed run noted and could not tell any more.
        let mut summary = Summary { new_alerts: inner.tell()?, ..Summary::default() };
        let result = inner.check(context, &mut summary).await;
        summary.troubles.extend(inner.overflow());
        let now = (inner.clock)();
        let error = match &result {
            Ok(()) => summary.troubles.join("; "),
            Err(refusal) => refusal.to_string(),
        };
        let good_at = if error.is_empty() { now } else { self.view().check.good_at };
        let mut check = Check { at: now, good_at, error };
        let kept = inner.parts.store.put_check(&check);
        if let Err(error) = &kept {
            let separator = if check.error.is_empty() { "" } else { "; " };
            check.error += &format!("{separator}{error}");
        }
        // Also when it cannot be kept: whoever asks must not hear that all is well.
        inner.see(|view| view.check = check);
        result?;
        Ok(kept.map(|()| summary)?)
    }
}

impl Inner {
    fn see(&self, change: impl FnOnce(&mut View)) {
        change(&mut self.view.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Changes the alerts; on the disk before anybody sees it.
    fn with_book<T>(&self, change: impl FnOnce(&mut Book) -> Result<T, Refusal>) -> Result<T, Refusal> {
        let mut book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = book.clone();
        let result = change(&mut next)?;
        if next != *book {
            self.parts.store.put_book(&next)?;
            self.see(|view| view.open = next.open());
            *book = next;
        }
        Ok(result)
    }

    /// Tells journal and bus what they have not been told.
    fn tell(&self) -> Result<Vec<Alert>, Refusal> {
        let alerts = self.book.lock().unwrap_or_else(PoisonError::into_inner).untold();
        alerts.iter().for_each(|alert| self.say(alert));
        self.with_book(|book| {
            book.told(&alerts);
            Ok(())
        })?;
        Ok(alerts)
    }

    async fn check(&self, context: &Context, summary: &mut Summary) -> Result<(), Refusal> {
        context.stage("Asking for the keys that are ours", -1.0);
        let known = match self.known(summary).await {
            Err(refusal @ Refusal::NoKeys(_)) => return self.idle(&refusal, summary).and(Err(refusal)),
            other => other?,
        };
        let now = (self.clock)();
        let settled = self.with_book(|book| Ok(book.settle_keys(&known, now)))?;
        for alert in settled {
            tracing::info!("the key {} is known now: its alert is settled", alert.id);
        }
        self.see(|view| view.known = known.len());
        let mut busy: BTreeMap<String, u64> = BTreeMap::new();
        for source in &self.parts.sources {
            if context.is_canceled() {
                break;
            }
            self.ask(source.as_ref(), &known, &mut busy, context, summary).await?;
        }
        Ok(())
    }

    /// Notes alerts, then tells them; gives those that are new. Those that cannot be kept are told all the same: a full
    /// book makes nobody deaf.
    fn alert(&self, alerts: Vec<Alert>) -> Result<Vec<Alert>, Refusal> {
        if alerts.is_empty() {
            return Ok(Vec::new());
        }
        let noted = self.with_book(|book| {
            let unkept = alerts.iter().filter(|alert| book.note((*alert).clone()).is_err());
            Ok(unkept.cloned().collect::<Vec<Alert>>())
        });
        // What cannot be written is found and told again later, and must not wait for that.
        let unkept = noted.inspect_err(|_| alerts.iter().for_each(|alert| self.say(alert)))?;
        self.unkept.fetch_add(unkept.len(), Ordering::Relaxed);
        unkept.iter().for_each(|alert| self.say(alert));
        let mut new = self.tell()?;
        new.extend(unkept);
        Ok(new)
    }

    /// To the journal and the bus.
    fn say(&self, alert: &Alert) {
        log(alert);
        // Nobody listens in tests and on the command line.
        drop(self.told.send(alert.clone()));
    }

    /// The trouble of alerts since the last call that could not be kept.
    fn overflow(&self) -> Option<String> {
        let count = self.unkept.swap(0, Ordering::Relaxed);
        (count > 0).then(|| format!("{count} alerts are in the journal only: {}", BookError::Full))
    }
}

fn log(alert: &Alert) {
    let id = match alert.kind {
        Kind::UnknownKey => message_id::CT_UNKNOWN_KEY,
        Kind::Unreadable => message_id::CT_UNREADABLE,
        Kind::LogLies => message_id::CT_LOG_LIES,
        Kind::Blind => message_id::CT_BLIND,
    };
    tracing::error!(
        MESSAGE_ID = id,
        DSTACK_ALERT = alert.id,
        DSTACK_NAMES = alert.names.join(" "),
        DSTACK_ISSUER = alert.issuer,
        DSTACK_SERIAL = alert.serial,
        DSTACK_PLACE = alert.place,
        DSTACK_PUBLIC_KEY = alert.public_key,
        "{} (see {})",
        alert.text,
        alert.place
    );
}
