// SPDX-License-Identifier: Apache-2.0
//! Targets of what certificate authorities, DNS servers and DNS providers say, and of the account's file.

use dstack_certbot::acme::directory;
use dstack_certbot::dns::{Data, Kind, cloudflare_json, wire};
use dstack_certbot::names::CertName;
use dstack_certbot::{account, caa, renewal};

/// An account that parses is written and read back as itself.
pub fn acme_account(bytes: &[u8]) {
    if let Ok(found) = account::parse(bytes) {
        let again = account::parse(&account::format(&found));
        let same = again.is_ok_and(|a| (a.id, a.key, a.directory) == (found.id, found.key, found.directory));
        assert!(same, "an account is another one after writing");
    }
}

/// Samples of [`acme_account`].
#[must_use]
pub fn acme_account_samples() -> Vec<Vec<u8>> {
    let text = r#"{"account_id":"https://a/1","credentials":{"id":"https://a/1","key_pkcs8":"MIGH","directory":"https://a/d"}}"#;
    vec![text.into(), text.replacen('{', r#"{"acme_url":"https://a/d","#, 1).into()]
}

/// URLs of a directory are https; a suggestion never leads to a renewal before its window, nor to waiting too long.
pub fn acme_directory(bytes: &[u8]) {
    if let Ok(found) = directory::parse(bytes) {
        let urls = [Some(&found.new_nonce), Some(&found.new_account), found.renewal_info.as_ref()];
        assert!(urls.into_iter().flatten().all(|url| url.starts_with("https://")));
        for name in found.caa_identities {
            if let Ok(records) = caa::wanted(&name, "https://a/1") {
                assert!(records.iter().all(|r| r.value.matches(';').count() == 2), "{records:?}");
            }
        }
    }
    if let Ok(suggested) = directory::parse_suggestion(bytes, 1_000_000, None) {
        assert!((1_000_000..=1_100_000).contains(&suggested.ask_again));
        let validity = renewal::Validity { not_before: 900_000, not_after: 8_000_000 };
        let known =
            renewal::Known { validity: Some(validity), fits: true, suggested: Some(suggested), spread: 7 };
        if let renewal::Decision::At(at) = renewal::decide(1_000_000, &known, 10, false) {
            assert!(at > 1_000_000 && at <= validity.not_after);
        }
    }
}

/// Samples of [`acme_directory`].
#[must_use]
pub fn acme_directory_samples() -> Vec<Vec<u8>> {
    let directory = r#"{"newNonce":"https://a/n","newAccount":"https://a/a","renewalInfo":"https://a/r","meta":{"caaIdentities":["ca.example"]}}"#;
    let suggestion = r#"{"suggestedWindow":{"start":"1970-01-15T00:00:00Z","end":"1970-02-15T00:00:00Z"}}"#;
    vec![directory.into(), suggestion.into()]
}

/// Pages of records have records of the asked kind alone.
pub fn cloudflare(bytes: &[u8]) {
    for kind in [Kind::Txt, Kind::Caa] {
        match cloudflare_json::records(bytes, kind) {
            Ok(page) => assert!(page.rows.iter().all(|row| row.data.kind() == kind)),
            Err(refusal) => assert!(!refusal.words().is_empty()),
        }
    }
    let _ = cloudflare_json::zones(bytes);
}

/// Samples of [`cloudflare`].
#[must_use]
pub fn cloudflare_samples() -> Vec<Vec<u8>> {
    let list = r#"{"success":true,"errors":[],"result":[{"id":"1","type":"TXT","name":"a.b","content":"\"x\" \"y\""},{"id":"2","type":"CAA","name":"a.b","content":"0 issue \"ca;b\""}],"result_info":{"total_pages":2}}"#;
    let refusal = r#"{"success":false,"errors":[{"code":10000,"message":"no","error_chain":[{"code":1}]}],"result":null}"#;
    vec![list.into(), refusal.into()]
}

/// Answers of DNS servers: only records of the asked kind, and no more than are looked at.
pub fn dns_answer(bytes: &[u8]) {
    let Ok(name) = "_acme-challenge.a.example".parse() else { return };
    let (Ok(question), Ok(wire_name)) =
        (wire::question(&name, wire::record_type(Kind::Txt)), wire::wire_name(&name))
    else {
        return;
    };
    // The id is random; the answer is given the one of the question, so that it gets further.
    let mut answer = bytes.to_vec();
    answer.splice(..answer.len().min(2), question.metadata.id.to_be_bytes());
    if let Some(message) = wire::accept(&question, &answer) {
        for kind in [Kind::Txt, Kind::Caa] {
            if let wire::Told::Records(records) = wire::read(&wire_name, kind, &message) {
                assert!(records.len() <= 1_000 && records.iter().all(|data| data.kind() == kind));
            }
        }
    }
}

/// Samples of [`dns_answer`].
#[must_use]
pub fn dns_answer_samples() -> Vec<Vec<u8>> {
    let Ok(name) = "_acme-challenge.a.example".parse() else { return Vec::new() };
    let Ok(mut message) = wire::question(&name, wire::record_type(Kind::Txt)) else { return Vec::new() };
    let Ok(wire_name) = wire::wire_name(&name) else { return Vec::new() };
    let question = message.to_vec().unwrap_or_default();
    for data in [Data::Txt("x".repeat(300)), Data::Caa(caa::Caa::new("issue", "ca.example"))] {
        message.add_answer(wire::record(wire_name.clone(), 60, &data));
    }
    message.metadata.message_type = wire::RESPONSE;
    message.metadata.authoritative = true;
    vec![question, message.to_vec().unwrap_or_default()]
}

/// Names are read back from their own text, and are never paths.
pub fn cert_name(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(name) = text.parse::<CertName>() {
        assert_eq!(name.to_string().parse().as_ref(), Ok(&name));
        let base = name.base.as_str();
        assert!(!base.contains(['/', '\0']) && !base.starts_with('.') && base.len() < 254, "{base}");
    }
}

/// Samples of [`cert_name`].
#[must_use]
pub fn cert_name_samples() -> Vec<Vec<u8>> {
    vec![b"*.apps.Example.com.".to_vec(), b"a.b".to_vec()]
}
