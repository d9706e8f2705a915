// SPDX-License-Identifier: Apache-2.0
//! What auditors may know: account and public keys, from a directory that we may read and from this host's certbot.

use super::Engine;
use crate::acme::{self, Info};
use std::sync::PoisonError;

impl Engine {
    /// What certbot says; `Err` is why it says nothing.
    pub fn set_certbot(&self, info: Result<Info, String>) {
        *self.0.certbot.write().unwrap_or_else(PoisonError::into_inner) = info;
    }

    /// Everything together.
    ///
    /// # Errors
    /// A sentence: half a list would look like all of it.
    pub async fn acme(&self) -> Result<Info, String> {
        let settings = self.settings();
        let certbot = self.0.certbot.read().unwrap_or_else(PoisonError::into_inner).clone()?;
        let read = move || acme::read(settings.certbot.as_deref(), &settings.proxy.cert_chain);
        let read = tokio::task::spawn_blocking(read).await.map_err(|e| e.to_string())?;
        Ok(read.map_err(|e| e.to_string())?.with(&certbot))
    }
}
