// SPDX-License-Identifier: Apache-2.0
//! The HTTP adapter: `/prpc/Teepod.*`, `/guest/*`, `/logs`, all behind a bearer token.

pub mod auth;
pub mod guest;
pub mod logs;
pub mod teepod;

use crate::engine::Engine;
use auth::Token;
use axum::Router;
use axum::extract::Request;
use axum::http::HeaderValue;
use axum::middleware::{self, Next};
use axum::response::Response;
use dstack_rpc::{Listener, ServeOptions};
use std::error::Error;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Listeners that are being served.
#[derive(Debug)]
pub struct Served(JoinSet<()>);

impl Served {
    /// Waits until open calls have ended.
    pub async fn wait(mut self) {
        while self.0.join_next().await.is_some() {}
    }
}

/// Serves the web port on these listeners until `stopped` is true.
///
/// # Errors
/// When there is no token, or a socket is no listener.
pub fn listen(
    engine: &Engine,
    listeners: Vec<OwnedFd>,
    stopped: watch::Receiver<bool>,
) -> Result<Served, Box<dyn Error>> {
    let token = match engine.settings().auth {
        true => Some(Token::load(engine.state_directory())?),
        false => {
            tracing::warn!("auth.enabled is false: everybody who reaches the web port manages VMs");
            None
        }
    };
    let router = router(engine, token);
    let mut served = JoinSet::new();
    for fd in listeners {
        let (listener, router, mut stopped) = (Listener::from_fd(fd)?, router.clone(), stopped.clone());
        let stop = async move { drop(stopped.wait_for(|s| *s).await) };
        served.spawn(dstack_rpc::serve(listener, router, ServeOptions::default(), stop));
    }
    Ok(Served(served))
}

fn router(engine: &Engine, token: Option<Token>) -> Router {
    let all = Router::new()
        .merge(dstack_rpc::router("/prpc", Arc::new(teepod::Teepod::new(engine.clone()))))
        .merge(dstack_rpc::router("/guest", Arc::new(guest::Guest::new(engine.clone()))))
        .merge(logs::router(engine.clone()));
    // Outermost, so that nothing is answered without the token, not even an unknown path.
    all.fallback(auth::not_found)
        .layer(middleware::from_fn_with_state(token.map(Arc::new), auth::check))
        .layer(middleware::from_fn(name_version))
}

async fn name_version(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    headers.insert("x-app-version", HeaderValue::from_static(concat!("v", env!("CARGO_PKG_VERSION"))));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    response
}
