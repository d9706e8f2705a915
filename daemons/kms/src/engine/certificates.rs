// SPDX-License-Identifier: Apache-2.0
//! Signing an app's certificates. The evidence comes in the request and is judged now; names and dates are wishes.

use super::keys::refused;
use super::{Engine, SIGNINGS_MAX, summary};
use crate::authority::Attached;
use crate::release_log::Kind;
use dstack_core::csr::{Csr, GATEWAY_SUBJECT};
use dstack_core::event_log::Milestone;
use dstack_keys::ecdsa;
use dstack_ra_rpc::Peer;
use dstack_rpc::RpcError;
use dstack_rpc::kms::{SignCertRequest, SignCertResponse};
use std::sync::Arc;

impl Engine {
    /// A certificate for a key of a measured, ready app.
    ///
    /// # Errors
    /// 403 for evidence that does not pass, 400 for a request that is out of form or asks for too much.
    pub async fn sign_cert(
        &self,
        peer: Option<&Arc<Peer>>,
        request: &SignCertRequest,
    ) -> Result<SignCertResponse, RpcError> {
        let authority = self.authority().map_err(refused)?;
        let csr = Csr::parse(&request.csr).map_err(|e| RpcError::failed(e.to_string()))?;
        if !ecdsa::verify(&csr.public_key, &request.csr, &request.signature) {
            return Err(RpcError::forbidden("the certificate request is not signed by the key in it"));
        }
        let (quote, log) = (csr.quote.clone(), csr.event_log.clone());
        let judged =
            self.verifier().judge_evidence(&csr.public_key, quote, log, Some(Milestone::Ready), self.now());
        let verdict = judged.await.map_err(|e| RpcError::forbidden(e.to_string()))?;
        let boot = verdict.boot.as_ref().ok_or_else(|| RpcError::forbidden("the boot is not proven"))?;
        // Known attack P24: a connection's evidence and a request's must be of the same app.
        if peer.and_then(|p| p.app_id).is_some_and(|app| app != boot.app_id) {
            return Err(RpcError::forbidden(
                "the connection's evidence is of another app than the request's",
            ));
        }
        if let Err(reason) = self.decide(&authority, boot) {
            self.deny(boot, &verdict, &reason).await;
            return Err(RpcError::forbidden(reason));
        }
        if !self.may_sign(boot) {
            let reason =
                format!("this instance has got {SIGNINGS_MAX} certificates within a minute; wait a little");
            return Err(RpcError::failed(reason));
        }
        if csr.config.subject == GATEWAY_SUBJECT {
            let chain = self.sign_gateway_app(&authority, boot, &verdict, &csr.public_key).await?;
            return Ok(SignCertResponse { certificate_chain: chain });
        }
        let evidence =
            csr.config.ext_quote.then_some(Attached { quote: &csr.quote, event_log: &csr.event_log });
        let now = self.system_time();
        let chain = authority.issue(&boot.app_id, &csr.public_key, &csr.config, evidence, now);
        let chain = chain.map_err(|e| RpcError::failed(e.to_string()))?;
        let event = self.event(Kind::Signed, boot, summary(&verdict, None), "");
        self.0.log.record(event).await.map_err(|e| RpcError::failed(e.to_string()))?;
        Ok(SignCertResponse { certificate_chain: chain })
    }
}
