// SPDX-License-Identifier: Apache-2.0
//! Key services over the network: pRPC over RA-TLS, to the service that is pinned and to no other.

use crate::errors::{Exit, Failure};
use crate::places;
use crate::trust::{Trusted, fingerprint};
use dstack_core::kms_address::{Address, PORT};
use dstack_ra_rpc::client::{connect, presented};
use dstack_ra_rpc::collateral::{Cache, QuoteSim};
use dstack_ra_rpc::pccs::{INTEL, Pccs};
use dstack_ra_rpc::tls::client_config;
use dstack_ra_rpc::{Anchor, ConnectError, Rules, Verifier};
use dstack_ra_tls::certificate::{self, Claims, Usage};
use dstack_ra_tls::{Policy, Roots};
use dstack_rpc::ClientError;
use serde::{Serialize, de::DeserializeOwned};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Time to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The simulated TEE's service of this machine.
pub const QUOTE_SIM: &str = "/run/dstack/quote-sim.sock";
/// Where trust roots are named, the operator's first.
pub const TRUST_ROOTS: [&str; 2] = ["/etc/dstack/trust.d", "/usr/lib/dstack/trust.d"];

/// Where a key service is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint(Address);

impl Endpoint {
    /// Parses `https://HOST[:PORT][/PATH]`; the scheme may be left out.
    ///
    /// # Errors
    /// What it needs.
    pub fn parse(text: &str) -> Result<Self, Failure> {
        let full = if text.contains("://") { text.to_owned() } else { format!("https://{text}") };
        Address::parse(&full).map(Self).ok_or_else(|| {
            Failure::usage(format!("{text:?} is no address of a key service: write https://HOST:{PORT}"))
        })
    }

    /// As a URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("https://{}{}", self.0, self.0.base)
    }

    /// Host name or address.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.0.host
    }

    async fn dial(&self) -> Result<TcpStream, Failure> {
        let failed =
            |why: &dyn std::fmt::Display| Failure::new(format!("cannot reach {}: {why}", self.url()));
        match timeout(CONNECT_TIMEOUT, TcpStream::connect((self.host(), self.0.port))).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => Err(failed(&error)
                .hint("is it the address of the key service, and is it reachable from this machine?")),
            Err(_) => Err(Failure { exit: Exit::Timeout, ..failed(&"no answer") }),
        }
    }
}

/// What verifies evidence on this machine: its trust roots, a strict policy, and collateral of the realm, kept so that it
/// never falls behind what was verified.
///
/// # Errors
/// When the trust roots cannot be read, or there is no place for collateral.
pub fn verifier() -> Result<Verifier, Failure> {
    let roots = Roots::load(&TRUST_ROOTS).map_err(|e| Failure::new(e.to_string()))?;
    let directory = places::state()?.join("collateral");
    places::make_directory(&directory, 0o700)?;
    let cache = if roots.realm().is_simulated() {
        Cache::new(Some(directory), QuoteSim(PathBuf::from(QUOTE_SIM)))
    } else {
        Cache::new(Some(directory), Pccs::parse(INTEL).map_err(|e| Failure::new(e.to_string()))?)
    };
    Ok(Verifier::new(roots, Policy::default(), cache))
}

/// What a key service at an address shows of its CA, before it is trusted: claims of a certificate that may be anybody's.
///
/// # Errors
/// When it cannot be reached, or shows no CA.
pub async fn presented_ca(endpoint: &Endpoint) -> Result<Claims, Failure> {
    let config = client_config(None).map_err(|e| Failure::new(e.to_string()))?;
    let chain =
        presented(endpoint.dial().await?, Arc::new(config)).await.map_err(|e| refused(endpoint, &e))?;
    let [_, .., ca] = chain.as_slice() else {
        return Err(Failure::new(format!(
            "{} shows no certificate of a CA: it is no key service",
            endpoint.url()
        )));
    };
    certificate::parse(ca)
        .map_err(|e| Failure::new(format!("{} shows a CA that cannot be read: {e}", endpoint.url())))
}

/// Calls a key service whose CA has this key; nothing is sent to any other.
///
/// # Errors
/// When it is another one, or refuses.
pub async fn call<Q, R>(
    endpoint: &Endpoint,
    ca_public_key: &[u8],
    method: &str,
    args: &Q,
) -> Result<R, Failure>
where
    Q: Serialize + Sync,
    R: DeserializeOwned,
{
    let config = client_config(None).map_err(|e| Failure::new(e.to_string()))?;
    let rules = Rules::issued(Anchor::pinned(ca_public_key.to_vec()), vec![Usage::KmsRpc]);
    let stream = endpoint.dial().await?;
    let connected = connect(stream, Arc::new(config), &verifier()?, &rules).await;
    let connection = connected.map_err(|e| refused(endpoint, &e).hint(changed(ca_public_key)))?;
    let path = format!("{}/prpc/KMS.{method}?json", endpoint.0.base);
    connection.call(&path, args).await.map_err(|e| answered(endpoint, &e))
}

/// The same with a trusted one.
///
/// # Errors
/// As [`call`].
pub async fn call_trusted<Q, R>(kms: &Trusted, method: &str, args: &Q) -> Result<R, Failure>
where
    Q: Serialize + Sync,
    R: DeserializeOwned,
{
    call(&Endpoint::parse(&kms.url)?, &kms.ca_public_key, method, args).await
}

fn refused(endpoint: &Endpoint, error: &ConnectError) -> Failure {
    let exit = if matches!(error, ConnectError::Timeout) { Exit::Timeout } else { Exit::Failed };
    Failure::with(exit, format!("key service {}: {error}", endpoint.url()))
}

fn changed(ca_public_key: &[u8]) -> String {
    let fingerprint = fingerprint(ca_public_key);
    format!(
        "trusted is the CA key sha256:{fingerprint}; if the operator says that it has a new one: \
         dstackctl kms untrust {}; dstackctl kms trust URL",
        fingerprint.get(..16).unwrap_or_default()
    )
}

fn answered(endpoint: &Endpoint, error: &ClientError) -> Failure {
    let exit = if matches!(error, ClientError::Timeout(_)) { Exit::Timeout } else { Exit::Failed };
    match error {
        // What it says is for people; it carries commands where one helps.
        ClientError::Remote { message, .. } => Failure::with(exit, message.clone()),
        other => Failure::with(exit, format!("key service {}: {other}", endpoint.url())),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for (text, url) in [
            ("https://kms.test:9043", "https://kms.test:9043"),
            ("https://kms.test", "https://kms.test:9043"),
            ("kms.test", "https://kms.test:9043"),
            ("kms.test:1", "https://kms.test:1"),
            ("https://kms.test/prpc", "https://kms.test:9043"),
            ("https://kms.test/a/", "https://kms.test:9043/a"),
            ("https://[fd00::1]:9043/", "https://[fd00::1]:9043"),
            ("10.0.2.2:9043", "https://10.0.2.2:9043"),
        ] {
            assert_eq!(Endpoint::parse(text).unwrap().url(), url, "{text}");
        }
        for text in ["", "http://kms.test", "https://", "https://a@kms.test", "https://k?x", "a b"] {
            assert_eq!(Endpoint::parse(text).unwrap_err().exit, Exit::Usage, "{text}");
        }
    }
}
