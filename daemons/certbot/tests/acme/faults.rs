// SPDX-License-Identifier: Apache-2.0
//! An authority and DNS servers in trouble: the right outcome, or a clear error.

use crate::servers::{free_port, kdig, knot, pebble_again};
use crate::world::{World, engine, maintain};
use dstack_certbot::engine::{EngineError, Silent};
use std::time::{Duration, Instant};

#[tokio::test]
async fn many_rejected_nonces_and_a_slow_validation() {
    let world = World::with(
        &[("PEBBLE_WFE_NONCEREJECT", "15"), ("PEBBLE_VA_SLEEPTIME", "2"), ("PEBBLE_AUTHZREUSE", "100")],
        None,
    );
    let engine = world.engine();
    // Three rejections in a row end a request; a run after that goes on with the same order.
    for _ in 0..5 {
        match maintain(&engine, true).await {
            Ok(_) => break,
            Err(error) => assert!(error.to_string().contains("badNonce"), "{error}"),
        }
    }
    world.check(&engine);
    // Authorizations are used again: no record is needed, and none is made.
    for _ in 0..5 {
        match maintain(&engine, true).await {
            Ok(_) => break,
            Err(error) => assert!(error.to_string().contains("badNonce"), "{error}"),
        }
    }
    world.check(&engine);
}

/// One of two servers of the zone never gets the record.
#[tokio::test]
async fn a_record_that_is_not_at_every_server_is_an_error_that_names_it() {
    let world = World::new();
    let lagging = free_port();
    let _knot = knot(world.dir.path(), lagging);
    let toml = world.toml("auto_set_caa = false", "").replace(
        &format!("servers = [\"127.0.0.1:{}\"]", world.dns),
        &format!("servers = [\"127.0.0.1:{}\", \"127.0.0.1:{lagging}\"]", world.dns),
    );
    let engine = engine(&toml.replace("timeout = 5", "timeout = 2"), &world.path("work"));
    let begin = Instant::now();
    let error = maintain(&engine, true).await.unwrap_err().to_string();
    assert!(error.contains(&format!("127.0.0.1:{lagging} does not have it")), "{error}");
    assert!(!error.contains(&format!("127.0.0.1:{} ", world.dns)), "{error}");
    assert!(begin.elapsed() < Duration::from_secs(20));
    assert_eq!(
        kdig(world.dns, "_acme-challenge.apps.example.test", "TXT"),
        [] as [&str; 0],
        "it was removed again"
    );
    assert!(engine.live("").unwrap().is_none());
    // It comes late, and the same order becomes a certificate.
    let url = std::fs::read_to_string(world.path("work/order.json")).unwrap();
    let late = crate::world::engine(&world.toml("auto_set_caa = false", ""), &world.path("work"));
    maintain(&late, true).await.unwrap();
    assert!(url.contains(&world.url.replace("/dir", "/my-order")), "{url}");
    assert!(late.live("").unwrap().is_some());
}

#[tokio::test]
async fn a_dns_server_that_is_away_or_refuses() {
    let world = World::new();
    let nobody = world
        .toml("", "")
        .replace(&format!("server = \"127.0.0.1:{}\"", world.dns), "server = \"127.0.0.1:9\"");
    let error = maintain(&engine(&nobody, &world.path("a")), true).await.unwrap_err().to_string();
    assert!(error.contains("the DNS server 127.0.0.1:9"), "{error}");
    let key = world.toml("", "").replace("key_name = \"dstack\"", "key_name = \"other\"");
    let error = maintain(&engine(&key, &world.path("b")), true).await.unwrap_err().to_string();
    assert!(error.contains("certbot-tsig"), "{error}");
    let zone = world.toml("", "").replace("example.test", "example.org");
    let error = maintain(&engine(&zone, &world.path("c")), true).await.unwrap_err().to_string();
    assert!(error.contains("apps.example.org"), "{error}");
    let alias = world.toml("", "").replace("apps.example.test", "alias.example.test");
    let error = maintain(&engine(&alias, &world.path("d")), true).await.unwrap_err().to_string();
    assert!(error.contains("is a CNAME"), "{error}");
}

