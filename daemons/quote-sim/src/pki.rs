// SPDX-License-Identifier: Apache-2.0
//! The test root and what hangs off it: platform CA, provisioning certificate, signer of TCB information.
//!
//! Shapes follow Intel's provisioning certification: P-256 and SHA-256 throughout, the TCB signer directly under the
//! root, every certificate but the root covered by a revocation list.

use crate::{SimError, der};
use p256::ecdsa::signature::Signer;
use p256::ecdsa::{Signature, SigningKey};
use p256::pkcs8::DecodePrivateKey;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use time::{Duration, OffsetDateTime};
use zeroize::ZeroizeOnDrop;

/// Family, model, stepping, platform and custom SKU of the simulated platform.
pub const FMSPC: [u8; 6] = [0x50, 0x80, 0x6f, 0, 0, 0];
/// Every component's security version.
pub(crate) const COMPONENT_SVN: u8 = 1;
/// The provisioning enclave's security version.
pub(crate) const PCE_SVN: u8 = 11;

/// What is kept of a test root: its keys and certificates as PEM. Wiped when dropped; store it with mode 0600.
#[derive(Clone, Serialize, Deserialize, ZeroizeOnDrop)]
pub struct Stored {
    root_key: String,
    root: String,
    platform_key: String,
    platform: String,
    pck_key: String,
    pck: String,
    tcb_key: String,
    tcb: String,
    attestation_key: String,
}

impl std::fmt::Debug for Stored {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Stored(keys)")
    }
}

/// A test root that can quote.
pub struct TestRoot {
    pub(crate) root: Authority,
    pub(crate) platform: Authority,
    pub(crate) tcb: Leaf,
    pub(crate) pck: Leaf,
    pub(crate) attestation: SigningKey,
    root_der: Vec<u8>,
}

impl std::fmt::Debug for TestRoot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TestRoot({})", self.fingerprint())
    }
}

/// A certificate authority that signs revocation lists.
pub(crate) struct Authority {
    pub(crate) pem: String,
    pub(crate) issuer: Issuer<'static, KeyPair>,
}

/// A certificate with its key.
pub(crate) struct Leaf {
    pub(crate) pem: String,
    key: SigningKey,
}

impl Leaf {
    /// `r ‖ s` over the SHA-256 of the message.
    pub(crate) fn sign(&self, message: &[u8]) -> Vec<u8> {
        sign(&self.key, message)
    }
}

/// `r ‖ s` over the SHA-256 of the message.
pub(crate) fn sign(key: &SigningKey, message: &[u8]) -> Vec<u8> {
    let signature: Signature = key.sign(message);
    signature.to_bytes().to_vec()
}

const ROOT: &str = "dstack Test SGX Root CA";
const PLATFORM: &str = "dstack Test SGX PCK Platform CA";
const PCK: &str = "dstack Test SGX PCK Certificate";
const TCB: &str = "dstack Test SGX TCB Signing";

/// Makes the keys and certificates of a new test root, valid for ten years from `now`.
///
/// # Errors
/// [`SimError`] when randomness or signing fails.
pub fn generate(now: OffsetDateTime) -> Result<Stored, SimError> {
    let key = || KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256);
    let (root_key, platform_key, pck_key, tcb_key, attestation_key) =
        (key()?, key()?, key()?, key()?, key()?);
    let root_params = params(ROOT, true, now);
    let root = root_params.self_signed(&root_key)?.pem();
    let issuer = Issuer::from_params(&root_params, &root_key);
    let platform_params = params(PLATFORM, true, now);
    let platform = platform_params.signed_by(&platform_key, &issuer)?.pem();
    let tcb = params(TCB, false, now).signed_by(&tcb_key, &issuer)?.pem();
    let mut pck = params(PCK, false, now);
    let ppid: [u8; 16] = head(&Sha256::digest(root.as_bytes()));
    pck.custom_extensions.push(CustomExtension::from_oid_content(SGX_EXTENSION, sgx_extension(&ppid)));
    let pck = pck.signed_by(&pck_key, &Issuer::from_params(&platform_params, &platform_key))?.pem();
    Ok(Stored {
        root_key: root_key.serialize_pem(),
        root,
        platform_key: platform_key.serialize_pem(),
        platform,
        pck_key: pck_key.serialize_pem(),
        pck,
        tcb_key: tcb_key.serialize_pem(),
        tcb,
        attestation_key: attestation_key.serialize_pem(),
    })
}

