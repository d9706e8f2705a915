// SPDX-License-Identifier: Apache-2.0
//! One call over one stream, in JSON: what teepod needs for the guest API over a descriptor it was passed.

use crate::limits::{CALL_TIMEOUT, REPLY_MAX};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The server answered with an error.
    #[error("{message}")]
    Remote {
        /// HTTP status.
        status: StatusCode,
        /// What the server said.
        message: String,
    },
    /// No whole answer in time.
    #[error("no answer within {} s; the other end may be starting, stopping or hung", .0.as_secs())]
    Timeout(Duration),
    /// The answer is larger than [`REPLY_MAX`].
    #[error("answer is larger than {REPLY_MAX} bytes")]
    TooLarge,
    /// The stream broke or did not carry HTTP.
    #[error("connection failed: {0}")]
    Connection(#[from] hyper::Error),
    /// The path is none.
    #[error("request is not valid: {0}")]
    Request(#[from] hyper::http::Error),
    /// The arguments or the answer are not the JSON they should be.
    #[error("message is not valid: {0}")]
    Json(#[from] serde_json::Error),
    /// The body of the answer broke off.
    #[error("answer broke off: {0}")]
    Body(String),
}

/// A whole answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// HTTP status.
    pub status: StatusCode,
    /// The body, at most [`REPLY_MAX`] bytes.
    pub body: Bytes,
}

/// Calls `path` with JSON arguments and parses the JSON answer, within [`CALL_TIMEOUT`].
///
/// # Errors
/// [`ClientError`]; `Remote` carries what the server said.
pub async fn call<Q, R, S>(stream: S, path: &str, args: &Q) -> Result<R, ClientError>
where
    Q: Serialize + Sync + ?Sized,
    R: DeserializeOwned,
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    call_within(stream, path, args, CALL_TIMEOUT).await
}

/// [`call`] with another time limit.
///
/// # Errors
/// As [`call`].
pub async fn call_within<Q, R, S>(stream: S, path: &str, args: &Q, limit: Duration) -> Result<R, ClientError>
where
    Q: Serialize + Sync + ?Sized,
    R: DeserializeOwned,
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let body = Bytes::from(serde_json::to_vec(args)?);
    let reply = exchange(stream, Method::POST, path, body, limit).await?;
    if reply.status == StatusCode::OK {
        return Ok(serde_json::from_slice(&reply.body)?);
    }
    Err(ClientError::Remote { status: reply.status, message: remote_message(&reply) })
}

#[derive(Deserialize)]
struct RemoteError {
    error: String,
}

/// The server's sentence, or its status when it gave none.
fn remote_message(reply: &Reply) -> String {
    match serde_json::from_slice::<RemoteError>(&reply.body) {
        Ok(said) => said.error,
        Err(_) => format!("HTTP status {}", reply.status),
    }
}

/// Sends one request with a JSON body and reads the whole answer, whatever its status.
///
/// # Errors
/// [`ClientError`] except `Remote` and `Json`.
pub async fn exchange<S>(
    stream: S,
    method: Method,
    path: &str,
    body: Bytes,
    limit: Duration,
) -> Result<Reply, ClientError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(HOST, "localhost")
        .header(CONTENT_TYPE, "application/json")
        .header(CONNECTION, "close")
        .body(Full::new(body))?;
    let answered = async { collect(send(stream, request).await?).await };
    tokio::time::timeout(limit, answered).await.map_err(|_| ClientError::Timeout(limit))?
}

/// An answer whose body is still being received; for streams of unknown length.
#[derive(Debug)]
pub struct Streaming {
    /// The answer's head and body.
    pub response: Response<Incoming>,
    /// Drives the connection; dropping it ends the transfer.
    pub driver: Driver,
}

/// Ends its task when dropped.
#[derive(Debug)]
pub struct Driver(tokio::task::JoinHandle<()>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Sends a request and returns as soon as the answer's head is here.
///
/// # Errors
/// [`ClientError::Connection`].
pub async fn send<S>(stream: S, request: Request<Full<Bytes>>) -> Result<Streaming, ClientError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let driver = Driver(tokio::spawn(async move {
        // Its error reaches the caller through the request or the body.
        let _ = connection.await;
    }));
    let response = sender.send_request(request).await?;
    Ok(Streaming { response, driver })
}

async fn collect(streaming: Streaming) -> Result<Reply, ClientError> {
    let (head, body) = streaming.response.into_parts();
    match Limited::new(body, REPLY_MAX).collect().await {
        Ok(body) => Ok(Reply { status: head.status, body: body.to_bytes() }),
        Err(e) if e.is::<LengthLimitError>() => Err(ClientError::TooLarge),
        Err(e) => Err(ClientError::Body(e.to_string())),
    }
}