#[tokio::test]
async fn failures_wait_and_force_does_not() {
    let world = World::new();
    let nobody = world
        .toml("", "")
        .replace(&format!("server = \"127.0.0.1:{}\"", world.dns), "server = \"127.0.0.1:9\"");
    let broken = engine(&nobody, &world.path("work"));
    maintain(&broken, false).await.unwrap_err();
    let again = maintain(&broken, false).await.unwrap_err();
    assert!(matches!(again, EngineError::TooEarly { count: 1, .. }), "{again}");
    let mended = world.engine();
    assert!(maintain(&mended, false).await.is_err(), "it is still too early");
    maintain(&mended, true).await.unwrap();
    world.check(&mended);
}

/// A record of a name that is not wanted any more, in a zone that nobody serves.
#[tokio::test]
async fn a_record_that_cannot_be_removed_keeps_nothing_from_being_renewed() {
    let world = World::new();
    std::fs::create_dir(world.path("work")).unwrap();
    let (file, gone) = (world.path("work/dns.json"), "_acme-challenge.gone.example.org");
    let made = serde_json::json!([{"name": gone, "value": "x"}]);
    dstack_service::state::store(&file, 1, &made).unwrap();
    let engine = world.engine();
    maintain(&engine, false).await.unwrap();
    assert!(engine.live("").unwrap().is_some());
    let left: Option<serde_json::Value> = dstack_service::state::load(&file, 1).unwrap();
    assert_eq!(left, Some(made), "it is tried again by the next run");
}

/// Settings that are read again in mid-work are no other process.
#[tokio::test]
async fn engines_of_one_process_wait_for_each_other() {
    let world = World::new();
    let (one, turns) = (world.engine(), dstack_certbot::engine::Turns::default());
    let (one, two) = (one.taking_turns(turns.clone()), world.engine().taking_turns(turns));
    let turn = one.turn().await.unwrap();
    let mut waiting = Box::pin(two.turn());
    assert!(futures_util::FutureExt::now_or_never(&mut waiting).is_none(), "it waits");
    drop(turn);
    waiting.await.unwrap();
}

/// Two processes never work in one directory.
#[tokio::test]
async fn another_process_has_its_turn() {
    let world = World::new();
    let (one, two) = (world.engine(), world.engine());
    let turn = one.turn().await.unwrap();
    assert!(matches!(two.turn().await, Err(EngineError::Busy(_))));
    drop(turn);
    let turn = two.turn().await.unwrap();
    two.account(&turn, &Silent).await.unwrap();
}

#[tokio::test]
async fn an_authority_that_is_away() {
    let mut world = World::new();
    world.pebble.0.kill().unwrap();
    world.pebble.0.wait().unwrap();
    let error = maintain(&world.engine(), true).await.unwrap_err().to_string();
    assert!(error.contains("127.0.0.1 cannot be reached"), "{error}");
}

/// A new account would be another than the CAA records name, so it is the operator's to decide.
#[tokio::test]
async fn an_account_that_the_authority_has_lost() {
    let mut world = World::new();
    let engine = world.engine();
    maintain(&engine, false).await.unwrap();
    let account = engine.account_uri().unwrap();
    world.pebble.0.kill().unwrap();
    world.pebble.0.wait().unwrap();
    let port = world.url.trim_end_matches("/dir").rsplit(':').next().unwrap().parse().unwrap();
    world.pebble = pebble_again(world.dir.path(), world.dns, &[], port);
    let error = maintain(&engine, true).await.unwrap_err().to_string();
    assert!(error.contains("move credentials.json away"), "{error}");
    assert_eq!(engine.account_uri().unwrap(), account, "it is not replaced by itself");
    std::fs::rename(world.path("work/credentials.json"), world.path("credentials.json")).unwrap();
    maintain(&engine, true).await.unwrap();
    assert_ne!(engine.account_uri().unwrap(), account);
    world.check(&engine);
}