impl TestRoot {
    /// A root that can quote, from what was stored.
    ///
    /// # Errors
    /// [`SimError::Key`] when a key or certificate is damaged.
    pub fn load(stored: &Stored) -> Result<Self, SimError> {
        let authority = |name: &str, key: &str, pem: &str| {
            let key = KeyPair::from_pem(key).map_err(|_| SimError::Key)?;
            let issuer = Issuer::new(params(name, true, OffsetDateTime::UNIX_EPOCH), key);
            Ok::<_, SimError>(Authority { pem: pem.to_owned(), issuer })
        };
        let leaf =
            |key: &str, pem: &str| Ok::<_, SimError>(Leaf { pem: pem.to_owned(), key: signing_key(key)? });
        Ok(Self {
            root: authority(ROOT, &stored.root_key, &stored.root)?,
            platform: authority(PLATFORM, &stored.platform_key, &stored.platform)?,
            tcb: leaf(&stored.tcb_key, &stored.tcb)?,
            pck: leaf(&stored.pck_key, &stored.pck)?,
            attestation: signing_key(&stored.attestation_key)?,
            root_der: decode_pem(&stored.root)?,
        })
    }

    /// The root certificate, DER: what a verifier must be told to trust.
    #[must_use]
    pub fn certificate(&self) -> &[u8] {
        &self.root_der
    }

    /// The root certificate as PEM.
    #[must_use]
    pub fn certificate_pem(&self) -> &str {
        &self.root.pem
    }

    /// First 16 hex digits of the SHA-256 of the root certificate: the name of this root for people.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        hex::encode(head::<8>(&Sha256::digest(&self.root_der)))
    }
}

fn signing_key(pem: &str) -> Result<SigningKey, SimError> {
    SigningKey::from_pkcs8_pem(pem).map_err(|_| SimError::Key)
}

fn decode_pem(pem: &str) -> Result<Vec<u8>, SimError> {
    let (label, der) = p256::pkcs8::der::pem::decode_vec(pem.as_bytes()).map_err(|_| SimError::Key)?;
    if label == "CERTIFICATE" { Ok(der) } else { Err(SimError::Key) }
}

/// The first `N` bytes, zeros where there are fewer.
fn head<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut out = [0; N];
    out.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    out
}

fn params(name: &str, ca: bool, now: OffsetDateTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = if ca { IsCa::Ca(BasicConstraints::Unconstrained) } else { IsCa::NoCa };
    params.key_usages = if ca {
        vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign]
    } else {
        vec![KeyUsagePurpose::DigitalSignature]
    };
    params.not_before = now - Duration::days(1);
    params.not_after = now + Duration::days(3653);
    params
}

const SGX_EXTENSION: &[u64] = &[1, 2, 840, 113_741, 1, 13, 1];

/// The provisioning certificate's SGX extension: PPID, TCB, PCE id, FMSPC, type.
fn sgx_extension(ppid: &[u8; 16]) -> Vec<u8> {
    let pair = |oid: &[u8], value: Vec<u8>| der::sequence(&[der::sgx_oid(oid), value]);
    let mut tcb: Vec<Vec<u8>> = (1..=16).map(|i| pair(&[2, i], der::integer(COMPONENT_SVN))).collect();
    tcb.push(pair(&[2, 17], der::integer(PCE_SVN)));
    tcb.push(pair(&[2, 18], der::octets(&[COMPONENT_SVN; 16])));
    der::sequence(&[
        pair(&[1], der::octets(ppid)),
        pair(&[2], der::sequence(&tcb)),
        pair(&[3], der::octets(&[0, 0])),
        pair(&[4], der::octets(&FMSPC)),
        pair(&[5], der::enumerated(0)),
    ])
}
