// SPDX-License-Identifier: Apache-2.0
//! `/run/tappd.sock`, `/prpc/Tappd.<Method>`: the older of the two services for containers.

use crate::agent::Agent;
use crate::report_data;
use axum::Router;
use dstack_core::csr::Config;
use dstack_rpc::dstack::{GetKeyArgs, RawQuoteArgs};
use dstack_rpc::tappd::{DeriveK256KeyResponse, DeriveKeyArgs, GetTlsKeyResponse, TdxQuoteArgs};
use dstack_rpc::{Call, RpcError, Service};
use std::sync::Arc;

/// Everything that the `tappd` socket serves.
pub fn router(agent: Arc<Agent>) -> Router {
    dstack_rpc::router("/prpc", Arc::new(Tappd(agent)))
}

/// The service `Tappd`.
#[derive(Debug)]
struct Tappd(Arc<Agent>);

impl Service for Tappd {
    const NAMES: &'static [&'static str] = &["Tappd"];

    async fn call(&self, call: Call) -> Result<Vec<u8>, RpcError> {
        match call.method.as_str() {
            "DeriveKey" => call.reply(&self.derive_key(call.args()?).await?),
            "DeriveK256Key" => call.reply(&self.derive_k256_key(&call.args()?)?),
            "TdxQuote" => {
                let TdxQuoteArgs { report_data, hash_algorithm, prefix } = call.args()?;
                call.reply(&self.0.vault.tdx_quote(&report_data, &hash_algorithm, &prefix).await?)
            }
            "RawQuote" => {
                let RawQuoteArgs { report_data } = call.args()?;
                // Its own sentence names no hash_algorithm that the caller did not give.
                report_data::exact(&report_data).map_err(|e| RpcError::failed(e.to_string()))?;
                call.reply(&self.0.vault.tdx_quote(&report_data, "raw", "").await?)
            }
            "Info" => call.reply(&self.0.tappd_info().await?),
            "Version" => call.reply(&self.0.version()),
            other => Err(RpcError::unknown_method(other)),
        }
    }
}

impl Tappd {
    async fn derive_key(&self, args: DeriveKeyArgs) -> Result<GetTlsKeyResponse, RpcError> {
        let wish = Config {
            subject: args.subject,
            subject_alt_names: args.alt_names,
            usage_server_auth: args.usage_server_auth,
            usage_client_auth: args.usage_client_auth,
            ext_quote: args.usage_ra_tls,
            ..Config::default()
        };
        let path = (!args.random_seed).then_some(args.path.as_str());
        let issued = self.0.vault.certify(path, wish).await?;
        Ok(GetTlsKeyResponse { key: issued.key.to_string(), certificate_chain: issued.chain })
    }

    fn derive_k256_key(&self, args: &GetKeyArgs) -> Result<DeriveK256KeyResponse, RpcError> {
        let key = self.0.vault.key(&args.path, &args.purpose, "secp256k1")?;
        Ok(DeriveK256KeyResponse {
            k256_key: key.secret.expose().to_vec(),
            k256_signature_chain: key.signature_chain.into(),
        })
    }
}
