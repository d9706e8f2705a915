// SPDX-License-Identifier: Apache-2.0
//! One byte of the evidence is changed by hand: it is refused, and the reason names what was changed.

use crate::world::{ROOT, World, said};
use dstack_core::event_log::Event;
use dstack_quote_sim::collateral::Claims;
use dstack_ra_tls::certificate::{AttestedKey, report_data};
use serde_json::Value;
use std::time::{Duration, SystemTime};
use time::OffsetDateTime;

const TRUST: &str = "--root root.pem --collateral collateral.json --json";
/// Where the signature's data begins: behind header, report and a length.
const SIGNATURE: usize = 48 + 584 + 4;

/// Status, and the rule and reason of each failure.
fn judged(world: &World, input: &str) -> (i32, Vec<(String, String)>) {
    let (code, text) = said(&world.run(&format!("verify {input} {TRUST}"), None));
    let verdict: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{code}: {text}"));
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let failures = verdict["failures"].as_array().unwrap().iter();
    (code, failures.map(|f| (text(&f["rule"]), text(&f["reason"]))).collect())
}

/// Refused by this rule, with a reason that has this word.
fn refused(world: &World, input: &str, rule: &str, word: &str) {
    let (code, failures) = judged(world, input);
    let named = failures.iter().any(|(r, reason)| r == rule && reason.to_lowercase().contains(word));
    assert!(code == 6 && named, "{rule}, {word:?}: {code} {failures:?}");
}

fn flip(bytes: &[u8], at: usize) -> Vec<u8> {
    let mut other = bytes.to_vec();
    other[at] ^= 1;
    other
}

/// Where `part` is in `whole`.
fn find(whole: &[u8], part: &[u8]) -> usize {
    whole.windows(part.len()).position(|window| window == part).unwrap()
}

#[test]
fn p09_a_byte_of_the_quote() {
    let world = World::new();
    let quote = ROOT.quote(&world.report);
    world.write("log.json", serde_json::to_vec(&world.events).unwrap());
    world.write("quote.bin", &quote);
    assert_eq!(judged(&world, "quote.bin --event-log log.json"), (0, vec![]));
    let certificate = find(&quote, b"-----BEGIN") + 200;
    for (what, at, word) in [
        ("platform", 30, "signature"),
        ("MRTD", 48 + 136, "signature"),
        ("RTMR3", 48 + 472, "signature"),
        ("report data", 48 + 520, "signature"),
        ("signature", SIGNATURE, "signature"),
        ("attestation key", SIGNATURE + 64, "qe report hash"),
        ("certificate of the platform", certificate, "certificate"),
    ] {
        world.write("quote.bin", flip(&quote, at));
        let (code, failures) = judged(&world, "quote.bin --event-log log.json");
        let [(rule, reason)] = failures.as_slice() else { panic!("{what}: {failures:?}") };
        assert_eq!((code, rule.as_str()), (6, "genuine"), "{what}: {reason}");
        assert!(reason.to_lowercase().contains(word), "{what}: {reason}");
    }
}

#[test]
fn p11_a_byte_of_the_event_log() {
    let mut world = World::new();
    world.write("quote.bin", ROOT.quote(&world.report));
    let log = |world: &World, events: &[Event]| {
        world.write("log.json", serde_json::to_vec(events).unwrap());
    };
    let input = "quote.bin --event-log log.json";
    // A payload whose digest stays, a digest whose payload stays, and both of another event.
    let text = serde_json::to_string(&world.events).unwrap();
    let compose = hex::encode(world.events[2].event_payload.clone());
    let digit = if compose.starts_with('0') { "1" } else { "0" };
    let changed = text.replacen(&compose, &format!("{digit}{}", &compose[1..]), 1);
    assert_ne!(changed, text);
    world.write("log.json", changed);
    refused(&world, input, "event-log", "compose-hash");
    let mut events = world.events.clone();
    events[2] = Event::runtime("compose-hash", &[7; 32]).unwrap();
    log(&world, &events);
    refused(&world, input, "replay", "rtmr3");
    refused(&world, input, "config-id", "another app");
    world.events.swap(2, 3);
    log(&world, &world.events);
    refused(&world, input, "replay", "rtmr3");
    world.events.swap(2, 3);
    world.events.pop();
    log(&world, &world.events);
    refused(&world, input, "replay", "rtmr3");
}

#[test]
fn p09_a_byte_of_the_collateral() {
    let world = World::new();
    world.write("quote.json", world.reply().to_string());
    let good = ROOT.collateral(&Claims::up_to_date(OffsetDateTime::now_utc())).unwrap();
    let good = serde_json::to_value(&good).unwrap();
    for (part, rule, word) in [
        ("tcb_info", "genuine", "tcb"),
        ("tcb_info_signature", "genuine", "tcb"),
        ("qe_identity", "genuine", "qe"),
        ("qe_identity_signature", "genuine", "qe"),
        ("root_ca_crl", "genuine", "crl"),
        ("pck_crl", "genuine", "crl"),
    ] {
        let mut collateral = good.clone();
        let text = collateral[part].as_str().unwrap();
        let at = text.len() / 2;
        // A digit stays a digit, in hex and in JSON.
        let at = at + text[at..].find(|c: char| c.is_ascii_digit()).unwrap();
        let digit = if &text[at..=at] == "1" { "2" } else { "1" };
        collateral[part] = format!("{}{digit}{}", &text[..at], &text[at + 1..]).into();
        world.write("collateral.json", collateral.to_string());
        refused(&world, "quote.json", rule, word);
    }
    for part in ["tcb_info_issuer_chain", "qe_identity_issuer_chain"] {
        let mut collateral = good.clone();
        // A letter of the signer's signature, which is the end of its certificate.
        let mut chain = collateral[part].as_str().unwrap().as_bytes().to_vec();
        let at = find(&chain, b"-----END") - 12;
        chain[at] = if chain[at] == b'A' { b'B' } else { b'A' };
        collateral[part] = String::from_utf8(chain).unwrap().into();
        world.write("collateral.json", collateral.to_string());
        refused(&world, "quote.json", "genuine", "certificate");
    }
}

#[test]
fn p23_a_byte_of_the_certificate() {
    let mut world = World::new();
    let key = AttestedKey::generate().unwrap();
    world.report.report_data = report_data(&key.public_key());
    let (quote, log) = (ROOT.quote(&world.report), serde_json::to_vec(&world.events).unwrap());
    let hour = Duration::from_secs(3600);
    let der = key.self_signed("app-name", &quote, &log, SystemTime::now(), hour).unwrap();
    world.write("leaf.der", &der);
    assert_eq!(judged(&world, "leaf.der"), (0, vec![]));
    let point = find(&der, &key.public_key()) + 40;
    let payload = find(&der, hex::encode([3; 20]).as_bytes());
    // The last of the two names is the subject.
    let subject = der.windows(8).rposition(|window| window == b"app-name").unwrap();
    for (at, rule, word) in [
        (find(&der, &quote) + 48 + 136, "genuine", "signature"),
        (payload, "event-log", "instance-id"),
        (point, "report-data", "does not bind"),
        (der.len() - 1, "certificate", "signature is not good"),
        // With another name it is another's, who did not come with it.
        (subject, "certificate", "cannot be checked"),
        (find(&der, &quote) + 48 + 136, "certificate", "signature is not good"),
    ] {
        world.write("leaf.der", flip(&der, at));
        refused(&world, "leaf.der", rule, word);
    }
}
