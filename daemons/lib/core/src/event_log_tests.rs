// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used)]
use super::*;

const APP: &str = "3327603e03f5bd1f830812ca4a789277fc31f577";
const INSTANCE: &str = "00112233445566778899aabbccddeeff00112233";

fn event(name: &str, payload: &[u8]) -> Event {
    Event::runtime(name, payload).unwrap()
}

fn boot() -> Vec<Event> {
    let app = hex::decode(APP).unwrap();
    let payloads: [&[u8]; 10] =
        [b"", &app, &[2; 32], &[3; 20], b"", &[5; 32], &[6; 32], br#"{"name":"kms"}"#, b"ext4", b""];
    TRUSTED.into_iter().zip(payloads).map(|(name, payload)| event(name, payload)).collect()
}

#[test]
fn digest_of_the_published_vector() {
    let expected =
        "0750297db960b4c4035b08532b5252e13e374e98e13d5dfbf1654b0117b31b4219495f8ff7f30f609694366313afad91";
    assert_eq!(hex::encode(event("app-id", &hex::decode(APP).unwrap()).digest), expected);
}

#[test]
fn replay_of_the_published_vector() {
    let empty = hex::decode("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855").unwrap();
    let log = [
        event("rootfs-hash", &[0xaa; 32]),
        event("app-id", &hex::decode(APP).unwrap()),
        event("compose-hash", &[0xbb; 32]),
        event("ca-cert-hash", &empty),
        event("instance-id", &hex::decode(INSTANCE).unwrap()),
    ];
    let expected =
        "e21fa715607473e117856e4634df3695586e32d9877fe9ca4956bb9080c4e3fcb88edb351f2eda730363e29f71197eb7";
    assert_eq!(hex::encode(replay(&log).unwrap()[3]), expected);
}

#[test]
fn a_log_survives_its_json() {
    let log = boot();
    let json = serde_json::to_vec(&log).unwrap();
    assert_eq!(parse(&json).unwrap(), log);
    let first: serde_json::Value = serde_json::to_value(log.first().unwrap()).unwrap();
    let mut keys: Vec<&String> = first.as_object().unwrap().keys().collect();
    keys.sort();
    assert_eq!(keys, ["digest", "event", "event_payload", "event_type", "imr"]);
}

#[test]
fn p11_a_digest_is_recomputed_and_never_believed() {
    let mut log = boot();
    log.get_mut(1).unwrap().event_payload = vec![0; 20];
    let error = parse(&serde_json::to_vec(&log).unwrap()).unwrap_err();
    assert_eq!(error, EventError::Digest { index: 1, name: "app-id".into() });
}

#[test]
fn p13_a_colon_in_a_name_is_refused_on_both_sides() {
    assert_eq!(digest(EVENT_TYPE, "a:b", b"c"), digest(EVENT_TYPE, "a", b"b:c"), "the framing is ambiguous");
    assert!(matches!(Event::runtime("a:b", b"c"), Err(EventError::Name(_))));
    let forged = Event { event: "a:b".into(), ..event("a", b"b:c") };
    assert!(matches!(parse(&serde_json::to_vec(&[forged]).unwrap()), Err(EventError::Name(_))));
}

#[test]
fn t07_the_prefix_has_one_order() {
    let log = boot();
    let ready = Trusted::of(&log).unwrap();
    assert_eq!((ready.milestone, ready.app_id.to_string().as_str()), (Milestone::Ready, APP));
    let wanted = Trusted::of(log.get(..7).unwrap()).unwrap();
    assert_eq!((wanted.milestone, wanted.key_provider), (Milestone::KeysWanted, None));
    for length in (0..10).filter(|l| *l != 7) {
        assert!(matches!(Trusted::of(log.get(..length).unwrap()), Err(EventError::Order { .. })), "{length}");
    }
    for (left, right) in [(0, 1), (1, 2), (5, 6), (8, 9)] {
        let mut other = log.clone();
        other.swap(left, right);
        assert!(matches!(Trusted::of(&other), Err(EventError::Order { .. })), "{left} {right}");
    }
    let mut doubled = log.clone();
    doubled.insert(2, event("app-id", &[9; 20]));
    assert!(matches!(Trusted::of(&doubled), Err(EventError::Order { index: 2, .. })));
}

#[test]
fn t07_what_follows_system_ready_is_ignored() {
    let mut log = boot();
    let before = Trusted::of(&log).unwrap();
    log.push(event("app-id", &[9; 20]));
    log.push(event("system-ready", b"again"));
    assert_eq!(Trusted::of(&log).unwrap(), before);
}

#[test]
fn t20_payloads_have_their_exact_length() {
    for (index, name) in [(1, "app-id"), (2, "compose-hash"), (3, "instance-id"), (5, "os-image-hash")] {
        let mut log = boot();
        *log.get_mut(index).unwrap() = event(name, &[0; 19]);
        assert_eq!(Trusted::of(&log), Err(EventError::Form(name)));
    }
    let mut log = boot();
    *log.get_mut(3).unwrap() = event("instance-id", b"");
    assert_eq!(Trusted::of(&log).unwrap().instance_id, None);
}

#[test]
fn p15_a_log_is_bounded() {
    let many = vec![event("a", b""); EVENTS_MAX + 1];
    assert_eq!(parse(&serde_json::to_vec(&many).unwrap()), Err(EventError::TooLarge));
    assert_eq!(parse(&vec![b' '; LOG_MAX + 1]), Err(EventError::TooLarge));
    assert!(matches!(Event::runtime("a", &[0; PAYLOAD_MAX + 1]), Err(EventError::Payload(_))));
    let foreign = Event { imr: 4, ..event("a", b"") };
    assert!(matches!(replay(&[foreign]), Err(EventError::Register { index: 0, imr: 4 })));
}
