// SPDX-License-Identifier: Apache-2.0
//! Everything that needs the app's keys or the TEE, for all doors alike.

use crate::attest::{Attestor, Boot, Snapshot};
use crate::keys::{Curve, Derived, Keys, Signed};
use crate::leaf::{Issued, Leafs, random_scalar};
use crate::trust::TrustError;
use crate::{attestation, kms, report_data};
use dstack_core::csr::Config;
use dstack_core::event_log;
use dstack_core::ids::AppId;
use dstack_keys::handover::Provider;
use dstack_ra_tls::Label;
use dstack_rpc::dstack::GetQuoteResponse;
use dstack_rpc::tappd::TdxQuoteResponse;
use dstack_tdx_attest::{Attested, LogError};
use std::sync::{PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::OnceCell;

/// How old the agent's own certificate gets.
const CERTIFICATE_AGE: Duration = Duration::from_secs(86_400);
/// First pause after a certificate that could not be had; it doubles.
const RETRY: Duration = Duration::from_secs(10);
/// Longest pause.
const RETRY_MAX: Duration = Duration::from_secs(600);
/// Subject of the agent's own certificate.
const SUBJECT: &str = "dstack app instance";

/// The keys, with whoever signs certificates for them.
#[derive(Debug)]
struct Held {
    keys: Keys,
    leafs: Leafs,
}

/// Keys, certificates and quotes of this guest.
#[derive(Debug)]
pub struct Vault {
    attestor: Attestor,
    held: Option<Held>,
    realm: OnceCell<Label>,
    certificate: RwLock<String>,
}

impl Vault {
    /// What the boot handed over for this app; without keys everything but quotes is refused.
    ///
    /// # Errors
    /// [`TrustError::BadKeys`].
    pub fn new(attestor: Attestor, keys: Option<Keys>, app: Option<AppId>) -> Result<Self, TrustError> {
        let held = |keys: Keys| Leafs::new(&keys, app).map(|leafs| Held { keys, leafs });
        let held = keys.map(held).transpose()?;
        Ok(Self { attestor, held, realm: OnceCell::new(), certificate: RwLock::default() })
    }

    /// Keys of a boot that has ended.
    fn held(&self) -> Result<&Held, TrustError> {
        if self.attestor.boot()? == Boot::Running {
            return Err(TrustError::NotReady);
        }
        self.held.as_ref().ok_or(TrustError::NoKeys)
    }

    /// The door to the TEE.
    #[must_use]
    pub const fn attestor(&self) -> &Attestor {
        &self.attestor
    }

    /// The keys as the boot handed them over, for what is not secret of them.
    #[must_use]
    pub fn keys(&self) -> Option<&Keys> {
        self.held.as_ref().map(|held| &held.keys)
    }

    /// `kms`, `none`, or nothing without keys.
    #[must_use]
    pub fn provider(&self) -> &'static str {
        match self.keys().map(|keys| keys.handed().provider) {
            Some(Provider::Kms) => "kms",
            Some(Provider::None) => "none",
            None => "",
        }
    }

    /// A key of a path.
    ///
    /// # Errors
    /// [`TrustError`].
    pub fn key(&self, path: &str, purpose: &str, algorithm: &str) -> Result<Derived, TrustError> {
        self.held()?.keys.derive(path, purpose, Curve::of(algorithm)?)
    }

    /// A signature by the app's own key.
    ///
    /// # Errors
    /// [`TrustError`].
    pub fn sign(&self, algorithm: &str, data: &[u8]) -> Result<Signed, TrustError> {
        self.held()?.keys.sign(algorithm, data)
    }

    /// A certificate for a key of a path, or for a random one.
    ///
    /// # Errors
    /// [`TrustError`].
    pub async fn certify(&self, path: Option<&str>, wish: Config) -> Result<Issued, TrustError> {
        let held = self.held()?;
        let scalar = match path {
            Some(path) => held.keys.p256(path)?,
            None => random_scalar()?,
        };
        held.leafs.issue(&self.attestor, &scalar, wish).await
    }

    /// A quote as `Tappd` gives it.
    ///
    /// # Errors
    /// [`TrustError`].
    pub async fn tdx_quote(
        &self,
        data: &[u8],
        algorithm: &str,
        prefix: &str,
    ) -> Result<TdxQuoteResponse, TrustError> {
        let (report_data, algorithm) = report_data::hashed(algorithm, prefix, data)?;
        let Attested { quote, event_log } = self.attestor.attest(report_data).await?;
        let prefix = if algorithm == "raw" { "" } else { report_data::APP_DATA };
        Ok(TdxQuoteResponse {
            quote,
            event_log: text(event_log)?,
            hash_algorithm: algorithm.into(),
            prefix: prefix.into(),
        })
    }

    /// A quote as `DstackGuest` gives it.
    ///
    /// # Errors
    /// [`TrustError`].
    pub async fn quote(&self, data: &[u8]) -> Result<GetQuoteResponse, TrustError> {
        let report_data = report_data::padded(data)?;
        let Attested { quote, event_log } = self.attestor.attest(report_data).await?;
        Ok(GetQuoteResponse {
            quote,
            event_log: text(event_log)?,
            report_data: report_data.to_vec(),
            vm_config: self.vm_config().to_owned(),
        })
    }

    /// A quote with all that belongs to it, in one blob.
    ///
    /// # Errors
    /// [`TrustError`].
    pub async fn attestation(&self, data: &[u8]) -> Result<Vec<u8>, TrustError> {
        let report_data = report_data::padded(data)?;
        let attested = self.attestor.attest(report_data).await?;
        let events = event_log::parse(&attested.event_log).map_err(LogError::Event)?;
        Ok(attestation::encode(&attested.quote, &events, &report_data, self.vm_config()))
    }

    /// The VM's shape as the host claims it.
    #[must_use]
    pub fn vm_config(&self) -> &str {
        self.keys().map_or("", |keys| &keys.handed().vm_config)
    }

    /// What is measured now; `None` for a guest that nothing attests.
    ///
    /// # Errors
    /// [`TrustError`].
    pub async fn measured(&self) -> Result<Option<Snapshot>, TrustError> {
        if self.attestor.boot()? == Boot::Unattested {
            return Ok(None);
        }
        self.attestor.snapshot().await.map(Some)
    }

    /// The trust root that quotes of this guest stand under.
    ///
    /// # Errors
    /// [`TrustError`].
    pub async fn realm(&self) -> Result<&Label, TrustError> {
        let find = async || Ok(kms::roots(self.attestor.certified().await?.as_ref())?.realm().clone());
        self.realm.get_or_try_init(find).await
    }

    /// The agent's own certificate with its quote, PEM; empty while there is none.
    #[must_use]
    pub fn certificate(&self) -> String {
        self.certificate.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn show(&self, certificate: String) {
        *self.certificate.write().unwrap_or_else(PoisonError::into_inner) = certificate;
    }

    /// Gets the agent's own certificate, now and each day, until the daemon ends.
    pub async fn keep_certified(&self) {
        let mut pause = RETRY;
        while self.held.is_some() {
            let wish = Config {
                subject: SUBJECT.into(),
                usage_server_auth: true,
                usage_client_auth: true,
                ext_quote: true,
                ..Config::default()
            };
            match self.certify(None, wish).await {
                Ok(issued) => {
                    self.show(issued.chain.concat());
                    pause = RETRY;
                    tokio::time::sleep(CERTIFICATE_AGE).await;
                }
                Err(error) => {
                    tracing::warn!("no certificate of this instance, so none is shown: {error}");
                    tokio::time::sleep(pause).await;
                    pause = RETRY_MAX.min(pause * 2);
                }
            }
        }
    }
}

/// The log is JSON, so it is UTF-8.
fn text(json: Vec<u8>) -> Result<String, TrustError> {
    String::from_utf8(json).map_err(|_| TrustError::Certificate("the event log is no text".into()))
}
