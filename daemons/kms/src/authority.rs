// SPDX-License-Identifier: Apache-2.0
//! The certificates of this key service, made anew from the keys: nothing in them is copied from a caller.
//!
//! ```text
//! root CA            "Dstack KMS CA", realm and custody; pathlen 1
//! ├── kms:rpc        this service's TLS leaf, 24 hours, renewed
//! ├── gateway:rpc    the TLS leaf of this host's ingress, 24 hours, renewed; its key never comes here
//! └── app:ca         "Dstack App CA" of one app, pathlen 0; its key never leaves
//!     └── app:custom an app's leaf, at most 90 days
//! ```

use crate::record::Record;
use dstack_core::csr::{Config, is_reserved};
use dstack_core::ids::AppId;
use dstack_keys::derive::{self, Roots};
use dstack_keys::{KeyError, Secret, ecdsa, sign};
use dstack_ra_rpc::Identity;
use dstack_ra_tls::certificate::{
    self, CertificateError, OID_APP_ID, OID_EVENT_LOG, OID_QUOTE, OID_USAGE, Usage, extension,
    realm_extensions,
};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber,
    SignatureAlgorithm,
};
use rustls::pki_types::PrivatePkcs8KeyDer;
use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

/// Life of this service's own leaf.
pub const RPC_LIFE: Duration = Duration::from_secs(24 * 3600);
/// Longest life of an app's leaf (trust rule T20).
pub const LEAF_LIFE: Duration = Duration::from_secs(90 * 86_400);
/// Life of an app CA's certificate, which goes along with each leaf.
const APP_CA_LIFE: Duration = Duration::from_secs(365 * 86_400);
/// Life of the root's certificate; apps pin its key and not its dates.
const ROOT_LIFE: Duration = Duration::from_secs(10 * 365 * 86_400);
/// Clocks differ.
const SLACK: Duration = Duration::from_secs(3600);
/// Largest evidence in a leaf, bytes: TLS libraries take no larger handshake message.
pub const EVIDENCE_MAX: usize = 48 * 1024;

/// SubjectPublicKeyInfo of P-256 before the uncompressed point.
const SPKI_HEAD: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
    0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A key operation failed.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The library refused.
    #[error("certificate: {0}")]
    Library(#[from] rcgen::Error),
    /// Our own certificate cannot be read.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// The caller wishes what an app does not get.
    #[error("certificate request: {0}")]
    Refused(String),
    /// Keys and certificates do not belong together (known attack P24).
    #[error("self-check failed: {0}; do not use these root keys")]
    SelfCheck(&'static str),
}

/// A public key of a caller.
struct PublicKey<'a>(&'a [u8]);

impl PublicKeyData for PublicKey<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

impl<'a> PublicKey<'a> {
    /// The point in a SubjectPublicKeyInfo of P-256, uncompressed.
    fn parse(spki: &'a [u8]) -> Result<Self, AuthorityError> {
        let point = spki.strip_prefix(&SPKI_HEAD).filter(|p| p.len() == 65 && p.first() == Some(&4));
        point.map(Self).ok_or_else(|| {
            AuthorityError::Refused("its key must be a P-256 key in uncompressed form".to_owned())
        })
    }
}

/// Certificates as DER, leaf first.
pub type Chain = Vec<Vec<u8>>;

/// Evidence that goes into a leaf.
#[derive(Debug, Clone, Copy)]
pub struct Attached<'a> {
    /// Quote.
    pub quote: &'a [u8],
    /// Event log, JSON.
    pub event_log: &'a [u8],
}

/// The certification authority of a key service.
pub struct Authority {
    record: Record,
    key: KeyPair,
    params: CertificateParams,
    root: Vec<u8>,
    k256_public: sign::PublicKey,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Authority({})", self.record.domain.as_str())
    }
}

impl Authority {
    /// The authority of these root keys, checked against its own certificates.
    ///
    /// # Errors
    /// [`AuthorityError`].
    pub fn new(record: Record, now: SystemTime) -> Result<Self, AuthorityError> {
        let key = key_pair(&record.roots.ca)?;
        let made = (UNIX_EPOCH + Duration::from_secs(record.created_at)).min(now);
        let mut params = params("Dstack KMS CA", Some("Dstack"), made, now + ROOT_LIFE)?;
        authority_of(&mut params, 1);
        params.custom_extensions = realm_extensions(&record.realm, record.custody).to_vec();
        let root = params.self_signed(&key)?.der().to_vec();
        let k256_public = sign::public_key(&record.roots.k256)?;
        let this = Self { record, key, params, root, k256_public };
        this.check(now)?;
        Ok(this)
    }

    /// The root keys, for derivations.
    #[must_use]
    pub const fn roots(&self) -> &Roots {
        &self.record.roots
    }

    /// What was sealed.
    #[must_use]
    pub const fn record(&self) -> &Record {
        &self.record
    }

    /// SubjectPublicKeyInfo of the root CA, DER.
    #[must_use]
    pub fn public_key(&self) -> Vec<u8> {
        self.key.subject_public_key_info()
    }

