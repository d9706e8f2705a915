// SPDX-License-Identifier: Apache-2.0
//! What matters of a certificate or a precertificate: its key, its names, and who issued it when.

use crate::limits::{CERTIFICATE_MAX, NAMES_SHOWN, PEM_MAX, TEXT_SHOWN};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use x509_parser::certificate::TbsCertificate;
use x509_parser::der_parser::oid;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::oid_registry::{OID_X509_EXT_SUBJECT_ALT_NAME, Oid};
use x509_parser::prelude::{FromDer, X509Certificate};

/// The extension that makes a precertificate of a certificate (RFC 6962, 3.1).
const POISON: Oid<'static> = oid!(1.3.6.1.4.1.11129.2.4.3);

/// Digest of a SubjectPublicKeyInfo: how keys are compared and named.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(pub [u8; 32]);

impl KeyId {
    /// The id of a SubjectPublicKeyInfo (DER).
    #[must_use]
    pub fn of(public_key: &[u8]) -> Self {
        Self(Sha256::digest(public_key).into())
    }

    /// The id of 64 hex digits.
    #[must_use]
    pub fn from_hex(text: &str) -> Option<Self> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes).ok().map(|()| Self(bytes))
    }
}

impl std::fmt::Display for KeyId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl std::fmt::Debug for KeyId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "KeyId({self})")
    }
}

/// A certificate, or the part of a precertificate that a log signs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// SubjectPublicKeyInfo, DER.
    pub public_key: Vec<u8>,
    /// Its DNS names and its common names, lower case, without doubles.
    pub names: Vec<String>,
    /// Who issued it, as text.
    pub issuer: String,
    /// Serial number, hex without leading zeros.
    pub serial: String,
    /// Begin of its validity, Unix seconds.
    pub not_before: u64,
    /// End of its validity, Unix seconds.
    pub not_after: u64,
    /// Whether it is a precertificate: it carries the poison, or a log calls it one.
    pub is_precertificate: bool,
}

/// Why bytes are no certificate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// It is too large.
    #[error("it is larger than {CERTIFICATE_MAX} bytes")]
    TooLarge,
    /// It is no PEM file with a certificate.
    #[error("it is no PEM file of a certificate, but begins with {0:?}")]
    NotPem(String),
    /// It is not X.509.
    #[error("it is not an X.509 certificate: {0}")]
    NotX509(String),
    /// Its names cannot be read, so nobody knows for whom it is.
    #[error("its alternative names cannot be read")]
    Names,
}

impl Certificate {
    /// Reads a PEM file; the first certificate in it counts.
    ///
    /// # Errors
    /// [`CertificateError`].
    pub fn from_pem(bytes: &[u8]) -> Result<Self, CertificateError> {
        Self::from_der(&pem_contents(bytes)?)
    }

    /// Reads a certificate or precertificate (DER).
    ///
    /// # Errors
    /// [`CertificateError`].
    pub fn from_der(der: &[u8]) -> Result<Self, CertificateError> {
        sized(der)?;
        let (rest, parsed) = X509Certificate::from_der(der).map_err(|e| not_x509(&e))?;
        ended(rest)?;
        Self::of(&parsed.tbs_certificate, false)
    }

    /// Reads what a log signs of a precertificate: its TBSCertificate (DER) without the poison.
    ///
    /// # Errors
    /// [`CertificateError`].
    pub fn from_precertificate(tbs: &[u8]) -> Result<Self, CertificateError> {
        sized(tbs)?;
        let (rest, parsed) = TbsCertificate::from_der(tbs).map_err(|e| not_x509(&e))?;
        ended(rest)?;
        Self::of(&parsed, true)
    }

    fn of(tbs: &TbsCertificate<'_>, is_precertificate: bool) -> Result<Self, CertificateError> {
        let seconds = |time: x509_parser::time::ASN1Time| u64::try_from(time.timestamp()).unwrap_or(0);
        let poisoned = tbs.extensions().iter().any(|e| e.oid == POISON);
        Ok(Self {
            public_key: tbs.public_key().raw.to_vec(),
            names: names(tbs)?,
            issuer: printable(&tbs.issuer().to_string()),
            serial: serial(&hex::encode(tbs.raw_serial())),
            not_before: seconds(tbs.validity().not_before),
            not_after: seconds(tbs.validity().not_after),
            is_precertificate: is_precertificate || poisoned,
        })
    }

    /// The id of its key.
    #[must_use]
    pub fn key_id(&self) -> KeyId {
        KeyId::of(&self.public_key)
    }

    /// The first of its names, for people.
    #[must_use]
    pub fn shown_names(&self) -> Vec<String> {
        self.names.iter().take(NAMES_SHOWN).map(|name| printable(name)).collect()
    }
}

fn sized(der: &[u8]) -> Result<(), CertificateError> {
    if der.len() > CERTIFICATE_MAX { Err(CertificateError::TooLarge) } else { Ok(()) }
}

fn ended(rest: &[u8]) -> Result<(), CertificateError> {
    if rest.is_empty() { Ok(()) } else { Err(CertificateError::NotX509("bytes follow its end".to_owned())) }
}

fn not_x509(error: &impl std::fmt::Display) -> CertificateError {
    CertificateError::NotX509(printable(&error.to_string()))
}

/// The DER of the first certificate of a PEM file.
///
/// # Errors
/// [`CertificateError::NotPem`] shows how the file begins, which tells an error page.
pub fn pem_contents(bytes: &[u8]) -> Result<Vec<u8>, CertificateError> {
    if bytes.len() > PEM_MAX {
        return Err(CertificateError::TooLarge);
    }
    let head = bytes.get(..bytes.len().min(60)).unwrap_or_default();
    let wrong = || CertificateError::NotPem(printable(&String::from_utf8_lossy(head)));
    let found = pem::parse(bytes).map_err(|_| wrong())?;
    if found.tag() == "CERTIFICATE" { Ok(found.into_contents()) } else { Err(wrong()) }
}

/// A serial number in one form: hex in lower case without leading zeros.
#[must_use]
pub fn serial(hex: &str) -> String {
    let text = hex.trim_start_matches('0').to_ascii_lowercase();
    if text.is_empty() { "0".to_owned() } else { text.chars().take(TEXT_SHOWN).collect() }
}

fn names(tbs: &TbsCertificate<'_>) -> Result<Vec<String>, CertificateError> {
    let mut names = BTreeSet::new();
    for extension in tbs.extensions().iter().filter(|e| e.oid == OID_X509_EXT_SUBJECT_ALT_NAME) {
        let ParsedExtension::SubjectAlternativeName(alternative) = extension.parsed_extension() else {
            return Err(CertificateError::Names);
        };
        for name in &alternative.general_names {
            match name {
                GeneralName::DNSName(name) => drop(names.insert(name.to_ascii_lowercase())),
                GeneralName::Invalid(..) => return Err(CertificateError::Names),
                _ => {}
            }
        }
    }
    let common = tbs.subject().iter_common_name().filter_map(|name| name.as_str().ok());
    names.extend(common.map(str::to_ascii_lowercase));
    Ok(names.into_iter().collect())
}

/// Text of outside for a journal or a terminal: short, and without control characters.
#[must_use]
pub fn printable(text: &str) -> String {
    let plain = |c: char| if c.is_ascii_graphic() || c == ' ' { c } else { '?' };
    text.chars().take(TEXT_SHOWN).map(plain).collect()
}

#[cfg(test)]
#[path = "certificate_tests.rs"]
mod tests;
