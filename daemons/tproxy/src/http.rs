// SPDX-License-Identifier: Apache-2.0
//! `GET /` and `GET /metrics` on the RPC port: they show what List shows anyway.

use crate::engine::Engine;
use crate::page::{self, Seen};
use axum::Router;
use axum::extract::State;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
    X_FRAME_OPTIONS,
};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

/// The two pages.
pub fn pages(engine: Engine) -> Router {
    Router::new().route("/", get(dashboard)).route("/metrics", get(metrics)).with_state(engine)
}

async fn dashboard(State(engine): State<Engine>) -> Response {
    let style = STANDARD.encode(Sha256::digest(page::style()));
    let policy =
        format!("default-src 'none'; style-src 'sha256-{style}'; frame-ancestors 'none'; base-uri 'none'");
    let headers = [
        (CONTENT_TYPE, "text/html; charset=utf-8".to_owned()),
        (CONTENT_SECURITY_POLICY, policy),
        (X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
        (X_FRAME_OPTIONS, "DENY".to_owned()),
        (REFERRER_POLICY, "no-referrer".to_owned()),
        (CACHE_CONTROL, "no-store".to_owned()),
    ];
    (headers, page::dashboard(&seen(&engine).await)).into_response()
}

async fn metrics(State(engine): State<Engine>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(CONTENT_TYPE, kind)], page::metrics(&seen(&engine).await)).into_response()
}

async fn seen(engine: &Engine) -> Seen {
    let settings = engine.settings();
    let domain = settings.proxy.base_domain.clone();
    Seen {
        now: engine.verifier().now(),
        domain,
        entries: engine.instances(),
        planes: engine.flows().planes(),
        counters: engine.flows().total(),
        tunnel: engine.tunnel(),
        acme: engine.acme().await,
    }
}