    /// Compressed root secp256k1 key.
    #[must_use]
    pub const fn k256_public(&self) -> &sign::PublicKey {
        &self.k256_public
    }

    /// The root CA's certificate, PEM.
    #[must_use]
    pub fn root_pem(&self) -> String {
        pem(&self.root)
    }

    /// A fresh identity for this service's own TLS.
    ///
    /// # Errors
    /// [`AuthorityError`].
    pub fn rpc_identity(&self, now: SystemTime) -> Result<Identity, AuthorityError> {
        let (chain, pkcs8) = self.rpc_leaf(now)?;
        Ok(Identity::new(chain, pkcs8))
    }

    fn rpc_leaf(&self, now: SystemTime) -> Result<(Chain, Zeroizing<Vec<u8>>), AuthorityError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let domain = self.record.domain.as_str();
        let mut params = params(&head(domain, 64), Some("Dstack"), now, now + RPC_LIFE)?;
        params.subject_alt_names = vec![SanType::DnsName(domain.try_into()?)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        params.custom_extensions = vec![usage(Usage::KmsRpc)];
        let issuer = Issuer::from_params(&self.params, &self.key);
        let leaf = params.signed_by(&key, &issuer)?.der().to_vec();
        Ok((vec![leaf, self.root.clone()], Zeroizing::new(key.serialize_der())))
    }

    /// A leaf for a key of the gateway with this app id, and the root; DER.
    ///
    /// # Errors
    /// [`AuthorityError::Refused`] for a key that is not P-256.
    pub fn gateway(&self, app: &AppId, public_key: &[u8], now: SystemTime) -> Result<Chain, AuthorityError> {
        let public_key = PublicKey::parse(public_key)?;
        let mut params = params("dstack gateway", Some("Dstack"), now, now + RPC_LIFE)?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        params.custom_extensions = vec![usage(Usage::GatewayRpc), extension(&OID_APP_ID, app.as_bytes())];
        let issuer = Issuer::from_params(&self.params, &self.key);
        let leaf = params.signed_by(&public_key, &issuer)?.der().to_vec();
        Ok(vec![leaf, self.root.clone()])
    }

    /// A leaf for a measured app: leaf, app CA, root; PEM each. Names and dates are wishes, the rest is the verdict's.
    ///
    /// # Errors
    /// [`AuthorityError::Refused`] for what an app does not get.
    pub fn issue(
        &self,
        app: &AppId,
        public_key: &[u8],
        wishes: &Config,
        evidence: Option<Attached<'_>>,
        now: SystemTime,
    ) -> Result<Vec<String>, AuthorityError> {
        let public_key = PublicKey::parse(public_key)?;
        self.check_names(wishes)?;
        let ca_key = key_pair(&self.record.roots.app_ca(app)?)?;
        let mut ca = params("Dstack App CA", Some("Dstack"), now, now + APP_CA_LIFE)?;
        authority_of(&mut ca, 0);
        ca.use_authority_key_identifier_extension = true;
        ca.custom_extensions = vec![usage(Usage::AppCa), extension(&OID_APP_ID, app.as_bytes())];
        let ca_der = ca.signed_by(&ca_key, &Issuer::from_params(&self.params, &self.key))?.der().to_vec();
        let leaf = leaf(app, wishes, evidence, now)?;
        let leaf = leaf.signed_by(&public_key, &Issuer::from_params(&ca, &ca_key))?.der().to_vec();
        Ok(vec![pem(&leaf), pem(&ca_der), self.root_pem()])
    }

    /// Names of this service and of the gateway are not for apps, whatever a certificate's usage says beside them.
    fn check_names(&self, wishes: &Config) -> Result<(), AuthorityError> {
        let own = self.record.domain.as_str();
        let is_own = |name: &str| {
            let name = name.trim().trim_start_matches("*.").to_ascii_lowercase();
            name == own || name.strip_suffix(own).is_some_and(|rest| rest.ends_with('.'))
        };
        let mut names = wishes.subject_alt_names.iter().chain([&wishes.subject]);
        match names.find(|name| is_reserved(name) || is_own(name)) {
            Some(name) => Err(AuthorityError::Refused(format!(
                "the name {name:?} belongs to the infrastructure and is not for apps"
            ))),
            None => Ok(()),
        }
    }

    /// Known attack P24: a key that is not its certificate's, or a chain that does not hold, is found at the start.
    fn check(&self, now: SystemTime) -> Result<(), AuthorityError> {
        let expected = derive::p256(&self.record.roots.ca)?;
        let expected = expected.public_key_to_der().map_err(KeyError::from)?;
        let root = certificate::parse(&self.root)?;
        if root.public_key != expected || root.public_key != self.public_key() {
            return Err(AuthorityError::SelfCheck("the root certificate is of another key"));
        }
        if (root.realm, root.custody) != (Some(self.record.realm.clone()), Some(self.record.custody)) {
            return Err(AuthorityError::SelfCheck("the root certificate is of another realm or custody"));
        }
        let (chain, _) = self.rpc_leaf(now)?;
        let leaf = chain.first().map(Vec::as_slice).unwrap_or_default();
        if certificate::parse(leaf)?.usage != Some(Usage::KmsRpc) || !signed_by(leaf, &expected) {
            return Err(AuthorityError::SelfCheck("the leaf does not lead to the root"));
        }
        Ok(())
    }
}

