// SPDX-License-Identifier: Apache-2.0
//! What certificates say, and what they never say.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use super::*;
use dstack_ra_tls::Label;
use dstack_ra_tls::certificate::{Claims, Custody};

const HOUR: Duration = Duration::from_secs(3600);

fn record() -> Record {
    Record {
        domain: "kms.example.com".parse().unwrap(),
        realm: Label::Test("0011223344556677".into()),
        custody: Custody::Host,
        created_at: 1_700_000_000,
        onboarded: false,
        roots: Roots { ca: Secret::from([0x11; 32]), k256: Secret::from([0x22; 32]) },
    }
}

fn authority() -> Authority {
    Authority::new(record(), SystemTime::now()).unwrap()
}

fn app() -> AppId {
    "3327603e03f5bd1f830812ca4a789277fc31f577".parse().unwrap()
}

fn wishes() -> Config {
    Config { subject: "a.example.org".into(), usage_server_auth: true, ..Config::default() }
}

fn der(text: &str) -> Vec<u8> {
    pem::parse(text).unwrap().into_contents()
}

fn issue(wishes: &Config) -> Result<Vec<Vec<u8>>, AuthorityError> {
    let key = KeyPair::generate().unwrap();
    let chain = authority().issue(&app(), &key.subject_public_key_info(), wishes, None, SystemTime::now())?;
    Ok(chain.iter().map(|c| der(c)).collect())
}

fn claims(der: &[u8]) -> Claims {
    certificate::parse(der).unwrap()
}

fn life(der: &[u8]) -> (i64, i64) {
    let (_, certificate) = X509Certificate::from_der(der).unwrap();
    let validity = certificate.validity();
    (validity.not_before.timestamp(), validity.not_after.timestamp())
}

#[test]
fn t04_the_root_says_realm_and_custody() {
    let root = der(&authority().root_pem());
    assert_eq!(claims(&root).realm, Some(record().realm));
    assert_eq!(claims(&root).custody, Some(Custody::Host));
    let (_, certificate) = X509Certificate::from_der(&root).unwrap();
    assert_eq!(certificate.subject().to_string(), "O=Dstack, CN=Dstack KMS CA");
}

#[test]
fn t20_each_role_has_its_certificate() {
    let chain = issue(&wishes()).unwrap();
    let usages: Vec<Option<Usage>> = chain.iter().map(|c| claims(c).usage).collect();
    assert_eq!(usages, [Some(Usage::AppCustom), Some(Usage::AppCa), None]);
    assert_eq!((claims(&chain[0]).app_id, claims(&chain[1]).app_id), (Some(app()), Some(app())));
    assert!(signed_by(&chain[0], &claims(&chain[1]).public_key));
    assert!(signed_by(&chain[1], &authority().public_key()));
    let scalar = authority().roots().app_ca(&app()).unwrap();
    assert_eq!(claims(&chain[1]).public_key, key_pair(&scalar).unwrap().subject_public_key_info());
    let (_, ca) = X509Certificate::from_der(&chain[1]).unwrap();
    let constraints = ca.basic_constraints().unwrap().unwrap().value;
    assert_eq!((constraints.ca, constraints.path_len_constraint), (true, Some(0)));
    assert_eq!(ca.subject().to_string(), "O=Dstack, CN=Dstack App CA");
    let rpc = authority().rpc_leaf(SystemTime::now()).unwrap().0;
    assert_eq!(claims(&rpc[0]).usage, Some(Usage::KmsRpc));
}

#[test]
fn p22_names_of_the_infrastructure_are_not_for_apps() {
    for name in ["kms.example.com", "KMS.example.com", "x.kms.example.com", "*.kms.example.com", "tproxy.a"] {
        let alt = Config { subject_alt_names: vec![name.into()], ..wishes() };
        let subject = Config { subject: name.into(), ..wishes() };
        for wishes in [alt, subject] {
            assert!(matches!(issue(&wishes), Err(AuthorityError::Refused(_))), "{name}");
        }
    }
    assert!(issue(&Config { subject_alt_names: vec!["notkms.example.com".into()], ..wishes() }).is_ok());
}

#[test]
fn p24_leafs_are_short_lived() {
    let now = SystemTime::now();
    let seconds = |t: SystemTime| t.duration_since(UNIX_EPOCH).unwrap().as_secs();
    let (from, to) = life(&issue(&wishes()).unwrap()[0]);
    assert!(to - from <= 91 * 86_400 && to - from > 89 * 86_400, "{}", to - from);
    let eternal =
        Config { not_after: Some(seconds(now + 3650 * 24 * HOUR)), not_before: Some(1), ..wishes() };
    let (from, to) = life(&issue(&eternal).unwrap()[0]);
    assert!(to - from <= 91 * 86_400, "{}", to - from);
    let wished = seconds(now + 5 * HOUR);
    let (_, to) = life(&issue(&Config { not_after: Some(wished), ..wishes() }).unwrap()[0]);
    assert_eq!(to, i64::try_from(wished).unwrap());
    for past in
        [Config { not_after: Some(1000), ..wishes() }, Config { not_before: Some(u64::MAX / 4), ..wishes() }]
    {
        assert!(issue(&past).is_err());
    }
    let rpc = authority().rpc_leaf(now).unwrap().0;
    let (from, to) = life(&rpc[0]);
    assert!(to - from <= 26 * 3600);
}

#[test]
fn p24_a_key_of_another_certificate_is_found_at_the_start() {
    let mut other = authority();
    other.key = KeyPair::generate().unwrap();
    assert!(matches!(other.check(SystemTime::now()), Err(AuthorityError::SelfCheck(_))));
    let mut other = authority();
    other.record.custody = Custody::Cvm;
    assert!(matches!(other.check(SystemTime::now()), Err(AuthorityError::SelfCheck(_))));
    let zero = Record { roots: Roots { ca: Secret::from([0; 32]), ..record().roots }, ..record() };
    assert!(Authority::new(zero, SystemTime::now()).is_err());
}

#[test]
fn evidence_and_keys_are_checked() {
    let key = KeyPair::generate().unwrap().subject_public_key_info();
    let issue = |key: &[u8], log: &[u8]| {
        let evidence = Attached { quote: &[7; 5000], event_log: log };
        authority().issue(&app(), key, &wishes(), Some(evidence), SystemTime::now())
    };
    let chain = issue(&key, b"[]").unwrap();
    assert_eq!(claims(&der(&chain[0])).quote, Some(vec![7; 5000]));
    assert!(issue(&key, &vec![b' '; EVIDENCE_MAX]).is_err());
    for bad in [&key[..90], &[&key[..], &[0]].concat(), b""] {
        assert!(issue(bad, b"[]").is_err());
    }
}
