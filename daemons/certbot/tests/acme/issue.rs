// SPDX-License-Identifier: Apache-2.0
//! A certificate is issued, renewed, and rehearsed.

use crate::servers::kdig;
use crate::world::{EXTERNAL, World, engine, maintain, maintain_seen};
use dstack_certbot::account;
use dstack_certbot::engine::state::Renewal;
use dstack_certbot::engine::{Engine, EngineError, Observer, Outcome, Silent};
use dstack_certbot::renewal::{Reason, Suggested};
use dstack_certbot::workdir::Workdir;
use std::sync::Mutex;

#[tokio::test]
async fn a_wildcard_certificate_is_issued_and_renewed_with_a_new_key() {
    let world = World::new();
    let engine = world.engine();
    let outcome = maintain(&engine, false).await.unwrap();
    let first = world.check(&engine);
    assert_eq!(outcome, Outcome::Renewed { reason: Reason::Missing, public_key: first.public_key.clone() });
    assert!(
        matches!(maintain(&engine, false).await.unwrap(), Outcome::Fresh(at) if at > first.validity.not_before)
    );
    let account = engine.account_uri().unwrap();
    let outcome = maintain(&engine, true).await.unwrap();
    let second = world.check(&engine);
    assert_eq!(outcome, Outcome::Renewed { reason: Reason::Forced, public_key: second.public_key.clone() });
    assert_ne!(first.public_key, second.public_key, "the key is rotated");
    assert_eq!(engine.account_uri().unwrap(), account, "the account is the same");
    let mut keys = vec![first.public_key, second.public_key];
    keys.sort();
    assert_eq!(engine.history("").unwrap(), keys);
    // The original's file: the very same account, read by its own form.
    let file: serde_json::Value =
        serde_json::from_slice(&std::fs::read(world.path("work/credentials.json")).unwrap()).unwrap();
    assert_eq!(file["account_id"].as_str(), account.as_deref());
    assert_eq!(file["credentials"]["id"].as_str(), account.as_deref());
    assert_eq!(file["credentials"]["directory"].as_str(), Some(world.url.as_str()));
}

/// Reads the history at each step.
struct Reader(Engine, Mutex<Vec<Seen>>);