/// Whether a certificate's signature is by this key.
fn signed_by(der: &[u8], key: &[u8]) -> bool {
    let Ok((_, certificate)) = X509Certificate::from_der(der) else { return false };
    ecdsa::verify(key, certificate.tbs_certificate.as_ref(), &certificate.signature_value.data)
}

fn key_pair(scalar: &Secret) -> Result<KeyPair, AuthorityError> {
    let der = derive::pkcs8(scalar)?;
    let der = PrivatePkcs8KeyDer::from(der.as_slice());
    Ok(KeyPair::from_pkcs8_der_and_sign_algo(&der, &PKCS_ECDSA_P256_SHA256)?)
}

fn params(
    common_name: &str,
    organisation: Option<&str>,
    from: SystemTime,
    to: SystemTime,
) -> Result<CertificateParams, AuthorityError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    if let Some(name) = organisation {
        params.distinguished_name.push(DnType::OrganizationName, name);
    }
    params.distinguished_name.push(DnType::CommonName, common_name);
    (params.not_before, params.not_after) = ((from - SLACK).into(), to.into());
    params.serial_number = Some(serial()?);
    Ok(params)
}

/// 16 random bytes, positive.
fn serial() -> Result<SerialNumber, AuthorityError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|_| KeyError::Form("there is no randomness for a serial number"))?;
    let [first, ..] = &mut bytes;
    *first = (*first & 0x7f) | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

fn authority_of(params: &mut CertificateParams, path_length: u8) {
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_length));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
}

fn usage(usage: Usage) -> CustomExtension {
    extension(&OID_USAGE, usage.text().as_bytes())
}

fn leaf(
    app: &AppId,
    wishes: &Config,
    evidence: Option<Attached<'_>>,
    now: SystemTime,
) -> Result<CertificateParams, AuthorityError> {
    let (from, to) = dates(wishes, now)?;
    let subject = if wishes.subject.is_empty() { app.to_string() } else { wishes.subject.clone() };
    let mut params = params(&subject, wishes.org_name.as_deref(), from + SLACK, to)?;
    params.subject_alt_names =
        wishes.subject_alt_names.iter().map(|n| alt_name(n)).collect::<Result<_, _>>()?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    if wishes.usage_server_auth {
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
    }
    if wishes.usage_client_auth {
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
    }
    params.use_authority_key_identifier_extension = true;
    params.custom_extensions = vec![usage(Usage::AppCustom), extension(&OID_APP_ID, app.as_bytes())];
    if let Some(evidence) = evidence {
        if evidence.quote.len() + evidence.event_log.len() > EVIDENCE_MAX {
            let reason = format!("quote and event log are over {EVIDENCE_MAX} bytes; ask without ext_quote");
            return Err(AuthorityError::Refused(reason));
        }
        params.custom_extensions.push(extension(&OID_QUOTE, evidence.quote));
        params.custom_extensions.push(extension(&OID_EVENT_LOG, evidence.event_log));
    }
    Ok(params)
}

/// The wished dates within what an app may have: from now at the earliest, for 90 days at the longest.
fn dates(wishes: &Config, now: SystemTime) -> Result<(SystemTime, SystemTime), AuthorityError> {
    let at = |seconds: Option<u64>| seconds.and_then(|s| UNIX_EPOCH.checked_add(Duration::from_secs(s)));
    let from = at(wishes.not_before).unwrap_or(now - SLACK).max(now - SLACK);
    let to = at(wishes.not_after).unwrap_or(now + LEAF_LIFE).min(now + LEAF_LIFE);
    if to <= from || to <= now {
        return Err(AuthorityError::Refused("it would not be valid at any time from now on".to_owned()));
    }
    Ok((from, to))
}

fn alt_name(name: &str) -> Result<SanType, AuthorityError> {
    match name.parse::<IpAddr>() {
        Ok(address) => Ok(SanType::IpAddress(address)),
        Err(_) => Ok(SanType::DnsName(name.try_into()?)),
    }
}

fn head(text: &str, max: usize) -> String {
    text.chars().take(max).collect()
}

/// A throw-away identity of nobody, for a key service that has no keys yet and can only say so.
///
/// # Errors
/// [`AuthorityError::Library`].
pub fn nobody(now: SystemTime) -> Result<Identity, AuthorityError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let params = params("dstack-kms without keys", None, now, now + RPC_LIFE)?;
    let certificate = params.self_signed(&key)?.der().to_vec();
    Ok(Identity::new(vec![certificate], Zeroizing::new(key.serialize_der())))
}

/// A certificate as PEM.
#[must_use]
pub fn pem(der: &[u8]) -> String {
    pem::encode(&pem::Pem::new("CERTIFICATE", der))
}

#[cfg(test)]
#[path = "authority_tests.rs"]
mod tests;
