// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used)]
use super::*;
use crate::init::draft::{parse, render};

const HOST: Defaults = Defaults { address: Some(IpAddr::V4(Ipv4Addr::new(198, 51, 100, 7))) };
const CLOUDFLARE_TOML: &str =
    "base_domain='a.b'\n[certificate]\nsource='acme'\n[certificate.dns]\nprovider='cloudflare'\n";
const RFC2136_TOML: &str = "base_domain='a.b'\n[certificate]\nsource='acme'\nacme_url='https://ca.test/dir'\nacme_root='/r.pem'\n\
    [certificate.eab]\nkey_id='k'\nkey_file='/e'\n[certificate.dns]\nprovider='rfc2136'\nresolver='192.0.2.53'\n\
    [certificate.dns.rfc2136]\nserver='192.0.2.1'\nkey_name='dstack'\nkey_file='/k'\nzone='b.c'\n";

fn check(text: &str) -> Result<Answers, String> {
    Answers::check(&parse(text)?, &HOST).map_err(|e| e.to_string())
}

#[test]
fn one_answer_is_enough() {
    let answers = check("base_domain = '*.Apps.Example.com.'").unwrap();
    assert_eq!(answers.base_domain, "apps.example.com");
    assert_eq!(answers.kms_domain, "kms.example.com");
    assert_eq!(answers.address, "198.51.100.7");
    assert_eq!(answers.wireguard.endpoint, "198.51.100.7:51820");
    assert_eq!((answers.wireguard.ip, answers.ports), (Ipv4Addr::new(10, 0, 0, 1), Ports::DEFAULT));
    assert_eq!((answers.cid_start, answers.cid_size), (1000, 1000));
    assert_eq!(answers.certificate, Certificate::None);
    let v6 = check("base_domain='a.b'\naddress='[2001:db8::7]'").unwrap();
    assert_eq!(check("base_domain='a.b'\nrealm='intel'").unwrap().realm, Some(Realm::Intel));
    assert_eq!(
        (v6.host().as_str(), v6.wireguard.endpoint.as_str()),
        ("[2001:db8::7]", "[2001:db8::7]:51820")
    );
}

#[test]
fn answers_are_the_same_after_they_were_saved() {
    let files = "base_domain='a.b'\nrealm='test'\n[certificate]\nsource='files'\nchain='/c.pem'\nkey='/k.pem'\n[ports]\nkms=1\n";
    for text in ["base_domain='a.b'", files, CLOUDFLARE_TOML, RFC2136_TOML] {
        let answers = check(text).unwrap();
        assert_eq!(check(&render(&answers.to_draft(), "# saved")).unwrap(), answers, "{text}");
    }
}

#[test]
fn what_follows_from_an_answer_follows_its_change() {
    let saved = check("base_domain='a.b'").unwrap().to_draft();
    let changed = parse("address='other.b'\n[wireguard]\nport=9\nrange='10.9.0.0/16'").unwrap().or(saved);
    let answers = Answers::check(&changed, &HOST).unwrap();
    assert_eq!(
        (answers.wireguard.endpoint.as_str(), answers.wireguard.ip),
        ("other.b:9", Ipv4Addr::new(10, 9, 0, 1))
    );
}

