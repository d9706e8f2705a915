// SPDX-License-Identifier: Apache-2.0
//! Collateral from a provisioning certificate caching service (PCCS), or from Intel's own service, by the published paths
//! of version 4.
//!
//! Every part is signed and is checked by the verifier, so TLS here hides what is asked for and proves nothing about the
//! server: a PCCS most often has a certificate that nobody issued. What a false server can do is to give nothing, or
//! something older, and [`crate::collateral::Cache`] takes nothing older than what was verified before.

use crate::collateral::{Fetch, PlatformId};
use crate::peer::BoxFuture;
use crate::tls;
use dstack_ra_tls::evidence::COLLATERAL_MAX;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, HOST};
use hyper::{HeaderMap, Request, Uri};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

/// Intel's own service.
pub const INTEL: &str = "https://api.trustedservices.intel.com";
/// Where Intel publishes the revocation list of its root: its service has no path for it.
const INTEL_ROOT_CRL: &str = "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der";
/// Longest URL.
const URL_MAX: usize = 1024;

/// Why a URL cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{url:?} is no PCCS: {reason}")]
pub struct UrlError {
    /// What was given.
    url: String,
    /// What is wrong, and how it is right.
    reason: &'static str,
}

/// How a server is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Door {
    Unix(PathBuf),
    Tcp { host: String, port: u16, is_tls: bool },
}

/// A service for collateral.
#[derive(Debug, Clone)]
pub struct Pccs {
    door: Door,
    /// Path before the published ones, without a slash at its end.
    prefix: String,
    tls: Arc<ClientConfig>,
}

impl Pccs {
    /// The service at `https://HOST[:PORT][/PREFIX]`, `http://…`, or `unix:/PATH` (HTTP on a Unix socket).
    ///
    /// # Errors
    /// [`UrlError`].
    pub fn parse(url: &str) -> Result<Self, UrlError> {
        let wrong = |reason| UrlError { url: url.chars().take(200).collect(), reason };
        let tls = tls::unauthenticated_config().map_err(|_| wrong("TLS cannot be set up"))?;
        let (door, path) = door(url).map_err(wrong)?;
        let path = path.trim_end_matches('/');
        let prefix = ["/sgx/certification/v4", "/tdx/certification/v4"]
            .into_iter()
            .find_map(|tail| path.strip_suffix(tail))
            .unwrap_or(path);
        Ok(Self { door, prefix: prefix.to_owned(), tls: Arc::new(tls) })
    }

    fn is_intel(&self) -> bool {
        matches!(&self.door, Door::Tcp { host, .. } if host.ends_with(".trustedservices.intel.com"))
    }

    async fn collateral(&self, platform: PlatformId) -> Result<Vec<u8>, String> {
        // A platform with TDX is certified by the platform CA; the other one is for small processors.
        let fmspc = hex::encode_upper(platform.0);
        let (crl, root, tcb, qe) = tokio::try_join!(
            self.get("/sgx/certification/v4/pckcrl?ca=platform&encoding=der".to_owned()),
            self.root_crl(),
            self.get(format!("/tdx/certification/v4/tcb?fmspc={fmspc}")),
            self.get("/tdx/certification/v4/qe/identity".to_owned()),
        )?;
        let tcb_text: TcbInfo<'_> = parse("tcb", &tcb.body)?;
        let qe_text: QeIdentity<'_> = parse("qe/identity", &qe.body)?;
        let collateral = Collateral {
            pck_crl_issuer_chain: crl.chain(&["sgx-pck-crl-issuer-chain"])?,
            root_ca_crl: hex::encode(list(&root.body)?),
            pck_crl: hex::encode(list(&crl.body)?),
            tcb_info_issuer_chain: tcb.chain(&["tcb-info-issuer-chain", "sgx-tcb-info-issuer-chain"])?,
            tcb_info: tcb_text.tcb_info.get(),
            tcb_info_signature: tcb_text.signature,
            qe_identity_issuer_chain: qe.chain(&["sgx-enclave-identity-issuer-chain"])?,
            qe_identity: qe_text.enclave_identity.get(),
            qe_identity_signature: qe_text.signature,
        };
        serde_json::to_vec(&collateral).map_err(|e| e.to_string())
    }

