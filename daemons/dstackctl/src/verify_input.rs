// SPDX-License-Identifier: Apache-2.0
//! What `verify` is given: a quote with its log, in the forms in which agents, files and servers have it.

use crate::errors::Failure;
use crate::measure::read;
use crate::verify_chain::Signature;
use crate::verify_cli::Verify;
use dstack_core::event_log::LOG_MAX;
use dstack_ra_rpc::tls::unauthenticated_config;
use dstack_ra_tls::certificate;
use rustls::pki_types::ServerName;
use serde::Deserialize;
use serde_json::Value;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// Largest input, bytes: a log in JSON in JSON, and a quote in hex.
const INPUT_MAX: usize = 3 * LOG_MAX;
/// Time for a server to show its certificate.
const PATIENCE: Duration = Duration::from_secs(20);
/// Version 4 or 5, key type 2, TEE type of TDX.
const QUOTES: [[u8; 8]; 2] = [[4, 0, 2, 0, 0x81, 0, 0, 0], [5, 0, 2, 0, 0x81, 0, 0, 0]];

/// Evidence, not yet believed in any part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// The quote, raw.
    pub quote: Vec<u8>,
    /// The event log, JSON.
    pub event_log: Vec<u8>,
    /// The public key that the evidence must bind: the certificate's.
    pub public_key: Option<Vec<u8>>,
    /// What is known about the certificate's signature.
    pub signature: Signature,
}

/// What an agent answers to `TdxQuote` and `GetQuote`.
#[derive(Deserialize)]
struct Reply {
    quote: String,
    #[serde(default)]
    event_log: Value,
}

impl Sample {
    /// Reads what the arguments name.
    ///
    /// # Errors
    /// [`Failure`] when it cannot be read, or is in no known form.
    pub async fn of(args: &Verify) -> Result<Self, Failure> {
        let log = args.event_log.as_deref().map(|path| read(path, LOG_MAX)).transpose()?;
        if let Some(rest) = args.input.strip_prefix("https://") {
            let authority = rest.split('/').next().unwrap_or_default();
            return of_certificate(&chain_of(authority).await?, log);
        }
        let bytes = match args.input.as_str() {
            "-" => standard_input()?,
            path => read(Path::new(path), INPUT_MAX)?,
        };
        Self::parse(&bytes, log)
    }

    /// Parses any of the forms; `log` is used for what has none.
    ///
    /// # Errors
    /// [`Failure`] says what is missing.
    pub fn parse(bytes: &[u8], log: Option<Vec<u8>>) -> Result<Self, Failure> {
        if QUOTES.iter().any(|head| bytes.starts_with(head)) {
            return of_quote(bytes.to_vec(), log);
        }
        let text = bytes.trim_ascii();
        match text.first() {
            Some(b'{') => of_reply(text, log),
            Some(b'-') => of_certificate(&certificates(text)?, log),
            Some(0x30) if bytes.get(1).is_some_and(|b| *b >= 0x80) => of_certificate(&[bytes.to_vec()], log),
            _ => match hex::decode(text) {
                Ok(quote) => of_quote(quote, log),
                Err(_) => Err(Failure::new(
                    "the input is no quote, no certificate, and no answer of an agent",
                )
                .hint(
                    "give what `curl … /prpc/Tappd.TdxQuote?json` printed, or see dstackctl verify --help",
                )),
            },
        }
    }
}

fn of_quote(quote: Vec<u8>, log: Option<Vec<u8>>) -> Result<Sample, Failure> {
    let event_log = log.ok_or_else(|| {
        Failure::new("a quote alone says little: its event log is missing").hint("add --event-log FILE")
    })?;
    Ok(Sample { quote, event_log, public_key: None, signature: Signature::None })
}

fn of_reply(text: &[u8], log: Option<Vec<u8>>) -> Result<Sample, Failure> {
    let reply: Reply = serde_json::from_slice(text)
        .map_err(|e| Failure::new(format!("the input is JSON, but no answer of an agent: {e}")))?;
    let quote = hex::decode(reply.quote.trim_start_matches("0x"))
        .map_err(|_| Failure::new("`quote` in the input is not hexadecimal"))?;
    let event_log = match reply.event_log {
        Value::String(text) if !text.is_empty() => Some(text.into_bytes()),
        Value::Array(events) => Some(Value::Array(events).to_string().into_bytes()),
        _ => None,
    };
    of_quote(quote, event_log.or(log))
}

fn certificates(text: &[u8]) -> Result<Vec<Vec<u8>>, Failure> {
    let blocks = pem::parse_many(text).map_err(|e| Failure::new(format!("the input is no PEM text: {e}")))?;
    let chain = blocks.into_iter().filter(|block| block.tag() == "CERTIFICATE");
    Ok(chain.map(pem::Pem::into_contents).collect())
}

/// The leaf comes first.
fn of_certificate(chain: &[Vec<u8>], log: Option<Vec<u8>>) -> Result<Sample, Failure> {
    let der = chain.first().ok_or_else(|| Failure::new("the input has no certificate"))?;
    let claims = certificate::parse(der).map_err(|e| Failure::new(e.to_string()))?;
    let quote = claims.quote.ok_or_else(|| {
        Failure::new("the certificate carries no quote")
            .hint("nothing about its holder can be verified from it")
    })?;
    let sample = of_quote(quote, claims.event_log.or(log))?;
    Ok(Sample { public_key: Some(claims.public_key), signature: Signature::of(chain), ..sample })
}

fn standard_input() -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let most = u64::try_from(INPUT_MAX).unwrap_or(u64::MAX);
    let read = std::io::stdin().lock().take(most).read_to_end(&mut bytes);
    read.map(|_| bytes).map_err(|e| Failure::new(format!("cannot read standard input: {e}")))
}

/// The certificates of a server, which proves in the handshake that it holds the first one's key.
async fn chain_of(authority: &str) -> Result<Vec<Vec<u8>>, Failure> {
    let failed = |e: &dyn std::fmt::Display| Failure::new(format!("cannot reach {authority}: {e}"));
    let (host, port) = host_and_port(authority)?;
    let shown = timeout(PATIENCE, async {
        let stream = TcpStream::connect((host.as_str(), port)).await.map_err(|e| failed(&e))?;
        let name = ServerName::try_from(host.clone()).map_err(|e| failed(&e))?;
        let config = unauthenticated_config().map_err(|e| failed(&e))?;
        let stream =
            TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(|e| failed(&e))?;
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
        match chain {
            [] => Err(failed(&"it shows no certificate")),
            chain => Ok(chain.iter().map(|der| der.to_vec()).collect()),
        }
    });
    shown.await.unwrap_or_else(|_| Err(failed(&"no answer in time")))
}

fn host_and_port(authority: &str) -> Result<(String, u16), Failure> {
    let wrong = || Failure::usage(format!("{authority:?} is no server: use https://HOST[:PORT]"));
    let uri: hyper::http::uri::Authority = authority.parse().map_err(|_| wrong())?;
    let host = uri.host().trim_start_matches('[').trim_end_matches(']');
    if host.is_empty() { Err(wrong()) } else { Ok((host.to_owned(), uri.port_u16().unwrap_or(443))) }
}
