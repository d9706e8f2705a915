// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used)]
use super::*;
use crate::init::answers::{Certificate, Dns};
use std::collections::VecDeque;

/// Somebody with prepared answers.
#[derive(Debug)]
pub(in crate::init) struct Script {
    answers: VecDeque<String>,
    /// All that was asked and said.
    pub said: String,
}

impl Script {
    pub fn new(answers: &[&str]) -> Self {
        Self { answers: answers.iter().map(|a| (*a).to_owned()).collect(), said: String::new() }
    }
}

impl Asker for Script {
    fn line(&mut self, question: &str) -> Result<String, Failure> {
        self.said += question;
        let answer = self.answers.pop_front().ok_or_else(|| Failure::new("the input ended"))?;
        self.said += &format!("<{answer}>\n");
        Ok(answer)
    }

    fn secret(&mut self, what: &str) -> Result<Zeroizing<String>, Failure> {
        self.line(what).map(Zeroizing::new)
    }

    fn say(&mut self, text: &str) {
        self.said += text;
        self.said.push('\n');
    }
}

const HOST: Defaults =
    Defaults { address: Some(std::net::IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 7))) };

fn ask(answers: &[&str], known: Draft) -> (Result<Answers, Failure>, Script) {
    let mut script = Script::new(answers);
    let draft = all(&mut script, known, &HOST);
    (draft.map(|d| Answers::check(&d, &HOST).unwrap()), script)
}

#[test]
fn enter_takes_what_is_shown() {
    let mut lines = vec!["apps.example.com"];
    lines.extend([""; 14]);
    let (answers, script) = ask(&lines, Draft::default());
    let answers = answers.unwrap_or_else(|e| panic!("{e}\n{}", script.said));
    assert_eq!(answers.kms_domain, "kms.example.com");
    assert_eq!(answers.wireguard.endpoint, "198.51.100.7:51820");
    assert!(
        matches!(&answers.certificate, Certificate::Acme(a) if a.url == answers::LETSENCRYPT
        && matches!(a.dns, Dns::Cloudflare { zone_id: None, .. })),
        "{answers:?}"
    );
    for shown in [
        "[kms.example.com]",
        "[198.51.100.7]",
        "[9043]",
        "[9070]",
        "[9443]",
        "[51820]",
        "[10.0.0.0/16]",
        "[1000]",
    ] {
        assert!(script.said.contains(shown), "{shown} in\n{}", script.said);
    }
    assert!(script.answers.is_empty(), "{script:?}");
}

#[test]
fn a_wrong_answer_is_explained_and_asked_again() {
    let lines = [
        "no domain",
        "apps.example.com",
        "",
        "127.0.0.1",
        "",
        "0",
        "9999",
        "",
        "",
        "",
        "x",
        "",
        "10.0.0.1/16",
        "10.9.0.0/16",
        "many",
        "",
        "",
        "vault",
        "none",
    ];
    let (answers, script) = ask(&lines, Draft::default());
    let answers = answers.unwrap_or_else(|e| panic!("{e}\n{}", script.said));
    assert_eq!((answers.ports.kms, answers.wireguard.range.to_string().as_str()), (9999, "10.9.0.0/16"));
    assert_eq!(answers.certificate, Certificate::None);
    for said in [
        "is no domain",
        "no guest reaches 127.0.0.1",
        "is no port",
        "HOST:PORT",
        "without host bits",
        "is no number",
        "acme, files, none",
    ] {
        assert!(script.said.contains(said), "{said} in\n{}", script.said);
    }
}

#[test]
fn answers_that_do_not_fit_together_are_asked_again() {
    let mut lines = vec!["apps.example.com", "", "", "9070", "9070", "", "", "", "", "", "", "none"];
    lines.extend(["", "9071", "", "", "", "", "", "", ""]);
    let (answers, script) = ask(&lines, Draft::default());
    let answers = answers.unwrap_or_else(|e| panic!("{e}\n{}", script.said));
    assert_eq!((answers.ports.kms, answers.ports.registration), (9070, 9071));
    assert!(script.said.contains("9070 is the port of ports.kms"), "{}", script.said);
}

#[test]
fn what_was_answered_before_is_what_enter_takes() {
    let before = crate::init::draft::parse(
        "base_domain='a.b'\nkms_domain='k.b'\naddress='host.b'\n[wireguard]\nrange='10.7.0.0/16'\nip='10.7.0.9'\n\
         [certificate]\nsource='acme'\nacme_url='https://ca.test/dir'\n[certificate.dns]\nprovider='rfc2136'\n\
         [certificate.dns.rfc2136]\nserver='192.0.2.1:53'\nkey_name='n'\n",
    ).unwrap();
    let expected = Answers::check(&before, &HOST).unwrap();
    let (answers, script) = ask(&[""; 18], before);
    let answers = answers.unwrap_or_else(|e| panic!("{e}\n{}", script.said));
    assert_eq!(answers, expected);
}

#[test]
fn an_input_that_ends_is_an_error() {
    let (answers, _) = ask(&["apps.example.com"], Draft::default());
    assert!(answers.unwrap_err().message.contains("ended"));
}

#[test]
fn yes_and_no() {
    for (answers, usual, expected) in [
        (&["y"][..], false, true),
        (&[""], false, false),
        (&[""], true, true),
        (&["what", "No"], true, false),
    ] {
        assert_eq!(yes(&mut Script::new(answers), "q", usual).unwrap(), expected, "{answers:?}");
    }
}
