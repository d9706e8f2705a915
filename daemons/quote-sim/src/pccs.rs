// SPDX-License-Identifier: Apache-2.0
//! Collateral as a provisioning certificate caching service serves it (PCCS API, version 4): four paths over HTTP.
//!
//! | path | body | issuer chain in |
//! |---|---|---|
//! | `/sgx/certification/v4/pckcrl?ca=platform` | list, DER with `encoding=der`, else PEM | `SGX-PCK-CRL-Issuer-Chain` |
//! | `/sgx/certification/v4/rootcacrl` | list, DER in hex | |
//! | `/tdx/certification/v4/tcb?fmspc=…` | `{"tcbInfo":…,"signature":"…"}` | `TCB-Info-Issuer-Chain` |
//! | `/tdx/certification/v4/qe/identity` | `{"enclaveIdentity":…,"signature":"…"}` | `SGX-Enclave-Identity-Issuer-Chain` |
//!
//! Anybody may ask: everything is signed, and nothing is secret.

use crate::collateral::Collateral;
use crate::pki::FMSPC;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};

/// Time for a request's head to arrive.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest head of a request, bytes; the least that hyper takes.
const HEAD_MAX: usize = 8192;
/// Time that a connection may last.
const CONNECTION: Duration = Duration::from_secs(60);

const CRL_CHAIN: HeaderName = HeaderName::from_static("sgx-pck-crl-issuer-chain");
const TCB_CHAIN: HeaderName = HeaderName::from_static("tcb-info-issuer-chain");
const QE_CHAIN: HeaderName = HeaderName::from_static("sgx-enclave-identity-issuer-chain");

type Reply = Response<Full<Bytes>>;