#[test]
fn bad_answers_name_their_key_and_what_to_write() {
    let with = |more: &str| format!("base_domain='a.b'\n{more}");
    let rfc = |more: &str| {
        with(&format!(
            "[certificate]\nsource='acme'\n[certificate.dns]\nprovider='rfc2136'\n[certificate.dns.rfc2136]\n{more}"
        ))
    };
    for (text, key, remedy) in [
        (String::new(), "base_domain: is missing", "apps.example.com"),
        ("base_domain='com'".into(), "base_domain: ", "write one of letters"),
        ("base_domain='a b.c'".into(), "base_domain: ", "write one"),
        ("base_domain='10.0.0.1'".into(), "base_domain: ", "write one"),
        (with("kms_domain='-a.b'"), "kms_domain: ", "write one"),
        (with("realm='tdx'"), "realm: ", "\"intel\", or \"test\""),
        (with("address='127.0.0.1'"), "address: no guest reaches", "others reach"),
        (with("address='localhost'"), "address: no guest reaches", "others reach"),
        (with("address='0.0.0.0'"), "address: no guest reaches", "others reach"),
        (with("[ports]\nkms=0"), "ports.kms: ", "1 to 65535"),
        (with("[ports]\nkms=9070"), "ports.registration: 9070 is the port of ports.kms", "another"),
        (with("[wireguard]\nport=0"), "wireguard.port: ", "1 to 65535"),
        (with("[wireguard]\nrange='198.51.0.0/16'"), "wireguard.range: ", "own address 198.51.100.7"),
        (with("[wireguard]\nrange='10.0.0.1/16'"), "wireguard.range: ", "10.0.0.0/16"),
        (with("[wireguard]\nrange='fd00::/64'"), "wireguard.range: ", "10.0.0.0/16"),
        (with("[wireguard]\nip='10.1.0.1'"), "wireguard.ip: ", "10.0.0.0/16"),
        (with("[wireguard]\nendpoint='a.b'"), "wireguard.endpoint: ", "HOST:PORT"),
        (with("[wireguard]\nendpoint='127.0.0.1:1'"), "wireguard.endpoint: ", "no guest reaches"),
        (with("[cid]\nstart=2"), "cid.start: ", "3 or more"),
        (with("[cid]\nsize=0"), "cid.size: ", "write 1 to"),
        (with("[cid]\nsize=4294967295"), "cid.size: ", "write 1 to"),
        (with("[certificate]\nsource='x'"), "certificate.source: ", "\"acme\", \"files\" or \"none\""),
        (with("[certificate]\nsource='files'"), "certificate.chain: is missing", "absolute path"),
        (with("[certificate]\nsource='files'\nchain='c.pem'"), "certificate.chain: ", "no absolute path"),
        (with("[certificate]\nsource='files'\nchain='/c'"), "certificate.key: is missing", "absolute path"),
        (with("[certificate]\nsource='acme'"), "certificate.dns.provider: is missing", "cloudflare"),
        (with("[certificate]\nsource='acme'\nacme_url='http://x'"), "certificate.acme_url: ", "letsencrypt"),
        (
            with("[certificate]\nsource='acme'\n[certificate.dns]\nprovider='route53'"),
            "certificate.dns.provider: ",
            "rfc2136",
        ),
        (
            with("[certificate]\nsource='acme'\n[certificate.eab]\nkey_file='/x'"),
            "certificate.eab.key_id: is missing",
            "write the id",
        ),
        (
            format!("{CLOUDFLARE_TOML}[certificate.dns.cloudflare]\nbase_url='http://api.test'"),
            "certificate.dns.cloudflare.base_url: ",
            "https",
        ),
        (
            format!(
                "{CLOUDFLARE_TOML}[certificate.dns.cloudflare]\nbase_url='http://localhost:1@evil.test/'"
            ),
            "certificate.dns.cloudflare.base_url: ",
            "https",
        ),
        (
            format!("{CLOUDFLARE_TOML}[certificate.dns.cloudflare]\nzone_id='../x'"),
            "certificate.dns.cloudflare.zone_id: ",
            "overview",
        ),
        (rfc(""), "certificate.dns.rfc2136.server: ", "192.0.2.1"),
        (rfc("server='ns.test'"), "certificate.dns.rfc2136.server: ", "192.0.2.1"),
        (rfc("server='192.0.2.1'"), "certificate.dns.rfc2136.key_name: ", "as the server has it"),
        (
            rfc("server='192.0.2.1'\nkey_name='k'\nalgorithm='md5'"),
            "certificate.dns.rfc2136.algorithm: ",
            "hmac-sha256",
        ),
    ] {
        let error = check(&text).unwrap_err();
        assert!(error.starts_with(key) && error.contains(remedy), "{text}\n{error}");
    }
    let none = Answers::check(&parse("base_domain='a.b'").unwrap(), &Defaults { address: None }).unwrap_err();
    assert!(none.key == "address" && none.reason.contains("is missing"), "{none}");
}

/// Answers are outside text: whatever they are, checking ends, and what passes can be saved and read again.
#[test]
fn mutated_answers_never_break_anything() {
    let samples = [
        CLOUDFLARE_TOML,
        RFC2136_TOML,
        "base_domain='a.b'\n[ports]\nkms=1\n[wireguard]\nrange='10.0.0.0/8'\n",
    ];
    proptest::proptest!(|(sample in 0..3usize, edits in proptest::collection::vec((0..400usize, proptest::char::any()), 0..6))| {
        let mut text: Vec<char> = samples[sample].chars().collect();
        for (at, with) in edits {
            let at = at % text.len();
            text[at] = with;
        }
        let text: String = text.into_iter().collect();
        if let Ok(answers) = check(&text) {
            proptest::prop_assert_eq!(check(&render(&answers.to_draft(), "#")).unwrap(), answers);
        }
    });
}
