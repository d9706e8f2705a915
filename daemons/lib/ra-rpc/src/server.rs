// SPDX-License-Identifier: Apache-2.0
//! The bounded accept loop: handshake, judgement, and only then HTTP.

use crate::peer::{Peer, PeerError, Rules, Side, Verifier};
use axum::Router;
use axum::body::Body;
use axum::response::Response;
use dstack_rpc::limits::{CONNECTIONS_MAX, DRAIN_TIMEOUT, HEAD_MAX, HEAD_TIMEOUT, HEADERS_MAX};
use dstack_rpc::{Format, Listener, RpcError, Stream};
use hyper::Request;
use hyper::body::Incoming;
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tower_service::Service as _;

/// Time for a handshake.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for a judgement, with fetching collateral.
pub const JUDGE_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause after a failed `accept`, so that a lack of descriptors does not become a busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Who is at the other end of a connection.
#[derive(Debug, Clone)]
pub struct Session {
    /// The judged peer; `None` when it showed no certificate.
    pub peer: Option<Arc<Peer>>,
    /// Its address.
    pub address: dstack_rpc::Peer,
}

impl Session {
    /// The judged peer.
    ///
    /// # Errors
    /// 403 for a caller without certificate.
    pub fn peer(&self) -> Result<&Arc<Peer>, RpcError> {
        self.peer.as_ref().ok_or_else(|| RpcError::forbidden(PeerError::Anonymous.to_string()))
    }
}

type Tell = dyn Fn(&PeerError, &dstack_rpc::Peer) + Send + Sync;

/// Is told of each client that is refused, before the client is.
#[derive(Clone)]
pub struct Refusals(Arc<Tell>);

impl Refusals {
    /// Tells this function, which must not block.
    pub fn to(tell: impl Fn(&PeerError, &dstack_rpc::Peer) + Send + Sync + 'static) -> Self {
        Self(Arc::new(tell))
    }
}

impl std::fmt::Debug for Refusals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Refusals")
    }
}

/// What a listener needs.
#[derive(Debug, Clone)]
pub struct Server {
    /// TLS.
    pub config: Arc<ServerConfig>,
    /// Judges clients.
    pub verifier: Arc<Verifier>,
    /// What clients that show a certificate must show.
    pub rules: Rules,
    /// Connections served at a time.
    pub connections: usize,
    /// Who is told of refused clients.
    pub refusals: Option<Refusals>,
}

impl Server {
    /// A server with the usual number of connections.
    #[must_use]
    pub const fn new(config: Arc<ServerConfig>, verifier: Arc<Verifier>, rules: Rules) -> Self {
        Self { config, verifier, rules, connections: CONNECTIONS_MAX, refusals: None }
    }
}

/// Serves until `stop` is done, then lets open calls end for a moment. `router` makes the router of one connection; it
/// is asked after the judgement, and for callers without certificate too. A caller whose certificate is refused gets
/// the reason as the answer to its request, and nothing else.
pub async fn serve<F>(listener: Listener, server: Server, router: F, stop: impl Future<Output = ()> + Send)
where
    F: Fn(Session) -> Router + Send + Sync + 'static,
{
    let (stopping, stopped) = watch::channel(false);
    let slots = Arc::new(Semaphore::new(server.connections));
    let shared = Arc::new((server, router));
    let mut running = JoinSet::new();
    let mut stop = pin!(stop);
    loop {
        let accepted = tokio::select! {
            () = &mut stop => break,
            Some(_) = running.join_next() => continue,
            accepted = accept(&listener, &slots) => accepted,
        };
        let Some((slot, stream, address)) = accepted else { continue };
        let (shared, stopped) = (Arc::clone(&shared), stopped.clone());
        running.spawn(async move {
            let (server, router) = &*shared;
            connection(server, router, stream, address, stopped).await;
            drop(slot);
        });
    }
    drop(listener);
    stopping.send_replace(true);
    let ended = async { while running.join_next().await.is_some() {} };
    // Connections that do not end in time are cut when the set is dropped.
    let _ = timeout(DRAIN_TIMEOUT, ended).await;
}

async fn accept(
    listener: &Listener,
    slots: &Arc<Semaphore>,
) -> Option<(OwnedSemaphorePermit, Stream, dstack_rpc::Peer)> {
    let slot = Arc::clone(slots).acquire_owned().await.ok()?;
    if let Ok((stream, peer)) = listener.accept().await {
        return Some((slot, stream, peer));
    }
    tokio::time::sleep(ACCEPT_PAUSE).await;
    None
}

async fn connection<F: Fn(Session) -> Router>(
    server: &Server,
    router: &F,
    stream: Stream,
    address: dstack_rpc::Peer,
    stopped: watch::Receiver<bool>,
) {
    let handshake = TlsAcceptor::from(Arc::clone(&server.config)).accept(stream);
    // A peer that speaks no TLS, or breaks off, is nothing for the log.
    let Ok(Ok(stream)) = timeout(HANDSHAKE_TIMEOUT, handshake).await else { return };
    let answer = match judge(server, &stream).await {
        Ok(peer) => Answer::Router(router(Session { peer: peer.clone(), address }), peer),
        Err(error) => {
            if let Some(Refusals(tell)) = &server.refusals {
                tell(&error, &address);
            }
            Answer::Refusal(error.to_string())
        }
    };
    http(server, stream, answer, stopped).await;
}

/// The judged client; `None` without a certificate.
async fn judge(server: &Server, stream: &TlsStream<Stream>) -> Result<Option<Arc<Peer>>, PeerError> {
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    if chain.is_empty() {
        return Ok(None);
    }
    let judged = server.verifier.judge(chain, Side::Client, &server.rules);
    let peer = timeout(JUDGE_TIMEOUT, judged).await.map_err(|_| PeerError::Cut)??;
    Ok(Some(Arc::new(peer)))
}

/// What a connection's requests are answered with.
#[derive(Clone)]
enum Answer {
    Router(Router, Option<Arc<Peer>>),
    Refusal(String),
}

async fn http(
    server: &Server,
    stream: TlsStream<Stream>,
    answer: Answer,
    mut stopped: watch::Receiver<bool>,
) {
    let verifier = Arc::clone(&server.verifier);
    let service = service_fn(move |request: Request<Incoming>| {
        let (answer, now) = (answer.clone(), verifier.now());
        async move { Ok::<_, Infallible>(respond(answer, request, now).await) }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    builder.max_headers(HEADERS_MAX).max_buf_size(HEAD_MAX);
    let mut served = pin!(builder.serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        _ = served.as_mut() => return,
        _ = stopped.wait_for(|stop| *stop) => served.as_mut().graceful_shutdown(),
    }
    let _ = served.await;
}

async fn respond(answer: Answer, request: Request<Incoming>, now: u64) -> Response {
    let (mut router, peer) = match answer {
        Answer::Refusal(reason) => return refuse(&request, reason),
        Answer::Router(router, peer) => (router, peer),
    };
    if peer.is_some_and(|peer| !peer.is_current(now)) {
        return refuse(&request, "the verdict over your evidence is too old; connect again".to_owned());
    }
    match router.call(request.map(Body::new)).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}

/// The reason, in the caller's format; the connection ends with it.
fn refuse(request: &Request<Incoming>, reason: String) -> Response {
    let format = Format::of(request.method(), request.uri(), request.headers().get(CONTENT_TYPE));
    let error = RpcError::forbidden(reason);
    let mut response = Response::new(Body::from(error.encode(format)));
    *response.status_mut() = error.status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(format.content_type()));
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
}
