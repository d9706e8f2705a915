// SPDX-License-Identifier: Apache-2.0
//! Reading the settings, also again, and what the daemon says of itself.

use crate::assemble::{self, AssembleError};
use crate::bus::rows;
use crate::engine::{Engine, Turns};
use crate::settings::{Input, Settings};
use dstack_service::config::{self, Directories};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

/// What an unconfigured daemon says.
pub const UNCONFIGURED: &str = "Not configured: run `dstackctl init`; or set domain and [dns] in \
                                /etc/dstack/certbot.toml, then run: systemctl restart dstack-certbot";

#[derive(Debug)]
struct Inner {
    directories: Directories,
    state: PathBuf,
    /// Or why there is none.
    engine: RwLock<Result<Engine, String>>,
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
        let engine = RwLock::new(Err(UNCONFIGURED.to_owned()));
        Self(Arc::new(Inner { directories, state, engine, turns: Turns::default() }))
    }

    /// With what the files say.
    ///
    /// # Errors
    /// A sentence that names file and key.
    pub fn open(directories: Directories, state: PathBuf) -> Result<Self, String> {
        let this = Self::empty(directories, state);
        this.reload()?;
        Ok(this)
    }

    /// Reads the files again. A missing credential is no error here: the daemon says so, and waits.
    ///
    /// # Errors
    /// A sentence that names file and key; the settings of before stay in force.
    pub fn reload(&self) -> Result<(), String> {
        let input = config::load::<Input>(&self.0.directories, "certbot").map_err(|e| e.to_string())?;
        let settings = Settings::from_input(input).map_err(|e| e.to_string())?;
        let engine = match settings {
            None => Err(UNCONFIGURED.to_owned()),
            Some(settings) => self.assemble(settings)?,
        };
        *self.0.engine.write().unwrap_or_else(PoisonError::into_inner) = engine;
        Ok(())
    }

    fn assemble(&self, settings: Settings) -> Result<Result<Engine, String>, String> {
        let workdir = settings.workdir.clone().unwrap_or_else(|| self.0.state.clone());
        match assemble::assemble(settings, &workdir, &assemble::by_systemd) {
            Ok(engine) => Ok(Ok(engine.taking_turns(self.0.turns.clone()))),
            Err(error @ AssembleError::Missing(..)) => {
                Ok(Err(format!("Not configured: {error}, then run: systemctl restart dstack-certbot")))
            }
            Err(error) => Err(error.to_string()),
        }
    }

    /// The engine; or why there is none.
    ///
    /// # Errors
    /// A sentence that says what to do.
    pub fn engine(&self) -> Result<Engine, String> {
        self.0.engine.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What `systemctl status` shows.
    #[must_use]
    pub fn status(&self) -> String {
        match self.engine() {
            Ok(engine) => rows::sentence(&engine),
            Err(why) => why,
        }
    }
}
