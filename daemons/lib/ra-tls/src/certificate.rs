// SPDX-License-Identifier: Apache-2.0
//! Evidence inside X.509 certificates.
//!
//! A certificate of a CVM carries its quote and event log as extensions, each a DER OCTET STRING around the bytes. The
//! quote's report data is `sha512("ratls-cert:" ‖ SubjectPublicKeyInfo)`, so whoever holds the key is the quoted TD.

use dstack_core::event_log::LOG_MAX;
use dstack_core::ids::AppId;
use rcgen::{
    CertificateParams, CustomExtension, DistinguishedName, DnType, KeyPair, PKCS_ECDSA_P256_SHA256,
    PublicKeyData,
};
use sha2::{Digest, Sha512};
use std::time::{Duration, SystemTime};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::evidence::QUOTE_MAX;
use crate::roots::Label;

/// Raw TDX quote.
pub const OID_QUOTE: [u64; 9] = [1, 3, 6, 1, 4, 1, 62397, 1, 1];
/// Event log, JSON.
pub const OID_EVENT_LOG: [u64; 9] = [1, 3, 6, 1, 4, 1, 62397, 1, 2];
/// App id, 20 bytes.
pub const OID_APP_ID: [u64; 9] = [1, 3, 6, 1, 4, 1, 62397, 1, 3];
/// What the certificate is for.
pub const OID_USAGE: [u64; 9] = [1, 3, 6, 1, 4, 1, 62397, 1, 4];

/// Realm of a key service, ASCII text; in the certificate of its root CA (trust rule T4).
pub const OID_REALM: [u64; 9] = [1, 3, 6, 1, 4, 1, 62397, 1, 20];
/// Custody of a key service's root keys, ASCII text; in the certificate of its root CA (trust rule T4).
pub const OID_CUSTODY: [u64; 9] = [1, 3, 6, 1, 4, 1, 62397, 1, 21];

/// Largest certificate that is looked at, bytes.
pub const CERTIFICATE_MAX: usize = LOG_MAX + 64 * 1024;

const REPORT_DATA_PREFIX: &[u8] = b"ratls-cert:";

/// What a certificate is for; the issuer writes it, never the requester (trust rule T20).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usage {
    /// An app's own authority.
    AppCa,
    /// A key of an app.
    AppCustom,
    /// A key service's RPC.
    KmsRpc,
    /// A gateway's RPC.
    GatewayRpc,
}

impl Usage {
    const ALL: [Self; 4] = [Self::AppCa, Self::AppCustom, Self::KmsRpc, Self::GatewayRpc];

    /// The text in the certificate.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::AppCa => "app:ca",
            Self::AppCustom => "app:custom",
            Self::KmsRpc => "kms:rpc",
            Self::GatewayRpc => "gateway:rpc",
        }
    }

    fn from_text(text: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|u| u.text().as_bytes() == text)
    }
}

/// Where a key service's root keys are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Custody {
    /// On a host: its owner can derive every app's keys.
    Host,
    /// In the memory of an attested CVM.
    Cvm,
}

impl Custody {
    /// The text in the certificate.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Cvm => "cvm",
        }
    }

    /// The custody of this name.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        [Self::Host, Self::Cvm].into_iter().find(|c| c.text() == text)
    }
}

impl std::fmt::Display for Custody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.text())
    }
}

/// The extensions that say realm and custody in a root CA's certificate.
#[must_use]
pub fn realm_extensions(realm: &Label, custody: Custody) -> [CustomExtension; 2] {
    [extension(&OID_REALM, realm.to_string().as_bytes()), extension(&OID_CUSTODY, custody.text().as_bytes())]
}

/// What a certificate says; nothing of it is verified yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claims {
    /// SubjectPublicKeyInfo, DER.
    pub public_key: Vec<u8>,
    /// Quote.
    pub quote: Option<Vec<u8>>,
    /// Event log, JSON.
    pub event_log: Option<Vec<u8>>,
    /// App id.
    pub app_id: Option<AppId>,
    /// What it is for.
    pub usage: Option<Usage>,
    /// Realm of a root CA.
    pub realm: Option<Label>,
    /// Custody of a root CA.
    pub custody: Option<Custody>,
}

