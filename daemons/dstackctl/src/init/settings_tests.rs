// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used)]
use super::*;
use crate::init::answers::Defaults;
use crate::init::draft::parse;
use std::path::PathBuf;

const GATEWAY: &str = "00112233445566778899aabbccddeeff00112233";

/// Answers in `testdata/init`, and what is made of them. The daemons' own tests read the same files by their settings.
fn golden(name: &str) -> (Vec<Wanted>, PathBuf) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/init").join(name);
    let text = std::fs::read_to_string(directory.join("answers.toml")).unwrap();
    let answers = Answers::check(&parse(&text).unwrap(), &Defaults { address: None }).unwrap();
    (files(&answers, Some(GATEWAY)), directory)
}

fn file_name(path: &str) -> String {
    path.trim_start_matches("/etc/dstack/")
        .trim_start_matches("/etc/systemd/system/")
        .replace(".d/20-init", "")
        .replace(".toml.toml", ".toml")
}

#[test]
fn answers_become_the_files_that_daemons_read() {
    for name in ["files", "cloudflare", "rfc2136"] {
        let (all, directory) = golden(name);
        let mut left: Vec<String> = std::fs::read_dir(&directory)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        left.retain(|file| file != "answers.toml");
        for wanted in all {
            let Some(text) = wanted.text else { continue };
            let file = file_name(wanted.path);
            if std::env::var_os("UPDATE_GOLDEN").is_some() {
                std::fs::write(directory.join(&file), &text).unwrap();
            }
            let expected =
                std::fs::read_to_string(directory.join(&file)).unwrap_or_else(|e| panic!("{file}: {e}"));
            assert_eq!(text, expected, "{name}/{file}");
            left.retain(|f| *f != file);
        }
        assert!(left.is_empty(), "{name}: {left:?} is not written");
    }
}

#[test]
fn every_file_is_toml_or_a_unit_and_none_is_the_operators() {
    for name in ["files", "cloudflare", "rfc2136"] {
        for wanted in golden(name).0 {
            let is_ours = wanted.path.contains(".d/20-init.") || wanted.path == SAVED;
            assert!(is_ours, "{}", wanted.path);
            if let (Some(text), true) = (&wanted.text, wanted.path.ends_with(".toml")) {
                toml::from_str::<toml::Table>(text).unwrap();
            }
        }
    }
}

#[test]
fn no_secret_is_in_a_file() {
    for wanted in golden("rfc2136").0 {
        let text = wanted.text.unwrap_or_default();
        for line in text.lines().filter(|l| !l.starts_with('#')) {
            assert!(!line.starts_with("key =") && !line.contains("token ="), "{line}");
        }
    }
}

#[test]
fn a_gateway_of_the_operators_own_is_left_to_them() {
    let answers =
        Answers::check(&parse("base_domain='a.b'\naddress='a.b'").unwrap(), &Defaults { address: None })
            .unwrap();
    let kms = files(&answers, None).into_iter().find(|w| w.of == Some(&KMS)).unwrap();
    assert!(!kms.text.unwrap().contains("gateway_app_id"));
}

#[test]
fn whoever_serves_a_certificate_watches_for_others() {
    for (name, certbot) in [("files", false), ("cloudflare", true), ("rfc2136", true)] {
        let all = golden(name).0;
        let text = all.into_iter().find(|w| w.of == Some(&CT_MONITOR)).unwrap().text.unwrap();
        assert!(text.contains("domains = [\"apps.example.com\"]") && text.contains("[[tproxy]]"), "{text}");
        assert_eq!(text.contains("[certbot]"), certbot, "{text}");
    }
    let draft = parse("base_domain='a.b'\naddress='a.b'").unwrap();
    let none = files(&Answers::check(&draft, &Defaults { address: None }).unwrap(), None);
    assert!(none.into_iter().find(|w| w.of == Some(&CT_MONITOR)).unwrap().text.is_none());
}
