// SPDX-License-Identifier: Apache-2.0
//! By whom a certificate is signed. Evidence binds a certificate's key alone; its other words are worth its signature.

use crate::certificate::CertificateError;
use x509_parser::oid_registry::OID_SIG_ECDSA_WITH_SHA256;
use x509_parser::prelude::{FromDer, X509Certificate};
use yasna::models::ObjectIdentifier;

/// `ecdsa-with-SHA256` (RFC 5758).
const ECDSA_WITH_SHA256: [u64; 7] = [1, 2, 840, 10045, 4, 3, 2];

/// What is signed, and by whom it says it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    /// What the signature is over, DER.
    pub message: Vec<u8>,
    /// The signature, in ASN.1 when it is of ECDSA.
    pub signature: Vec<u8>,
    /// Whether it is ECDSA with SHA-256, the one kind that is made here.
    pub is_ecdsa: bool,
    /// SubjectPublicKeyInfo, DER.
    pub public_key: Vec<u8>,
    subject: Vec<u8>,
    issuer: Vec<u8>,
}

impl Signed {
    /// Takes a certificate (DER) apart.
    ///
    /// # Errors
    /// [`CertificateError::NotX509`], also when it is in another encoding than DER.
    pub fn of(der: &[u8]) -> Result<Self, CertificateError> {
        let (rest, certificate) = X509Certificate::from_der(der).map_err(|_| CertificateError::NotX509)?;
        let message = certificate.tbs_certificate.as_ref().to_vec();
        let signature = certificate.signature_value.data.to_vec();
        let is_ecdsa = certificate.signature_algorithm.algorithm == OID_SIG_ECDSA_WITH_SHA256;
        // What is around the signed part has one encoding: a parser may pass over the rest.
        if !rest.is_empty() || (is_ecdsa && der != around(&message, &signature)) {
            return Err(CertificateError::NotX509);
        }
        Ok(Self {
            message,
            signature,
            is_ecdsa,
            public_key: certificate.public_key().raw.to_vec(),
            subject: certificate.subject().as_raw().to_vec(),
            issuer: certificate.issuer().as_raw().to_vec(),
        })
    }

    /// Whether it says that the holder of this certificate signed it; a certificate may have signed itself.
    #[must_use]
    pub fn is_by(&self, issuer: &Self) -> bool {
        self.issuer == issuer.subject
    }
}

/// A certificate around what is signed by ECDSA with SHA-256.
fn around(message: &[u8], signature: &[u8]) -> Vec<u8> {
    yasna::construct_der(|writer| {
        writer.write_sequence(|writer| {
            writer.next().write_der(message);
            writer.next().write_sequence(|writer| {
                writer.next().write_oid(&ObjectIdentifier::from_slice(&ECDSA_WITH_SHA256))
            });
            writer.next().write_bitvec_bytes(signature, signature.len() * 8);
        });
    })
}
