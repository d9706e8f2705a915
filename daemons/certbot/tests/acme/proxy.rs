// SPDX-License-Identifier: Apache-2.0
//! A reverse proxy before the real authority, which has one fault at one step and otherwise passes on what is said: the
//! authority makes its URLs of the `Host` that it is asked by, so all of them lead here.

use bytes::Bytes;
use dstack_certbot::http::{Answer, Http};
use http::{HeaderMap, Method, Request, StatusCode};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::path::Path;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls;

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// `badCSR`, and the authority is not asked.
    BadCsr,
    /// `badNonce`, so many times, and the authority is not asked.
    BadNonce(usize),
    /// Status 500, with a problem document.
    Internal,
    /// Status 503, with a page, and a pause.
    Unavailable,
    /// Status 429, with a problem document, and a pause.
    RateLimited,
    /// The authority does what it is asked to, and the connection ends without an answer.
    Reset,
    /// Likewise, in the middle of the answer.
    Truncated,
}

/// Seconds of a pause.
pub const PAUSE: u64 = 4;

/// Paths of the authority, by what they are for.
pub const STEPS: [(&str, &str); 8] = [
    ("newNonce", "/nonce-plz"),
    ("newAccount", "/sign-me-up"),
    ("newOrder", "/order-plz"),
    ("order", "/my-order/"),
    ("authorization", "/authZ/"),
    ("challenge", "/chalZ/"),
    ("finalize", "/finalize-order/"),
    ("certificate", "/certZ/"),
];

#[derive(Debug)]
struct Plan {
    path: &'static str,
    fault: Option<Fault>,
    /// Requests at the path that pass before.
    after: usize,
    seen: Vec<(String, u16)>,
}

/// The proxy.
#[derive(Debug, Clone)]
pub struct Proxy {
    /// URL of the directory.
    pub url: String,
    plan: Arc<Mutex<Plan>>,
}

impl Proxy {
    /// Before the authority with this directory, whose certificate and key are in `dir`.
    pub async fn new(dir: &Path, behind: &str, path: &'static str, fault: Option<Fault>) -> Self {
        Self::after(dir, behind, path, fault, 0).await
    }

    /// The fault comes after so many requests at the path.
    pub async fn after(
        dir: &Path,
        behind: &str,
        path: &'static str,
        fault: Option<Fault>,
        after: usize,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let chain = CertificateDer::pem_file_iter(dir.join("tls-cert.pem")).unwrap();
        let key = PrivateKeyDer::from_pem_file(dir.join("tls-key.pem")).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain.map(Result::unwrap).collect(), key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let plan = Arc::new(Mutex::new(Plan { path, fault, after, seen: Vec::new() }));
        let proxy = Self { url: format!("https://{address}/dir"), plan };
        let client = Http::new(Some(&dir.join("roots.pem"))).unwrap();
        let (this, behind) = (proxy.clone(), behind.strip_suffix("/dir").unwrap().to_owned());
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (acceptor, this, client, behind) =
                    (acceptor.clone(), this.clone(), client.clone(), behind.clone());
                // A client that goes away ends its connection.
                tokio::spawn(async move {
                    let stream = acceptor.accept(stream).await?;
                    this.serve(BufReader::new(stream), &client, &behind).await
                });
            }
        });
        proxy
    }

    /// Requests that began with this path, with the status of the answer.
    pub fn seen(&self, path: &str) -> Vec<u16> {
        let plan = self.plan.lock().unwrap();
        plan.seen.iter().filter(|(seen, _)| seen.starts_with(path)).map(|(_, status)| *status).collect()
    }

    /// Paths of all requests, in order.
    pub fn paths(&self) -> Vec<String> {
        self.plan.lock().unwrap().seen.iter().map(|(path, _)| path.clone()).collect()
    }

    /// Another fault, at the next request there.
    pub fn arm(&self, path: &'static str, fault: Fault) {
        let mut plan = self.plan.lock().unwrap();
        (plan.path, plan.fault, plan.after) = (path, Some(fault), 0);
    }

    /// Whether the fault has happened.
    pub fn has_failed(&self) -> bool {
        self.plan.lock().unwrap().fault.is_none()
    }

    /// The fault of this request, which happens once.
    fn fault(&self, path: &str) -> Option<Fault> {
        let mut plan = self.plan.lock().unwrap();
        if !path.starts_with(plan.path) {
            return None;
        }
        if plan.after > 0 {
            plan.after -= 1;
            return None;
        }
        let fault = plan.fault?;
        plan.fault = match fault {
            Fault::BadNonce(left) if left > 1 => Some(Fault::BadNonce(left - 1)),
            _ => None,
        };
        Some(fault)
    }

    async fn serve<S>(&self, mut stream: BufReader<S>, client: &Http, behind: &str) -> std::io::Result<()>
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    {
        while let Some(request) = read(&mut stream).await? {
            let (path, is_head) = (request.uri().path().to_owned(), request.method() == Method::HEAD);
            let fault = self.fault(&path);
            let answer = match fault.and_then(made_up) {
                Some(answer) => answer,
                None => client.ask(forwarded(request, behind)).await.unwrap(),
            };
            self.plan.lock().unwrap().seen.push((path, answer.status.as_u16()));
            if fault == Some(Fault::Reset) {
                return Ok(());
            }
            let body = if is_head { &[][..] } else { &answer.body[..] };
            stream.write_all(head(&answer).as_bytes()).await?;
            if fault == Some(Fault::Truncated) {
                stream.write_all(&body[..body.len() / 2]).await?;
                return stream.flush().await;
            }
            stream.write_all(body).await?;
            stream.flush().await?;
        }
        Ok(())
    }
}

