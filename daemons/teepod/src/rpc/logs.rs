// SPDX-License-Identifier: Apache-2.0
//! `GET /logs?id&follow&ansi&lines&ch`: a VM's console, or what its dstack-vm and QEMU say, from the journal.

use crate::console::{Channel, LINES_DEFAULT, LINES_MAX, Wanted, read};
use crate::engine::Engine;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures_util::stream;
use serde::Deserialize;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

/// Logs that are read at a time; each takes a thread.
const READERS_MAX: usize = 16;
/// Lines that wait for a slow reader; then the journal waits.
const QUEUE: usize = 256;
/// After this long without a line a follower gets one, so that proxies keep the connection.
const HEARTBEAT: Duration = Duration::from_secs(60);

#[derive(Debug, Deserialize)]
#[serde(default)]
struct Arguments {
    id: String,
    follow: bool,
    /// Accepted for compatibility: escapes never get into the journal.
    ansi: bool,
    lines: u32,
    ch: String,
}

impl Default for Arguments {
    fn default() -> Self {
        Self { id: String::new(), follow: false, ansi: false, lines: LINES_DEFAULT, ch: "serial".to_owned() }
    }
}

#[derive(Debug, Clone)]
struct Logs {
    engine: Engine,
    slots: Arc<Semaphore>,
}

/// The route `/logs`.
pub fn router(engine: Engine) -> Router {
    let logs = Logs { engine, slots: Arc::new(Semaphore::new(READERS_MAX)) };
    Router::new().route("/logs", get(logs_of)).with_state(logs)
}

async fn logs_of(State(logs): State<Logs>, Query(ask): Query<Arguments>) -> Response {
    let vm = match logs.engine.get(&ask.id) {
        Ok(vm) => vm,
        Err(error) => return (StatusCode::NOT_FOUND, format!("{error}\n")).into_response(),
    };
    let Some(channel) = Channel::parse(&ask.ch) else {
        return (StatusCode::BAD_REQUEST, "ch is serial, stdout or stderr\n").into_response();
    };
    let Ok(slot) = Arc::clone(&logs.slots).try_acquire_owned() else {
        return (StatusCode::TOO_MANY_REQUESTS, "too many logs are read at a time; try again\n")
            .into_response();
    };
    let wanted =
        Wanted { unit: vm.name.unit(), channel, lines: ask.lines.min(LINES_MAX), follow: ask.follow };
    let (sender, receiver) = mpsc::channel(QUEUE);
    if let Err(error) = std::thread::Builder::new().name("journal".into()).spawn(move || {
        if let Err(error) = read(&wanted, &sender) {
            tracing::warn!("the journal of {} cannot be read: {error}", wanted.unit);
        }
    }) {
        return (StatusCode::SERVICE_UNAVAILABLE, format!("no thread for the log: {error}\n"))
            .into_response();
    }
    let _ = ask.ansi;
    let body = Body::from_stream(stream::unfold((receiver, slot), next));
    ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], body).into_response()
}

type Follow = (mpsc::Receiver<String>, OwnedSemaphorePermit);

/// The next line with its end; the stream ends with the reader's thread.
async fn next((mut receiver, slot): Follow) -> Option<(Result<Bytes, std::convert::Infallible>, Follow)> {
    let line = match tokio::time::timeout(HEARTBEAT, receiver.recv()).await {
        Ok(line) => line?,
        Err(_) => "[teepod heartbeat]".to_owned(),
    };
    Some((Ok(Bytes::from(line + "\n")), (receiver, slot)))
}