/// Why a certificate cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// Over [`CERTIFICATE_MAX`], or a part of it over its own limit.
    #[error("certificate or its {0} is over the limit")]
    TooLarge(&'static str),
    /// Not an X.509 certificate.
    #[error("not an X.509 certificate")]
    NotX509,
    /// An extension twice, or not of its form.
    #[error("certificate extension {0} is malformed or there twice")]
    Extension(&'static str),
    /// It cannot be signed.
    #[error("certificate cannot be signed: {0}")]
    Signing(String),
}

/// Report data that binds a public key (SubjectPublicKeyInfo, DER).
#[must_use]
pub fn report_data(public_key: &[u8]) -> [u8; 64] {
    let mut hash = Sha512::new();
    hash.update(REPORT_DATA_PREFIX);
    hash.update(public_key);
    hash.finalize().into()
}

/// A key that can be attested: the quote over its [`report_data`] goes into its certificate.
#[derive(Debug)]
pub struct AttestedKey(KeyPair);

impl AttestedKey {
    /// A fresh P-256 key.
    ///
    /// # Errors
    /// When the library has no randomness.
    pub fn generate() -> Result<Self, CertificateError> {
        KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map(Self).map_err(signing)
    }

    /// SubjectPublicKeyInfo, DER.
    #[must_use]
    pub fn public_key(&self) -> Vec<u8> {
        self.0.subject_public_key_info()
    }

    /// PKCS#8, DER; secret.
    #[must_use]
    pub fn expose_pkcs8(&self) -> Vec<u8> {
        self.0.serialize_der()
    }

    /// A self-signed certificate with the evidence, valid from an hour ago.
    ///
    /// # Errors
    /// [`CertificateError::Signing`].
    pub fn self_signed(
        &self,
        subject: &str,
        quote: &[u8],
        event_log: &[u8],
        now: SystemTime,
        validity: Duration,
    ) -> Result<Vec<u8>, CertificateError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, subject);
        params.not_before = (now - Duration::from_secs(3600)).into();
        params.not_after = (now + validity).into();
        params.custom_extensions = vec![extension(&OID_QUOTE, quote), extension(&OID_EVENT_LOG, event_log)];
        Ok(params.self_signed(&self.0).map_err(signing)?.der().to_vec())
    }
}

fn signing(error: rcgen::Error) -> CertificateError {
    CertificateError::Signing(error.to_string())
}

/// A non-critical extension: an OCTET STRING around the bytes.
#[must_use]
pub fn extension(oid: &[u64], content: &[u8]) -> CustomExtension {
    CustomExtension::from_oid_content(oid, yasna::construct_der(|writer| writer.write_bytes(content)))
}

/// Reads what a certificate (DER) says.
///
/// # Errors
/// [`CertificateError`].
pub fn parse(der: &[u8]) -> Result<Claims, CertificateError> {
    if der.len() > CERTIFICATE_MAX {
        return Err(CertificateError::TooLarge("DER"));
    }
    let (rest, certificate) = X509Certificate::from_der(der).map_err(|_| CertificateError::NotX509)?;
    if !rest.is_empty() {
        return Err(CertificateError::NotX509);
    }
    let quote = find(&certificate, &OID_QUOTE, "quote", QUOTE_MAX)?;
    let app_id = find(&certificate, &OID_APP_ID, "app id", 20)?;
    let app_id = app_id.map(|b| <[u8; 20]>::try_from(b).map(AppId::from)).transpose();
    let usage = find(&certificate, &OID_USAGE, "usage", 32)?;
    let usage =
        usage.map(|text| Usage::from_text(&text).ok_or(CertificateError::Extension("usage"))).transpose()?;
    let text = |bytes: Option<Vec<u8>>| bytes.map(|b| String::from_utf8_lossy(&b).into_owned());
    let realm = text(find(&certificate, &OID_REALM, "realm", 32)?);
    let custody = text(find(&certificate, &OID_CUSTODY, "custody", 32)?);
    let custody =
        custody.map(|t| Custody::from_text(&t).ok_or(CertificateError::Extension("custody"))).transpose()?;
    Ok(Claims {
        public_key: certificate.public_key().raw.to_vec(),
        quote,
        event_log: find(&certificate, &OID_EVENT_LOG, "event log", LOG_MAX)?,
        app_id: app_id.map_err(|_| CertificateError::Extension("app id"))?,
        usage,
        realm: realm.map(|t| t.parse()).transpose().map_err(|_| CertificateError::Extension("realm"))?,
        custody,
    })
}