/// A step, and the history at it.
type Seen = (&'static str, Vec<Vec<u8>>);

impl Observer for Reader {
    fn step(&self, step: &'static str) {
        self.1.lock().unwrap().push((step, self.0.history("").unwrap()));
    }
}

/// Else whoever watches logs of certificates would find a key there that nobody of ours has.
#[tokio::test]
async fn a_key_is_in_the_history_before_its_certificate_is_in_a_log() {
    let world = World::new();
    let reader = Reader(world.engine(), Mutex::default());
    maintain_seen(&world.engine(), false, &reader).await.unwrap();
    let key = world.check(&reader.0).public_key;
    let seen = reader.1.into_inner().unwrap();
    let written = seen.iter().position(|(step, _)| *step == "order: written down").unwrap();
    assert!(seen[written..].iter().any(|(step, _)| *step == "order: finalized"));
    for (step, history) in &seen[written..] {
        assert_eq!(history, std::slice::from_ref(&key), "{step}");
    }
}

#[tokio::test]
async fn the_key_is_kept_when_it_is_to_be() {
    let world = World::new();
    let engine = engine(&world.toml("reuse_key = true", ""), &world.path("work"));
    maintain(&engine, false).await.unwrap();
    let first = world.check(&engine);
    maintain(&engine, true).await.unwrap();
    let second = world.check(&engine);
    assert!(first.public_key == second.public_key && first.serial != second.serial);
}

/// What was suggested for the certificate of before would have the new one renewed at each look.
#[tokio::test]
async fn a_suggestion_is_for_one_certificate() {
    let mut world = World::new();
    let engine = world.engine();
    maintain(&engine, false).await.unwrap();
    let first = world.check(&engine);
    let workdir = Workdir::existing(&world.path("work"));
    let now = dstack_certbot::http::now();
    let past = Suggested { start: now - 20, end: now - 10, ask_again: now + 3600 };
    let suggest = |serial: Vec<u8>| {
        let mut renewal = Renewal::load(&workdir).unwrap();
        (renewal.suggested, renewal.suggested_for) = (Some(past), Some(serial));
        renewal.store(&workdir).unwrap();
    };
    suggest(first.serial.clone());
    let outcome = maintain(&engine, false).await.unwrap();
    assert!(matches!(outcome, Outcome::Renewed { reason: Reason::Suggested, .. }), "{outcome:?}");
    let renewal = Renewal::load(&workdir).unwrap();
    assert_eq!((renewal.suggested, renewal.suggested_for), (None, None), "it was for the one before");
    // Even where it is still written down, and the authority cannot be asked.
    suggest(first.serial);
    world.pebble.0.kill().unwrap();
    world.pebble.0.wait().unwrap();
    let outcome = maintain(&engine, false).await.unwrap();
    assert!(matches!(outcome, Outcome::Fresh(at) if at > now), "{outcome:?}");
}

#[tokio::test]
async fn several_certificates_have_places_of_their_own() {
    let world = World::new();
    let table = "[[certificate]]\nnames = [\"other.example.test\"]\n";
    let engine = engine(&world.toml("", table), &world.path("work"));
    let turn = engine.turn().await.unwrap();
    for wanted in engine.select("").unwrap() {
        engine.maintain(&turn, &wanted, false, &Silent).await.unwrap();
    }
    drop(turn);
    world.check(&engine);
    let other = engine.live("other.example.test").unwrap().unwrap().leaf;
    assert!(world.path("work/domains/other.example.test/live/cert.pem").exists());
    assert_eq!(engine.history("other.example.test").unwrap(), [other.public_key]);
    assert_eq!(engine.history("").unwrap().len(), 2);
    assert!(matches!(engine.select("none.example"), Err(EngineError::NoSuchCertificate(..))));
}

/// The first certificate of the settings has the first place, so another order of them is another place.
#[tokio::test]
async fn another_order_of_the_settings_never_serves_other_names() {
    let world = World::new();
    let table = |name: &str| format!("[[certificate]]\nnames = [\"{name}\"]\n");
    let toml = |names: [&str; 2]| {
        let text = world.toml("", "");
        let rest = text.split("[[certificate]]").next().unwrap();
        format!("{rest}{}{}", table(names[0]), table(names[1]))
    };
    let run = async |engine: &dstack_certbot::engine::Engine| {
        let turn = engine.turn().await.unwrap();
        for wanted in engine.select("").unwrap() {
            engine.maintain(&turn, &wanted, false, &Silent).await.unwrap();
        }
    };
    let (one, two) = ("one.example.test", "two.example.test");
    let first = engine(&toml([one, two]), &world.path("work"));
    run(&first).await;
    let keys = first.history("").unwrap();
    let leaf =
        |engine: &dstack_certbot::engine::Engine, name: &str| engine.live(name).unwrap().map(|p| p.leaf);
    let moved = engine(&toml([two, one]), &world.path("work"));
    for engine in [&first, &moved] {
        for name in [one, two] {
            let names: Vec<String> =
                leaf(engine, name).unwrap().names.iter().map(ToString::to_string).collect();
            assert_eq!(names, [name], "what is there is served from the place of before");
            assert_eq!(engine.history(name).unwrap().len(), 1);
        }
    }
    run(&moved).await;
    for name in [one, two] {
        let at = if name == two { world.path("work") } else { world.path("work/domains").join(name) };
        let there = Workdir::existing(&at).live().unwrap().unwrap().leaf;
        assert_eq!(Some(&there), leaf(&moved, name).as_ref());
        assert_eq!(there.names.iter().map(ToString::to_string).collect::<Vec<_>>(), [name]);
        assert_eq!(moved.history(name).unwrap().len(), 2);
    }
    let all = moved.history("").unwrap();
    assert!(all.len() == 4 && keys.iter().all(|key| all.contains(key)));
    // Nothing is due any more, and a third certificate in first place has none yet.
    run(&moved).await;
    assert_eq!(moved.history("").unwrap(), all);
    let third = engine(&toml(["three.example.test", one]), &world.path("work"));
    assert!(third.live("three.example.test").unwrap().is_none());
}

#[tokio::test]
async fn accounts_are_bound_to_an_external_one_where_the_authority_wants_that() {
    let world = World::with(&[], Some(EXTERNAL));
    let without = world.engine();
    let error = maintain(&without, false).await.unwrap_err().to_string();
    assert!(error.contains("[eab]"), "{error}");
    let toml = world.toml("", &format!("[eab]\nkey_id = \"{}\"\n", EXTERNAL.0));
    let engine = engine(&toml, &world.path("work"));
    maintain(&engine, true).await.unwrap();
    world.check(&engine);
}

#[tokio::test]
async fn p30_an_unreadable_account_stops_everything_and_makes_no_other() {
    let world = World::new();
    let engine = world.engine();
    maintain(&engine, false).await.unwrap();
    let (path, live) = (world.path("work/credentials.json"), world.check(&engine));
    let good = std::fs::read(&path).unwrap();
    std::fs::write(&path, &good[..good.len() / 2]).unwrap();
    let error = maintain(&engine, true).await.unwrap_err().to_string();
    assert!(error.contains("credentials.json") && error.contains("no new account"), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), &good[..good.len() / 2], "it was left as it is");
    assert_eq!(engine.live("").unwrap().unwrap().leaf, live);
    std::fs::write(&path, &good).unwrap();
    maintain(&engine, true).await.unwrap();
    world.check(&engine);
}

