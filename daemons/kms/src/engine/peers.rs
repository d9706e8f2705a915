// SPDX-License-Identifier: Apache-2.0
//! Giving the root keys to another key service that the operator announced (trust rule T11).

use super::keys::refused;
use super::{Engine, invalid, lock, summary};
use crate::onboard::check_custody;
use crate::release_log::Kind;
use dstack_ra_rpc::Peer;
use dstack_ra_tls::certificate::Custody;
use dstack_rpc::RpcError;
use dstack_rpc::kms::{GetKmsKeyRequest, GetKmsKeyResponse, KmsKeys};
use dstack_service::api::kms1::Error;
use dstack_service::logging::message_id;
use std::time::{Duration, Instant};

/// Longest announcement.
pub const TTL_MAX: u64 = 24 * 3600;
/// Most announcements at a time.
const PEERS_MAX: usize = 64;

impl Engine {
    /// Announces a peer by its measurement (64 hex: SHA-256 over all its registers) for one fetch within `ttl` seconds.
    /// Announcements live in memory alone: after a restart nobody is announced.
    ///
    /// # Errors
    /// `InvalidArgument`, `NotBootstrapped`.
    pub fn allow_peer(&self, measurement: &str, ttl: u64) -> Result<(), Error> {
        self.authority()?;
        let mut bytes = [0; 32];
        hex::decode_to_slice(measurement, &mut bytes)
            .map_err(|_| invalid("a measurement is 64 hex digits: mr_aggregated of the peer's verdict"))?;
        if !(1..=TTL_MAX).contains(&ttl) {
            return Err(invalid(format!("ttl must be 1 to {TTL_MAX} seconds")));
        }
        let mut peers = lock(&self.0.peers);
        peers.retain(|_, until| *until > Instant::now());
        if peers.len() >= PEERS_MAX {
            return Err(invalid(format!("{PEERS_MAX} peers are announced; wait until one ends")));
        }
        peers.insert(hex::encode(bytes), Instant::now() + Duration::from_secs(ttl));
        Ok(())
    }

    /// The root keys, for an announced, attested peer of the same realm and custody.
    ///
    /// # Errors
    /// 403 with the reason.
    pub async fn get_kms_key(
        &self,
        peer: &Peer,
        request: &GetKmsKeyRequest,
    ) -> Result<GetKmsKeyResponse, RpcError> {
        let authority = self.authority().map_err(refused)?;
        let verdict = peer.verdict.as_ref().filter(|v| v.passed());
        let verdict = verdict.ok_or_else(|| RpcError::forbidden("this needs evidence of a key service"))?;
        let record = authority.record();
        if request.realm != record.realm.to_string() || verdict.root != record.realm {
            let reason =
                format!("this key service is of realm {}, the caller of {}", record.realm, verdict.root);
            return Err(RpcError::forbidden(reason));
        }
        let custody = Custody::from_text(&request.custody);
        let custody = custody.ok_or_else(|| RpcError::failed("custody is host or cvm"))?;
        check_custody(record.custody, custody).map_err(RpcError::forbidden)?;
        let measurement = hex::encode(verdict.measurements.aggregated());
        // An announcement is for one fetch: it is spent before the keys leave.
        let announced = lock(&self.0.peers).remove(&measurement).is_some_and(|until| until > Instant::now());
        if !announced {
            return Err(RpcError::forbidden(format!(
                "no key service of measurement {measurement} is announced; the operator of this one does it with: \
                 busctl call org.dstack.kms1 /org/dstack/kms1 org.dstack.kms1.Manager AllowPeer st {measurement} 600"
            )));
        }
        if let Some(boot) = &verdict.boot {
            let event = self.event(Kind::Onboarded, boot, summary(verdict, None), &measurement);
            self.0.log.record(event).await.map_err(|e| RpcError::failed(e.to_string()))?;
        }
        tracing::warn!(
            MESSAGE_ID = message_id::KMS_ONBOARDED,
            "the root keys were given to the key service of measurement {measurement}"
        );
        let mut keys = KmsKeys::default();
        keys.ca_key = record.roots.ca.expose().to_vec();
        keys.k256_key = record.roots.k256.expose().to_vec();
        Ok(GetKmsKeyResponse {
            keys: vec![keys],
            realm: record.realm.to_string(),
            custody: record.custody.to_string(),
            domain: record.domain.as_str().to_owned(),
        })
    }
}