    async fn root_crl(&self) -> Result<Answer, String> {
        if !self.is_intel() {
            return self.get("/sgx/certification/v4/rootcacrl".to_owned()).await;
        }
        let publisher = Self::parse(INTEL_ROOT_CRL).map_err(|e| e.to_string())?;
        publisher.get(String::new()).await
    }

    async fn get(&self, path: String) -> Result<Answer, String> {
        let target = format!("{}{path}", self.prefix);
        let answer = match &self.door {
            Door::Unix(socket) => {
                let stream = UnixStream::connect(socket).await;
                ask(stream.map_err(|e| format!("{}: {e}", socket.display()))?, "localhost", &target).await
            }
            Door::Tcp { host, port, is_tls } => {
                let named = |e: std::io::Error| format!("{host}:{port}: {e}");
                let stream = TcpStream::connect((host.as_str(), *port)).await.map_err(named)?;
                let name = format!("{host}:{port}");
                if *is_tls {
                    let server = ServerName::try_from(host.clone()).map_err(|e| format!("{host}: {e}"))?;
                    let connector = TlsConnector::from(Arc::clone(&self.tls));
                    ask(connector.connect(server, stream).await.map_err(named)?, &name, &target).await
                } else {
                    ask(stream, &name, &target).await
                }
            }
        };
        answer.map_err(|reason| format!("{target}: {reason}"))
    }
}

impl Fetch for Pccs {
    fn fetch(&self, platform: PlatformId) -> BoxFuture<'_, Result<Vec<u8>, String>> {
        Box::pin(self.collateral(platform))
    }
}

/// Where a URL leads, and its path.
fn door(url: &str) -> Result<(Door, String), &'static str> {
    if url.len() > URL_MAX {
        return Err("it is too long");
    }
    if let Some(path) = url.strip_prefix("unix:") {
        let path = path.strip_prefix("//").unwrap_or(path);
        let is_absolute = path.starts_with('/');
        return if is_absolute {
            Ok((Door::Unix(path.into()), String::new()))
        } else {
            Err("use unix:/path/of/the/socket")
        };
    }
    let uri: Uri = url.parse().map_err(|_| "use https://HOST[:PORT], http://HOST[:PORT] or unix:/PATH")?;
    let is_tls = match uri.scheme_str() {
        Some("https") => true,
        Some("http") => false,
        _ => return Err("use https://HOST[:PORT], http://HOST[:PORT] or unix:/PATH"),
    };
    if uri.query().is_some() || uri.authority().is_some_and(|a| a.as_str().contains('@')) {
        return Err("it takes no query and no user");
    }
    let host = uri.host().filter(|host| !host.is_empty()).ok_or("it has no host")?;
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let port = uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
    Ok((Door::Tcp { host, port, is_tls }, uri.path().to_owned()))
}

/// What a server said.
#[derive(Debug)]
struct Answer {
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Answer {
    /// The chain of certificates in the first of these headers that is there.
    fn chain(&self, names: &[&str]) -> Result<String, String> {
        let value = names.iter().find_map(|name| self.headers.get(*name));
        let value = value.and_then(|v| v.to_str().ok());
        let missing = || format!("the answer has no header {}", names.first().unwrap_or(&""));
        value.and_then(percent_decoded).ok_or_else(missing)
    }
}

async fn ask<S>(stream: S, host: &str, target: &str) -> Result<Answer, String>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    let request = Request::get(target).header(HOST, host).header(CONNECTION, "close");
    let request = request.body(Empty::<Bytes>::new()).map_err(|e| e.to_string())?;
    let exchange = async {
        let reply = sender.send_request(request).await.map_err(|e| e.to_string())?;
        if !reply.status().is_success() {
            return Err(format!("HTTP status {}", reply.status()));
        }
        let headers = reply.headers().clone();
        let body = Limited::new(reply.into_body(), COLLATERAL_MAX).collect().await;
        let body = body.map_err(|e| format!("the answer cannot be read: {e}"))?.to_bytes().to_vec();
        Ok(Answer { headers, body })
    };
    // The connection is driven along with the exchange, and ends with it.
    tokio::pin!(exchange);
    tokio::select! {
        answer = &mut exchange => answer,
        ended = connection => match ended {
            Ok(()) => exchange.await,
            Err(error) => Err(error.to_string()),
        },
    }
}

