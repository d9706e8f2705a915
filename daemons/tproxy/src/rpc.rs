// SPDX-License-Identifier: Apache-2.0
//! The RPC over TLS: arguments in, engine call, error out. Who registers is who its verdict says.

use crate::claim::claim;
use crate::engine::Engine;
use crate::http;
use crate::registry::{Entry, Instance};
use axum::Router;
use dstack_core::event_log::Milestone;
use dstack_ra_rpc::peer::{Anchor, Rules};
use dstack_ra_rpc::tls::{Identity, Renewable, renewable_server_config};
use dstack_ra_rpc::{Refusals, Server, Session};
use dstack_ra_tls::certificate::Usage;
use dstack_rpc::tproxy::{
    AcmeInfoResponse, AgentConfig, GatewayRegisterResponse, GatewayWireGuardConfig, GetInfoRequest,
    GetInfoResponse, GetMetaResponse, HostInfo, ListResponse, RegisterCvmRequest, RegisterCvmResponse,
    WireGuardConfig, WireGuardPeer,
};
use dstack_rpc::{Call, Listener, RpcError, Service};
use std::sync::Arc;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Methods, for the log.
pub const METHODS: [&str; 5] = ["RegisterCvm", "List", "GetInfo", "AcmeInfo", "GetMeta"];
/// Connections served at a time.
const CONNECTIONS: usize = 512;
/// The service whose RegisterCvm gives the newer answer.
const GATEWAY: &str = "Gateway";

/// The service of one connection.
struct Tproxy {
    engine: Engine,
    session: Session,
    kms: Arc<Vec<u8>>,
}

impl Service for Tproxy {
    const NAMES: &'static [&'static str] = &["Tproxy", GATEWAY];

    async fn call(&self, call: Call) -> Result<Vec<u8>, RpcError> {
        match call.method.as_str() {
            "RegisterCvm" => self.register(&call).await,
            "List" => call.reply(&self.list()),
            "GetInfo" => call.reply(&self.info(&call.args()?)),
            "AcmeInfo" => call.reply(&self.acme().await?),
            "GetMeta" => call.reply(&self.meta()),
            other => Err(RpcError::unknown_method(other)),
        }
    }
}

impl Tproxy {
    async fn register(&self, call: &Call) -> Result<Vec<u8>, RpcError> {
        let request: RegisterCvmRequest = call.args()?;
        let peer = self.session.peer()?;
        let claim = claim(peer, &request, &self.kms).map_err(|e| RpcError::forbidden(e.to_string()))?;
        let instance = self.engine.register(claim).await?;
        if call.service == GATEWAY {
            call.reply(&self.newer(&instance))
        } else {
            call.reply(&self.answer(&instance))
        }
    }

    fn answer(&self, instance: &Instance) -> RegisterCvmResponse {
        let tunnel = &self.engine.settings().tunnel;
        let wg = WireGuardConfig {
            server_public_key: self.engine.public_key().to_string(),
            client_ip: instance.address.to_string(),
            server_ip: tunnel.ip.to_string(),
            server_endpoint: tunnel.endpoint.clone(),
        };
        RegisterCvmResponse { wg: Some(wg), tappd: Some(self.agent()) }
    }

    fn newer(&self, instance: &Instance) -> GatewayRegisterResponse {
        let tunnel = &self.engine.settings().tunnel;
        let server = WireGuardPeer {
            pk: self.engine.public_key().to_string(),
            ip: tunnel.ip.to_string(),
            endpoint: tunnel.endpoint.clone(),
        };
        let wg = GatewayWireGuardConfig { client_ip: instance.address.to_string(), servers: vec![server] };
        GatewayRegisterResponse { wg: Some(wg), agent: Some(self.agent()) }
    }

