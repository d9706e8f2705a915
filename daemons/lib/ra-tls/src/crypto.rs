// SPDX-License-Identifier: Apache-2.0
//! The signatures of quotes, by the library that checks those of TLS: several times faster than the portable one, and a
//! verification has a dozen. Parsing and everything else stays the verifier's own.
//!
//! All but one or two of that dozen are the same for every guest of a platform: they are those of its certificates and
//! its collateral. A signature that was good once is good for ever, so a few hundred are remembered.

use dcap_qvl::config::{Config, CryptoProvider};
use dcap_qvl::signature::DerSigEncoder;
use dcap_qvl::x509::X509CertBackend;
use rustls_pki_types::{AlgorithmIdentifier, InvalidSignature, SignatureVerificationAlgorithm};
use sha2::{Digest as _, Sha256, Sha384};
use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};
use webpki::aws_lc_rs::ECDSA_P256_SHA256;

/// Signatures by aws-lc.
pub(crate) struct AwsLc;

impl CryptoProvider for AwsLc {
    fn sig_algo() -> &'static dyn SignatureVerificationAlgorithm {
        static REMEMBERING: Remembering = Remembering(Mutex::new(None));
        &REMEMBERING
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

/// SHA-256 over key, message and signature, each after its length.
type Fingerprint = [u8; 32];

/// ECDSA over P-256, which remembers good signatures, and those alone.
#[derive(Debug)]
struct Remembering(Mutex<Option<Good>>);

impl SignatureVerificationAlgorithm for Remembering {
    fn verify_signature(&self, key: &[u8], message: &[u8], signature: &[u8]) -> Result<(), InvalidSignature> {
        let fingerprint = fingerprint([key, message, signature]);
        if self.with(|good| good.has(&fingerprint)) {
            return Ok(());
        }
        ECDSA_P256_SHA256.verify_signature(key, message, signature)?;
        self.with(|good| good.add(fingerprint));
        Ok(())
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        ECDSA_P256_SHA256.public_key_alg_id()
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        ECDSA_P256_SHA256.signature_alg_id()
    }
}

impl Remembering {
    fn with<T>(&self, body: impl FnOnce(&mut Good) -> T) -> T {
        body(self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_default())
    }
}

fn fingerprint(parts: [&[u8]; 3]) -> Fingerprint {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

/// At least the last [`Good::MOST`] / 2 that were asked for, and at most [`Good::MOST`].
#[derive(Debug, Default)]
struct Good {
    young: HashSet<Fingerprint>,
    old: HashSet<Fingerprint>,
}

impl Good {
    /// Less than twenty kilobytes, and the collateral of some thirty platforms.
    const MOST: usize = 384;

    fn has(&mut self, fingerprint: &Fingerprint) -> bool {
        let is_old = self.old.remove(fingerprint);
        if is_old {
            self.add(*fingerprint);
        }
        is_old || self.young.contains(fingerprint)
    }

    fn add(&mut self, fingerprint: Fingerprint) {
        if self.young.len() >= Self::MOST / 2 {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(fingerprint);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use rcgen::{KeyPair, PublicKeyData as _, SigningKey as _};

    #[test]
    fn what_was_good_says_nothing_about_anything_else() {
        let algorithm = Remembering(Mutex::new(None));
        let (one, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let signature = one.sign(b"message").unwrap();
        let check = |key: &KeyPair, message: &[u8], signature: &[u8]| {
            algorithm.verify_signature(key.der_bytes(), message, signature).is_ok()
        };
        for _ in 0..2 {
            assert!(check(&one, b"message", &signature));
            assert!(!check(&other, b"message", &signature));
            assert!(!check(&one, b"messages", &signature));
            let mut broken = signature.clone();
            *broken.last_mut().unwrap() ^= 1;
            assert!(!check(&one, b"message", &broken));
        }
        assert_eq!(algorithm.with(|good| good.young.len()), 1, "what is not good is not remembered");
    }

    #[test]
    fn a_byte_belongs_to_one_part() {
        assert_ne!(fingerprint([b"ab", b"c", b""]), fingerprint([b"a", b"bc", b""]));
        assert_ne!(fingerprint([b"", b"a", b""]), fingerprint([b"a", b"", b""]));
    }

    #[test]
    fn what_is_asked_for_stays_and_all_else_goes() {
        let number = |n: usize| fingerprint([&n.to_be_bytes(), b"", b""]);
        let mut good = Good::default();
        good.add(number(0));
        good.add(number(1));
        for n in 2..10 * Good::MOST {
            assert!(good.has(&number(0)));
            good.add(number(n));
            assert!(good.young.len() + good.old.len() <= Good::MOST);
        }
        assert!(!good.has(&number(1)));
        assert!(good.has(&number(10 * Good::MOST - 1)));
    }
}
