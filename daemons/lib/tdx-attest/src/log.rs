// SPDX-License-Identifier: Apache-2.0
//! The event log and RTMR3, which have one owner at a time (trust rule T14).
//!
//! An event goes three steps: its intent is written, the register is extended, the log is replaced. Whoever opens the
//! log after a kill sees at the register how far the last owner came, and completes or drops the intent. Whenever log
//! and register do not agree, the log is poisoned: nothing more is extended and nothing is attested.
//!
//! The directory holds `events.json` (the events of RTMR3, a JSON array), `events.intent` (one event, while a step is
//! under way) and `events.lock`. It must belong to root and nobody else (mode 0700).

use crate::platform::{AttestError, Platform};
use dstack_core::event_log::{self, Digest, EVENTS_MAX, Event, EventError, LOG_MAX, TRUSTED};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Directory of the log in a guest.
pub const DIRECTORY: &str = "/run/dstack/private";
/// Largest intent, bytes.
const INTENT_MAX: usize = 32 * 1024;

/// Why the log cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// A file of the log cannot be read or written.
    #[error("{}: {error}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Another process owns the log.
    #[error(
        "the event log has another owner; dstack-prepare has it until the boot is done, then dstack-tappd"
    )]
    Owned,
    /// The log does not give RTMR3.
    #[error(
        "the event log does not give RTMR3: something else extended it, or changed the log; this VM cannot be attested any more, restart it"
    )]
    Poisoned,
    /// The event is not allowed here.
    #[error(transparent)]
    Event(#[from] EventError),
    /// A name of the trusted prefix, after it.
    #[error("event name {0:?} is reserved for the boot")]
    Reserved(String),
    /// The log has [`EVENTS_MAX`] events or [`LOG_MAX`] bytes.
    #[error("the event log is full")]
    Full,
    /// The TEE failed.
    #[error(transparent)]
    Platform(#[from] AttestError),
}

impl LogError {
    fn file(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |error| Self::File { path, error }
    }
}

/// A quote with the log that belongs to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attested {
    /// The quote, raw.
    pub quote: Vec<u8>,
    /// The log, JSON.
    pub event_log: Vec<u8>,
}

/// The log and RTMR3, owned until this is dropped.
pub struct EventLog {
    directory: PathBuf,
    platform: Arc<dyn Platform>,
    /// Of the firmware; they come before all others.
    firmware: Vec<Event>,
    events: Vec<Event>,
    register: Digest,
    poisoned: bool,
    /// Held, never read.
    _lock: File,
}

impl std::fmt::Debug for EventLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let poisoned = if self.poisoned { ", poisoned" } else { "" };
        write!(f, "EventLog({} events on {}{poisoned})", self.events.len(), self.platform.label())
    }
}

impl EventLog {
    /// Takes over the log, and completes or drops what a killed owner had begun.
    ///
    /// # Errors
    /// [`LogError::Owned`] while another process has it, [`LogError::Poisoned`] when it does not give RTMR3.
    pub fn open(directory: &Path, platform: Arc<dyn Platform>) -> Result<Self, LogError> {
        let lock = lock(&directory.join("events.lock"))?;
        let events = match read(&directory.join("events.json"), LOG_MAX)? {
            Some(json) => event_log::parse(&json)?,
            None => Vec::new(),
        };
        let register = platform.registers()?.rtmr3;
        let (directory, firmware) = (directory.to_owned(), platform.firmware_events()?);
        let mut log = Self { directory, platform, firmware, events, register, poisoned: false, _lock: lock };
        log.recover()?;
        Ok(log)
    }

    /// The events of RTMR3 so far.
    #[must_use]
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// The whole log as JSON: the firmware's events, and those of RTMR3.
    ///
    /// # Errors
    /// [`LogError::Full`] when it is larger than any reader accepts.
    pub fn json(&self) -> Result<Vec<u8>, LogError> {
        if self.firmware.len() + self.events.len() > EVENTS_MAX {
            return Err(LogError::Full);
        }
        to_json(&[self.firmware.as_slice(), &self.events].concat())
    }

