// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used)]

use super::*;
use rcgen::{CertificateParams, CustomExtension, DnType, KeyPair, PublicKeyData, SerialNumber};

fn params(names: &[&str]) -> CertificateParams {
    let mut params =
        CertificateParams::new(names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>()).unwrap();
    params.serial_number = Some(SerialNumber::from_slice(&[0x03, 0xae, 0x79]));
    params.distinguished_name.push(DnType::CommonName, "Apps.Example.com");
    params
}

#[test]
fn a_certificate_is_read() {
    let key = KeyPair::generate().unwrap();
    let made = params(&["*.Apps.example.com", "b.example.org"]).self_signed(&key).unwrap();
    let read = Certificate::from_der(made.der()).unwrap();
    assert_eq!(read.public_key, key.subject_public_key_info());
    assert_eq!(read.names, ["*.apps.example.com", "apps.example.com", "b.example.org"]);
    assert_eq!((read.serial.as_str(), read.is_precertificate), ("3ae79", false));
    assert!(read.issuer.contains("Apps.Example.com") && read.not_before < read.not_after);
    assert_eq!(Certificate::from_pem(made.pem().as_bytes()).unwrap(), read);
    assert_eq!(read.key_id(), KeyId::of(&key.subject_public_key_info()));
    assert_eq!(KeyId::from_hex(&read.key_id().to_string()), Some(read.key_id()));
}

#[test]
fn a_precertificate_has_the_key_of_its_certificate() {
    let key = KeyPair::generate().unwrap();
    let mut poisoned = params(&["apps.example.com"]);
    let mut poison = CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 11129, 2, 4, 3], vec![5, 0]);
    poison.set_criticality(true);
    poisoned.custom_extensions.push(poison);
    let pre = poisoned.self_signed(&key).unwrap();
    let read = Certificate::from_der(pre.der()).unwrap();
    assert!(read.is_precertificate);
    let whole = params(&["apps.example.com"]).self_signed(&key).unwrap();
    assert_eq!(Certificate::from_der(whole.der()).unwrap().key_id(), read.key_id());
    let (_, parsed) = X509Certificate::from_der(whole.der()).unwrap();
    let signed = Certificate::from_precertificate(parsed.tbs_certificate.as_ref()).unwrap();
    assert_eq!((signed.key_id(), signed.is_precertificate), (read.key_id(), true));
}

#[test]
fn names_that_cannot_be_read_are_no_absence_of_names() {
    let key = KeyPair::generate().unwrap();
    let mut broken = CertificateParams::default();
    broken.custom_extensions.push(CustomExtension::from_oid_content(&[2, 5, 29, 17], vec![0x30, 0x7f, 1]));
    let made = broken.self_signed(&key).unwrap();
    assert_eq!(Certificate::from_der(made.der()), Err(CertificateError::Names));
}

#[test]
fn what_is_no_certificate_is_told() {
    let page = b"<html><head><title>502 Bad Gateway</title>";
    let error = Certificate::from_pem(page).unwrap_err();
    assert!(error.to_string().contains("502 Bad Gateway"), "{error}");
    let key = KeyPair::generate().unwrap();
    for bad in [key.serialize_pem().into_bytes(), vec![b'a'; PEM_MAX + 1], Vec::new()] {
        assert!(Certificate::from_pem(&bad).is_err());
    }
    let made = params(&["a.example.com"]).self_signed(&key).unwrap();
    assert!(Certificate::from_der(&[made.der().as_ref(), b"x"].concat()).is_err());
    assert!(Certificate::from_der(&vec![0x30; CERTIFICATE_MAX + 1]).is_err());
    assert_eq!(printable("a\u{1b}[1m\nb"), "a?[1m?b");
    assert_eq!((serial("00"), serial("00AB")), ("0".to_owned(), "ab".to_owned()));
}
