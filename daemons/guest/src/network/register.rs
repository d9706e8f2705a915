// SPDX-License-Identifier: Apache-2.0
//! One registration: with the app's certificate and the quote inside it, at a server that the app's key service made a
//! gateway (trust rules T1, T17).

use super::tunnel::{AnswerError, Resolved, Tunnel};
use dstack_core::ids::AppId;
use dstack_core::kms_address::Address;
use dstack_ra_rpc::peer::BoxFuture;
use dstack_ra_rpc::tls::client_config;
use dstack_ra_rpc::{Anchor, ConnectError, Identity, PeerError, Rules, Verifier, connect};
use dstack_ra_tls::certificate::Usage;
use dstack_rpc::ClientError;
use dstack_rpc::dstack::GetTlsKeyArgs;
use dstack_rpc::tappd::GetTlsKeyResponse;
use dstack_rpc::tproxy::{GatewayRegisterResponse, RegisterCvmRequest};
use rustls::ClientConfig;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio::time::timeout;
use zeroize::Zeroizing;

/// Time for a TCP connection, with the look-up of the name.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for a whole registration.
const REGISTER_TIMEOUT: Duration = Duration::from_secs(30);
/// Life of the certificate: it is used at once.
const CERTIFICATE_LIFE: Duration = Duration::from_secs(3600);
const METHOD: &str = "prpc/Gateway.RegisterCvm?json";

/// What is asked, and of whom.
#[derive(Debug)]
pub struct Ask<'a> {
    /// Where it may be; a hint.
    pub address: &'a Address,
    /// The app id that it must have.
    pub gateway: AppId,
    /// The key service that must have issued its certificate, SPKI DER.
    pub kms: &'a [u8],
    /// Judges it.
    pub verifier: &'a Verifier,
    /// How this instance shows itself.
    pub config: Arc<ClientConfig>,
    /// The arguments.
    pub request: &'a RegisterCvmRequest,
}

/// Why there is no registration: a fixed sentence (trust rule T18), and what is said in the guest's journal alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Miss {
    /// What happened.
    pub kind: MissKind,
    /// The details.
    pub detail: String,
}

/// What may happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MissKind {
    /// Nobody answers.
    Unreachable,
    /// Whoever answers is not the gateway.
    Foreign,
    /// It said no.
    Refused,
    /// What it gave cannot be used.
    Answer,
    /// The guest agent gives no certificate.
    Certificate,
}

impl MissKind {
    /// The sentence.
    #[must_use]
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::Unreachable => "a tproxy cannot be reached",
            Self::Foreign => "a server that was given as tproxy is not the gateway of the app's key service",
            Self::Refused => "a tproxy refused to register this instance",
            Self::Answer => "a tproxy gave a tunnel that cannot be used",
            Self::Certificate => "the guest agent gives no certificate to register with",
        }
    }

    fn with(self, detail: impl std::fmt::Display) -> Miss {
        Miss { kind: self, detail: detail.to_string() }
    }
}

/// Shows this instance to a server.
pub trait Identify: Send + Sync + std::fmt::Debug {
    /// TLS with the app's certificate, the quote inside.
    fn identify(&self) -> BoxFuture<'_, Result<Arc<ClientConfig>, Miss>>;
}

/// The guest agent, by its socket: it makes keys, quotes and certificates for whoever is inside the app's machine.
#[derive(Debug)]
pub struct Agent(pub PathBuf);

impl Identify for Agent {
    fn identify(&self) -> BoxFuture<'_, Result<Arc<ClientConfig>, Miss>> {
        Box::pin(async {
            let failed = |detail: String| MissKind::Certificate.with(detail);
            let stream = UnixStream::connect(&self.0).await.map_err(|e| failed(e.to_string()))?;
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let args = GetTlsKeyArgs {
                usage_ra_tls: true,
                usage_client_auth: true,
                not_after: Some((now + CERTIFICATE_LIFE).as_secs()),
                ..Default::default()
            };
            let reply: GetTlsKeyResponse = dstack_rpc::client::call(stream, "/GetTlsKey?json", &args)
                .await
                .map_err(|e| failed(e.to_string()))?;
            let identity = identity(reply).ok_or_else(|| failed("it is damaged".to_owned()))?;
            client_config(Some(&identity)).map(Arc::new).map_err(|e| failed(e.to_string()))
        })
    }
}

