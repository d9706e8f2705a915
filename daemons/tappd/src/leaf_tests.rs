// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use super::*;
use dstack_core::csr::CsrError;
use rcgen::{BasicConstraints, IsCa};
use std::path::Path;
use x509_parser::prelude::{FromDer, X509Certificate};

const NOW: u64 = 1_800_000_000;

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(NOW)
}

fn authority() -> Ephemeral {
    let scalar = Secret::from([0x44; 32]);
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "App CA of this boot");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let key = key_pair(&derive::pkcs8(&scalar).unwrap()).unwrap();
    let certificate = to_pem("CERTIFICATE", params.self_signed(&key).unwrap().der());
    Ephemeral::new(&certificate, &scalar, Some(AppId::from([7; 20]))).unwrap()
}

fn sign(wish: &Config, evidence: Option<&Attested>) -> Vec<u8> {
    let chain =
        authority().sign(&derive::pkcs8(&Secret::from([5; 32])).unwrap(), wish, evidence, now()).unwrap();
    assert_eq!(chain.len(), 2);
    from_pem(&chain[0]).unwrap()
}

#[test]
fn a_leaf_says_what_was_wished_and_what_it_is() {
    let wish = Config {
        subject: "a \u{fc}".into(),
        subject_alt_names: vec!["a.example.com".into(), "*.b.example".into(), "192.0.2.1".into()],
        usage_server_auth: true,
        ..Config::default()
    };
    let der = sign(&wish, None);
    let claims = dstack_ra_tls::certificate::parse(&der).unwrap();
    assert_eq!((claims.usage, claims.app_id), (Some(Usage::AppCustom), Some(AppId::from([7; 20]))));
    assert_eq!((claims.quote, claims.event_log), (None, None));
    let (_, leaf) = X509Certificate::from_der(&der).unwrap();
    assert_eq!(leaf.subject().iter_common_name().next().unwrap().as_str().unwrap(), "a \u{fc}");
    assert_eq!(leaf.issuer().iter_common_name().next().unwrap().as_str().unwrap(), "App CA of this boot");
    let names = leaf.subject_alternative_name().unwrap().unwrap().value.general_names.len();
    let usage = leaf.extended_key_usage().unwrap().unwrap().value.clone();
    assert_eq!((names, usage.server_auth, usage.client_auth), (3, true, false));
    assert!(!leaf.is_ca());
}

#[test]
fn t24_a_certificate_without_a_key_service_is_marked() {
    let der = sign(&Config::default(), None);
    let (_, leaf) = X509Certificate::from_der(&der).unwrap();
    assert_eq!(leaf.subject().iter_organization().next().unwrap().as_str().unwrap(), MARK);
    assert!(leaf.extended_key_usage().unwrap().is_none());
}

#[test]
fn evidence_is_in_it_when_it_is_wished() {
    let attested = Attested { quote: vec![1; 4000], event_log: b"[]".to_vec() };
    let claims = dstack_ra_tls::certificate::parse(&sign(&Config::default(), Some(&attested))).unwrap();
    assert_eq!((claims.quote, claims.event_log), (Some(attested.quote), Some(attested.event_log)));
}

#[test]
fn t20_dates_are_honoured_within_90_days() {
    let day = 86_400;
    let cases = [
        (None, None, Some((NOW - 3600, NOW + LIFE_MAX))),
        (Some(NOW - 5 * day), Some(NOW + day), Some((NOW - 3600, NOW + day))),
        (Some(NOW - 60), Some(NOW + 60), Some((NOW - 60, NOW + 60))),
        (Some(NOW + day), None, Some((NOW + day, NOW + LIFE_MAX))),
        (None, Some(NOW + 3650 * day), Some((NOW - 3600, NOW + LIFE_MAX))),
        (Some(0), Some(u64::MAX), Some((NOW - 3600, NOW + LIFE_MAX))),
        (None, Some(NOW), None),
        (None, Some(0), None),
        (Some(NOW + 2), Some(NOW + 1), None),
        (Some(u64::MAX), None, None),
        (Some(u64::MAX - 1), Some(u64::MAX), None),
    ];
    for (from, to, expected) in cases {
        let time = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let expected = expected.map(|(from, to)| (time(from), time(to)));
        assert_eq!(life(now(), from, to).ok(), expected, "{from:?} {to:?}");
    }
    let der = sign(&Config { not_after: Some(NOW + day), ..Config::default() }, None);
    let (_, leaf) = X509Certificate::from_der(&der).unwrap();
    assert_eq!(leaf.validity().not_after.timestamp().unsigned_abs(), NOW + day);
}

#[tokio::test]
async fn p22_t20_names_of_the_infrastructure_are_refused_before_anything_is_done() {
    let never = std::sync::Arc::new(|| panic!("the TEE is not asked"));
    let attestor = Attestor::new(Path::new("/nonexistent"), never);
    let leafs = Leafs(Signer::Ephemeral(Box::new(authority())));
    let scalar = random_scalar().unwrap();
    for name in ["kms", "KMS.example.com", "tproxy.local", "*.gateway.example.com"] {
        for wish in [
            Config { subject: name.into(), ..Config::default() },
            Config { subject_alt_names: vec![name.into()], ext_quote: true, ..Config::default() },
        ] {
            let refused = leafs.issue(&attestor, &scalar, wish).await;
            assert!(matches!(refused, Err(TrustError::Csr(CsrError::Reserved(_)))), "{refused:?}");
        }
    }
    for odd in ["", "a b", "a/b", "\u{fc}"] {
        let wish = Config { subject_alt_names: vec![odd.into()], ..Config::default() };
        assert!(leafs.issue(&attestor, &scalar, wish).await.is_err(), "{odd:?}");
    }
    let long = Config { subject: "x".repeat(65), ..Config::default() };
    assert!(leafs.issue(&attestor, &scalar, long).await.unwrap_err().to_string().contains("limit"));
}

#[tokio::test]
async fn the_key_is_pkcs8_that_every_client_reads() {
    let attestor = Attestor::new(Path::new("/nonexistent"), std::sync::Arc::new(|| panic!("not asked")));
    let leafs = Leafs(Signer::Ephemeral(Box::new(authority())));
    let scalar = Secret::from([5; 32]);
    let issued = leafs.issue(&attestor, &scalar, Config::default()).await.unwrap();
    assert!(issued.key.starts_with("-----BEGIN PRIVATE KEY-----\n") && !issued.key.contains('\r'));
    let der = pem::parse(issued.key.as_str()).unwrap().into_contents();
    assert_eq!((der.len(), &der[36..68]), (138, &[5; 32][..]));
    let leaf = dstack_ra_tls::certificate::parse(&from_pem(&issued.chain[0]).unwrap()).unwrap();
    assert_eq!(leaf.public_key, derive::p256(&scalar).unwrap().public_key_to_der().unwrap());
    assert_ne!(random_scalar().unwrap(), random_scalar().unwrap());
}
