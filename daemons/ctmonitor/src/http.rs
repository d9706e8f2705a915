// SPDX-License-Identifier: Apache-2.0
//! Getting a file over HTTPS by the system's authorities, or over HTTP where the operator says so.

use crate::certificate::printable;
use crate::limits::{ANSWER_TIMEOUT, URL_MAX};
use flate2::read::GzDecoder;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{
    ACCEPT_ENCODING, CONNECTION, CONTENT_ENCODING, HOST, HeaderMap, RETRY_AFTER, USER_AGENT,
};
use hyper::{Request, Response, StatusCode, Uri};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// Debian's bundle of authorities.
const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";
/// How much of an error page is shown.
const PAGE_MAX: usize = 64 * 1024;

/// Where a service is: `https://HOST[:PORT][/PATH]`, or `http://…`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    is_tls: bool,
    host: String,
    port: u16,
    authority: String,
    path: String,
}

/// Why a URL cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no URL of a service: write https://HOST[:PORT][/PATH], without a query")]
pub struct UrlError(String);

impl Base {
    /// Reads a URL.
    ///
    /// # Errors
    /// [`UrlError`].
    pub fn parse(url: &str) -> Result<Self, UrlError> {
        let wrong = || UrlError(url.chars().take(200).collect());
        let uri: Uri = url.parse().ok().filter(|_| url.len() <= URL_MAX).ok_or_else(wrong)?;
        let is_tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(wrong()),
        };
        let authority = uri.authority().filter(|a| !a.as_str().contains('@')).ok_or_else(wrong)?;
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        if host.is_empty() || uri.query().is_some() || url.contains('#') {
            return Err(wrong());
        }
        let port = uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        let path = uri.path().trim_end_matches('/').to_owned();
        Ok(Self { is_tls, host, port, authority: authority.to_string(), path })
    }

    /// Without the scheme: the name that a static log has in its checkpoints.
    #[must_use]
    pub fn schemeless(&self) -> String {
        format!("{}{}", self.authority, self.path)
    }
}

impl fmt::Display for Base {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_tls { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority, self.path)
    }
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HttpError {
    /// It cannot be reached, or TLS fails.
    #[error("{0}")]
    Unreachable(String),
    /// It answers with another status than 200.
    #[error("HTTP status {status}{}", page(.text))]
    Status {
        /// The status.
        status: StatusCode,
        /// How long it asks to be left alone, seconds.
        retry_after: Option<u64>,
        /// How its page begins.
        text: String,
    },
    /// The answer is larger than allowed.
    #[error("the answer is larger than {0} bytes")]
    TooLarge(usize),
    /// The answer broke off, or is packed in a way that was not asked for.
    #[error("the answer cannot be read: {0}")]
    Broken(String),
    /// No whole answer in time.
    #[error("no answer within {} s", .0.as_secs())]
    Timeout(Duration),
}

fn page(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(" ({text})") }
}

/// A client.
#[derive(Clone)]
pub struct Http {
    tls: Arc<ClientConfig>,
}

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Http")
    }
}

impl Http {
    /// A client that trusts the authorities of the system; `SSL_CERT_FILE` names others.
    ///
    /// # Errors
    /// A sentence, when they cannot be read.
    pub fn new() -> Result<Self, String> {
        let path =
            std::env::var_os("SSL_CERT_FILE").map_or_else(|| PathBuf::from(AUTHORITIES), PathBuf::from);
        Self::trusting(&path)
    }

    /// A client that trusts the authorities of a PEM file.
    ///
    /// # Errors
    /// A sentence, when it cannot be read.
    pub fn trusting(path: &Path) -> Result<Self, String> {
        let unreadable = |e: &dyn fmt::Display| {
            format!("{} cannot be read: {e}; run: apt install ca-certificates", path.display())
        };
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(path).map_err(|e| unreadable(&e))? {
            // One authority that the library does not take must not hide the others.
            drop(roots.add(certificate.map_err(|e| unreadable(&e))?));
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = builder.map_err(|e| e.to_string())?.with_root_certificates(roots).with_no_client_auth();
        Ok(Self { tls: Arc::new(config) })
    }

    /// Gets `base/target`, at most `max` bytes, unpacked.
    ///
    /// # Errors
    /// [`HttpError`].
    pub async fn get(&self, base: &Base, target: &str, max: usize) -> Result<Vec<u8>, HttpError> {
        timeout(ANSWER_TIMEOUT, self.request(base, target, max))
            .await
            .map_err(|_| HttpError::Timeout(ANSWER_TIMEOUT))?
    }

    async fn request(&self, base: &Base, target: &str, max: usize) -> Result<Vec<u8>, HttpError> {
        let failed = |e: &dyn fmt::Display| {
            HttpError::Unreachable(format!("{} cannot be reached: {e}", base.authority))
        };
        let stream = TcpStream::connect((base.host.as_str(), base.port)).await.map_err(|e| failed(&e))?;
        if !base.is_tls {
            return exchange(stream, base, target, max).await;
        }
        let name = ServerName::try_from(base.host.clone()).map_err(|e| failed(&e))?;
        let connector = TlsConnector::from(Arc::clone(&self.tls));
        let stream = connector.connect(name, stream).await.map_err(|e| failed(&e))?;
        exchange(stream, base, target, max).await
    }
}

async fn exchange<S>(stream: S, base: &Base, target: &str, max: usize) -> Result<Vec<u8>, HttpError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let request = Request::get(format!("{}/{target}", base.path))
        .header(HOST, &base.authority)
        .header(USER_AGENT, concat!("dstack-ct-monitor/", env!("CARGO_PKG_VERSION")))
        .header(ACCEPT_ENCODING, "gzip, identity")
        .header(CONNECTION, "close")
        .body(Full::new(Bytes::new()))
        .map_err(|e| HttpError::Unreachable(e.to_string()))?;
    let streaming = dstack_rpc::client::send(stream, request).await;
    let streaming = streaming.map_err(|e| HttpError::Broken(printable(&e.to_string())))?;
    answer(streaming.response, max).await
}