fn identity(reply: GetTlsKeyResponse) -> Option<Identity> {
    let text = Zeroizing::new(reply.key);
    let key = Zeroizing::new(pem::parse(text.as_str()).ok()?.into_contents());
    let certificate = |text: &String| pem::parse(text).ok().map(pem::Pem::into_contents);
    let chain: Option<Vec<Vec<u8>>> = reply.certificate_chain.iter().map(certificate).collect();
    Some(Identity::new(chain.filter(|chain| !chain.is_empty())?, key))
}

/// Registers once.
///
/// # Errors
/// [`Miss`].
pub async fn register(ask: &Ask<'_>, now: u64) -> Result<Tunnel, Miss> {
    let late = |_| MissKind::Unreachable.with("no answer in time");
    timeout(REGISTER_TIMEOUT, attempt(ask, now)).await.map_err(late)?
}

async fn attempt(ask: &Ask<'_>, now: u64) -> Result<Tunnel, Miss> {
    let connecting = TcpStream::connect((ask.address.host.as_str(), ask.address.port));
    let stream = timeout(CONNECT_TIMEOUT, connecting).await;
    let stream = stream.map_err(|_| MissKind::Unreachable.with("no connection in time"))?;
    let stream = stream.map_err(|e| MissKind::Unreachable.with(e))?;
    let rules = Rules::issued(Anchor::pinned(ask.kms.to_vec()), vec![Usage::GatewayRpc]);
    let connection =
        connect(stream, Arc::clone(&ask.config), ask.verifier, &rules).await.map_err(refused_peer)?;
    // T17: the key service may know several gateways; this app has one.
    if connection.peer().app_id != Some(ask.gateway) {
        return Err(MissKind::Foreign.with("its certificate is for another gateway"));
    }
    let path = format!("{}/{METHOD}", ask.address.base);
    let answer: GatewayRegisterResponse = connection.call(&path, ask.request).await.map_err(failed_call)?;
    tunnel(ask.address, answer, now).await
}

/// What a server that is not who it must be means.
fn refused_peer(error: ConnectError) -> Miss {
    match error {
        ConnectError::Peer(PeerError::Collateral(_) | PeerError::Cut)
        | ConnectError::Timeout
        | ConnectError::Tls(_) => MissKind::Unreachable.with(error),
        ConnectError::Peer(peer) => MissKind::Foreign.with(peer),
    }
}

fn failed_call(error: ClientError) -> Miss {
    match error {
        ClientError::Remote { status, message } if !status.is_server_error() => {
            MissKind::Refused.with(message)
        }
        ClientError::TooLarge | ClientError::Json(_) | ClientError::Request(_) => {
            MissKind::Answer.with(error)
        }
        _ => MissKind::Unreachable.with(error),
    }
}

/// Looks up where the servers are; everything else of the answer is checked without the network.
async fn tunnel(address: &Address, answer: GatewayRegisterResponse, now: u64) -> Result<Tunnel, Miss> {
    let wrong = |error: AnswerError| MissKind::Answer.with(error);
    let wg = answer.wg.ok_or_else(|| wrong(AnswerError("tunnel")))?;
    let agent = answer.agent.unwrap_or_default();
    let mut servers = Vec::new();
    for server in wg.servers.into_iter().take(super::tunnel::SERVERS_MAX) {
        let endpoint = resolve(&server.endpoint).await?;
        servers.push(Resolved { public_key: server.pk, ip: server.ip, endpoint });
    }
    Tunnel::new(address, &wg.client_ip, &servers, &agent, now).map_err(wrong)
}

async fn resolve(endpoint: &str) -> Result<SocketAddr, Miss> {
    if let Ok(address) = endpoint.parse() {
        return Ok(address);
    }
    let found = timeout(CONNECT_TIMEOUT, lookup_host(endpoint)).await;
    let found = found.map_err(|_| MissKind::Unreachable.with("its endpoint is not found in time"))?;
    let mut found = found.map_err(|e| MissKind::Unreachable.with(e))?;
    found.next().ok_or_else(|| MissKind::Unreachable.with("its endpoint has no address"))
}
