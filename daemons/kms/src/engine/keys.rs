// SPDX-License-Identifier: Apache-2.0
//! Releasing an app's keys.

use super::{Engine, Told, is_measured, summary};
use crate::authority::Authority;
use crate::decide::Basis;
use crate::release_log::Kind;
use crate::webhook::BootInfo;
use dstack_core::event_log::{Milestone, Trusted};
use dstack_core::ids::AppId;
use dstack_core::limits::APP_COMPOSE_MAX;
use dstack_keys::KeyError;
use dstack_keys::derive::{Roots, x25519_public};
use dstack_keys::sign::{self, app_key_message, env_key_message, env_key_message_v1};
use dstack_ra_rpc::Peer;
use dstack_ra_tls::Verdict;
use dstack_rpc::RpcError;
use dstack_rpc::kms::{
    API_VERSION, AppKeyResponse, BootstrapInfo, GetAppKeyRequest, GetMetaResponse, PublicKeyResponse,
};
use dstack_service::api::kms1::Error;
use dstack_service::logging::message_id;

impl Engine {
    /// Keys of the app that the caller's evidence measures, at the one moment at which they may be asked for (T7). The
    /// release is on the disk before the keys leave (T23).
    ///
    /// # Errors
    /// 403 with the reason.
    pub async fn get_app_key(
        &self,
        peer: &Peer,
        request: &GetAppKeyRequest,
    ) -> Result<AppKeyResponse, RpcError> {
        let authority = self.authority().map_err(refused)?;
        if request.api_version > API_VERSION {
            return Err(RpcError::failed(format!("this key service speaks api_version {API_VERSION}")));
        }
        let verdict = peer.verdict.as_ref().ok_or_else(no_evidence)?;
        let boot = verdict.boot.as_ref().ok_or_else(no_evidence)?;
        let basis = match self.may_have_keys(&authority, verdict, boot, request).await {
            Ok(basis) => basis,
            Err(reason) => {
                self.deny(boot, verdict, &reason).await;
                return Err(RpcError::forbidden(reason));
            }
        };
        let mut reply = derive(&authority, boot).map_err(|e| RpcError::failed(e.to_string()))?;
        reply.gateway_app_id =
            self.0.parts.settings.gateway_app_id.map(|id| id.to_string()).unwrap_or_default();
        reply.tproxy_app_id = reply.gateway_app_id.clone();
        self.released(boot, verdict, basis).await?;
        self.keep_evidence(peer, boot).await;
        Ok(reply)
    }

    async fn may_have_keys(
        &self,
        authority: &Authority,
        verdict: &Verdict,
        boot: &Trusted,
        request: &GetAppKeyRequest,
    ) -> Result<Basis, String> {
        if !verdict.passed() {
            return Err(verdict.reasons());
        }
        if boot.milestone != Milestone::KeysWanted {
            return Err(
                "root keys are for a boot that has measured its inputs and started nothing yet".to_owned()
            );
        }
        self.learn(boot, &request.app_compose)?;
        let basis = self.decide(authority, boot)?;
        self.0.parts.webhook.authorize(&BootInfo::of(verdict)).await?;
        Ok(basis)
    }

    /// The first compose file says who signs upgrades, so it must be known before another one gets keys.
    fn learn(&self, boot: &Trusted, compose: &[u8]) -> Result<(), String> {
        if compose.is_empty() {
            return Ok(());
        }
        if compose.len() > APP_COMPOSE_MAX || !is_measured(compose, &boot.compose_hash) {
            return Err("the compose file that was sent is not the measured one".to_owned());
        }
        if boot.compose_hash.app_id() != boot.app_id {
            return Ok(());
        }
        self.0.registry.learn(&boot.app_id, compose).map(drop).map_err(|e| e.to_string())
    }

