// SPDX-License-Identifier: Apache-2.0
//! What auditors may know: account and public keys, from a directory that we may read and from this host's certbot, now and
//! ever before.

use super::Engine;
use crate::acme::{self, Info};
use std::sync::{Arc, PoisonError};

impl Engine {
    /// What certbot says; `Err` is why it says nothing.
    pub fn set_certbot(&self, info: Result<Info, String>) {
        *self.0.certbot.write().unwrap_or_else(PoisonError::into_inner) = info;
    }

    /// Everything together; it is kept for the time when less is said.
    ///
    /// # Errors
    /// A sentence: half a list would look like all of it.
    pub async fn acme(&self) -> Result<Info, String> {
        let (settings, inner) = (self.settings(), Arc::clone(&self.0));
        let certbot = inner.certbot.read().unwrap_or_else(PoisonError::into_inner).clone()?;
        let read = move || {
            let read = acme::read(settings.certbot.as_deref(), &settings.proxy.cert_chain);
            inner.history.join(read.map_err(|e| e.to_string())?.with(&certbot))
        };
        tokio::task::spawn_blocking(read).await.map_err(|e| e.to_string())?
    }

    /// The guest agent's quote of an ACME account, JSON text; empty outside of a CVM.
    ///
    /// # Errors
    /// A sentence.
    pub async fn account_quote(&self, account_uri: &str) -> Result<String, String> {
        self.0.quoted.of(&self.settings().agent, account_uri).await
    }

    /// Keeps what auditors are told, also when none of them asks before it changes.
    pub async fn remember(&self) {
        if let Err(error) = self.acme().await {
            tracing::warn!("keys of certificates cannot be told to auditors: {error}");
        }
    }
}
