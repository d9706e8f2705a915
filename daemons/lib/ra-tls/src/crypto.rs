// SPDX-License-Identifier: Apache-2.0
//! The signatures of quotes, by the library that checks those of TLS: several times faster than the portable one, and a
//! verification has a dozen. Parsing and everything else stays the verifier's own.

use dcap_qvl::config::{Config, CryptoProvider};
use dcap_qvl::signature::DerSigEncoder;
use dcap_qvl::x509::X509CertBackend;
use rustls_pki_types::SignatureVerificationAlgorithm;
use sha2::{Digest as _, Sha256, Sha384};
use webpki::aws_lc_rs::ECDSA_P256_SHA256;

/// Signatures by aws-lc.
pub(crate) struct AwsLc;

impl CryptoProvider for AwsLc {
    fn sig_algo() -> &'static dyn SignatureVerificationAlgorithm {
        ECDSA_P256_SHA256
    }

    fn sha256(data: &[u8]) -> [u8; 32] {
        Sha256::digest(data).into()
    }

    fn sha384(data: &[u8]) -> [u8; 48] {
        Sha384::digest(data).into()
    }
}

impl Config for AwsLc {
    type X509 = X509CertBackend;
    type SigEncoder = DerSigEncoder;
    type Crypto = Self;
}
