// SPDX-License-Identifier: Apache-2.0
//! Fetching the root keys of another key service (trust rule T11, known attack P23).
//!
//! One TLS connection does it all: the source is judged by the key that the operator pinned, this service by its quote,
//! which binds the key of that very connection. Realm is equal or nothing moves; custody only ever gets worse, so keys
//! that a host has held never call themselves a CVM's.

use crate::record::Record;
use crate::settings::parse_https;
use dstack_keys::Secret;
use dstack_keys::derive::Roots;
use dstack_ra_rpc::peer::{Anchor, BoxFuture, Rules, Verifier};
use dstack_ra_rpc::tls::{Identity, client_config};
use dstack_ra_rpc::{Connection, connect};
use dstack_ra_tls::Label;
use dstack_ra_tls::certificate::{Custody, Usage};
use dstack_rpc::kms::{GetKmsKeyRequest, GetKmsKeyResponse};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;

/// Time for the connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Makes evidence about this service.
pub trait Attest: std::fmt::Debug + Send + Sync + 'static {
    /// A fresh identity with a quote over its key.
    ///
    /// # Errors
    /// A sentence for the operator.
    fn identity(&self) -> BoxFuture<'_, Result<Identity, String>>;
}

/// A key service on a host has nobody who would vouch for it.
#[derive(Debug, Clone, Copy)]
pub struct OnHost;

impl Attest for OnHost {
    fn identity(&self) -> BoxFuture<'_, Result<Identity, String>> {
        Box::pin(async {
            Err("this key service runs outside of a TEE and cannot prove what it is, so no other one gives it its \
                 root keys; on a second host, copy the sealed keys as dstack-kms(8) says"
                .to_owned())
        })
    }
}

/// What this service is, and whom it asks.
#[derive(Debug)]
pub struct Request<'a> {
    /// `https://HOST:PORT`.
    pub source: &'a str,
    /// SubjectPublicKeyInfo of the source's root CA, DER.
    pub ca_public_key: Vec<u8>,
    /// Realm of this machine.
    pub realm: &'a Label,
    /// Custody of keys that are kept here.
    pub custody: Custody,
}

/// Fetches the record of a source.
///
/// # Errors
/// A sentence for the operator.
pub async fn fetch(
    request: Request<'_>,
    attest: &dyn Attest,
    verifier: &Verifier,
    now: u64,
) -> Result<Record, String> {
    let identity = attest.identity().await?;
    let (host, port, _) = parse_https(request.source)
        .ok_or_else(|| format!("{:?} is no https URL; write e.g. https://192.0.2.1:9043", request.source))?;
    let stream = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect((host.as_str(), port))).await;
    let stream = stream.map_err(|_| format!("{host}:{port} does not answer"))?;
    let stream = stream.map_err(|e| format!("{host}:{port}: {e}"))?;
    let anchor = Anchor::pinned(request.ca_public_key.clone());
    let usages = vec![Usage::KmsRpc];
    // A key service in a CVM proves itself, too: its own keys are worth no more than its source.
    let rules = match request.custody {
        Custody::Host => Rules::issued(anchor, usages),
        Custody::Cvm => Rules::issued_and_attested(anchor, usages, None),
    };
    let config = Arc::new(client_config(Some(&identity)).map_err(|e| e.to_string())?);
    let connection = connect(stream, config, verifier, &rules).await.map_err(|e| e.to_string())?;
    let reply = ask(connection, &request).await?;
    record(reply, &request, now)
}

async fn ask(connection: Connection<TcpStream>, request: &Request<'_>) -> Result<GetKmsKeyResponse, String> {
    let ask = GetKmsKeyRequest { realm: request.realm.to_string(), custody: request.custody.to_string() };
    connection.call("/prpc/KMS.GetKmsKey", &ask).await.map_err(|e| format!("the source refuses: {e}"))
}

