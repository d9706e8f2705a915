// SPDX-License-Identifier: Apache-2.0
//! A certificate chain and its key, as PEM, checked.

use crate::names::CertName;
use crate::renewal::Validity;
use rcgen::PublicKeyData;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use rustls::sign::CertifiedKey;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

/// Most certificates of a chain.
const CHAIN_MAX: usize = 10;

/// What a leaf says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf {
    /// Its DNS names.
    pub names: BTreeSet<CertName>,
    /// From when until when.
    pub validity: Validity,
    /// SubjectPublicKeyInfo, DER.
    pub public_key: Vec<u8>,
    /// Its issuer, in words.
    pub issuer: String,
    /// Serial number, DER content bytes.
    pub serial: Vec<u8>,
    /// Key identifier of its issuer.
    pub authority_key: Option<Vec<u8>>,
}

impl Leaf {
    /// A number that is its own.
    #[must_use]
    pub fn spread(&self) -> u64 {
        let digest = Sha256::digest(&self.serial);
        digest.iter().take(8).fold(0, |n, b| n << 8 | u64::from(*b))
    }
}

/// A chain with its key.
pub struct Pair {
    /// Leaf first, PEM.
    pub chain: String,
    /// PKCS#8, PEM.
    pub key: Zeroizing<String>,
    /// What the leaf says.
    pub leaf: Leaf,
}

impl std::fmt::Debug for Pair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pair").field("leaf", &self.leaf).finish_non_exhaustive()
    }
}

impl Pair {
    /// Checks that the key belongs to the leaf.
    ///
    /// # Errors
    /// A sentence on what is wrong.
    pub fn new(chain: String, key: Zeroizing<String>) -> Result<Self, String> {
        let parsed: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(chain.as_bytes())
            .take(CHAIN_MAX + 1)
            .collect::<Result<_, _>>()
            .map_err(|e| format!("the chain is no PEM: {e}"))?;
        if parsed.len() > CHAIN_MAX {
            return Err(format!("the chain has more than {CHAIN_MAX} certificates"));
        }
        let leaf = leaf(parsed.first().ok_or("the chain has no certificate")?)?;
        let private =
            PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|e| format!("the key is no PEM: {e}"))?;
        CertifiedKey::from_der(parsed, private, &default_provider())
            .map_err(|e| format!("the key does not belong to the certificate: {e}"))?;
        Ok(Self { chain, key, leaf })
    }
}

/// Reads the first certificate of a PEM text. Pure.
///
/// # Errors
/// A sentence on what is wrong.
pub fn first(pem: &[u8]) -> Result<Leaf, String> {
    leaf(&CertificateDer::from_pem_slice(pem).map_err(|e| format!("no certificate: {e}"))?)
}

fn leaf(der: &[u8]) -> Result<Leaf, String> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(|e| format!("no certificate: {e}"))?;
    let validity = certificate.validity();
    Ok(Leaf {
        names: names(&certificate)?,
        validity: Validity {
            not_before: validity.not_before.timestamp(),
            not_after: validity.not_after.timestamp(),
        },
        public_key: certificate.public_key().raw.to_vec(),
        issuer: certificate.issuer().to_string(),
        serial: certificate.tbs_certificate.raw_serial().to_vec(),
        authority_key: certificate.iter_extensions().find_map(|extension| {
            match extension.parsed_extension() {
                ParsedExtension::AuthorityKeyIdentifier(found) => {
                    found.key_identifier.as_ref().map(|id| id.0.to_vec())
                }
                _ => None,
            }
        }),
    })
}

/// Names that we could not have asked for are left out: a certificate with such a name does not fit anyway.
fn names(certificate: &X509Certificate<'_>) -> Result<BTreeSet<CertName>, String> {
    let names = certificate.subject_alternative_name().map_err(|e| e.to_string())?;
    let names = names.map(|n| n.value.general_names.as_slice()).unwrap_or_default();
    Ok(names
        .iter()
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => name.parse().ok(),
            _ => None,
        })
        .collect())
}

/// A fresh P-256 key, PEM.
///
/// # Errors
/// Without randomness.
pub fn fresh_key() -> Result<Zeroizing<String>, String> {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(|e| e.to_string())?;
    Ok(Zeroizing::new(key.serialize_pem()))
}

/// A fresh P-256 key, PKCS#8.
///
/// # Errors
/// Without randomness.
pub fn fresh_key_der() -> Result<Zeroizing<Vec<u8>>, String> {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(|e| e.to_string())?;
    Ok(Zeroizing::new(key.serialize_der()))
}

/// A request for these names, without a subject, DER.
///
/// # Errors
/// When the key is none.
pub fn request(key: &str, names: &BTreeSet<CertName>) -> Result<Vec<u8>, String> {
    let key = rcgen::KeyPair::from_pem(key).map_err(|e| format!("the key of the order is none: {e}"))?;
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    let mut params = rcgen::CertificateParams::new(names).map_err(|e| e.to_string())?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    Ok(params.serialize_request(&key).map_err(|e| e.to_string())?.der().to_vec())
}

/// SubjectPublicKeyInfo of a key in PEM, DER.
///
/// # Errors
/// When it is none.
pub fn public_key(key: &str) -> Result<Vec<u8>, String> {
    let key = rcgen::KeyPair::from_pem(key).map_err(|e| e.to_string())?;
    Ok(key.subject_public_key_info())
}
