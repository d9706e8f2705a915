// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used)]

use super::*;
use rcgen::{CertificateParams, KeyPair, PublicKeyData};
use std::os::unix::fs::PermissionsExt;

fn pair(name: &str) -> Pair {
    let key = KeyPair::generate().unwrap();
    let chain = CertificateParams::new([name.to_owned()]).unwrap().self_signed(&key).unwrap().pem();
    Pair::new(chain, Zeroizing::new(key.serialize_pem())).unwrap()
}

#[test]
fn chain_and_key_change_at_one_moment() {
    let dir = tempfile::tempdir().unwrap();
    let workdir = Workdir::open(dir.path()).unwrap();
    assert!(workdir.live().unwrap().is_none());
    let (first, second) = (pair("a.example"), pair("a.example"));
    workdir.publish(&first, "2026-01-01T00:00:00.000000001Z", |_| {}).unwrap();
    // At each step the live pair is the old one or the new one, never none and never half of each.
    let mut steps = Vec::new();
    workdir
        .publish(&second, "2026-01-02T00:00:00.000000001Z", |step| {
            steps.push((step, workdir.live().unwrap().unwrap().leaf.public_key));
        })
        .unwrap();
    let (old, new) = (&first.leaf.public_key, &second.leaf.public_key);
    assert!(
        steps.iter().all(|(step, key)| key == if *step == "link-swapped" { new } else { old }),
        "{steps:?}"
    );
    assert_eq!(steps.len(), 5);
    assert_eq!(workdir.history(|_| true).unwrap(), [old.clone(), new.clone()].into());
    let key = fs::metadata(dir.path().join("live/key.pem")).unwrap();
    assert_eq!(key.permissions().mode() & 0o777, 0o600);
    assert_eq!(workdir.stored(old).unwrap().as_deref(), Some("2026-01-01T00:00:00.000000001Z"));
}

#[test]
fn the_originals_directory_of_links_is_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    let workdir = Workdir::open(dir.path()).unwrap();
    let (first, second) = (pair("a.example"), pair("a.example"));
    workdir.publish(&first, "preinstalled", |_| {}).unwrap();
    fs::remove_file(dir.path().join("live")).unwrap();
    fs::create_dir(dir.path().join("live")).unwrap();
    for name in ["cert.pem", "key.pem"] {
        symlink(format!("../backup/preinstalled/{name}"), dir.path().join("live").join(name)).unwrap();
    }
    assert_eq!(workdir.live().unwrap().unwrap().leaf, first.leaf);
    workdir.publish(&second, "2026-01-02T00:00:00Z", |_| {}).unwrap();
    assert_eq!(workdir.live().unwrap().unwrap().leaf, second.leaf);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "live and backup");
}

#[test]
fn what_a_killed_run_left_is_swept() {
    let dir = tempfile::tempdir().unwrap();
    let workdir = Workdir::open(dir.path()).unwrap();
    workdir.publish(&pair("a.example"), "2026-01-01T00:00:00Z", |_| {}).unwrap();
    fs::create_dir(dir.path().join("backup/.new-x")).unwrap();
    fs::write(dir.path().join("backup/.new-x/cert.pem"), "half").unwrap();
    symlink("backup/.new-x", dir.path().join(".new-live")).unwrap();
    let workdir = Workdir::open(dir.path()).unwrap();
    assert_eq!(workdir.history(|_| true).unwrap().len(), 1);
    assert_eq!(fs::read_dir(dir.path().join("backup")).unwrap().count(), 1);
    assert!(workdir.live().unwrap().is_some());
}

#[test]
fn p30_half_a_pair_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let workdir = Workdir::open(dir.path()).unwrap();
    let (first, other) = (pair("a.example"), pair("a.example"));
    workdir.publish(&first, "2026-01-01T00:00:00Z", |_| {}).unwrap();
    fs::write(dir.path().join("live/key.pem"), other.key.as_bytes()).unwrap();
    assert!(workdir.live().unwrap_err().to_string().contains("does not belong"));
    fs::remove_file(dir.path().join("live/key.pem")).unwrap();
    assert!(workdir.live().unwrap_err().to_string().contains("not both"));
    fs::write(dir.path().join("live/cert.pem"), "x").unwrap();
    assert!(workdir.history(|_| true).unwrap_err().to_string().contains("cert.pem"));
}

#[test]
fn a_request_has_names_and_no_subject() {
    let key = certificate::fresh_key().unwrap();
    let names: BTreeSet<_> = ["*.a.example", "a.example"].iter().map(|n| n.parse().unwrap()).collect();
    let der = certificate::request(&key, &names).unwrap();
    let text = String::from_utf8_lossy(&der).into_owned();
    assert!(text.contains("*.a.example"));
    assert_eq!(
        certificate::public_key(&key).unwrap(),
        KeyPair::from_pem(&key).unwrap().subject_public_key_info()
    );
}
