// SPDX-License-Identifier: Apache-2.0
//! The key service, which signs certificates for attested apps: over RA-TLS, both sides judged.
//!
//! The service is the one whose public key the measured compose file pins; addresses are hints of the host (trust
//! rule T3). Our own certificate is self-signed and carries a quote of the finished boot.

use crate::attest::Attestor;
use crate::leaf::from_pem;
use crate::trust::TrustError;
use dstack_core::kms_address::{ADDRESSES_MAX, Address};
use dstack_core::quote_sim_wire::Certified;
use dstack_keys::handover::AppKeys;
use dstack_ra_rpc::client::connect;
use dstack_ra_rpc::collateral::{Cache, Fetch, Offline, PlatformId};
use dstack_ra_rpc::peer::{Anchor, BoxFuture, Rules, Verifier};
use dstack_ra_rpc::tls::{CHAIN_BYTES_MAX, CHAIN_MAX, Identity, client_config};
use dstack_ra_tls::certificate::{self, AttestedKey, Usage, report_data};
use dstack_ra_tls::{Policy, Roots};
use dstack_rpc::kms::{SignCertRequest, SignCertResponse};
use rustls::ClientConfig;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::time::timeout;

/// Time for a TCP connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long our certificate is used, and how long it is valid.
const IDENTITY_AGE: Duration = Duration::from_secs(3600);
const IDENTITY_LIFE: Duration = Duration::from_secs(2 * 3600);
const METHOD: &str = "prpc/KMS.SignCert?json";

/// The key service of this app.
pub struct Kms {
    addresses: Vec<Address>,
    /// SubjectPublicKeyInfo of its root CA.
    public_key: Vec<u8>,
    /// Its root CA's certificate, DER.
    root: Vec<u8>,
    session: Mutex<Option<Session>>,
}

/// How we show ourselves, and how we judge.
#[derive(Clone)]
struct Session {
    made: Instant,
    config: Arc<ClientConfig>,
    verifier: Arc<Verifier>,
}

impl std::fmt::Debug for Kms {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Kms({} addresses)", self.addresses.len())
    }
}

impl Kms {
    /// The key service that gave these keys.
    ///
    /// # Errors
    /// [`TrustError::BadKeys`] when its identity is damaged.
    pub fn new(handed: &AppKeys) -> Result<Self, TrustError> {
        let public_key = hex::decode(&handed.provider_id);
        let public_key =
            public_key.map_err(|_| TrustError::BadKeys("the key service's id is not hexadecimal"))?;
        let root = from_pem(&handed.ca_cert);
        let root = root.ok_or(TrustError::BadKeys("the key service's CA is no certificate"))?;
        if certificate::parse(&root).map_or(true, |claims| claims.public_key != public_key) {
            return Err(TrustError::BadKeys("the key service's CA is not the pinned one"));
        }
        let addresses =
            handed.kms_urls.iter().filter_map(|url| Address::parse(url)).take(ADDRESSES_MAX).collect();
        Ok(Self { addresses, public_key, root, session: Mutex::new(None) })
    }

    /// A chain for the key in a request that the key itself has signed; each address is tried.
    ///
    /// # Errors
    /// [`TrustError::Kms`] with what went wrong at each address.
    pub async fn sign(
        &self,
        attestor: &Attestor,
        public_key: &[u8],
        csr: Vec<u8>,
        signature: Vec<u8>,
    ) -> Result<Vec<String>, TrustError> {
        let session = self.session(attestor).await?;
        let request = SignCertRequest { csr, signature };
        let mut errors = Vec::new();
        for address in &self.addresses {
            let asked = self.ask(&session, address, &request).await;
            match asked.and_then(|chain| self.checked(chain, public_key)) {
                Ok(chain) => return Ok(chain),
                Err(error) => errors.push(format!("{address}: {error}")),
            }
        }
        if errors.is_empty() {
            errors.push("no usable address was handed over".into());
        }
        let errors = errors.join("; ");
        tracing::warn!("no certificate from the key service: {errors}");
        Err(TrustError::Kms(errors))
    }

