// SPDX-License-Identifier: Apache-2.0
//! `/run/dstack.sock`, `/<Method>`: the newer of the two services for containers.

use crate::agent::Agent;
use crate::keys;
use axum::Router;
use dstack_core::csr::Config;
use dstack_rpc::dstack::{
    AttestResponse, EmitEventArgs, GetKeyArgs, GetKeyResponse, GetTlsKeyArgs, RawQuoteArgs, SignArgs,
    SignResponse, VerifyArgs, VerifyResponse,
};
use dstack_rpc::tappd::GetTlsKeyResponse;
use dstack_rpc::{Call, RpcError, Service};
use std::sync::Arc;

/// Everything that the `dstack` socket serves.
pub fn router(agent: Arc<Agent>) -> Router {
    dstack_rpc::router("", Arc::new(DstackGuest(agent)))
}

/// The service `DstackGuest`.
#[derive(Debug)]
struct DstackGuest(Arc<Agent>);

impl Service for DstackGuest {
    const NAMES: &'static [&'static str] = &["DstackGuest"];

    async fn call(&self, call: Call) -> Result<Vec<u8>, RpcError> {
        match call.method.as_str() {
            "GetTlsKey" => call.reply(&self.get_tls_key(call.args()?).await?),
            "GetKey" => call.reply(&self.get_key(&call.args()?)?),
            "GetQuote" => {
                let RawQuoteArgs { report_data } = call.args()?;
                call.reply(&self.0.vault.quote(&report_data).await?)
            }
            "Attest" => {
                let RawQuoteArgs { report_data } = call.args()?;
                let attestation = self.0.vault.attestation(&report_data).await?;
                call.reply(&AttestResponse { attestation })
            }
            "Info" => call.reply(&self.0.app_info().await?),
            "EmitEvent" => {
                let EmitEventArgs { event, payload } = call.args()?;
                self.0.vault.attestor().emit(event, payload).await?;
                call.reply(&())
            }
            "Sign" => call.reply(&self.sign(&call.args()?)?),
            "Verify" => {
                let VerifyArgs { algorithm, data, signature, public_key } = call.args()?;
                let valid = keys::verify(&algorithm, &data, &signature, &public_key)?;
                call.reply(&VerifyResponse { valid })
            }
            "Version" => call.reply(&self.0.version()),
            other => Err(RpcError::unknown_method(other)),
        }
    }
}

impl DstackGuest {
    async fn get_tls_key(&self, args: GetTlsKeyArgs) -> Result<GetTlsKeyResponse, RpcError> {
        // The app's id is in every certificate, so with_app_info asks for nothing more.
        let wish = Config {
            subject: args.subject,
            subject_alt_names: args.alt_names,
            usage_server_auth: args.usage_server_auth,
            usage_client_auth: args.usage_client_auth,
            ext_quote: args.usage_ra_tls,
            not_before: args.not_before,
            not_after: args.not_after,
            ..Config::default()
        };
        let issued = self.0.vault.certify(None, wish).await?;
        Ok(GetTlsKeyResponse { key: issued.key.to_string(), certificate_chain: issued.chain })
    }

    fn get_key(&self, args: &GetKeyArgs) -> Result<GetKeyResponse, RpcError> {
        let key = self.0.vault.key(&args.path, &args.purpose, &args.algorithm)?;
        Ok(GetKeyResponse { key: key.secret.expose().to_vec(), signature_chain: key.signature_chain.into() })
    }

    fn sign(&self, args: &SignArgs) -> Result<SignResponse, RpcError> {
        let signed = self.0.vault.sign(&args.algorithm, &args.data)?;
        let [own, service] = signed.by.signature_chain;
        Ok(SignResponse {
            signature_chain: vec![signed.signature.clone(), own, service],
            signature: signed.signature,
            public_key: signed.by.public_key,
        })
    }
}