async fn read<S: tokio::io::AsyncRead + Unpin>(
    stream: &mut BufReader<S>,
) -> std::io::Result<Option<Request<Bytes>>> {
    let mut line = String::new();
    if stream.read_line(&mut line).await? == 0 {
        return Ok(None);
    }
    let mut words = line.split(' ');
    let mut request = Request::builder().method(words.next().unwrap()).uri(words.next().unwrap());
    let mut length = 0;
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        if name.eq_ignore_ascii_case("content-length") {
            length = value.parse().unwrap();
        }
        request = request.header(name, value);
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    Ok(Some(request.body(body.into()).unwrap()))
}

fn forwarded(request: Request<Bytes>, behind: &str) -> Request<Bytes> {
    let (mut parts, body) = request.into_parts();
    parts.uri = format!("{behind}{}", parts.uri).parse().unwrap();
    Request::from_parts(parts, body)
}

fn head(answer: &Answer) -> String {
    let mut text = format!("HTTP/1.1 {}\r\n", answer.status);
    for (name, value) in &answer.headers {
        if name != "content-length" && name != "transfer-encoding" {
            text += &format!("{name}: {}\r\n", value.to_str().unwrap());
        }
    }
    text + &format!("content-length: {}\r\n\r\n", answer.body.len())
}

/// What the proxy says itself.
fn made_up(fault: Fault) -> Option<Answer> {
    let (status, kind) = match fault {
        Fault::BadCsr => (400, "badCSR"),
        Fault::BadNonce(_) => (400, "badNonce"),
        Fault::Internal => (500, "serverInternal"),
        Fault::RateLimited => (429, "rateLimited"),
        Fault::Unavailable => (503, ""),
        Fault::Reset | Fault::Truncated => return None,
    };
    let mut headers = HeaderMap::new();
    if [429, 503].contains(&status) {
        headers.insert("retry-after", PAUSE.into());
    }
    let body = match kind {
        "" => "<html>Service Unavailable</html>".to_owned(),
        kind => {
            let kind = format!("urn:ietf:params:acme:error:{kind}");
            serde_json::json!({"type": kind, "detail": "a fault of the test", "status": status}).to_string()
        }
    };
    Some(Answer { status: StatusCode::from_u16(status).unwrap(), headers, body: body.into() })
}