    async fn ask(
        &self,
        session: &Session,
        address: &Address,
        request: &SignCertRequest,
    ) -> Result<Vec<String>, String> {
        let connecting = TcpStream::connect((address.host.as_str(), address.port));
        let stream = timeout(CONNECT_TIMEOUT, connecting).await.map_err(|_| "no connection in time")?;
        let stream = stream.map_err(|e| e.to_string())?;
        let rules = Rules::issued(Anchor::pinned(self.public_key.clone()), vec![Usage::KmsRpc]);
        let connected = connect(stream, Arc::clone(&session.config), &session.verifier, &rules).await;
        let connection = connected.map_err(|e| e.to_string())?;
        let reply: SignCertResponse = connection
            .call(&format!("{}/{METHOD}", address.base), request)
            .await
            .map_err(|e| e.to_string())?;
        Ok(reply.certificate_chain)
    }

    /// The chain, when it is for our key and ends with the pinned authority.
    fn checked(&self, chain: Vec<String>, public_key: &[u8]) -> Result<Vec<String>, String> {
        let key = |pem: &String| Some(certificate::parse(&from_pem(pem)?).ok()?.public_key);
        let ours = chain.first().and_then(key).is_some_and(|k| k == public_key);
        let ends = chain.last().and_then(key).is_some_and(|k| k == self.public_key);
        if ours && ends && chain.len() <= CHAIN_MAX {
            return Ok(chain);
        }
        Err("the answer is no chain from the requested key to the pinned authority".into())
    }

    /// How we show ourselves: made anew each hour, and by one caller at a time.
    async fn session(&self, attestor: &Attestor) -> Result<Session, TrustError> {
        let mut kept = self.session.lock().await;
        if let Some(session) = kept.as_ref().filter(|s| s.made.elapsed() < IDENTITY_AGE) {
            return Ok(session.clone());
        }
        let session = Session {
            made: Instant::now(),
            config: identity(attestor).await?,
            verifier: Arc::new(self.verifier(attestor).await?),
        };
        *kept = Some(session.clone());
        Ok(session)
    }

    /// Trusts the root of the TEE that this guest runs on, and refuses a key service of another realm (T4).
    async fn verifier(&self, attestor: &Attestor) -> Result<Verifier, TrustError> {
        let certified = attestor.certified().await?;
        let roots = roots(certified.as_ref())?;
        let realm = certificate::parse(&self.root).ok().and_then(|claims| claims.realm);
        if realm.as_ref() != Some(roots.realm()) {
            let theirs = realm.map_or("no realm".into(), |realm| format!("realm {realm}"));
            let ours = roots.realm();
            return Err(TrustError::Kms(format!("the key service is of {theirs}, and this guest of {ours}")));
        }
        let cache = match certified {
            Some(certified) => Cache::new(None, Served(certified)),
            None => Cache::new(None, Offline),
        };
        Ok(Verifier::new(roots, Policy::default(), cache))
    }
}

/// The trust root of this guest's own TEE.
///
/// # Errors
/// When the simulated TEE gave no certificate.
pub fn roots(certified: Option<&Certified>) -> Result<Roots, TrustError> {
    match certified {
        None => Ok(Roots::intel()),
        Some(certified) => Roots::test_pem(&certified.root)
            .map_err(|e| TrustError::Certificate(format!("the simulated TEE's root: {e}"))),
    }
}

/// A fresh attested key as a client's identity.
async fn identity(attestor: &Attestor) -> Result<Arc<ClientConfig>, TrustError> {
    let failed = |e: &dyn std::fmt::Display| TrustError::Certificate(e.to_string());
    let key = AttestedKey::generate().map_err(|e| failed(&e))?;
    let attested = attestor.attest(report_data(&key.public_key())).await?;
    let now = SystemTime::now();
    let certificate =
        key.self_signed("dstack-tappd", &attested.quote, &attested.event_log, now, IDENTITY_LIFE);
    let certificate = certificate.map_err(|e| failed(&e))?;
    if certificate.len() > CHAIN_BYTES_MAX {
        let reason = "the events that this app has emitted do not fit into a TLS handshake; restart the VM";
        return Err(failed(&reason));
    }
    let config = client_config(Some(&Identity::attested(&key, certificate)));
    Ok(Arc::new(config.map_err(|e| failed(&e))?))
}

/// The simulated TEE's collateral, for a key service that shows evidence.
struct Served(Certified);

impl Fetch for Served {
    fn fetch(&self, _platform: PlatformId) -> BoxFuture<'_, Result<Vec<u8>, String>> {
        let json = serde_json::to_vec(&self.0.collateral).map_err(|e| e.to_string());
        Box::pin(async move { json })
    }
}
