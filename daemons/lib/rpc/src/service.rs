// SPDX-License-Identifier: Apache-2.0
//! A service's methods as an axum router.

use crate::limits::{BODY_TIMEOUT, REQUEST_MAX};
use crate::listener::Peer;
use crate::wire::{self, Format, RpcError};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Request, State};
use axum::response::Response;
use axum::routing::get;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Method, StatusCode, http::request::Parts};
use prost::Message;
use serde::{Serialize, de::DeserializeOwned};
use std::sync::Arc;

/// One call, decoded as far as its method.
#[derive(Debug)]
pub struct Call {
    /// The service as the caller named it, one of [`Service::NAMES`]; empty when it named none.
    pub service: String,
    /// The method without its service.
    pub method: String,
    /// The format of arguments and reply.
    pub format: Format,
    /// The encoded arguments.
    pub body: Bytes,
    /// The query, which holds the arguments of a GET without a body.
    pub query: Option<String>,
    /// Who calls; `None` in tests without a socket.
    pub peer: Option<Peer>,
}

impl Call {
    /// The arguments.
    ///
    /// # Errors
    /// 400 that names the first thing that does not fit.
    pub fn args<T: Message + Default + DeserializeOwned>(&self) -> Result<T, RpcError> {
        match &self.query {
            Some(query) => wire::decode_query(query),
            None => wire::decode(self.format, &self.body),
        }
    }

    /// Encodes the reply in the caller's format; `&()` for an empty one.
    ///
    /// # Errors
    /// None for the messages of this crate.
    pub fn reply<T: Message + Serialize>(&self, reply: &T) -> Result<Vec<u8>, RpcError> {
        wire::encode(self.format, reply)
    }
}

/// What answers calls. `call` matches on `call.method` and ends with `Err(RpcError::unknown_method(..))`.
pub trait Service: Send + Sync + 'static {
    /// Service names accepted before the method, e.g. `["Teepod"]`; the bare method always works.
    const NAMES: &'static [&'static str];

    /// Answers one call with the encoded reply.
    fn call(&self, call: Call) -> impl Future<Output = Result<Vec<u8>, RpcError>> + Send;
}

/// A router with `GET` and `POST` on `<base>/{method}`; `base` is `/prpc`, `/api`, or empty.
pub fn router<S: Service>(base: &str, service: Arc<S>) -> Router {
    Router::new().route(&format!("{base}/{{method}}"), get(handle::<S>).post(handle::<S>)).with_state(service)
}

async fn handle<S: Service>(
    State(service): State<Arc<S>>,
    Path(segment): Path<String>,
    request: Request,
) -> Response {
    let (head, body) = request.into_parts();
    let format = Format::of(&head.method, &head.uri, head.headers.get(CONTENT_TYPE));
    match answer(&*service, &segment, format, head, body).await {
        Ok(reply) => response(StatusCode::OK, format, reply),
        Err(error) => response(error.status, format, error.encode(format)),
    }
}

async fn answer<S: Service>(
    answers: &S,
    segment: &str,
    format: Format,
    head: Parts,
    body: Body,
) -> Result<Vec<u8>, RpcError> {
    let method = wire::method_name(segment, S::NAMES)?.to_owned();
    let service = segment.split_once('.').map_or("", |(service, _)| service).to_owned();
    let body = read_body(body).await?;
    let get = head.method == Method::GET && body.is_empty();
    let query = get.then(|| head.uri.query().unwrap_or_default().to_owned());
    let peer = head.extensions.get::<Peer>().cloned();
    answers.call(Call { service, method, format, body, query, peer }).await
}

async fn read_body(body: Body) -> Result<Bytes, RpcError> {
    let collect = Limited::new(body, REQUEST_MAX).collect();
    let read = tokio::time::timeout(BODY_TIMEOUT, collect).await.map_err(|_| RpcError {
        status: StatusCode::REQUEST_TIMEOUT,
        message: format!("the request body did not arrive within {} s", BODY_TIMEOUT.as_secs()),
    })?;
    match read {
        Ok(body) => Ok(body.to_bytes()),
        Err(e) if e.is::<LengthLimitError>() => Err(RpcError {
            status: StatusCode::PAYLOAD_TOO_LARGE,
            message: format!("the request body is larger than {REQUEST_MAX} bytes"),
        }),
        Err(e) => Err(RpcError::failed(format!("the request body cannot be read: {e}"))),
    }
}

/// A whole body has a known length, so hyper sends `Content-Length` and never chunks.
fn response(status: StatusCode, format: Format, body: Vec<u8>) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(format.content_type()));
    response
}