/// Serves one connection; `collateral` gives what is in force now, or a sentence.
pub async fn serve<S>(stream: S, collateral: impl Fn() -> Result<Collateral, String>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let collateral = &collateral;
    let service = service_fn(move |request: Request<Incoming>| async move {
        let target = request.uri();
        let reply = answer(request.method(), target.path(), target.query().unwrap_or_default(), collateral);
        Ok::<_, Infallible>(reply)
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(HEAD_MAX);
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(CONNECTION, connection).await {
        Ok(Ok(())) | Err(_) => {}
        Ok(Err(error)) => tracing::debug!("connection for collateral ended: {error}"),
    }
}

/// What is said instead of an answer.
type Refused = (StatusCode, &'static str);

fn answer(
    method: &Method,
    path: &str,
    query: &str,
    collateral: impl Fn() -> Result<Collateral, String>,
) -> Reply {
    found(method, path, query, collateral).unwrap_or_else(|(status, reason)| {
        let mut reply = typed("text/plain", reason);
        *reply.status_mut() = status;
        reply
    })
}

fn found(
    method: &Method,
    path: &str,
    query: &str,
    collateral: impl Fn() -> Result<Collateral, String>,
) -> Result<Reply, Refused> {
    if method != Method::GET {
        return Err((StatusCode::METHOD_NOT_ALLOWED, "use GET"));
    }
    let current = || {
        collateral().map_err(|reason| {
            tracing::error!("no collateral: {reason}");
            (StatusCode::INTERNAL_SERVER_ERROR, "no collateral; see the log of dstack-quote-sim")
        })
    };
    match path {
        "/sgx/certification/v4/pckcrl" => {
            check_ca(query)?;
            pck_crl(query, current()?)
        }
        "/sgx/certification/v4/rootcacrl" => Ok(typed("text/plain", hex::encode(current()?.root_ca_crl))),
        "/tdx/certification/v4/tcb" => {
            check_platform(query)?;
            let c = current()?;
            let body = signed("tcbInfo", &c.tcb_info, &c.tcb_info_signature);
            with_chain(typed("application/json", body), TCB_CHAIN, &c.tcb_info_issuer_chain)
        }
        "/tdx/certification/v4/qe/identity" => {
            let c = current()?;
            let body = signed("enclaveIdentity", &c.qe_identity, &c.qe_identity_signature);
            with_chain(typed("application/json", body), QE_CHAIN, &c.qe_identity_issuer_chain)
        }
        _ => Err((StatusCode::NOT_FOUND, "no such resource of the PCCS API, version 4")),
    }
}

fn check_ca(query: &str) -> Result<(), Refused> {
    match parameter(query, "ca") {
        Some("platform") => Ok(()),
        Some("processor") => {
            Err((StatusCode::NOT_FOUND, "the simulated platform is certified by `platform`"))
        }
        _ => Err((StatusCode::BAD_REQUEST, "give ca=platform")),
    }
}

fn check_platform(query: &str) -> Result<(), Refused> {
    let asked = parameter(query, "fmspc").unwrap_or_default();
    if asked.eq_ignore_ascii_case(&hex::encode(FMSPC)) {
        return Ok(());
    }
    Err((StatusCode::NOT_FOUND, "not the platform of this test root"))
}

fn pck_crl(query: &str, collateral: Collateral) -> Result<Reply, Refused> {
    let (kind, body) = if parameter(query, "encoding") == Some("der") {
        ("application/pkix-crl", Bytes::from(collateral.pck_crl))
    } else {
        ("application/x-pem-file", Bytes::from(pem_crl(&collateral.pck_crl)))
    };
    with_chain(typed(kind, body), CRL_CHAIN, &collateral.pck_crl_issuer_chain)
}

/// The first value of a parameter; what is asked for needs no escapes.
fn parameter<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
}

/// The exact signed text inside, since the signature is over its bytes.
fn signed(name: &str, text: &str, signature: &[u8]) -> String {
    format!(r#"{{"{name}":{text},"signature":"{}"}}"#, hex::encode(signature))
}

fn pem_crl(der: &[u8]) -> String {
    use p256::pkcs8::der::pem::{LineEnding, encode_string};
    encode_string("X509 CRL", LineEnding::LF, der).unwrap_or_default()
}

fn typed(kind: &'static str, body: impl Into<Bytes>) -> Reply {
    let mut reply = Response::new(Full::new(body.into()));
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    reply
}

/// Adds a chain of PEM certificates, percent-encoded, as a header.
fn with_chain(mut reply: Reply, name: HeaderName, chain: &str) -> Result<Reply, Refused> {
    let keep = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~');
    let encoded: String = chain
        .bytes()
        .map(|b| if keep(b) { char::from(b).to_string() } else { format!("%{b:02X}") })
        .collect();
    let value = HeaderValue::try_from(encoded)
        .map_err(|_| (StatusCode::INTERNAL_SERVER_ERROR, "a certificate cannot be sent"))?;
    reply.headers_mut().insert(name, value);
    Ok(reply)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collateral::Claims;
    use crate::pki::{self, TestRoot};
    use http_body_util::BodyExt;
    use time::OffsetDateTime;

    fn collateral() -> Collateral {
        let now = OffsetDateTime::now_utc();
        let root = TestRoot::load(&pki::generate(now).unwrap()).unwrap();
        root.collateral(&Claims::up_to_date(now)).unwrap()
    }

    async fn get(collateral: &Collateral, target: &str) -> (StatusCode, Vec<u8>, Option<String>) {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let reply = answer(&Method::GET, path, query, || Ok(collateral.clone()));
        let chain = [CRL_CHAIN, TCB_CHAIN, QE_CHAIN].iter().find_map(|n| reply.headers().get(n).cloned());
        let status = reply.status();
        let body = reply.into_body().collect().await.unwrap().to_bytes().to_vec();
        (status, body, chain.map(|c| c.to_str().unwrap().to_owned()))
    }

    #[tokio::test]
    async fn the_published_paths_give_what_is_signed() {
        let all = collateral();
        let (status, body, chain) = get(&all, "/sgx/certification/v4/pckcrl?ca=platform&encoding=der").await;
        assert_eq!((status, body), (StatusCode::OK, all.pck_crl.clone()));
        assert!(chain.unwrap().starts_with("-----BEGIN%20CERTIFICATE-----%0A"));
        let (_, body, _) = get(&all, "/sgx/certification/v4/pckcrl?ca=platform").await;
        assert!(body.starts_with(b"-----BEGIN X509 CRL-----\n"));
        let (_, body, _) = get(&all, "/sgx/certification/v4/rootcacrl").await;
        assert_eq!(hex::decode(body).unwrap(), all.root_ca_crl);
        let (_, body, chain) =
            get(&all, "/tdx/certification/v4/tcb?fmspc=50806F000000&update=standard").await;
        let text = String::from_utf8(body).unwrap();
        assert!(text.starts_with(&format!(r#"{{"tcbInfo":{},"signature":""#, all.tcb_info)));
        assert!(chain.is_some());
        let (_, body, chain) = get(&all, "/tdx/certification/v4/qe/identity?update=standard").await;
        assert!(String::from_utf8(body).unwrap().contains(&all.qe_identity) && chain.is_some());
    }

    #[tokio::test]
    async fn other_requests_are_refused() {
        let all = collateral();
        for (target, status) in [
            ("/", StatusCode::NOT_FOUND),
            ("/sgx/certification/v4/tcb", StatusCode::NOT_FOUND),
            ("/sgx/certification/v4/pckcrl", StatusCode::BAD_REQUEST),
            ("/sgx/certification/v4/pckcrl?ca=processor", StatusCode::NOT_FOUND),
            ("/tdx/certification/v4/tcb?fmspc=00906ea10000", StatusCode::NOT_FOUND),
        ] {
            assert_eq!(get(&all, target).await.0, status, "{target}");
        }
        let posted = answer(&Method::POST, "/sgx/certification/v4/rootcacrl", "", || Ok(all.clone()));
        assert_eq!(posted.status(), StatusCode::METHOD_NOT_ALLOWED);
        let failed = answer(&Method::GET, "/sgx/certification/v4/rootcacrl", "", || Err("no".into()));
        assert_eq!(failed.status(), StatusCode::INTERNAL_SERVER_ERROR);
    }
}
