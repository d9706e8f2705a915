// SPDX-License-Identifier: Apache-2.0
//! Certificates for apps: a key, a request for it, and whoever signs: the key service, or in its place the app's own
//! authority of this boot, whose certificates are marked (trust rule T24).

use crate::attest::Attestor;
use crate::keys::Keys;
use crate::kms::Kms;
use crate::trust::TrustError;
use dstack_core::csr::{Config, Csr};
use dstack_core::ids::AppId;
use dstack_keys::handover::Provider;
use dstack_keys::{KeyError, Secret, derive, ecdsa};
use dstack_ra_tls::certificate::{
    OID_APP_ID, OID_EVENT_LOG, OID_QUOTE, OID_USAGE, Usage, extension, report_data,
};
use dstack_tdx_attest::Attested;
use pem::{EncodeConfig, LineEnding, Pem};
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use zeroize::Zeroizing;

/// Longest life of an app's certificate (trust rule T20).
pub const LIFE_MAX: u64 = 90 * 86_400;
/// How long before now a certificate is valid unless its start is given, for clocks that go wrong.
const BACKDATED: u64 = 3600;
/// Organisation in certificates that no key service stands behind.
pub const MARK: &str = "dstack app without key service";

/// A key with its certificates, PEM each, leaf first.
#[derive(Debug)]
pub struct Issued {
    /// PKCS#8.
    pub key: Zeroizing<String>,
    /// The chain.
    pub chain: Vec<String>,
}

/// Who signs.
#[derive(Debug)]
enum Signer {
    Kms(Kms),
    /// The app's authority of this boot, which is lost with it.
    Ephemeral(Box<Ephemeral>),
}

/// Makes certificates for the app.
#[derive(Debug)]
pub struct Leafs(Signer);

impl Leafs {
    /// Certificates by whoever gave the keys.
    ///
    /// # Errors
    /// [`TrustError`] when authority and key do not belong together.
    pub fn new(keys: &Keys, app: Option<AppId>) -> Result<Self, TrustError> {
        let handed = keys.handed();
        Ok(Self(match (handed.provider, &handed.ca_key) {
            (Provider::None, Some(key)) => {
                Signer::Ephemeral(Box::new(Ephemeral::new(&handed.ca_cert, key, app)?))
            }
            _ => Signer::Kms(Kms::new(handed)?),
        }))
    }

    /// A certificate for the key with this scalar.
    ///
    /// # Errors
    /// [`TrustError`]: names that an app may not have (T20), no evidence, nobody who signs.
    pub async fn issue(
        &self,
        attestor: &Attestor,
        scalar: &Secret,
        wish: Config,
    ) -> Result<Issued, TrustError> {
        let public_key = derive::p256(scalar)?.public_key_to_der().map_err(KeyError::from)?;
        let mut csr = Csr { public_key, config: wish, ..Csr::default() };
        // Before anything dear is done.
        csr.encode()?;
        let pkcs8 = derive::pkcs8(scalar)?;
        let key = Zeroizing::new(to_pem("PRIVATE KEY", &pkcs8));
        let chain = match &self.0 {
            Signer::Ephemeral(authority) => {
                let evidence = match csr.config.ext_quote {
                    true => Some(attestor.attest(report_data(&csr.public_key)).await?),
                    false => None,
                };
                authority.sign(&pkcs8, &csr.config, evidence.as_ref(), SystemTime::now())?
            }
            Signer::Kms(kms) => {
                let attested = attestor.attest(report_data(&csr.public_key)).await?;
                (csr.quote, csr.event_log) = (attested.quote, attested.event_log);
                let request = csr.encode()?;
                let signature = ecdsa::sign(&pkcs8, &request)?;
                kms.sign(attestor, &csr.public_key, request, signature).await?
            }
        };
        Ok(Issued { key, chain })
    }
}

/// A fresh scalar of P-256.
///
/// # Errors
/// When the library has no randomness.
pub fn random_scalar() -> Result<Secret, TrustError> {
    let mut scalar = Secret::random()?;
    // Once in 2^32 times the bytes are no scalar.
    while matches!(derive::p256(&scalar), Err(KeyError::NotAKey)) {
        scalar = Secret::random()?;
    }
    Ok(scalar)
}

