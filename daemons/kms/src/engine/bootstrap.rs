// SPDX-License-Identifier: Apache-2.0
//! Making the root keys, once (trust rule T4, known attack P23).

use super::{Engine, Phase, Told, internal, invalid};
use crate::authority::Authority;
use crate::onboard;
use crate::record::{Domain, Record};
use dstack_keys::Secret;
use dstack_keys::derive::{Roots, p256};
use dstack_service::api::kms1::Error;
use dstack_service::logging::message_id;
use std::sync::{Arc, PoisonError};

impl Engine {
    /// Makes the root keys, has them sealed, and serves; gives the root CA's SubjectPublicKeyInfo, hex.
    ///
    /// # Errors
    /// `AlreadyBootstrapped` from the second time on; `SealFailed` leaves everything as it was.
    pub async fn bootstrap(&self, domain: &str) -> Result<String, Error> {
        let domain: Domain = domain.parse().map_err(invalid)?;
        let _one = self.found()?;
        let roots = Roots { ca: p256_scalar()?, k256: k256_scalar()? };
        let record = Record {
            domain,
            realm: self.realm().clone(),
            custody: self.0.parts.vault.custody(),
            created_at: self.now(),
            onboarded: false,
            roots,
        };
        self.establish(record).await
    }

    /// Fetches the root keys of another key service instead.
    ///
    /// # Errors
    /// `AlreadyBootstrapped`, `PeerRefused`, `SealFailed`.
    pub async fn onboard(&self, source: &str, ca_public_key: Vec<u8>) -> Result<(), Error> {
        let _one = self.found()?;
        let parts = &self.0.parts;
        let request =
            onboard::Request { source, ca_public_key, realm: self.realm(), custody: parts.vault.custody() };
        let record = onboard::fetch(request, &*parts.attest, &parts.verifier, self.now()).await;
        self.establish(record.map_err(Error::PeerRefused)?).await.map(drop)
    }

    /// Holds the place of the one who makes keys.
    fn found(&self) -> Result<tokio::sync::MutexGuard<'_, ()>, Error> {
        let busy = || Error::AlreadyBootstrapped("root keys are being made at this moment".into());
        let one = self.0.founding.try_lock().map_err(|_| busy())?;
        match self.phase() {
            Phase::Empty => self.check_roots().map(|()| one),
            _ => Err(Error::AlreadyBootstrapped(
                "this key service has its root keys; they are made once and never replaced".into(),
            )),
        }
    }

    /// Checks new keys, seals them, and only then serves.
    async fn establish(&self, record: Record) -> Result<String, Error> {
        let authority = Authority::new(record, self.system_time())?;
        let sealed = self.0.parts.vault.seal(authority.record()).await;
        sealed.map_err(|e| Error::SealFailed(e.to_string()))?;
        let key = hex::encode(authority.public_key());
        let record = authority.record();
        tracing::info!(
            MESSAGE_ID = message_id::KMS_BOOTSTRAPPED,
            "root keys for {} are sealed, realm {}, custody {}, CA {key}",
            record.domain.as_str(),
            record.realm,
            record.custody
        );
        *self.0.phase.write().unwrap_or_else(PoisonError::into_inner) = Phase::Ready(Arc::new(authority));
        self.tell(Told::Bootstrapped);
        Ok(key)
    }
}

/// Random bytes are a scalar in all but one of 2^32 cases; then there are others.
fn scalar(is_one: impl Fn(&Secret) -> bool) -> Result<Secret, Error> {
    for _ in 0..8 {
        let secret = Secret::random().map_err(internal)?;
        if is_one(&secret) {
            return Ok(secret);
        }
    }
    Err(internal("random bytes are never a key"))
}

fn p256_scalar() -> Result<Secret, Error> {
    scalar(|secret| p256(secret).is_ok())
}

fn k256_scalar() -> Result<Secret, Error> {
    scalar(|secret| dstack_keys::sign::public_key(secret).is_ok())
}
