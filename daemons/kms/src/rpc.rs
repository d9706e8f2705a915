// SPDX-License-Identifier: Apache-2.0
//! The RPC over RA-TLS: arguments in, engine call, error out. A caller is who its verdict says, and nobody otherwise.

use crate::authority;
use crate::engine::Engine;
use crate::engine::keys::refused;
use axum::Router;
use dstack_core::ids::AppId;
use dstack_ra_rpc::peer::Rules;
use dstack_ra_rpc::tls::{Identity, Renewable, renewable_server_config};
use dstack_ra_rpc::{Refusals, Server, Session};
use dstack_rpc::disk::DiskEpochRequest;
use dstack_rpc::kms::{
    AppId as AppIdRequest, GetAppKeyRequest, GetKmsKeyRequest, GetReleaseLogRequest, SignCertRequest,
    SubmitUpgradeRequest,
};
use dstack_rpc::{Call, Listener, RpcError, Service};
use std::sync::Arc;
use std::time::SystemTime;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Methods, for the log.
pub const METHODS: [&str; 8] = [
    "GetAppKey",
    "DiskEpoch",
    "GetAppEnvEncryptPubKey",
    "GetMeta",
    "SignCert",
    "SubmitUpgrade",
    "GetReleaseLog",
    "GetKmsKey",
];
/// Connections served at a time.
const CONNECTIONS: usize = 256;

/// The service of one connection.
struct Kms {
    engine: Engine,
    session: Session,
}

impl Service for Kms {
    const NAMES: &'static [&'static str] = &["KMS"];

    async fn call(&self, call: Call) -> Result<Vec<u8>, RpcError> {
        let engine = &self.engine;
        match call.method.as_str() {
            "GetAppKey" => {
                let request: GetAppKeyRequest = call.args()?;
                call.reply(&engine.get_app_key(self.session.peer()?, &request).await?)
            }
            "DiskEpoch" => {
                let request: DiskEpochRequest = call.args()?;
                call.reply(&engine.disk_epoch(self.session.peer()?, &request).await?)
            }
            "SignCert" => {
                let request: SignCertRequest = call.args()?;
                call.reply(&engine.sign_cert(self.session.peer.as_ref(), &request).await?)
            }
            "GetKmsKey" => {
                let request: GetKmsKeyRequest = call.args()?;
                call.reply(&engine.get_kms_key(self.session.peer()?, &request).await?)
            }
            "GetAppEnvEncryptPubKey" => {
                let request: AppIdRequest = call.args()?;
                call.reply(&engine.app_env_key(&app(&request.app_id)?).map_err(refused)?)
            }
            "GetMeta" => call.reply(&engine.meta().map_err(refused)?),
            "SubmitUpgrade" => {
                let request: SubmitUpgradeRequest = call.args()?;
                engine.submit_bytes(&request).map_err(refused)?;
                call.reply(&())
            }
            "GetReleaseLog" => {
                let request: GetReleaseLogRequest = call.args()?;
                let log = engine.release_log(&app(&request.app_id)?, request.after, request.limit);
                call.reply(&log.map_err(refused)?)
            }
            other => Err(RpcError::unknown_method(other)),
        }
    }
}

fn app(bytes: &[u8]) -> Result<AppId, RpcError> {
    let id: [u8; 20] = bytes.try_into().map_err(|_| RpcError::failed("an app id has exactly 20 bytes"))?;
    Ok(AppId::from(id))
}

/// Serving listeners, and the identity that they show.
#[derive(Debug)]
pub struct Served {
    identity: Arc<Renewable>,
    tasks: Vec<JoinHandle<()>>,
}

impl Served {
    /// Shows a fresh certificate from now on.
    ///
    /// # Errors
    /// A sentence; the old one stays then.
    pub fn renew(&self, engine: &Engine) -> Result<(), String> {
        self.identity.replace(&identity(engine)?).map_err(|e| e.to_string())
    }

    /// Waits until all listeners have ended.
    pub async fn wait(self) {
        for task in self.tasks {
            // A panic there was logged where it happened.
            let _ = task.await;
        }
    }
}

/// This service's identity: of its own authority, or of nobody as long as there is none.
fn identity(engine: &Engine) -> Result<Identity, String> {
    let now = SystemTime::now();
    let identity = match engine.authority() {
        Ok(authority) => authority.rpc_identity(now),
        Err(_) => authority::nobody(now),
    };
    identity.map_err(|e| e.to_string())
}

/// Serves the listeners until `stop` changes.
///
/// # Errors
/// A sentence, when there is no identity to show.
pub fn listen(
    engine: &Engine,
    listeners: Vec<Listener>,
    stop: &watch::Receiver<bool>,
) -> Result<Served, String> {
    let (config, shown) = renewable_server_config(&identity(engine)?).map_err(|e| e.to_string())?;
    let rules = Rules::attested(None);
    let mut server = Server::new(Arc::new(config), Arc::clone(engine.verifier()), rules);
    server.connections = CONNECTIONS;
    let told = engine.clone();
    server.refusals = Some(Refusals::to(move |error, _| told.refused(error)));
    let serve = |listener: Listener| {
        let (engine, mut stop) = (engine.clone(), stop.clone());
        let router = move |session: Session| -> Router {
            dstack_rpc::router("/prpc", Arc::new(Kms { engine: engine.clone(), session }))
        };
        let stopped = async move { drop(stop.wait_for(|stop| *stop).await) };
        tokio::spawn(dstack_ra_rpc::serve(listener, server.clone(), router, stopped))
    };
    Ok(Served { tasks: listeners.into_iter().map(serve).collect(), identity: shown })
}
