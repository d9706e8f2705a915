// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used)]
use super::*;

fn kms(n: u8) -> Trusted {
    Trusted {
        version: 1,
        url: format!("https://kms{n}.test:9043"),
        domain: format!("kms{n}.test"),
        realm: "intel".into(),
        custody: "host".into(),
        ca_public_key: vec![n; 91],
        k256_public_key: [2; 33],
        attested: false,
        trusted_at: 1,
    }
}

fn store(directory: &Path) -> Store {
    Store { directories: vec![directory.join("user"), directory.join("system")] }
}

#[test]
fn t15_several_are_trusted_and_one_is_the_default() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path());
    assert_eq!((store.all().unwrap(), store.default().unwrap()), (vec![], None));
    store.add(&kms(1), false, false).unwrap();
    store.add(&kms(2), false, false).unwrap();
    assert_eq!(store.default().unwrap(), Some(kms(1)));
    store.add(&kms(2), false, true).unwrap();
    assert_eq!(store.default().unwrap(), Some(kms(2)));
    for name in ["kms1.test", "https://kms1.test:9043", "https://kms1.test:9043/", &kms(1).fingerprint()[..8]]
    {
        assert_eq!(store.find(name).unwrap(), kms(1), "{name}");
    }
    for name in ["", "kms3.test", &kms(1).fingerprint()[..7]] {
        assert_eq!(store.find(name).unwrap_err().exit, Exit::NotFound, "{name}");
    }
    store.remove(&kms(2)).unwrap();
    assert_eq!(store.default().unwrap(), Some(kms(1)), "the only one");
    store.remove(&kms(1)).unwrap();
    assert_eq!(store.default().unwrap(), None);
}

#[test]
fn t15_roots_choice_is_for_everybody_and_the_users_comes_first() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path());
    store.add(&kms(1), true, false).unwrap();
    assert_eq!(store.default().unwrap(), Some(kms(1)));
    store.add(&kms(2), false, false).unwrap();
    assert_eq!(store.default().unwrap(), Some(kms(2)));
    assert_eq!(store.all().unwrap(), [kms(2), kms(1)]);
}

#[test]
fn t15_what_cannot_be_read_is_not_absent() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path());
    store.add(&kms(1), false, false).unwrap();
    let path = directory.path().join("user").join(format!("{}.json", kms(1).fingerprint()));
    let good = std::fs::read_to_string(&path).unwrap();
    for bad in ["", "{}", &good.replace("\"version\": 1", "\"version\": 2"), &good.replace("0101", "0201")] {
        std::fs::write(&path, bad).unwrap();
        let failure = store.all().unwrap_err();
        assert!(failure.message.contains("no trusted key service"), "{failure}");
        assert!(store.default().is_err());
    }
    std::fs::remove_file(&path).unwrap();
    assert!(store.default().unwrap_err().message.contains("gone"), "a link that leads nowhere");
}

#[test]
fn fingerprints() {
    let hex = "ab".repeat(32);
    let colons = format!("SHA256:{}", ["AB"; 32].join(":"));
    for good in [hex.as_str(), &colons, &format!("sha256:{hex}")] {
        assert_eq!(parse_fingerprint(good).unwrap(), hex);
    }
    for bad in ["", "ab", &hex[1..], &format!("{hex}00"), &hex.replace('a', "x")] {
        assert!(parse_fingerprint(bad).is_err(), "{bad}");
    }
}
