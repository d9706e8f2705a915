// SPDX-License-Identifier: Apache-2.0
//! The pause that an authority asks for by `Retry-After`. It is the account's, so nothing is asked for any certificate
//! until it is over, by no later run either.

use super::{Engine, EngineError};
use crate::acme::Acme;
use crate::files::FileError;
use crate::http;
use crate::renewal;
use dstack_service::state;
use std::collections::BTreeMap;
use std::path::PathBuf;

const FILE: &str = "quiet.json";
const VERSION: u32 = 1;

/// Unix seconds, by the directory of the authority.
type Book = BTreeMap<String, i64>;

impl Engine {
    fn book(&self) -> PathBuf {
        self.parts().workdir.join(FILE)
    }

    /// Whether the authority with this directory may be asked.
    ///
    /// # Errors
    /// [`EngineError::Quiet`] until when it may not.
    pub(super) fn may_ask(&self, acme: &dyn Acme, directory: &str) -> Result<(), EngineError> {
        let now = http::now();
        let book: Book = state::load(&self.book(), VERSION).map_err(FileError::from)?.unwrap_or_default();
        let until = book.get(directory).copied().max(acme.quiet_until());
        // What is further ahead than anybody is believed was written by another clock.
        match until.filter(|until| *until > now && *until <= renewal::furthest(now)) {
            Some(until) => Err(EngineError::Quiet { directory: directory.to_owned(), until }),
            None => Ok(()),
        }
    }

    /// Writes down what the authority has asked for; a pause that is over is forgotten.
    pub(super) fn note_quiet(&self, acme: &dyn Acme, directory: &str) -> Result<(), EngineError> {
        let now = http::now();
        let before: Option<Book> = state::load(&self.book(), VERSION).map_err(FileError::from)?;
        let mut book = before.clone().unwrap_or_default();
        book.retain(|_, until| *until > now);
        if let Some(until) = acme.quiet_until().filter(|until| *until > now) {
            book.insert(directory.to_owned(), until.min(renewal::furthest(now)));
        }
        match before {
            None if book.is_empty() => Ok(()),
            Some(before) if before == book => Ok(()),
            _ if book.is_empty() => Ok(crate::files::remove(&self.book())?),
            _ => Ok(state::store(&self.book(), VERSION, &book).map_err(FileError::from)?),
        }
    }
}
