// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used)]
use super::*;
use rcgen::{CertificateParams, KeyPair};

#[test]
fn the_gateway_is_made_once_and_never_against_the_operator() {
    let directory = tempfile::tempdir().unwrap();
    let root = Root::below(directory.path());
    let made = gateway(&root).unwrap().unwrap();
    assert!(made.len() == 40 && hex::decode(&made).is_ok(), "{made}");
    assert_ne!(gateway(&root).unwrap().unwrap(), made, "nothing is written yet");
    root.write("/etc/dstack/kms.toml", b"gateway_app_id = \"ab\"", 0o644).unwrap();
    assert_eq!(gateway(&root).unwrap(), None);
    let ours = format!("gateway_app_id = \"{made}\"");
    root.write("/etc/dstack/kms.toml.d/20-init.toml", ours.as_bytes(), 0o644).unwrap();
    assert_eq!(gateway(&root).unwrap(), Some(made));
    root.write("/etc/dstack/kms.toml.d/20-init.toml", b"", 0o644).unwrap();
    root.write("/etc/dstack/kms.toml", b"gateway_app_id = ", 0o644).unwrap();
    assert!(gateway(&root).unwrap_err().message.contains("kms.toml"));
}

#[test]
fn named_files_are_looked_at_before_anything_is_changed() {
    let directory = tempfile::tempdir().unwrap();
    let (chain, key) = (directory.path().join("cert.pem"), directory.path().join("key.pem"));
    let error = own_certificate(&chain, &key).unwrap_err();
    assert!(error.message.starts_with("certificate.chain: "), "{error}");
    let (right, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let certificate = CertificateParams::new(vec!["*.a.b".to_owned()]).unwrap().self_signed(&right).unwrap();
    std::fs::write(&chain, certificate.pem()).unwrap();
    assert!(own_certificate(&chain, &key).unwrap_err().message.starts_with("certificate.key: "));
    std::fs::write(&key, other.serialize_pem()).unwrap();
    assert!(own_certificate(&chain, &key).unwrap_err().message.contains("does not belong to"));
    std::fs::write(&key, right.serialize_pem()).unwrap();
    own_certificate(&chain, &key).unwrap();
    std::fs::write(&chain, "nothing").unwrap();
    assert!(own_certificate(&chain, &key).unwrap_err().message.contains("no certificate"));
}

#[test]
fn a_certificate_that_is_not_to_be_had_names_the_option_and_the_file_that_was_written() {
    let text = "base_domain='a.b'\naddress='h.b'\n[certificate]\nsource='acme'\n[certificate.dns]\nprovider='rfc2136'\n\
        [certificate.dns.rfc2136]\nserver='192.0.2.1'\nkey_name='k'\n";
    let draft = crate::init::draft::parse(text).unwrap();
    let answers = Answers::check(&draft, &Defaults { address: None }).unwrap();
    let hint = remedy(&answers);
    for part in ["--tsig-key-file FILE", "/etc/dstack/certbot.toml.d/20-init.toml", "asks for secrets again"]
    {
        assert!(hint.contains(part), "{part} in {hint}");
    }
}
