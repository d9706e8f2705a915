// SPDX-License-Identifier: Apache-2.0
//! The HTTP client of ACME and of DNS providers: bounded, with deadlines, and one list of roots.

use crate::limits::{BODY_MAX, REQUEST, RETRY_AFTER_MAX};
use bytes::Bytes;
use http::header::{HeaderMap, RETRY_AFTER};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::RootCertStore;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::{CertificateDer, pem::PemObject};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use tokio::time::timeout;

/// Why a server was not heard.
#[derive(Debug, Clone, thiserror::Error)]
pub enum HttpError {
    /// The roots cannot be read.
    #[error("{0}")]
    Roots(String),
    /// It cannot be reached.
    #[error("{0} cannot be reached: {1}")]
    Unreachable(String, String),
    /// It does not answer in time.
    #[error("{0} does not answer within {seconds} s", seconds = REQUEST.as_secs())]
    Silent(String),
    /// It is in trouble, and says nothing else.
    #[error("{0} is in trouble: it answers with status {1}")]
    Trouble(String, StatusCode),
    /// Its answer is too large or breaks off.
    #[error("{0} gives an answer that breaks off or is larger than {BODY_MAX} bytes")]
    Body(String),
}

/// A whole answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Status.
    pub status: StatusCode,
    /// Headers.
    pub headers: HeaderMap,
    /// At most [`BODY_MAX`] bytes.
    pub body: Bytes,
}

/// A client; clones share connections and numbers.
#[derive(Debug, Clone)]
pub struct Http {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    requests: AtomicU64,
    /// Until when a server wants to hear nothing, Unix seconds; 0: it has not said so.
    quiet: AtomicI64,
}

impl Http {
    /// Trusts the system's authorities, or those of a PEM file alone.
    ///
    /// # Errors
    /// [`HttpError::Roots`].
    pub fn new(roots: Option<&Path>) -> Result<Self, HttpError> {
        let roots = match roots {
            Some(path) => from_file(path)?,
            None => of_system()?,
        };
        let config = rustls::ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|e| HttpError::Roots(e.to_string()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        // URLs were checked when they were read: https, or a loopback address.
        let connector =
            HttpsConnectorBuilder::new().with_tls_config(config).https_or_http().enable_http1().build();
        Ok(Self { client: Client::builder(TokioExecutor::new()).build(connector), shared: Arc::default() })
    }

    /// Asks.
    ///
    /// # Errors
    /// [`HttpError`]; an answer that refuses is none.
    pub async fn ask(&self, request: Request<Bytes>) -> Result<Answer, HttpError> {
        let whom = request.uri().host().unwrap_or_default().to_owned();
        self.shared.requests.fetch_add(1, Ordering::Relaxed);
        let answer = timeout(REQUEST, self.exchange(request, &whom)).await;
        let answer = answer.map_err(|_| HttpError::Silent(whom))??;
        if matches!(answer.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE)
            && let Some(until) = retry_after(&answer.headers, now())
        {
            self.shared.quiet.fetch_max(until, Ordering::Relaxed);
        }
        Ok(answer)
    }

    async fn exchange(&self, request: Request<Bytes>, whom: &str) -> Result<Answer, HttpError> {
        let answer = self.client.request(request.map(Full::new)).await;
        let answer = answer.map_err(|e| HttpError::Unreachable(whom.to_owned(), causes(&e)))?;
        let (parts, body) = answer.into_parts();
        let body = Limited::new(body, BODY_MAX).collect().await;
        let body = body.map_err(|_| HttpError::Body(whom.to_owned()))?.to_bytes();
        Ok(Answer { status: parts.status, headers: parts.headers, body })
    }

    /// Requests so far.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::Relaxed)
    }

    /// Until when a server wants to hear nothing, Unix seconds.
    #[must_use]
    pub fn quiet_until(&self) -> Option<i64> {
        Some(self.shared.quiet.load(Ordering::Relaxed)).filter(|until| *until > 0)
    }
}

/// Now, in Unix seconds.
#[must_use]
pub fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

/// `Retry-After`, as seconds or as a date, in Unix seconds and never further ahead than [`RETRY_AFTER_MAX`].
#[must_use]
pub fn retry_after(headers: &HeaderMap, now: i64) -> Option<i64> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let most = now.saturating_add(i64::try_from(RETRY_AFTER_MAX.as_secs()).ok()?);
    let until = match text.parse::<u32>() {
        Ok(seconds) => now.saturating_add(i64::from(seconds)),
        Err(_) => jiff::fmt::rfc2822::parse(text).ok()?.timestamp().as_second(),
    };
    Some(until.min(most))
}

fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text += &format!(": {cause}");
        source = cause.source();
    }
    text
}

fn from_file(path: &Path) -> Result<RootCertStore, HttpError> {
    let wrong = |e: &dyn std::fmt::Display| HttpError::Roots(format!("{}: {e}", path.display()));
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).map_err(|e| wrong(&e))? {
        roots.add(certificate.map_err(|e| wrong(&e))?).map_err(|e| wrong(&e))?;
    }
    match roots.is_empty() {
        true => Err(wrong(&"has no certificate")),
        false => Ok(roots),
    }
}

fn of_system() -> Result<RootCertStore, HttpError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    match roots.is_empty() {
        true => Err(HttpError::Roots(
            "there are no certificate authorities; run: apt install ca-certificates".into(),
        )),
        false => Ok(roots),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date_and_bounded() {
        let of = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, text.parse().unwrap());
            retry_after(&headers, 1_000_000_000)
        };
        assert_eq!(of("120"), Some(1_000_000_120));
        assert_eq!(of("Sun, 09 Sep 2001 01:48:40 GMT"), Some(1_000_000_120));
        assert_eq!(of("4000000000"), Some(1_000_000_000 + 7 * 86_400));
        assert_eq!(of("Thu, 31 Dec 2099 23:59:59 GMT"), Some(1_000_000_000 + 7 * 86_400));
        assert_eq!(of("soon"), None);
        assert_eq!(retry_after(&HeaderMap::new(), 0), None);
    }

    #[test]
    fn a_file_without_roots_is_an_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = Http::new(Some(file.path())).unwrap_err().to_string();
        assert!(error.contains("has no certificate"), "{error}");
    }
}
