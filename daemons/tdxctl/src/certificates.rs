// SPDX-License-Identifier: Apache-2.0
//! Attested certificates as PEM files.

use crate::run::{CtlError, write_private};
use dstack_ra_tls::certificate::{OID_EVENT_LOG, OID_QUOTE, extension, report_data};
use dstack_tdx_attest::Attested;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose,
    PublicKeyData,
};
use std::path::Path;
use time::{Duration, OffsetDateTime};
use zeroize::Zeroizing;

/// Life of an attested client certificate: short, since it is made anew whenever it is needed.
const CLIENT_LIFE: Duration = Duration::days(1);
/// Life of an app's own CA.
const CA_LIFE: Duration = Duration::days(90);

/// What a certificate is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// For the client side of RA-TLS.
    Client,
    /// A CA with at most this many CAs below it.
    Ca(u8),
}

/// Makes key and certificate; `attest` gives the evidence over the key's report data.
///
/// # Errors
/// [`CtlError`].
pub fn generate(
    kind: Kind,
    certificate: &Path,
    key: &Path,
    attest: impl FnOnce(&[u8; 64]) -> Result<Attested, CtlError>,
) -> Result<(), CtlError> {
    let pair = KeyPair::generate()?;
    let evidence = attest(&report_data(&pair.subject_public_key_info()))?;
    let signed = params(kind, &evidence, OffsetDateTime::now_utc()).self_signed(&pair)?;
    write_private(key, &Zeroizing::new(pair.serialize_pem().into_bytes()))?;
    std::fs::write(certificate, signed.pem()).map_err(CtlError::file(certificate))
}

fn params(kind: Kind, evidence: &Attested, now: OffsetDateTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    let (name, life) = match kind {
        Kind::Client => ("RA-TLS TEMP Cert", CLIENT_LIFE),
        Kind::Ca(level) => {
            params.is_ca = IsCa::Ca(BasicConstraints::Constrained(level));
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
            ("App Root CA", CA_LIFE)
        }
    };
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    (params.not_before, params.not_after) = (now - Duration::hours(1), now + life);
    params.custom_extensions =
        vec![extension(&OID_QUOTE, &evidence.quote), extension(&OID_EVENT_LOG, &evidence.event_log)];
    params
}