    fn agent(&self) -> AgentConfig {
        let proxy = &self.engine.settings().proxy;
        AgentConfig {
            external_port: proxy.listen_port.into(),
            internal_port: proxy.tappd_port.into(),
            domain: proxy.base_domain.clone(),
            app_address_ns_prefix: proxy.txt_prefix.clone(),
        }
    }

    fn list(&self) -> ListResponse {
        ListResponse { hosts: self.engine.instances().iter().map(|entry| self.host(entry)).collect() }
    }

    fn host(&self, entry: &Entry) -> HostInfo {
        let (settings, instance) = (self.engine.settings(), &entry.instance);
        HostInfo {
            instance_id: instance.instance_id.to_string(),
            ip: instance.address.to_string(),
            app_id: instance.app_id.to_string(),
            base_domain: settings.proxy.base_domain.clone(),
            port: settings.proxy.listen_port.into(),
            latest_handshake: entry.handshake.unwrap_or(0),
        }
    }

    fn info(&self, request: &GetInfoRequest) -> GetInfoResponse {
        let entry = request.id.parse().ok().and_then(|id| self.engine.instance(&id));
        GetInfoResponse { found: entry.is_some(), info: entry.map(|entry| self.host(&entry)) }
    }

    fn meta(&self) -> GetMetaResponse {
        let (registered, online) = self.engine.numbers();
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        GetMetaResponse { registered: number(registered), online: number(online) }
    }

    async fn acme(&self) -> Result<AcmeInfoResponse, RpcError> {
        let info = self.engine.acme().await.map_err(RpcError::failed)?;
        let account_quote = self.engine.account_quote(&info.account_uri).await.map_err(RpcError::failed)?;
        Ok(AcmeInfoResponse { account_uri: info.account_uri, hist_keys: info.public_keys, account_quote })
    }
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
    pub fn renew(&self, identity: &Identity) -> Result<(), String> {
        self.identity.replace(identity).map_err(|e| e.to_string())
    }

    /// Waits until all listeners have ended.
    pub async fn wait(self) {
        for task in self.tasks {
            // A panic there was logged where it happened.
            let _ = task.await;
        }
    }
}

/// What a client that shows a certificate must show (trust rule T1): a leaf that this key service issued to an app, with
/// evidence of a boot that is over. Callers without certificate may read.
#[must_use]
pub fn rules(kms: Vec<u8>) -> Rules {
    Rules::issued_and_attested(Anchor::pinned(kms), vec![Usage::AppCustom], Some(Milestone::Ready))
}

/// Serves the listeners until `stop` changes, for apps of the key service with this SubjectPublicKeyInfo.
///
/// # Errors
/// A sentence, when the identity cannot be shown.
pub fn listen(
    engine: &Engine,
    identity: &Identity,
    kms: Vec<u8>,
    listeners: Vec<Listener>,
    stop: &watch::Receiver<bool>,
) -> Result<Served, String> {
    let (config, shown) = renewable_server_config(identity).map_err(|e| e.to_string())?;
    let mut server = Server::new(Arc::new(config), Arc::clone(engine.verifier()), rules(kms.clone()));
    server.connections = CONNECTIONS;
    server.refusals = Some(Refusals::to(|error, address| {
        tracing::info!("a registration from {address:?} was refused: {error}");
    }));
    let kms = Arc::new(kms);
    let serve = |listener: Listener| {
        let (engine, kms, mut stop) = (engine.clone(), Arc::clone(&kms), stop.clone());
        let router = move |session: Session| -> Router {
            let (engine, kms) = (engine.clone(), Arc::clone(&kms));
            let pages = http::pages(engine.clone());
            dstack_rpc::router("/prpc", Arc::new(Tproxy { engine, session, kms })).merge(pages)
        };
        let stopped = async move { drop(stop.wait_for(|stop| *stop).await) };
        tokio::spawn(dstack_ra_rpc::serve(listener, server.clone(), router, stopped))
    };
    Ok(Served { tasks: listeners.into_iter().map(serve).collect(), identity: shown })
}
