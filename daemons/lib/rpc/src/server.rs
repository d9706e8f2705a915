// SPDX-License-Identifier: Apache-2.0
//! The bounded accept loop: HTTP/1.1 over any [`Listener`], with limits on connections, heads and time.

use crate::limits::{CONNECTIONS_MAX, DRAIN_TIMEOUT, HEAD_MAX, HEAD_TIMEOUT, HEADERS_MAX};
use crate::listener::{Listener, Peer, Stream};
use axum::Router;
use axum::body::Body;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tower_service::Service as _;

/// Pause after a failed `accept`, so that a lack of descriptors does not become a busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// What a listener allows.
#[derive(Debug, Clone)]
pub struct ServeOptions {
    /// Connections served at a time.
    pub connections: usize,
    /// Whether a client may shut down its sending side and still get the reply (the JavaScript SDK does, on Unix
    /// sockets). Off, a client that goes away ends its streamed reply at once.
    pub half_close: bool,
    /// Time that open connections get to end after a stop.
    pub drain: Duration,
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self { connections: CONNECTIONS_MAX, half_close: false, drain: DRAIN_TIMEOUT }
    }
}

/// Serves a router until `stop` is done, then lets open calls end within `options.drain`.
///
/// Handlers find the [`Peer`] in the request's extensions.
pub async fn serve(
    listener: Listener,
    router: Router,
    options: ServeOptions,
    stop: impl Future<Output = ()> + Send,
) {
    let (stopping, stopped) = watch::channel(false);
    let slots = Arc::new(Semaphore::new(options.connections));
    let mut running = JoinSet::new();
    let mut stop = pin!(stop);
    loop {
        let accepted = tokio::select! {
            () = &mut stop => break,
            Some(_) = running.join_next() => continue,
            accepted = accept(&listener, &slots) => accepted,
        };
        let Some((slot, stream, peer)) = accepted else { continue };
        let served = connection(stream, peer, router.clone(), options.half_close, stopped.clone());
        running.spawn(async move {
            served.await;
            drop(slot);
        });
    }
    drop(listener);
    stopping.send_replace(true);
    let ended = async { while running.join_next().await.is_some() {} };
    // Connections that do not end in time are cut when the set is dropped.
    let _ = tokio::time::timeout(options.drain, ended).await;
}

/// The next connection once there is a slot for it; `None` when `accept` failed.
async fn accept(
    listener: &Listener,
    slots: &Arc<Semaphore>,
) -> Option<(tokio::sync::OwnedSemaphorePermit, Stream, Peer)> {
    let slot = Arc::clone(slots).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, peer)) => Some((slot, stream, peer)),
        Err(_) => {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            None
        }
    }
}

async fn connection(
    stream: Stream,
    peer: Peer,
    router: Router,
    half_close: bool,
    mut stopped: watch::Receiver<bool>,
) {
    let service = service_fn(move |request: Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(peer.clone());
        router.clone().call(request)
    });
    let served = builder(half_close).serve_connection(TokioIo::new(stream), service);
    let mut served = pin!(served);
    // An error here is a client that broke off or spoke no HTTP: nothing for the log.
    tokio::select! {
        _ = served.as_mut() => return,
        _ = stopped.wait_for(|stop| *stop) => served.as_mut().graceful_shutdown(),
    }
    let _ = served.await;
}

fn builder(half_close: bool) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_headers(HEADERS_MAX)
        .max_buf_size(HEAD_MAX)
        .half_close(half_close);
    builder
}
