// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used)]

use super::*;

fn certificate(key: u8, names: &[&str]) -> Certificate {
    Certificate {
        public_key: vec![key; 40],
        names: names.iter().map(|n| (*n).to_owned()).collect(),
        issuer: "C=US, CN=R11".into(),
        serial: "1f".into(),
        not_before: 100,
        not_after: 200,
        is_precertificate: false,
    }
}

#[test]
fn decisions() {
    let (known, domains) = (BTreeSet::from([KeyId::of(&[1; 40])]), ["apps.example.com".parse().unwrap()]);
    let ours = ["b.org", "*.apps.example.com"];
    for (key, names, skip, now, expected) in [
        (1, &ours[..], true, 300, Decision::Known),
        (2, &ours[..], true, 200, Decision::Unknown),
        (2, &ours[..], true, 201, Decision::Expired),
        (2, &ours[..], false, 201, Decision::Unknown),
        (2, &["*.example.com"][..], false, 0, Decision::Unknown),
        (2, &["b.org"][..], false, 0, Decision::Foreign),
        (2, &[][..], false, 0, Decision::Foreign),
    ] {
        let rules = Rules { known: &known, domains: &domains, skip_expired: skip, now };
        assert_eq!(decide(&certificate(key, names), &rules), expected, "{key} {names:?} {skip} {now}");
    }
}

#[test]
fn each_key_alerts_once() {
    let mut book = Book::default();
    let first = Alert::unknown_key(&certificate(1, &["a.example.com"]), "crt.sh 1", 5);
    assert!(book.note(first.clone()).unwrap());
    assert!(!book.note(Alert::unknown_key(&certificate(1, &["b.example.com"]), "crt.sh 2", 9)).unwrap());
    assert!(book.note(Alert::unknown_key(&certificate(2, &["a.example.com"]), "crt.sh 3", 9)).unwrap());
    assert_eq!((book.open(), book.untold().len(), book.list().len()), (2, 2, 2));
    book.told(std::slice::from_ref(&first));
    assert_eq!(book.untold().len(), 1);
    assert!(first.text.contains("CN=R11") && first.text.contains("a.example.com"), "{}", first.text);
    book.acknowledge(first.id.get(..8).unwrap(), 10).unwrap();
    assert_eq!(book.open(), 1);
    assert!(!book.note(first).unwrap(), "acknowledged is not forgotten");
    for unknown in ["", "x", "00000000"] {
        assert!(book.acknowledge(unknown, 10).is_err());
    }
    let stored = serde_json::to_string(&book).unwrap();
    assert_eq!(serde_json::from_str::<Book>(&stored).unwrap(), book);
}

#[test]
fn a_key_that_is_known_later_settles_its_alert() {
    let mut book = Book::default();
    book.note(Alert::unknown_key(&certificate(1, &["a.example.com"]), "p", 5)).unwrap();
    let known = BTreeSet::from([KeyId::of(&[1; 40])]);
    assert_eq!(book.settle_keys(&known, 7).len(), 1);
    assert!(book.settle_keys(&known, 8).is_empty());
    assert_eq!(book.open(), 0);
}

#[test]
fn blindness_is_told_each_time_it_begins() {
    let mut book = Book::default();
    assert!(book.note(Alert::blind("crt.sh", 0, "HTTP status 502", 90_000)).unwrap());
    assert!(!book.note(Alert::blind("crt.sh", 0, "HTTP status 502", 95_000)).unwrap());
    assert_eq!(book.settle_blind("crt.sh", 96_000).len(), 1);
    assert!(book.note(Alert::blind("crt.sh", 96_000, "x", 190_000)).unwrap());
    assert_eq!(book.open(), 1);
}

#[test]
fn p15_alerts_are_bounded_and_none_is_lost_unseen() {
    let mut book = Book::default();
    for n in 0..ALERTS_MAX {
        let mut alert = Alert::blind(&n.to_string(), 0, "", 0);
        alert.kind = Kind::UnknownKey;
        assert!(book.note(alert).unwrap());
    }
    let more = Alert::unknown_key(&certificate(1, &["a.example.com"]), "p", 5);
    assert_eq!(book.note(more.clone()), Err(BookError::Full));
    book.settle(|a| a.place == "7", 1);
    assert!(book.note(more).unwrap());
    assert_eq!(book.list().len(), ALERTS_MAX);
}

#[test]
fn acknowledged_alerts_make_room_and_are_not_told_again() {
    let mut book = Book::default();
    let alert = |n: usize| Alert { kind: Kind::UnknownKey, ..Alert::blind(&n.to_string(), 0, "", 0) };
    for n in 0..ALERTS_MAX {
        assert!(book.note(alert(n)).unwrap());
    }
    book.acknowledge(&alert(7).id, 1).unwrap();
    assert!(book.note(alert(ALERTS_MAX)).unwrap());
    assert!(book.list().iter().all(|kept| kept.id != alert(7).id), "it made room");
    let stored = serde_json::to_string(&book).unwrap();
    let mut book: Book = serde_json::from_str(&stored).unwrap();
    assert!(!book.note(alert(7)).unwrap(), "acknowledged is not forgotten");
    assert_eq!(book.note(alert(ALERTS_MAX + 1)), Err(BookError::Full), "the others wait for somebody");
    let blind = Alert::blind("crt.sh", 0, "", 0);
    book.acknowledge(&alert(8).id, 1).unwrap();
    assert!(book.note(blind.clone()).unwrap());
    book.acknowledge(&blind.id, 2).unwrap();
    assert_eq!(book.note(alert(ALERTS_MAX + 1)), Err(BookError::Full), "it may still begin anew");
}

#[test]
fn a_book_of_before_is_read() {
    assert_eq!(serde_json::from_str::<Book>(r#"{"alerts":{}}"#).unwrap(), Book::default());
}

#[test]
fn lies_are_told_once_per_log_and_kind() {
    let alert = |log: &str, lie: Lie| Alert::log_lies(log, "Argon", &lie, "evidence", 0).id;
    assert_eq!(alert("a", Lie::Entries("x".into())), alert("a", Lie::Entries("y".into())));
    assert_ne!(alert("a", Lie::Forked), alert("a", Lie::RolledBack));
    assert_ne!(alert("a", Lie::Forked), alert("b", Lie::Forked));
}
