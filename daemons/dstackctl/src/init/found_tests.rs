// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used)]
use super::*;

#[test]
fn the_gateway_is_made_once_and_never_against_the_operator() {
    let directory = tempfile::tempdir().unwrap();
    let root = Root::below(directory.path());
    let made = gateway(&root, false).unwrap().unwrap();
    assert!(made.len() == 40 && hex::decode(&made).is_ok(), "{made}");
    assert_ne!(gateway(&root, false).unwrap().unwrap(), made, "nothing is written yet");
    assert_eq!(gateway(&root, true).unwrap().unwrap(), "(generated)");
    root.write("/etc/dstack/kms.toml", b"gateway_app_id = \"ab\"", 0o644).unwrap();
    assert_eq!(gateway(&root, false).unwrap(), None);
    let ours = format!("gateway_app_id = \"{made}\"");
    root.write("/etc/dstack/kms.toml.d/20-init.toml", ours.as_bytes(), 0o644).unwrap();
    assert_eq!(gateway(&root, true).unwrap(), Some(made.clone()));
    assert_eq!(gateway(&root, false).unwrap(), Some(made));
    root.write("/etc/dstack/kms.toml.d/20-init.toml", b"", 0o644).unwrap();
    root.write("/etc/dstack/kms.toml", b"gateway_app_id = ", 0o644).unwrap();
    assert!(gateway(&root, false).unwrap_err().message.contains("kms.toml"));
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
