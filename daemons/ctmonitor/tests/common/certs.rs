// SPDX-License-Identifier: Apache-2.0
//! Real certificates and precertificates of a test's authority.

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, IsCa, Issuer, KeyPair, PublicKeyData,
    SerialNumber,
};
use sha2::{Digest, Sha256};
use std::sync::LazyLock;
use time::{Duration, OffsetDateTime};
use x509_parser::prelude::{FromDer, X509Certificate};

static AUTHORITY: LazyLock<(KeyPair, CertificateParams)> = LazyLock::new(|| {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "Test CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    (KeyPair::generate().unwrap(), params)
});

/// An issued certificate.
#[derive(Debug, Clone)]
pub struct Issued {
    pub der: Vec<u8>,
    pub pem: String,
    pub serial: u64,
    pub not_before: OffsetDateTime,
    pub not_after: OffsetDateTime,
    pub names: Vec<String>,
}

pub fn key_id(key: &KeyPair) -> String {
    hex::encode(Sha256::digest(key.subject_public_key_info()))
}

/// Issues a certificate for 90 days, or a precertificate; `age` days ago.
pub fn issue(key: &KeyPair, names: &[&str], serial: u64, age: i64, poisoned: bool) -> Issued {
    let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
    let mut params = CertificateParams::new(names.clone()).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.serial_number = Some(SerialNumber::from(serial));
    let now = OffsetDateTime::now_utc().replace_nanosecond(0).unwrap();
    params.not_before = now - Duration::days(age);
    params.not_after = params.not_before + Duration::days(90);
    if poisoned {
        let mut poison = CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 11129, 2, 4, 3], vec![5, 0]);
        poison.set_criticality(true);
        params.custom_extensions.push(poison);
    }
    let (not_before, not_after) = (params.not_before, params.not_after);
    let issuer = Issuer::from_params(&AUTHORITY.1, &AUTHORITY.0);
    let made = params.signed_by(key, &issuer).unwrap();
    Issued { der: made.der().to_vec(), pem: made.pem(), serial, not_before, not_after, names }
}

impl Issued {
    /// The bytes that a log signs of a precertificate.
    pub fn tbs(&self) -> Vec<u8> {
        X509Certificate::from_der(&self.der).unwrap().1.tbs_certificate.as_ref().to_vec()
    }
}