    async fn released(&self, boot: &Trusted, verdict: &Verdict, basis: Basis) -> Result<(), RpcError> {
        let event = self.event(Kind::Released, boot, summary(verdict, Some(basis)), "");
        self.0.log.record(event).await.map_err(|e| RpcError::failed(e.to_string()))?;
        let (app, hash) = (boot.app_id.to_string(), boot.compose_hash.to_string());
        let instance = boot.instance_id.map(|i| i.to_string()).unwrap_or_default();
        tracing::info!(
            MESSAGE_ID = message_id::KEYS_RELEASED,
            DSTACK_APP = app,
            DSTACK_INSTANCE = instance,
            DSTACK_COMPOSE_HASH = hash,
            DSTACK_VERDICT = summary(verdict, Some(basis)),
            "keys of app {app} were released ({})",
            summary(verdict, Some(basis))
        );
        self.tell(Told::Released(app, instance, hash));
        Ok(())
    }

    /// The key that an app's environment is encrypted for, signed by the root.
    ///
    /// # Errors
    /// `NotBootstrapped`.
    pub fn app_env_key(&self, app: &AppId) -> Result<PublicKeyResponse, Error> {
        let authority = self.authority()?;
        env_key(authority.roots(), app, self.now()).map_err(super::internal)
    }

    /// What everybody may know.
    ///
    /// # Errors
    /// `NotBootstrapped`.
    pub fn meta(&self) -> Result<GetMetaResponse, Error> {
        let authority = self.authority()?;
        let (ca, k256) = (authority.public_key(), authority.k256_public().to_vec());
        let bootstrap =
            BootstrapInfo { ca_pubkey: ca.clone(), k256_pubkey: k256.clone(), ..Default::default() };
        let record = authority.record();
        Ok(GetMetaResponse {
            ca_cert: authority.root_pem(),
            allow_any_upgrade: false,
            k256_pubkey: k256,
            bootstrap_info: Some(bootstrap),
            is_dev: self.0.parts.verifier.policy().allow_dev,
            gateway_app_id: self.0.parts.settings.gateway_app_id.map(|id| id.to_string()),
            realm: record.realm.to_string(),
            custody: record.custody.to_string(),
            ca_public_key: ca,
            domain: record.domain.as_str().to_owned(),
        })
    }
}

/// An engine's refusal, as RPC callers see it.
pub fn refused(error: Error) -> RpcError {
    RpcError::failed(error.to_string())
}

/// Told to a caller that shows none.
pub fn no_evidence() -> RpcError {
    RpcError::forbidden("this needs evidence: a certificate with a quote and an event log")
}

fn derive(authority: &Authority, boot: &Trusted) -> Result<AppKeyResponse, KeyError> {
    let roots = authority.roots();
    let app_key = roots.app_key(&boot.app_id)?;
    let message = app_key_message(&boot.app_id, &sign::public_key(&app_key)?);
    let mut reply = AppKeyResponse::default();
    reply.ca_cert = authority.root_pem();
    reply.disk_crypt_key = roots.disk_key(&boot.app_id, boot.instance_id.as_ref())?.expose().to_vec();
    reply.env_crypt_key = roots.env_secret(&boot.app_id)?.expose().to_vec();
    reply.k256_signature = sign::sign(&roots.k256, &message)?.to_vec();
    reply.k256_key = app_key.expose().to_vec();
    reply.os_image_hash = boot.os_image_hash.as_bytes().to_vec();
    Ok(reply)
}

fn env_key(roots: &Roots, app: &AppId, now: u64) -> Result<PublicKeyResponse, KeyError> {
    let key = x25519_public(&roots.env_secret(app)?)?;
    Ok(PublicKeyResponse {
        public_key: key.to_vec(),
        signature: sign::sign(&roots.k256, &env_key_message(app, &key))?.to_vec(),
        timestamp: now,
        signature_v1: sign::sign(&roots.k256, &env_key_message_v1(app, now, &key))?.to_vec(),
    })
}
