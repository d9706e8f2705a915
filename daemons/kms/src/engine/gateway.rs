// SPDX-License-Identifier: Apache-2.0
//! Certificates for the ingress of this host (trust rules T17, T20).

use super::{Engine, internal, invalid};
use crate::authority::AuthorityError;
use crate::release_log::{Event, Kind};
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
        let key = hex::encode(openssl::sha::sha256(public_key));
        let event = Event {
            time: self.now(),
            kind: Kind::Signed,
            app: Some(app),
            instance: None,
            compose_hash: None,
            verdict: String::new(),
            reason: format!("role=gateway:rpc key=sha256:{key}"),
        };
        self.0.log.record(event).await.map_err(internal)?;
        tracing::info!(DSTACK_APP = app.to_string(), "a certificate was issued to gateway {app}");
        Ok(chain)
    }
}
