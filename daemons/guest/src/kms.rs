// SPDX-License-Identifier: Apache-2.0
//! The key service: found by hints of the host, trusted by the key that the measured compose file pins (T3), and of the
//! same realm as this VM (T4).
//!
//! While no key service can be reached the guest keeps trying, with growing pauses. A refusal ends the boot at once. A
//! kill at any moment loses nothing: the next run asks again.

use crate::clock::Clock;
use dstack_core::boot::Failure;
use dstack_core::kms_address::Address;
use dstack_keys::Secret;
use dstack_ra_rpc::tls::client_config;
use dstack_ra_rpc::{Anchor, ConnectError, Identity, PeerError, Rules, Verifier, connect};
use dstack_ra_tls::certificate::{self, AttestedKey, CertificateError, Usage, report_data};
use dstack_rpc::ClientError;
use dstack_rpc::kms::{AppKeyResponse, GetAppKeyRequest};
use dstack_tdx_attest::{Attested, LogError};
use rustls::ClientConfig;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::io;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

/// Time for a TCP connection, with the look-up of the name.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// First and longest pause between two rounds.
const PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));
/// Before this long the host is not told that the guest waits: the network may still be coming up.
const QUIET: Duration = Duration::from_secs(3);
/// Life of the certificate that carries the evidence: also a clock that is a day behind, the life of the key service's
/// own certificate, makes one that is good now.
const CERTIFICATE_LIFE: Duration = Duration::from_secs(48 * 3600);

/// Whom to ask.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    /// Where it may be; hints.
    pub addresses: &'a [Address],
    /// Its public key (SPKI DER), from the measured compose file.
    pub pinned: &'a [u8],
    /// Judges the server; its realm is this VM's.
    pub verifier: &'a Verifier,
    /// Dates the certificate.
    pub clock: &'a Clock,
}

/// What the key service gave.
#[derive(Debug)]
pub struct Granted {
    /// Key of the data disk.
    pub disk: Secret,
    /// Key of the environment.
    pub env: Secret,
    /// secp256k1 scalar of the app.
    pub k256: Secret,
    /// The root key's signature over its public half, hex.
    pub k256_signature: String,
    /// Certificate of its CA, PEM.
    pub ca_cert: String,
    /// Where its root keys are: `host`, `cvm`, or empty when it does not say.
    pub custody: &'static str,
    /// The gateway's app id; may be empty.
    pub gateway_app_id: String,
}