/// What came, checked against what was pinned.
fn record(mut reply: GetKmsKeyResponse, request: &Request<'_>, now: u64) -> Result<Record, String> {
    let out_of_form = || "the source's answer is out of form".to_owned();
    let mut keys = reply.keys.pop().ok_or_else(out_of_form)?;
    let secret = |bytes: Vec<u8>| {
        let bytes = zeroize::Zeroizing::new(bytes);
        Secret::try_from(bytes.as_slice()).map_err(|_| out_of_form())
    };
    let roots = Roots {
        ca: secret(std::mem::take(&mut keys.ca_key))?,
        k256: secret(std::mem::take(&mut keys.k256_key))?,
    };
    let public = dstack_keys::derive::p256(&roots.ca).map_err(|e| e.to_string())?;
    if public.public_key_to_der().map_err(|e| e.to_string())? != request.ca_public_key {
        return Err("the source gave other keys than those of the pinned authority".to_owned());
    }
    let realm: Label = reply.realm.parse().map_err(|_| out_of_form())?;
    if realm != *request.realm {
        return Err(format!("the source is of realm {realm}, this machine of {}", request.realm));
    }
    let custody = Custody::from_text(&reply.custody).ok_or_else(out_of_form)?;
    check_custody(custody, request.custody)?;
    // Keys that were on a host once stay marked so, wherever they go.
    let domain = reply.domain.parse().map_err(|_| out_of_form())?;
    Ok(Record {
        domain,
        realm,
        custody: custody.min(request.custody),
        created_at: now,
        onboarded: true,
        roots,
    })
}

/// Whether keys of `from` may be kept where `to` is.
///
/// # Errors
/// A sentence: a CVM takes no host's keys, and a host no CVM's.
pub fn check_custody(from: Custody, to: Custody) -> Result<(), String> {
    match (from, to) {
        (Custody::Host, Custody::Cvm) => {
            Err("keys that a host has held never become those of a CVM; bootstrap a new key service"
                .to_owned())
        }
        (Custody::Cvm, Custody::Host) => Err("keys of a CVM never go to a host".to_owned()),
        _ => Ok(()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use dstack_rpc::kms::KmsKeys;

    fn reply(realm: &str, custody: &str) -> GetKmsKeyResponse {
        let mut keys = KmsKeys::default();
        (keys.ca_key, keys.k256_key) = (vec![0x11; 32], vec![0x22; 32]);
        GetKmsKeyResponse {
            keys: vec![keys],
            realm: realm.into(),
            custody: custody.into(),
            domain: "kms.example.com".into(),
        }
    }

    fn request(custody: Custody, key: u8) -> Request<'static> {
        let key = dstack_keys::derive::p256(&Secret::from([key; 32])).unwrap();
        let ca_public_key = key.public_key_to_der().unwrap();
        Request { source: "https://a", ca_public_key, realm: &Label::Intel, custody }
    }

    #[test]
    fn t11_custody_never_gets_better_and_realms_never_mix() {
        assert!(record(reply("intel", "host"), &request(Custody::Host, 0x11), 1).is_ok());
        assert!(record(reply("intel", "cvm"), &request(Custody::Cvm, 0x11), 1).is_ok());
        for (realm, custody, here) in [
            ("intel", "host", Custody::Cvm),
            ("intel", "cvm", Custody::Host),
            ("test:0011223344556677", "host", Custody::Host),
            ("", "host", Custody::Host),
            ("intel", "", Custody::Host),
        ] {
            assert!(record(reply(realm, custody), &request(here, 0x11), 1).is_err(), "{realm} {custody}");
        }
    }

    #[test]
    fn p23_the_keys_are_those_of_the_pinned_authority() {
        let error = record(reply("intel", "host"), &request(Custody::Host, 0x12), 1).unwrap_err();
        assert!(error.contains("other keys"), "{error}");
        let none = GetKmsKeyResponse { keys: Vec::new(), ..reply("intel", "host") };
        assert!(record(none, &request(Custody::Host, 0x11), 1).is_err());
    }
}