/// The bytes of an extension that may be there once.
fn find(
    certificate: &X509Certificate<'_>,
    oid: &[u64],
    name: &'static str,
    max: usize,
) -> Result<Option<Vec<u8>>, CertificateError> {
    let wanted = |e: &&x509_parser::prelude::X509Extension<'_>| {
        e.oid.iter().is_some_and(|arcs| arcs.eq(oid.iter().copied()))
    };
    let mut found = certificate.extensions().iter().filter(wanted);
    let Some(extension) = found.next() else { return Ok(None) };
    if found.next().is_some() {
        return Err(CertificateError::Extension(name));
    }
    let bytes = yasna::parse_der(extension.value, |reader| reader.read_bytes());
    let bytes = bytes.map_err(|_| CertificateError::Extension(name))?;
    if bytes.len() > max { Err(CertificateError::TooLarge(name)) } else { Ok(Some(bytes)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(extensions: Vec<CustomExtension>) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.custom_extensions = extensions;
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    #[test]
    fn evidence_survives_and_binds_the_key() {
        let key = AttestedKey::generate().unwrap();
        let log = vec![b'x'; 70_000];
        let hour = Duration::from_secs(3600);
        let der = key.self_signed("app", &[7; 5000], &log, SystemTime::now(), hour).unwrap();
        let claims = parse(&der).unwrap();
        assert_eq!(claims.public_key, key.public_key());
        assert_eq!((claims.quote.unwrap(), claims.event_log.unwrap()), (vec![7; 5000], log));
        assert_ne!(report_data(&claims.public_key), report_data(b"other"));
    }

    #[test]
    fn report_data_is_sha512_of_tag_and_key() {
        let expected = Sha512::digest(b"ratls-cert:key");
        assert_eq!(report_data(b"key").as_slice(), expected.as_slice());
    }

    #[test]
    fn p15_parts_have_limits_and_forms() {
        let app = extension(&OID_APP_ID, &[1; 20]);
        assert_eq!(parse(&certificate(vec![app.clone()])).unwrap().app_id, Some(AppId::from([1; 20])));
        let twice = parse(&certificate(vec![app.clone(), app]));
        assert!(
            matches!(twice, Err(CertificateError::Extension("app id") | CertificateError::NotX509)),
            "{twice:?}"
        );
        let bad: [(CustomExtension, CertificateError); 4] = [
            (extension(&OID_APP_ID, &[1; 19]), CertificateError::Extension("app id")),
            (extension(&OID_QUOTE, &vec![0; QUOTE_MAX + 1]), CertificateError::TooLarge("quote")),
            (extension(&OID_USAGE, b"root"), CertificateError::Extension("usage")),
            (
                CustomExtension::from_oid_content(&OID_QUOTE, vec![0x05, 0]),
                CertificateError::Extension("quote"),
            ),
        ];
        for (extension, error) in bad {
            assert_eq!(parse(&certificate(vec![extension])), Err(error));
        }
        assert_eq!(parse(&vec![0; CERTIFICATE_MAX + 1]), Err(CertificateError::TooLarge("DER")));
        assert_eq!(parse(b"x"), Err(CertificateError::NotX509));
    }

    #[test]
    fn t04_realm_and_custody_are_a_closed_set() {
        for realm in [Label::Intel, Label::Test("039058c6f2c0cb49".into())] {
            for custody in [Custody::Host, Custody::Cvm] {
                let der = certificate(realm_extensions(&realm, custody).to_vec());
                let claims = parse(&der).unwrap();
                assert_eq!((claims.realm, claims.custody), (Some(realm.clone()), Some(custody)));
            }
        }
        for bad in ["", "Intel", "test:", "test:039058c6f2c0cb4", "test:039058C6f2c0cb49", "test:xx"] {
            let error = parse(&certificate(vec![extension(&OID_REALM, bad.as_bytes())]));
            assert_eq!(error, Err(CertificateError::Extension("realm")), "{bad}");
        }
        let error = parse(&certificate(vec![extension(&OID_CUSTODY, b"cloud")]));
        assert_eq!(error, Err(CertificateError::Extension("custody")));
    }

    #[test]
    fn p22_usages_are_a_closed_set() {
        for usage in Usage::ALL {
            let der = certificate(vec![extension(&OID_USAGE, usage.text().as_bytes())]);
            assert_eq!(parse(&der).unwrap().usage, Some(usage));
        }
    }
}