/// Why there are no keys, finally.
#[derive(Debug, thiserror::Error)]
pub enum KmsError {
    /// No address to try.
    #[error("the host names no key service: set [cvm] kms_urls in its teepod.toml")]
    NoAddress,
    /// It said no.
    #[error("the key service refused: {0}")]
    Refused(String),
    /// It says that the state of this boot is not what it knows (409).
    #[error("the key service refused: {0}")]
    Conflict(String),
    /// Nobody who answered is the pinned one.
    #[error("no key service with the pinned key was found; the last one: {0}")]
    Foreign(String),
    /// It is of another realm (T4).
    #[error("the key service is of realm {kms}, this VM of {vm}: real and simulated TEEs do not mix")]
    Realm {
        /// Its realm.
        kms: String,
        /// This VM's.
        vm: String,
    },
    /// The evidence cannot be made.
    #[error(transparent)]
    Evidence(#[from] LogError),
    /// The certificate cannot be made.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// TLS or the runtime cannot be set up.
    #[error("the key service cannot be asked: {0}")]
    Setup(#[from] io::Error),
}

impl KmsError {
    /// What the host is told.
    #[must_use]
    pub const fn failure(&self) -> Failure {
        match self {
            Self::NoAddress => Failure::KeysUnreachable,
            Self::Refused(_) | Self::Conflict(_) => Failure::KeysRefused,
            Self::Foreign(_) => Failure::KeysForeign,
            Self::Realm { .. } => Failure::KeysRealm,
            Self::Evidence(_) => Failure::TeeMissing,
            Self::Certificate(_) | Self::Setup(_) => Failure::Internal,
        }
    }
}

/// Makes a quote over report data, with the log that belongs to it.
pub type Attest<'a> = &'a mut dyn FnMut(&[u8; 64]) -> Result<Attested, LogError>;

/// One failed attempt.
enum Miss {
    /// Another attempt may succeed.
    Unreachable(String),
    /// Whoever answered cannot help, and another one may.
    Elsewhere(KmsError),
    /// The right one answered, with a certificate that begins at this time: it is past, whatever the host says (T12).
    Behind(u64),
    /// The end.
    Final(KmsError),
}

impl From<KmsError> for Miss {
    fn from(error: KmsError) -> Self {
        Self::Final(error)
    }
}

/// Asks until there are keys or a refusal. `waiting` is called after each round in which nobody could be reached.
///
/// # Errors
/// [`KmsError`].
pub fn obtain(
    ask: &Ask<'_>,
    request: &GetAppKeyRequest,
    attest: Attest<'_>,
    waiting: &mut dyn FnMut(),
) -> Result<Granted, KmsError> {
    granted(ask, call(ask, "GetAppKey", request, attest, waiting)?)
}

/// Calls a method until there is an answer or a refusal.
///
/// # Errors
/// [`KmsError`].
pub fn call<Q: Serialize, R: DeserializeOwned>(
    ask: &Ask<'_>,
    method: &str,
    request: &Q,
    attest: Attest<'_>,
    waiting: &mut dyn FnMut(),
) -> Result<R, KmsError> {
    if ask.addresses.is_empty() {
        return Err(KmsError::NoAddress);
    }
    let body = serde_json::to_value(request).map_err(|e| KmsError::Setup(e.into()))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(rounds(ask, &Question { method, body }, attest, waiting))
}

/// What is asked.
struct Question<'a> {
    method: &'a str,
    body: Value,
}

async fn rounds<R: DeserializeOwned>(
    ask: &Ask<'_>,
    question: &Question<'_>,
    attest: Attest<'_>,
    waiting: &mut dyn FnMut(),
) -> Result<R, KmsError> {
    let (begun, mut pause, mut said) = (Instant::now(), PAUSES.0, String::new());
    loop {
        let reason = match round(ask, question, attest).await {
            Ok(answer) => return Ok(answer),
            Err(Miss::Final(error) | Miss::Elsewhere(error)) => return Err(error),
            Err(Miss::Behind(past)) => {
                println!("<4>the host's clock is behind the key service's");
                ask.clock.raise(past);
                continue;
            }
            Err(Miss::Unreachable(reason)) => reason,
        };
        if begun.elapsed() >= QUIET {
            if said != reason {
                println!("<4>the key service cannot be reached, trying again: {reason}");
                said = reason;
            }
            waiting();
        }
        sleep(jittered(pause)).await;
        pause = (pause * 2).min(PAUSES.1);
    }
}

/// Each address once. Somebody who cannot be reached may be the right one, so he weighs more than one who cannot help.
async fn round<R: DeserializeOwned>(
    ask: &Ask<'_>,
    question: &Question<'_>,
    attest: Attest<'_>,
) -> Result<R, Miss> {
    let config = Arc::new(identity(ask, attest)?);
    let mut last = Miss::Elsewhere(KmsError::NoAddress);
    for address in ask.addresses {
        let miss = match attempt(ask, &config, address, question).await {
            Ok(answer) => return Ok(answer),
            Err(miss) => miss,
        };
        last = match (miss, last) {
            (end @ (Miss::Final(_) | Miss::Behind(_)), _) => return Err(end),
            (Miss::Unreachable(reason), _) => Miss::Unreachable(format!("{address}: {reason}")),
            (elsewhere, Miss::Elsewhere(_)) => elsewhere,
            (_, unreachable) => unreachable,
        };
    }
    Err(last)
}

/// A fresh key, its evidence, and TLS with both.
fn identity(ask: &Ask<'_>, attest: Attest<'_>) -> Result<ClientConfig, KmsError> {
    let key = AttestedKey::generate()?;
    let evidence = attest(&report_data(&key.public_key()))?;
    let now = UNIX_EPOCH + Duration::from_secs(ask.clock.now());
    let (quote, log) = (&evidence.quote, &evidence.event_log);
    let certificate = key.self_signed("dstack guest", quote, log, now, CERTIFICATE_LIFE)?;
    Ok(client_config(Some(&Identity::attested(&key, certificate))).map_err(io::Error::other)?)
}

async fn attempt<R: DeserializeOwned>(
    ask: &Ask<'_>,
    config: &Arc<ClientConfig>,
    address: &Address,
    question: &Question<'_>,
) -> Result<R, Miss> {
    let unreachable = |reason: String| Miss::Unreachable(reason);
    let connecting = TcpStream::connect((address.host.as_str(), address.port));
    let stream = timeout(CONNECT_TIMEOUT, connecting).await;
    let stream = stream.map_err(|_| unreachable("no connection in time".to_owned()))?;
    let stream = stream.map_err(|e| unreachable(e.to_string()))?;
    let rules = Rules::issued(Anchor::pinned(ask.pinned.to_vec()), vec![Usage::KmsRpc]);
    let connection = connect(stream, Arc::clone(config), ask.verifier, &rules).await;
    let connection = connection.map_err(|error| refused_peer(address, error))?;
    let path = format!("{}/prpc/KMS.{}?json", address.base, question.method);
    connection.call(&path, &question.body).await.map_err(failed_call)
}

/// What a server that is not who it must be means.
fn refused_peer(address: &Address, error: ConnectError) -> Miss {
    match error {
        ConnectError::Peer(PeerError::Collateral(_) | PeerError::Cut) | ConnectError::Timeout => {
            Miss::Unreachable(error.to_string())
        }
        ConnectError::Tls(_) => Miss::Unreachable(error.to_string()),
        ConnectError::Peer(PeerError::NotYet(past)) => Miss::Behind(past),
        ConnectError::Peer(peer) => Miss::Elsewhere(KmsError::Foreign(format!("{address}: {peer}"))),
    }
}

/// What a call that failed means: only the pinned key service comes this far.
fn failed_call(error: ClientError) -> Miss {
    match error {
        // One that keeps no epochs of disks; the one that does has the same key.
        ClientError::Remote { status, message } if status.as_u16() == 421 => {
            Miss::Elsewhere(KmsError::Refused(message))
        }
        ClientError::Remote { status, message } if status.as_u16() == 409 => {
            KmsError::Conflict(message).into()
        }
        ClientError::Remote { status, message } if !status.is_server_error() && status.as_u16() != 429 => {
            KmsError::Refused(message).into()
        }
        ClientError::TooLarge | ClientError::Json(_) | ClientError::Request(_) => {
            KmsError::Refused(error.to_string()).into()
        }
        _ => Miss::Unreachable(error.to_string()),
    }
}

/// Checks the answer: the CA is the pinned one and of this VM's realm, and each key has its form.
fn granted(ask: &Ask<'_>, mut response: AppKeyResponse) -> Result<Granted, KmsError> {
    let form = |what: &str| KmsError::Refused(format!("its answer has no valid {what}"));
    let ca = pem::parse(&response.ca_cert).map_err(|_| form("CA certificate"))?;
    let claims = certificate::parse(ca.contents())?;
    if claims.public_key != ask.pinned {
        return Err(form("CA certificate of the pinned key"));
    }
    let (kms, vm) = (claims.realm.map(|realm| realm.to_string()), ask.verifier.realm());
    if kms.as_ref() != Some(&vm) {
        return Err(KmsError::Realm { kms: kms.unwrap_or_else(|| "unknown".to_owned()), vm });
    }
    if response.k256_signature.len() != 65 {
        return Err(form("signature"));
    }
    let secret = |bytes: &[u8], what| Secret::try_from(bytes).map_err(|_| form(what));
    Ok(Granted {
        disk: secret(&response.disk_crypt_key, "disk key")?,
        env: secret(&response.env_crypt_key, "environment key")?,
        k256: secret(&response.k256_key, "app key")?,
        k256_signature: hex::encode(&response.k256_signature),
        ca_cert: std::mem::take(&mut response.ca_cert),
        custody: claims.custody.map_or("", certificate::Custody::text),
        gateway_app_id: std::mem::take(&mut response.gateway_app_id),
    })
}

/// Half of the pause to all of it, so that many guests do not come back at the same moment.
fn jittered(pause: Duration) -> Duration {
    let mut bytes = [0; 2];
    // Without randomness the whole pause will do.
    let part = getrandom::fill(&mut bytes).map_or(u16::MAX, |()| u16::from_ne_bytes(bytes));
    pause / 2 + (pause / 2) * u32::from(part) / u32::from(u16::MAX)
}

#[cfg(test)]
#[path = "kms_tests.rs"]
mod tests;
