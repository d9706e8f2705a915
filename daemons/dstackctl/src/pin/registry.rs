// SPDX-License-Identifier: Apache-2.0
//! Asking registries for the digest of a tag: one manifest, over HTTPS with the system's authorities, or over HTTP where
//! the deployer says so. Docker Hub and its like give a token to anybody who asks.

use super::reference::{DOCKER, Reference};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::header::{ACCEPT, AUTHORIZATION, HOST, HeaderMap, USER_AGENT, WWW_AUTHENTICATE};
use hyper::{Request, StatusCode, Uri};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// Largest manifest, bytes; registries take none over 4 MiB.
const MANIFEST_MAX: usize = 4 * 1024 * 1024;
/// Time for one request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Debian's bundle of authorities.
const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";
/// Docker Hub's address, which is not its name.
const DOCKER_HOST: &str = "registry-1.docker.io";

const MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

/// How registries are reached.
#[derive(Debug, Clone, Default)]
pub struct Registries {
    /// Spoken to over plain HTTP, `HOST[:PORT]`.
    pub insecure: Vec<String>,
    /// Mirrors of Docker Hub, asked first.
    pub mirrors: Vec<String>,
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Registries {
    /// The digest that a tag has now: `sha256:…` of the manifest itself, not of what the registry says about it.
    ///
    /// # Errors
    /// Why it cannot be had.
    pub async fn digest(&self, image: &Reference) -> Result<String, String> {
        let mut last = String::new();
        for base in self.bases(image) {
            match manifest(&base, image).await {
                Ok(manifest) => return Ok(format!("sha256:{}", hex::encode(Sha256::digest(&manifest)))),
                Err(error) => last = format!("{base}: {error}"),
            }
        }
        Err(last)
    }

    /// Where an image is looked for, in this order.
    fn bases(&self, image: &Reference) -> Vec<String> {
        if image.registry == DOCKER {
            let mirrors = self.mirrors.iter().map(|m| m.trim_end_matches('/').to_owned());
            return mirrors.chain([format!("https://{DOCKER_HOST}")]).collect();
        }
        let scheme = if self.insecure.contains(&image.registry) { "http" } else { "https" };
        vec![format!("{scheme}://{}", image.registry)]
    }
}

async fn manifest(base: &str, image: &Reference) -> Result<Bytes, String> {
    let url = format!("{base}/v2/{}/manifests/{}", image.repository, image.tag);
    let mut answer = get(&url, None).await?;
    if answer.status == StatusCode::UNAUTHORIZED {
        let token = token(&answer.headers, image).await?;
        answer = get(&url, Some(&token)).await?;
    }
    match answer.status {
        StatusCode::OK => Ok(answer.body),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err("it needs a login".to_owned()),
        StatusCode::NOT_FOUND => Err("there is no such image or tag".to_owned()),
        StatusCode::TOO_MANY_REQUESTS => Err("too many requests; try again later".to_owned()),
        status => Err(format!("HTTP status {status}")),
    }
}

#[derive(Deserialize)]
struct Token {
    #[serde(alias = "access_token")]
    token: String,
}

/// The token that anybody gets for reading this image.
async fn token(headers: &HeaderMap, image: &Reference) -> Result<String, String> {
    let challenge = headers.get(WWW_AUTHENTICATE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let challenge = Challenge::parse(challenge).ok_or("it needs a login")?;
    let answer = get(&challenge.url(image), None).await?;
    if answer.status != StatusCode::OK {
        return Err(format!("{} gives no token: HTTP status {}", challenge.realm, answer.status));
    }
    let token: Token =
        serde_json::from_slice(&answer.body).map_err(|_| "its token cannot be read".to_owned())?;
    Ok(token.token)
}

/// `Bearer realm="…",service="…"`.
#[derive(Debug, PartialEq, Eq)]
struct Challenge {
    realm: String,
    service: String,
}

impl Challenge {
    fn parse(text: &str) -> Option<Self> {
        let (scheme, mut rest) = text.split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let (mut realm, mut service) = (None, String::new());
        while let Some((name, tail)) = rest.split_once("=\"") {
            let (value, tail) = tail.split_once('"')?;
            match name.trim_matches([' ', ',']) {
                "realm" => realm = Some(value.to_owned()),
                "service" => value.clone_into(&mut service),
                _ => {}
            }
            rest = tail;
        }
        Some(Self {
            realm: realm.filter(|r| r.starts_with("https://") || r.starts_with("http://"))?,
            service,
        })
    }

    fn url(&self, image: &Reference) -> String {
        let joint = if self.realm.contains('?') { '&' } else { '?' };
        let service = percent(&self.service);
        format!("{}{joint}service={service}&scope=repository:{}:pull", self.realm, image.repository)
    }
}

/// A value in a query.
fn percent(text: &str) -> String {
    let plain = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~');
    text.bytes().map(|b| if plain(&b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

async fn get(url: &str, token: Option<&str>) -> Result<Answer, String> {
    let uri: Uri = url.parse().map_err(|_| format!("{url:?} is no URL"))?;
    timeout(REQUEST_TIMEOUT, request(&uri, token)).await.map_err(|_| "no answer in time".to_owned())?
}

async fn request(uri: &Uri, token: Option<&str>) -> Result<Answer, String> {
    let secure = uri.scheme_str() == Some("https");
    let host = uri.host().ok_or("the URL names no host")?;
    let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
    let stream = TcpStream::connect((host.trim_matches(['[', ']']), port)).await;
    let stream = stream.map_err(|e| format!("cannot be reached: {e}"))?;
    if secure {
        exchange(encrypt(host, stream).await?, uri, token).await
    } else {
        exchange(stream, uri, token).await
    }
}

async fn encrypt(
    host: &str,
    stream: TcpStream,
) -> Result<tokio_rustls::client::TlsStream<TcpStream>, String> {
    let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned()).map_err(|e| e.to_string())?;
    let connector = TlsConnector::from(Arc::new(tls()?));
    connector.connect(name, stream).await.map_err(|e| format!("TLS: {e}{}", plain(&e)))
}

/// What to do about an answer that is no TLS at all.
fn plain(error: &std::io::Error) -> &'static str {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match inner {
        Some(rustls::Error::InvalidMessage(_)) => {
            "; it seems to speak plain HTTP: if that is meant, give --registry-insecure HOST[:PORT]"
        }
        _ => "",
    }
}

fn tls() -> Result<ClientConfig, String> {
    let path = std::env::var_os("SSL_CERT_FILE").map_or_else(|| PathBuf::from(AUTHORITIES), PathBuf::from);
    let unreadable = |e: &dyn std::fmt::Display| {
        format!("{} cannot be read: {e} (apt install ca-certificates)", path.display())
    };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(&path).map_err(|e| unreadable(&e))? {
        // One authority that rustls does not take must not hide the others.
        drop(roots.add(certificate.map_err(|e| unreadable(&e))?));
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    Ok(builder.map_err(|e| e.to_string())?.with_root_certificates(roots).with_no_client_auth())
}

async fn exchange<S>(stream: S, uri: &Uri, token: Option<&str>) -> Result<Answer, String>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let path = uri.path_and_query().map_or("/", hyper::http::uri::PathAndQuery::as_str);
    let host = uri.authority().map_or("", |a| a.as_str());
    let mut request = Request::get(path)
        .header(HOST, host)
        .header(USER_AGENT, concat!("dstackctl/", env!("CARGO_PKG_VERSION")))
        .header(ACCEPT, MANIFESTS);
    if let Some(token) = token {
        request = request.header(AUTHORIZATION, format!("Bearer {token}"));
    }
    let request = request.body(Full::new(Bytes::new())).map_err(|e| e.to_string())?;
    let streaming = dstack_rpc::client::send(stream, request).await.map_err(|e| e.to_string())?;
    let (head, body) = streaming.response.into_parts();
    let body =
        Limited::new(body, MANIFEST_MAX).collect().await.map_err(|e| format!("its answer broke off: {e}"))?;
    Ok(Answer { status: head.status, headers: head.headers, body: body.to_bytes() })
}

#[cfg(test)]
#[path = "registry_tests.rs"]
mod tests;