/// The app's authority of one boot.
struct Ephemeral {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
    app: Option<AppId>,
}

impl std::fmt::Debug for Ephemeral {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ephemeral")
    }
}

impl Ephemeral {
    fn new(certificate: &str, key: &Secret, app: Option<AppId>) -> Result<Self, TrustError> {
        let bad = |_| TrustError::BadKeys("the app's authority is damaged");
        let issuer = Issuer::from_ca_cert_pem(certificate, key_pair(&derive::pkcs8(key)?)?).map_err(bad)?;
        Ok(Self { issuer, certificate: certificate.to_owned(), app })
    }

    fn sign(
        &self,
        pkcs8: &[u8],
        wish: &Config,
        evidence: Option<&Attested>,
        now: SystemTime,
    ) -> Result<Vec<String>, TrustError> {
        let mut params = names(wish)?;
        let (from, to) = life(now, wish.not_before, wish.not_after)?;
        (params.not_before, params.not_after) = (from.into(), to.into());
        params.custom_extensions = vec![extension(&OID_USAGE, Usage::AppCustom.text().as_bytes())];
        params.custom_extensions.extend(self.app.map(|app| extension(&OID_APP_ID, app.as_bytes())));
        if let Some(Attested { quote, event_log }) = evidence {
            params.custom_extensions.push(extension(&OID_QUOTE, quote));
            params.custom_extensions.push(extension(&OID_EVENT_LOG, event_log));
        }
        let leaf = params.signed_by(&key_pair(pkcs8)?, &self.issuer).map_err(certificate)?;
        Ok(vec![to_pem("CERTIFICATE", leaf.der()), self.certificate.clone()])
    }
}

fn certificate(error: rcgen::Error) -> TrustError {
    TrustError::Certificate(error.to_string())
}

fn key_pair(pkcs8: &[u8]) -> Result<KeyPair, TrustError> {
    KeyPair::try_from(pkcs8).map_err(certificate)
}

/// Names and usages of a checked wish.
fn names(wish: &Config) -> Result<CertificateParams, TrustError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, MARK);
    if !wish.subject.is_empty() {
        params.distinguished_name.push(DnType::CommonName, wish.subject.as_str());
    }
    for name in &wish.subject_alt_names {
        params.subject_alt_names.push(match name.parse() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => SanType::DnsName(name.as_str().try_into().map_err(certificate)?),
        });
    }
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    let usages = [
        (wish.usage_server_auth, ExtendedKeyUsagePurpose::ServerAuth),
        (wish.usage_client_auth, ExtendedKeyUsagePurpose::ClientAuth),
    ];
    params.extended_key_usages = usages.into_iter().filter(|(on, _)| *on).map(|(_, usage)| usage).collect();
    Ok(params)
}

/// Begin and end of a certificate's life: as wished, within what a key service grants too: not long before now, not
/// after [`LIFE_MAX`] from now, and not over already.
fn life(now: SystemTime, from: Option<u64>, to: Option<u64>) -> Result<(SystemTime, SystemTime), TrustError> {
    let now = now.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let (first, last) = (now.saturating_sub(BACKDATED), now.saturating_add(LIFE_MAX));
    let (from, to) = (from.unwrap_or(first).max(first), to.unwrap_or(last).min(last));
    if to <= from || to <= now {
        return Err(TrustError::Argument(
            "the certificate would not be valid at any time from now on".into(),
        ));
    }
    Ok((UNIX_EPOCH + Duration::from_secs(from), UNIX_EPOCH + Duration::from_secs(to)))
}

/// One PEM block with plain line ends.
#[must_use]
pub fn to_pem(tag: &str, der: &[u8]) -> String {
    pem::encode_config(&Pem::new(tag, der), EncodeConfig::new().set_line_ending(LineEnding::LF))
}

/// DER of one PEM certificate.
#[must_use]
pub fn from_pem(text: &str) -> Option<Vec<u8>> {
    let block = pem::parse(text).ok()?;
    (block.tag() == "CERTIFICATE").then(|| block.into_contents())
}

#[cfg(test)]
#[path = "leaf_tests.rs"]
mod tests;
