// SPDX-License-Identifier: Apache-2.0
//! Formats, paths, bodies and errors of pRPC, as pure functions over bytes.

use crate::limits::METHOD_MAX;
use hyper::{Method, StatusCode, Uri, header::HeaderValue};
use prost::Message;
use serde::{Serialize, de::DeserializeOwned};
use std::io::{self, Write};

/// How a request and its reply are encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// JSON with snake_case names, bytes as hex, 64-bit integers as numbers.
    Json,
    /// Protocol buffers.
    Protobuf,
}

impl Format {
    /// The content type of a body in this format.
    #[must_use]
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Protobuf => "application/octet-stream",
        }
    }

    /// The format that a request asks for: JSON for a GET, with `json` in its query, or by its content type.
    #[must_use]
    pub fn of(method: &Method, uri: &Uri, content_type: Option<&HeaderValue>) -> Self {
        let typed = content_type.and_then(|v| v.to_str().ok()).is_some_and(is_json_type);
        if *method == Method::GET || typed || uri.query().is_some_and(asks_json) {
            Self::Json
        } else {
            Self::Protobuf
        }
    }
}

fn is_json_type(value: &str) -> bool {
    let essence = value.split(';').next().unwrap_or_default();
    essence.trim().eq_ignore_ascii_case("application/json")
}

/// Whether a query has `json`, alone or with a value that means yes.
fn asks_json(query: &str) -> bool {
    query.split('&').any(|pair| matches!(pair, "json" | "json=" | "json=1" | "json=true"))
}

/// A failed call: what the caller did wrong, or what could not be done and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct RpcError {
    /// HTTP status of the reply.
    pub status: StatusCode,
    /// One sentence for people.
    pub message: String,
}

#[derive(Serialize)]
struct JsonError<'a> {
    error: &'a str,
}

#[derive(Message)]
struct ProtobufError {
    #[prost(string, tag = "1")]
    error: String,
}

impl RpcError {
    /// The call failed; the message says what to do.
    #[must_use]
    pub fn failed(message: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, message: message.into() }
    }

    /// There is no such method.
    #[must_use]
    pub fn unknown_method(method: &str) -> Self {
        let name: String = method.chars().take(METHOD_MAX).collect();
        Self { status: StatusCode::NOT_FOUND, message: format!("there is no method {name:?}") }
    }

    /// The caller may not do this.
    #[must_use]
    pub fn forbidden(message: impl Into<String>) -> Self {
        Self { status: StatusCode::FORBIDDEN, message: message.into() }
    }

    /// The body of the reply that carries this error.
    #[must_use]
    pub fn encode(&self, format: Format) -> Vec<u8> {
        match format {
            Format::Json => to_ascii(&JsonError { error: &self.message }).unwrap_or_default(),
            Format::Protobuf => ProtobufError { error: self.message.clone() }.encode_to_vec(),
        }
    }
}

/// The method named by the last segment of a path: `Info`, or `<Service>.Info` when `services` has the service.
///
/// # Errors
/// 404 when the service is another one or the name is too long.
pub fn method_name<'a>(segment: &'a str, services: &[&str]) -> Result<&'a str, RpcError> {
    let method = match segment.split_once('.') {
        Some((service, method)) if services.contains(&service) => method,
        Some(_) => return Err(RpcError::unknown_method(segment)),
        None => segment,
    };
    let known = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if method.is_empty() || method.len() > METHOD_MAX || !method.chars().all(known) {
        return Err(RpcError::unknown_method(segment));
    }
    Ok(method)
}

/// Decodes a request body; an empty JSON body and `null` are the default message.
///
/// # Errors
/// 400 that names the first thing that does not fit.
pub fn decode<T: Message + Default + DeserializeOwned>(format: Format, body: &[u8]) -> Result<T, RpcError> {
    match format {
        Format::Json => decode_json(body),
        Format::Protobuf => {
            T::decode(body).map_err(|e| RpcError::failed(format!("request is no valid protobuf: {e}")))
        }
    }
}

fn decode_json<T: Default + DeserializeOwned>(body: &[u8]) -> Result<T, RpcError> {
    let text = body.trim_ascii();
    if text.is_empty() || text == b"null" {
        return Ok(T::default());
    }
    serde_json::from_slice(text).map_err(|e| RpcError::failed(format!("request is no valid JSON: {e}")))
}

/// Decodes the arguments in the query of a GET.
///
/// # Errors
/// 400 that names the first thing that does not fit.
pub fn decode_query<T: DeserializeOwned>(query: &str) -> Result<T, RpcError> {
    serde_urlencoded::from_str(query).map_err(|e| RpcError::failed(format!("query is not valid: {e}")))
}

/// JSON in ASCII: the JavaScript SDK takes the bytes of a body for its characters, and would wait for the rest of one
/// that has fewer.
fn to_ascii(value: &impl Serialize) -> serde_json::Result<Vec<u8>> {
    let mut json = Vec::with_capacity(256);
    value.serialize(&mut serde_json::Serializer::with_formatter(&mut json, Ascii))?;
    Ok(json)
}

/// Compact JSON whose texts have escapes for whatever is not ASCII.
struct Ascii;

impl serde_json::ser::Formatter for Ascii {
    fn write_string_fragment<W: ?Sized + Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        let mut rest = fragment;
        while let Some((at, odd)) = rest.char_indices().find(|(_, c)| !c.is_ascii()) {
            let (plain, from) = rest.split_at(at);
            writer.write_all(plain.as_bytes())?;
            odd.encode_utf16(&mut [0; 2]).iter().try_for_each(|unit| write!(writer, "\\u{unit:04x}"))?;
            rest = from.split_at(odd.len_utf8()).1;
        }
        writer.write_all(rest.as_bytes())
    }
}

/// Encodes a reply; `()` is `null` in JSON and nothing in protobuf.
///
/// # Errors
/// 400 when a value has no JSON form; no message here has such.
pub fn encode<T: Message + Serialize>(format: Format, reply: &T) -> Result<Vec<u8>, RpcError> {
    match format {
        Format::Json => to_ascii(reply).map_err(|e| RpcError::failed(format!("reply has no JSON form: {e}"))),
        Format::Protobuf => Ok(reply.encode_to_vec()),
    }
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