    /// Which TEE: `tdx` or `simulated`.
    #[must_use]
    pub fn label(&self) -> &'static str {
        self.platform.label()
    }

    /// Adds an event: intent, extend, commit. During boot only the next name of the trusted prefix is allowed, after it
    /// none of them (trust rule T7).
    ///
    /// # Errors
    /// [`LogError`]; the event is then in neither log nor register, or the log is poisoned.
    pub fn append(&mut self, name: &str, payload: &[u8]) -> Result<(), LogError> {
        self.usable()?;
        let event = Event::runtime(name, payload)?;
        self.allowed(name)?;
        let mut events = self.events.clone();
        events.push(event.clone());
        let json = to_json(&events)?;
        let intent = self.intent();
        replace(&intent, &serde_json::to_vec(&event).map_err(json_error)?)?;
        let expected = event_log::extend(&self.register, &event.digest);
        self.extend(&event.digest, &expected)?;
        (self.register, self.events) = (expected, events);
        self.commit(&json)
    }

    /// A quote over the report data, and the log it belongs to: no event comes between.
    ///
    /// # Errors
    /// [`LogError::Poisoned`], or the TEE's error.
    pub fn attest(&mut self, report_data: &[u8; 64]) -> Result<Attested, LogError> {
        self.usable()?;
        if self.platform.registers()?.rtmr3 != self.register {
            self.poisoned = true;
            return Err(LogError::Poisoned);
        }
        Ok(Attested { quote: self.platform.quote(report_data)?, event_log: self.json()? })
    }

    fn usable(&self) -> Result<(), LogError> {
        if self.poisoned { Err(LogError::Poisoned) } else { Ok(()) }
    }

    fn allowed(&self, name: &str) -> Result<(), LogError> {
        if self.firmware.len() + self.events.len() >= EVENTS_MAX {
            return Err(LogError::Full);
        }
        match TRUSTED.get(self.events.len()) {
            Some(expected) if *expected == name => Ok(()),
            Some(expected) => {
                Err(EventError::Order { index: self.events.len(), found: name.to_owned(), expected }.into())
            }
            None if TRUSTED.contains(&name) => Err(LogError::Reserved(name.to_owned())),
            None => Ok(()),
        }
    }

    /// Extends the register; after an error the register itself says whether it happened.
    fn extend(&mut self, digest: &Digest, expected: &Digest) -> Result<(), LogError> {
        let failed = self.platform.extend(digest).err();
        // Until the register is known to agree, nobody may rely on the log.
        self.poisoned = true;
        let now = self.platform.registers()?.rtmr3;
        if now == *expected {
            self.poisoned = false;
            return Ok(());
        }
        match failed {
            Some(error) if now == self.register => {
                self.poisoned = false;
                remove(&self.intent())?;
                Err(error.into())
            }
            _ => Err(LogError::Poisoned),
        }
    }

    /// Makes the log say what the register says already.
    fn commit(&self, json: &[u8]) -> Result<(), LogError> {
        replace(&self.directory.join("events.json"), json)?;
        remove(&self.intent())
    }

    fn recover(&mut self) -> Result<(), LogError> {
        let intent = self.intent();
        let [.., replayed] = event_log::replay(&self.events)?;
        if replayed == self.register {
            // Not extended yet, or committed already.
            return remove(&intent);
        }
        let pending = read(&intent, INTENT_MAX)?.and_then(|json| serde_json::from_slice::<Event>(&json).ok());
        let Some(event) = pending else { return Err(LogError::Poisoned) };
        self.events.push(event);
        // Parsing recomputes the digest from name and payload, so an intent is no way to smuggle one in.
        let json = to_json(&self.events)?;
        let checked = event_log::parse(&json).and_then(|events| event_log::replay(&events));
        match checked {
            Ok([.., replayed]) if replayed == self.register => self.commit(&json),
            _ => Err(LogError::Poisoned),
        }
    }

    fn intent(&self) -> PathBuf {
        self.directory.join("events.intent")
    }
}

/// Reads the log without owning it, for people; it may be one event behind.
///
/// # Errors
/// [`LogError`] when it cannot be read or is damaged.
pub fn peek(directory: &Path) -> Result<Vec<Event>, LogError> {
    match read(&directory.join("events.json"), LOG_MAX)? {
        Some(json) => Ok(event_log::parse(&json)?),
        None => Ok(Vec::new()),
    }
}

fn to_json(events: &[Event]) -> Result<Vec<u8>, LogError> {
    let json = serde_json::to_vec(events).map_err(json_error)?;
    if json.len() > LOG_MAX { Err(LogError::Full) } else { Ok(json) }
}

fn json_error(error: serde_json::Error) -> LogError {
    EventError::Json(error.to_string()).into()
}

fn lock(path: &Path) -> Result<File, LogError> {
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).truncate(false).mode(0o600).open(path);
    let file = file.map_err(LogError::file(path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(LogError::Owned),
        Err(TryLockError::Error(error)) => Err(LogError::file(path)(error)),
    }
}

/// The whole file; `None` only when it does not exist.
fn read(path: &Path, max: usize) -> Result<Option<Vec<u8>>, LogError> {
    let file = match File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        other => other.map_err(LogError::file(path))?,
    };
    let mut bytes = Vec::new();
    file.take(max as u64 + 1).read_to_end(&mut bytes).map_err(LogError::file(path))?;
    if bytes.len() > max { Err(LogError::Full) } else { Ok(Some(bytes)) }
}

/// Replaces a file, mode 0600. Under the lock there is one writer, so the temporary file may have a fixed name.
fn replace(path: &Path, bytes: &[u8]) -> Result<(), LogError> {
    let temporary = path.with_extension("new");
    remove(&temporary)?;
    let written = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary);
    let written = written.and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()));
    written.and_then(|()| fs::rename(&temporary, path)).map_err(LogError::file(path))
}

fn remove(path: &Path) -> Result<(), LogError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(LogError::file(path)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
#[path = "log_tests.rs"]
mod tests;