#[tokio::test]
async fn another_authority_is_an_error_that_names_the_remedy() {
    let (world, other) = (World::new(), World::new());
    let engine = world.engine();
    maintain(&engine, false).await.unwrap();
    let moved = crate::world::engine(&other.toml("", ""), &world.path("work"));
    let error = maintain(&moved, true).await.unwrap_err();
    assert!(matches!(error, EngineError::Account(account::AccountError::OtherAuthority { .. })), "{error}");
    assert!(error.to_string().contains("mv "), "{error}");
}

/// The rehearsal proves all that a renewal needs, and leaves certificate and records as they were.
#[tokio::test]
async fn a_rehearsal_proves_everything_and_touches_nothing() {
    let (world, staging) = (World::new(), World::new());
    // The authority for tries has to ask the same DNS server.
    let at = world.path("staging");
    std::fs::create_dir(&at).unwrap();
    drop(staging);
    let (_pebble, url) = crate::servers::pebble(&at, world.dns, &[], None);
    let tables =
        format!("[rehearsal]\nacme_url = \"{url}\"\nacme_root = \"{}\"\n", at.join("roots.pem").display());
    let engine = engine(&world.toml("", &tables), &world.path("work"));
    let turn = engine.turn().await.unwrap();
    let error = engine.rehearse(&turn, &Silent).await.unwrap_err().to_string();
    assert!(error.contains("there is no account yet"), "{error}");
    drop(turn);
    maintain(&engine, false).await.unwrap();
    let live = world.check(&engine);
    let turn = engine.turn().await.unwrap();
    engine.rehearse(&turn, &Silent).await.unwrap();
    assert_eq!(world.check(&engine), live);
    assert_eq!(engine.rehearsed().unwrap().problems, [] as [&str; 0]);
    let stage = "dstack-rehearsal.apps.example.test";
    assert_eq!(kdig(world.dns, stage, "CAA"), [] as [&str; 0]);
    assert_eq!(kdig(world.dns, &format!("_acme-challenge.{stage}"), "TXT"), [] as [&str; 0]);
    assert_eq!(engine.history("").unwrap().len(), 1, "its certificate is none of ours");
    // Somebody removes the CAA records: it is told, with the remedy, and nothing is changed.
    remove_caa(&world).await;
    let error = engine.rehearse(&turn, &Silent).await.unwrap_err().to_string();
    assert!(error.contains("lacks CAA") && error.contains("dstackctl cert caa"), "{error}");
    assert_eq!(engine.rehearsed().unwrap().problems.len(), 1);
    engine.set_caa(&turn, &engine.select("").unwrap()[0], &Silent).await.unwrap();
    engine.rehearse(&turn, &Silent).await.unwrap();
    world.check(&engine);
}

#[tokio::test]
async fn a_rehearsal_elsewhere_does_without_the_external_account() {
    let world = World::with(&[], Some(EXTERNAL));
    let at = world.path("staging");
    std::fs::create_dir(&at).unwrap();
    let (_pebble, url) = crate::servers::pebble(&at, world.dns, &[], None);
    let tables = format!(
        "[eab]\nkey_id = \"{}\"\n[rehearsal]\nacme_url = \"{url}\"\nacme_root = \"{}\"\n",
        EXTERNAL.0,
        at.join("roots.pem").display()
    );
    let engine = engine(&world.toml("", &tables), &world.path("work"));
    maintain(&engine, false).await.unwrap();
    let turn = engine.turn().await.unwrap();
    engine.rehearse(&turn, &Silent).await.unwrap();
}

async fn remove_caa(world: &World) {
    use dstack_certbot::dns::{Kind, Provider};
    let (provider, name) = (crate::cloudflare::writer(world.dns), "apps.example.test".parse().unwrap());
    for record in provider.list(&name, Kind::Caa).await.unwrap() {
        provider.remove(&name, &record).await.unwrap();
    }
}
