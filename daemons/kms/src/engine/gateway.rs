// SPDX-License-Identifier: Apache-2.0
//! Certificates for the ingress, of this host or in a CVM (trust rules T17, T20).

use super::{Engine, internal, invalid, summary};
use crate::authority::{Authority, AuthorityError, pem};
use crate::release_log::{Event, Kind};
use dstack_core::event_log::Trusted;
use dstack_ra_tls::Verdict;
use dstack_rpc::RpcError;
use dstack_service::api::kms1::Error;

impl Engine {
    /// A certificate of role `gateway:rpc` for a P-256 key (SubjectPublicKeyInfo, DER): leaf and root CA, DER. It lives for
    /// a day. Only where the settings name a gateway; guests accept no other. It is in the release log before it leaves (T23).
    ///
    /// # Errors
    /// `NotBootstrapped`, `Misconfigured` without a gateway, `InvalidArgument` for another kind of key.
    pub async fn sign_gateway(&self, public_key: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
        let authority = self.authority()?;
        let app = self.0.parts.settings.gateway_app_id.ok_or_else(|| {
            Error::Misconfigured(
                "no gateway is allowed here: set gateway_app_id (40 hex digits of your choice) in \
                 /etc/dstack/kms.toml, then run: systemctl restart dstack-kms"
                    .into(),
            )
        })?;
        let chain = authority.gateway(&app, public_key, self.system_time()).map_err(|error| match error {
            AuthorityError::Refused(reason) => invalid(reason),
            other => internal(other),
        })?;
        let event = Event {
            time: self.now(),
            kind: Kind::Signed,
            app: Some(app),
            instance: None,
            compose_hash: None,
            verdict: String::new(),
            reason: reason(public_key),
        };
        self.0.log.record(event).await.map_err(internal)?;
        tracing::info!(DSTACK_APP = app.to_string(), "a certificate was issued to gateway {app}");
        Ok(chain)
    }

    /// The same for a measured app that asks for it by [`dstack_core::csr::GATEWAY_SUBJECT`]: the ingress in a CVM. PEM.
    ///
    /// # Errors
    /// 403 unless the settings name this app as the gateway, 400 for another kind of key.
    pub(super) async fn sign_gateway_app(
        &self,
        authority: &Authority,
        boot: &Trusted,
        verdict: &Verdict,
        public_key: &[u8],
    ) -> Result<Vec<String>, RpcError> {
        let app = boot.app_id;
        if self.0.parts.settings.gateway_app_id != Some(app) {
            let reason = format!(
                "app {app} is not the gateway of this key service; if it is to be, set gateway_app_id = \"{app}\" in \
                 /etc/dstack/kms.toml, then run: systemctl restart dstack-kms"
            );
            self.deny(boot, verdict, &reason).await;
            return Err(RpcError::forbidden(reason));
        }
        let chain = authority.gateway(&app, public_key, self.system_time());
        let chain = chain.map_err(|e| RpcError::failed(e.to_string()))?;
        let event = self.event(Kind::Signed, boot, summary(verdict, None), &reason(public_key));
        self.0.log.record(event).await.map_err(|e| RpcError::failed(e.to_string()))?;
        tracing::info!(
            DSTACK_APP = app.to_string(),
            "a certificate was issued to gateway {app}, which runs in a CVM"
        );
        Ok(chain.iter().map(|der| pem(der)).collect())
    }
}

/// What the release log says of a certificate.
fn reason(public_key: &[u8]) -> String {
    let key = hex::encode(openssl::sha::sha256(public_key));
    format!("role=gateway:rpc key=sha256:{key}")
}
