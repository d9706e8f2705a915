// SPDX-License-Identifier: Apache-2.0
//! TCP 8090: dashboard, `/prpc/Worker.*`, `/logs/<container>`, `/metrics`; each gated by what the app makes public.

use crate::agent::{Agent, now};
use crate::dashboard::{self, Trust, View};
use crate::logs::{Query, format};
use crate::metrics;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, RawQuery, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, HeaderValue};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::map_response;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use dstack_rpc::{Call, RpcError, Service};
use futures_util::stream;
use std::convert::Infallible;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Everything that the `external` socket serves.
pub fn router(agent: Arc<Agent>) -> Router {
    let worker = Arc::new(Worker(Arc::clone(&agent)));
    Router::new()
        .route("/", get(page))
        .route("/style.css", get(style))
        .route("/metrics", get(metrics_page))
        .route("/logs/{container}", get(logs))
        .with_state(agent)
        .merge(dstack_rpc::router("/prpc", worker))
        .layer(map_response(harden))
}

/// The service `Worker`.
#[derive(Debug)]
struct Worker(Arc<Agent>);

impl Service for Worker {
    const NAMES: &'static [&'static str] = &["Worker"];

    async fn call(&self, call: Call) -> Result<Vec<u8>, RpcError> {
        match call.method.as_str() {
            "Info" => call.reply(&self.0.worker_info().await),
            "Version" => call.reply(&self.0.version()),
            other => Err(RpcError::unknown_method(other)),
        }
    }
}

/// Headers of every answer: containers write what is in it, and browsers may not take it for anything else.
async fn harden(mut response: Response) -> Response {
    let headers = response.headers_mut();
    let fixed = |value| HeaderValue::from_static(value);
    headers.insert(CONTENT_SECURITY_POLICY, fixed(dashboard::CONTENT_SECURITY_POLICY));
    headers.insert(HeaderName::from_static("x-content-type-options"), fixed("nosniff"));
    headers.insert(HeaderName::from_static("referrer-policy"), fixed("no-referrer"));
    headers.insert(HeaderName::from_static("x-accel-buffering"), fixed("no"));
    headers.entry(CACHE_CONTROL).or_insert(fixed("no-store"));
    response
}

fn typed(content_type: &'static str, body: impl Into<Body>) -> Response {
    ([(CONTENT_TYPE, HeaderValue::from_static(content_type))], body.into()).into_response()
}

async fn page(State(agent): State<Arc<Agent>>) -> Response {
    let app = &agent.app;
    let sysinfo = app.public_sysinfo.then(|| agent.sysinfo());
    let containers = match app.public_sysinfo || app.public_logs {
        true => Some(agent.containers().await.map_err(|e| e.to_string())),
        false => None,
    };
    let containers = containers.as_ref().map(|c| c.as_deref().map_err(String::as_str));
    let trust = trust(&agent).await;
    let addresses = agent.addresses().await;
    let view = View { app, addresses: &addresses, sysinfo: sysinfo.as_ref(), containers, trust };
    typed("text/html; charset=utf-8", dashboard::render(&view))
}

/// What the page says about keys and TEE.
async fn trust(agent: &Agent) -> Trust {
    let measured = agent.public_measured().await;
    Trust {
        provider: agent.vault.provider(),
        // The vault has logged why there is none.
        realm: agent.vault.realm().await.ok().cloned(),
        certificate: measured.as_ref().map(|_| agent.vault.certificate()).unwrap_or_default(),
        measured,
    }
}

async fn style() -> Response {
    let mut response = typed("text/css; charset=utf-8", dashboard::STYLE);
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("max-age=3600"));
    response
}

async fn metrics_page(State(agent): State<Arc<Agent>>) -> Response {
    if !agent.app.public_sysinfo {
        return private("metrics", "public_sysinfo");
    }
    let quotes = agent.vault.attestor().quotes();
    let page = metrics::render(&agent.sysinfo(), &metrics::Process::collect(), quotes);
    typed(metrics::CONTENT_TYPE, page)
}

fn private(what: &str, key: &str) -> Response {
    let text = format!("the {what} of this app are private; its app-compose.json does not set {key}");
    (StatusCode::FORBIDDEN, error(&text)).into_response()
}

fn error(text: &str) -> (HeaderMap, Vec<u8>) {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    (headers, format::error(text))
}

async fn logs(
    State(agent): State<Arc<Agent>>,
    Path(container): Path<String>,
    RawQuery(query): RawQuery,
) -> Response {
    read_logs(&agent, &container, &query.unwrap_or_default()).await
}

/// The answer to `/logs/<container>?<query>`, on whatever door it was asked.
pub(crate) async fn read_logs(agent: &Agent, container: &str, query: &str) -> Response {
    if !agent.app.public_logs {
        return private("logs", "public_logs");
    }
    let query = match Query::parse(query, now()) {
        Ok(query) => query,
        Err(e) => return (StatusCode::BAD_REQUEST, error(&e.to_string())).into_response(),
    };
    match agent.open_log(container, query).await {
        Ok(chunks) => typed("text/plain; charset=utf-8", streamed(chunks)),
        // Status 200, as clients of the original expect.
        Err(e) => error(&e.to_string()).into_response(),
    }
}

fn streamed(chunks: mpsc::Receiver<Vec<u8>>) -> Body {
    let next = |mut chunks: mpsc::Receiver<Vec<u8>>| async {
        let chunk = chunks.recv().await?;
        Some((Ok::<_, Infallible>(Bytes::from(chunk)), chunks))
    };
    Body::from_stream(stream::unfold(chunks, next))
}