async fn answer(response: Response<Incoming>, max: usize) -> Result<Vec<u8>, HttpError> {
    let (head, body) = response.into_parts();
    if head.status != StatusCode::OK {
        let retry_after = retry_after(&head.headers);
        // An error page that cannot be read is no other error.
        let text = Limited::new(body, PAGE_MAX).collect().await.map(|b| b.to_bytes()).unwrap_or_default();
        return Err(HttpError::Status { status: head.status, retry_after, text: words(&text) });
    }
    let bytes = match Limited::new(body, max).collect().await {
        Ok(body) => body.to_bytes().to_vec(),
        Err(e) if e.is::<LengthLimitError>() => return Err(HttpError::TooLarge(max)),
        Err(e) => return Err(HttpError::Broken(printable(&e.to_string()))),
    };
    match head.headers.get(CONTENT_ENCODING).map(|v| v.as_bytes()) {
        None | Some(b"identity") => Ok(bytes),
        Some(b"gzip") => unpack(&bytes, max),
        Some(_) => Err(HttpError::Broken("it is packed in a way that was not asked for".to_owned())),
    }
}

/// Unpacks gzip, at most `max` bytes.
fn unpack(packed: &[u8], max: usize) -> Result<Vec<u8>, HttpError> {
    let limit = u64::try_from(max).unwrap_or(u64::MAX);
    let mut bytes = Vec::new();
    let read = GzDecoder::new(packed).take(limit.saturating_add(1)).read_to_end(&mut bytes);
    read.map_err(|e| HttpError::Broken(e.to_string()))?;
    if bytes.len() > max { Err(HttpError::TooLarge(max)) } else { Ok(bytes) }
}

/// The first words of a page, without its tags.
fn words(page: &[u8]) -> String {
    let (mut text, mut in_tag) = (String::new(), false);
    for c in String::from_utf8_lossy(page).chars() {
        match c {
            '<' => in_tag = true,
            '>' => (in_tag, text) = (false, text + " "),
            c if !in_tag => text.push(c),
            _ => {}
        }
    }
    let words: Vec<&str> = text.split_whitespace().take(12).collect();
    printable(&words.join(" "))
}

/// Seconds, or a date.
fn retry_after(headers: &HeaderMap) -> Option<u64> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(seconds);
    }
    let date = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
    let wait = date.as_second().saturating_sub(jiff::Timestamp::now().as_second());
    Some(u64::try_from(wait).unwrap_or(0))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn urls() {
        for (url, shown, name) in [
            ("https://crt.sh", "https://crt.sh", "crt.sh"),
            (
                "https://Rome.example:8443/2024h1/",
                "https://Rome.example:8443/2024h1",
                "Rome.example:8443/2024h1",
            ),
            ("http://[::1]:80", "http://[::1]:80", "[::1]:80"),
        ] {
            let base = Base::parse(url).unwrap();
            assert_eq!((base.to_string(), base.schemeless()), (shown.to_owned(), name.to_owned()));
        }
        for bad in
            ["", "crt.sh", "ftp://x", "https://", "https://a@b", "https://a?b=c", "https://a#b", "https:///x"]
        {
            assert!(Base::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn waiting_is_told_in_two_ways() {
        let after = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, text.parse().unwrap());
            retry_after(&headers)
        };
        assert_eq!(
            (after("120"), after("x"), after("Sun, 06 Nov 1994 08:49:37 GMT")),
            (Some(120), None, Some(0))
        );
        let later = jiff::Timestamp::now().as_second() + 100;
        let date =
            jiff::Timestamp::from_second(later).unwrap().strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
        assert!(after(&date).is_some_and(|wait| (90..=100).contains(&wait)), "{date}");
    }

    #[test]
    fn p15_a_bomb_is_cut_off() {
        let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        packer.write_all(&vec![0; 1_000_000]).unwrap();
        let packed = packer.finish().unwrap();
        assert!(packed.len() < 5000);
        assert_eq!(unpack(&packed, 999_999), Err(HttpError::TooLarge(999_999)));
        assert_eq!(unpack(&packed, 1_000_000).unwrap().len(), 1_000_000);
        assert!(unpack(b"x", 9).is_err());
    }

    #[test]
    fn pages_are_shown_in_words() {
        let page = b"<html><head><title>502 Bad Gateway</title></head><body>\n\x1b<h1>nginx</h1></body>";
        assert_eq!(words(page), "502 Bad Gateway ? nginx");
    }
}
