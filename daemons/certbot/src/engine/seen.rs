// SPDX-License-Identifier: Apache-2.0
//! Reading what is there, without changing anything.

use super::state::Renewal;
use super::{Engine, EngineError};
use crate::certificate::{Leaf, Pair};
use crate::settings::Certificate;
use crate::workdir::Workdir;

/// What can be seen of a certificate.
#[derive(Debug)]
pub struct View {
    /// As it is to be.
    pub wanted: Certificate,
    /// The live one; a sentence when it cannot be read.
    pub live: Result<Option<Leaf>, String>,
    /// Failures and suggestions; a sentence when they cannot be read.
    pub renewal: Result<Renewal, String>,
}

impl Engine {
    /// What can be seen of all certificates, without changing anything.
    #[must_use]
    pub fn views(&self) -> Vec<View> {
        let each = self.settings().certificates.iter().map(|wanted| {
            let place = Workdir::existing(&self.place(&wanted.domain));
            let live = self.shelf().live_of(wanted);
            let live = live.map(|pair| pair.map(|p| p.leaf)).map_err(|e| e.to_string());
            let renewal = Renewal::load(&place).map_err(|e| e.to_string());
            View { wanted: wanted.clone(), live, renewal }
        });
        each.collect()
    }

    /// The live chain and key of a certificate.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn live(&self, domain: &str) -> Result<Option<Pair>, EngineError> {
        self.shelf().live(domain)
    }

    /// Every public key that was in a certificate or is in an order, of one or of all, SubjectPublicKeyInfo in DER,
    /// sorted.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn history(&self, domain: &str) -> Result<Vec<Vec<u8>>, EngineError> {
        self.shelf().history(domain)
    }

    /// URL of the account; `None` when there is none yet.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn account_uri(&self) -> Result<Option<String>, EngineError> {
        self.shelf().account_uri()
    }
}
