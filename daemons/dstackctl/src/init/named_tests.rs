// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used)]
use super::*;
use rcgen::{CertificateParams, KeyPair};
use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt, chown};

#[test]
fn named_files_are_looked_at_before_anything_is_changed() {
    let directory = tempfile::tempdir().unwrap();
    let (chain, key) = (directory.path().join("cert.pem"), directory.path().join("key.pem"));
    let error = own_certificate(&chain, &key, "a.b").unwrap_err();
    assert!(error.message.starts_with("certificate.chain: "), "{error}");
    let (right, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let certificate = CertificateParams::new(vec!["*.a.b".to_owned()]).unwrap().self_signed(&right).unwrap();
    std::fs::write(&chain, certificate.pem()).unwrap();
    assert!(own_certificate(&chain, &key, "a.b").unwrap_err().message.starts_with("certificate.key: "));
    std::fs::write(&key, other.serialize_pem()).unwrap();
    assert!(own_certificate(&chain, &key, "a.b").unwrap_err().message.contains("does not belong to"));
    std::fs::write(&key, right.serialize_pem()).unwrap();
    own_certificate(&chain, &key, "a.b").unwrap();
    std::fs::write(&chain, "nothing").unwrap();
    assert!(own_certificate(&chain, &key, "a.b").unwrap_err().message.contains("no certificate"));
}

#[test]
fn a_chain_for_other_names_is_refused_also_where_the_key_cannot_be_seen() {
    let directory = tempfile::tempdir().unwrap();
    let (chain, key) = (directory.path().join("cert.pem"), directory.path().join("none.pem"));
    let pair = KeyPair::generate().unwrap();
    for (names, covered) in [
        (&["*.a.b"][..], true),
        (&["a.b", "*.c.d"], false),
        (&["app.x.a.b"], false),
        (&["a.b", "*.A.B"], true),
    ] {
        let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
        let certificate = CertificateParams::new(names.clone()).unwrap().self_signed(&pair).unwrap();
        std::fs::write(&chain, certificate.pem()).unwrap();
        let error = own_certificate(&chain, &key, "a.b").unwrap_err();
        assert_eq!(error.message.contains("do not cover *.a.b"), !covered, "{names:?} {error}");
    }
}

#[test]
fn users_are_found() {
    let passwd = "root:x:0:0:root:/root:/bin/bash\ndstack-tproxy:x:997:996::/:/usr/sbin/nologin\nbroken\n";
    assert_eq!(User::parse(passwd, INGRESS), Some(User { uid: 997, gid: 996 }));
    assert_eq!(User::parse(passwd, "dstack"), None);
}

#[test]
fn what_the_ingress_cannot_read_is_refused_with_the_commands() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can look as another user");
        return;
    }
    let user = User { uid: 54_321, gid: 54_322 };
    // Not below /tmp, which the ingress does not see.
    let directory = tempfile::tempdir_in("/var/lib").unwrap();
    let key = directory.path().join("key.pem");
    std::fs::write(&key, "x").unwrap();
    let mode = |path: &Path, mode| std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    mode(directory.path(), 0o750);
    mode(&key, 0o640);
    let hint = user.sees("certificate.key", &key).unwrap_err().hint.unwrap();
    let directory_name = directory.path().display();
    assert_eq!(hint, format!("chgrp dstack-tproxy {directory_name}; chmod g+x {directory_name}"));
    chown(directory.path(), None, Some(54_322)).unwrap();
    let failure = user.sees("certificate.key", &key).unwrap_err();
    assert!(failure.message.contains("cannot read it"), "{failure}");
    assert_eq!(failure.hint.unwrap(), format!("chgrp dstack-tproxy {0}; chmod g+r {0}", key.display()));
    chown(&key, None, Some(54_322)).unwrap();
    user.sees("certificate.key", &key).unwrap();
    let hidden = user.sees("certificate.key", Path::new("/root/key.pem")).unwrap_err();
    assert!(hidden.hint.unwrap().contains("/etc/dstack/certs"));
}