/// Undoes percent encoding; `None` when it is out of form or no text. A plus sign is one: this is no form.
fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        if *first == b'%' {
            let (digits, tail) = tail.split_at_checked(2)?;
            bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
            rest = tail;
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    String::from_utf8(bytes).ok()
}

/// A revocation list as DER, from DER, PEM or hex.
fn list(body: &[u8]) -> Result<Vec<u8>, String> {
    const DER_SEQUENCE: u8 = 0x30;
    let text = body.trim_ascii();
    let pem = || x509_parser::pem::parse_x509_pem(text).ok().map(|(_, pem)| pem.contents);
    // Hex of DER begins with the digit 3, DER with the byte 0x30: the digit 0.
    let found = match text.first() {
        Some(b'-') => pem(),
        Some(b'3') => hex::decode(text).ok(),
        Some(&DER_SEQUENCE) => Some(body.to_vec()),
        _ => None,
    };
    found.ok_or_else(|| "a revocation list is neither DER, PEM nor hex".to_owned())
}

#[derive(Deserialize)]
struct TcbInfo<'a> {
    #[serde(rename = "tcbInfo", borrow)]
    tcb_info: &'a RawValue,
    signature: String,
}

#[derive(Deserialize)]
struct QeIdentity<'a> {
    #[serde(rename = "enclaveIdentity", borrow)]
    enclave_identity: &'a RawValue,
    signature: String,
}

fn parse<'a, T: Deserialize<'a>>(what: &str, body: &'a [u8]) -> Result<T, String> {
    serde_json::from_slice(body).map_err(|e| format!("the answer to {what} is not what it should be: {e}"))
}

/// Collateral in the form that the verifier reads; lists and signatures in hex, texts exactly as they were signed.
#[derive(Serialize)]
struct Collateral<'a> {
    pck_crl_issuer_chain: String,
    root_ca_crl: String,
    pck_crl: String,
    tcb_info_issuer_chain: String,
    tcb_info: &'a str,
    tcb_info_signature: String,
    qe_identity_issuer_chain: String,
    qe_identity: &'a str,
    qe_identity_signature: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let good = [
            ("https://pccs.example:8081/sgx/certification/v4/", "pccs.example", 8081, true, ""),
            ("http://127.0.0.1:9081", "127.0.0.1", 9081, false, ""),
            ("https://[::1]/cache/", "::1", 443, true, "/cache"),
        ];
        for (url, host, port, is_tls, prefix) in good {
            let pccs = Pccs::parse(url).unwrap();
            assert_eq!(pccs.door, Door::Tcp { host: host.into(), port, is_tls }, "{url}");
            assert_eq!(pccs.prefix, prefix, "{url}");
        }
        assert_eq!(Pccs::parse("unix:/run/x.sock").unwrap().door, Door::Unix("/run/x.sock".into()));
        assert!(Pccs::parse(INTEL).unwrap().is_intel());
        for bad in ["", "pccs", "ftp://x", "https://", "https://u@x", "http://x/?a=b", "unix:x", "file:///x"]
        {
            assert!(Pccs::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn lists_come_in_three_forms() {
        let der = [0x30, 3, 2, 1, 5];
        assert_eq!(list(&der).unwrap(), der);
        assert_eq!(list(b"3003020105\n").unwrap(), der);
        assert_eq!(list(b"-----BEGIN X509 CRL-----\nMAMCAQU=\n-----END X509 CRL-----\n").unwrap(), der);
        for bad in [&b""[..], b"<html>", b"3x", b"-----"] {
            assert!(list(bad).is_err());
        }
    }

    #[test]
    fn headers_are_percent_decoded_once() {
        assert_eq!(percent_decoded("a%0Ab+%2525").unwrap(), "a\nb+%25");
        for bad in ["%", "%0", "%zz", "%ff"] {
            assert_eq!(percent_decoded(bad), None, "{bad}");
        }
    }
}
