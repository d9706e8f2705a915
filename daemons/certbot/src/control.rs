// SPDX-License-Identifier: Apache-2.0
//! Reading the settings, also again, and what the daemon says of itself.

use crate::assemble::{self, AssembleError};
use crate::bus::rows;
use crate::engine::{Engine, Shelf, Turns};
use crate::settings::{Input, Settings};
use dstack_service::config::{self, Directories};
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

/// What an unconfigured daemon says.
pub const UNCONFIGURED: &str = "Not configured: run `dstackctl init`; or set domain and [dns] in \
                                /etc/dstack/certbot.toml, then run: systemctl restart dstack-certbot";

/// What a daemon says that has settings and cannot work by them.
const IDLE: &str =
    "what is there is shown, and nothing is renewed; mend it, then run: systemctl restart dstack-certbot";

/// Why there is no engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Idle {
    /// Nobody has said what to do yet.
    NotConfigured,
    /// What was said cannot be done; a sentence that says what to mend.
    Misconfigured(String),
}

impl fmt::Display for Idle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotConfigured => f.write_str(UNCONFIGURED),
            Self::Misconfigured(why) => write!(f, "Misconfigured: {why}; {IDLE}"),
        }
    }
}

#[derive(Debug, Clone)]
enum State {
    NotConfigured,
    /// Certificates that are there are served whatever ails the renewal.
    Misconfigured(String, Shelf),
    Works(Engine),
}

#[derive(Debug)]
struct Inner {
    directories: Directories,
    state: PathBuf,
    now: RwLock<State>,
    /// Of all engines that there ever were: work under way ends with the settings that it began with.
    turns: Turns,
}

/// The settings in force; clones share them.
#[derive(Debug, Clone)]
pub struct Control(Arc<Inner>);

impl Control {
    /// Without settings.
    #[must_use]
    pub fn empty(directories: Directories, state: PathBuf) -> Self {
        let now = RwLock::new(State::NotConfigured);
        Self(Arc::new(Inner { directories, state, now, turns: Turns::default() }))
    }

    /// With what the files say. What is wrong with them is kept, and said in the status.
    #[must_use]
    pub fn open(directories: Directories, state: PathBuf) -> Self {
        let this = Self::empty(directories, state);
        if let Err(why) = this.reload() {
            // A status is one line; the parser shows what is wrong in several.
            let why = why.split_whitespace().collect::<Vec<_>>().join(" ");
            let shelf = Shelf::new(this.0.state.clone(), None);
            this.set(State::Misconfigured(why, shelf));
        }
        this
    }

    /// Reads the files again. A missing credential is no error here: the daemon says so, and waits.
    ///
    /// # Errors
    /// A sentence that names file and key; what was in force stays.
    pub fn reload(&self) -> Result<(), String> {
        let input = config::load::<Input>(&self.0.directories, "certbot").map_err(|e| e.to_string())?;
        let settings = Settings::from_input(input).map_err(|e| e.to_string())?;
        let state = match settings {
            None => State::NotConfigured,
            Some(settings) => self.assemble(settings)?,
        };
        self.set(state);
        Ok(())
    }

    fn set(&self, state: State) {
        *self.0.now.write().unwrap_or_else(PoisonError::into_inner) = state;
    }

    fn assemble(&self, settings: Settings) -> Result<State, String> {
        let workdir = settings.workdir.clone().unwrap_or_else(|| self.0.state.clone());
        let shelf = Shelf::new(workdir.clone(), Some(settings.certificates.clone()));
        match assemble::assemble(settings, &workdir, &assemble::by_systemd) {
            Ok(engine) => Ok(State::Works(engine.taking_turns(self.0.turns.clone()))),
            Err(error @ (AssembleError::Missing(..) | AssembleError::Malformed(..))) => {
                Ok(State::Misconfigured(error.to_string(), shelf))
            }
            Err(error) => Err(error.to_string()),
        }
    }

    fn now(&self) -> State {
        self.0.now.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The engine.
    ///
    /// # Errors
    /// Why there is none.
    pub fn engine(&self) -> Result<Engine, Idle> {
        match self.now() {
            State::Works(engine) => Ok(engine),
            State::NotConfigured => Err(Idle::NotConfigured),
            State::Misconfigured(why, _) => Err(Idle::Misconfigured(why)),
        }
    }

    /// What is kept, to be read; there, too, when nothing can be renewed.
    ///
    /// # Errors
    /// [`Idle::NotConfigured`].
    pub fn shelf(&self) -> Result<Shelf, Idle> {
        match self.now() {
            State::Works(engine) => Ok(engine.shelf().clone()),
            State::Misconfigured(_, shelf) => Ok(shelf),
            State::NotConfigured => Err(Idle::NotConfigured),
        }
    }

    /// What `systemctl status` shows.
    #[must_use]
    pub fn status(&self) -> String {
        match self.engine() {
            Ok(engine) => rows::sentence(&engine),
            Err(idle) => idle.to_string(),
        }
    }
}
