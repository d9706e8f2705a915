// SPDX-License-Identifier: Apache-2.0
//! Each fault of an authority at each step: the right outcome or a clear error, one account, the same order, and nothing
//! left in DNS after the next run.

use crate::proxy::{Fault, PAUSE, Proxy, STEPS};
use crate::servers::kdig;
use crate::world::{World, engine, maintain};
use dstack_certbot::engine::{Engine, EngineError};
use futures_util::StreamExt;
use std::time::Duration;

/// Worlds at a time.
const AT_ONCE: usize = 8;

fn words(fault: Fault) -> &'static [&'static str] {
    match fault {
        Fault::BadCsr => &["badCSR"],
        Fault::BadNonce(_) => &[],
        Fault::Internal => &["serverInternal", "status 500"],
        Fault::Unavailable => &["503"],
        Fault::RateLimited => &["rateLimited", "429"],
        Fault::Reset => &["cannot be reached"],
        Fault::Truncated => &["breaks off"],
    }
}

/// Settings for a name of their own, by way of the proxy.
fn at(world: &World, proxy: &Proxy, name: &str) -> Engine {
    let toml = world.toml("", "").replace("apps.example.test", name).replace(&world.url, &proxy.url);
    engine(&toml, &world.path(name))
}

async fn play(world: &World, number: usize, (step, path): (&str, &'static str), fault: Fault) {
    let what = format!("{fault:?} at {step}");
    let name = format!("t{number}.example.test");
    let proxy = Proxy::new(world.dir.path(), &world.url, path, Some(fault)).await;
    let first = maintain(&at(world, &proxy, &name), true).await;
    assert!(proxy.has_failed(), "{what}: it did not happen");
    if let Err(error) = &first {
        let error = error.to_string();
        assert!(error.contains("the certificate authority"), "{what}: {error}");
        assert!(words(fault).iter().any(|word| error.contains(word)), "{what}: {error}");
        if error.contains("429") || error.contains("503") || error.contains("rateLimited") {
            let quiet = maintain(&at(world, &proxy, &name), true).await.unwrap_err();
            assert!(matches!(quiet, EngineError::Quiet { .. }), "{what}: {quiet}");
            tokio::time::sleep(Duration::from_secs(PAUSE + 1)).await;
        }
        maintain(&at(world, &proxy, &name), true).await.unwrap_or_else(|e| panic!("{what}: {e}"));
    }
    let count = |path, status| proxy.seen(path).into_iter().filter(|seen| *seen == status).count();
    assert_eq!(count("/sign-me-up", 201), 1, "{what}: accounts");
    // An order that nobody heard of cannot be gone on with.
    let unheard = path == "/order-plz" && matches!(fault, Fault::Reset | Fault::Truncated);
    assert_eq!(count("/order-plz", 201), 1 + usize::from(unheard), "{what}: orders");
    let engine = at(world, &proxy, &name);
    let account = engine.account_uri().unwrap().unwrap();
    assert!(engine.live("").unwrap().is_some(), "{what}");
    let shown = kdig(world.dns, &name, "CAA");
    assert!(shown.len() == 2 && shown.iter().all(|caa| caa.contains(&account)), "{what}: {shown:?}");
    assert_eq!(kdig(world.dns, &format!("_acme-challenge.{name}"), "TXT"), [] as [&str; 0], "{what}");
    for left in ["order.json", "dns.json", "quiet.json", "account-key.json"] {
        assert!(!world.path(&name).join(left).exists(), "{what}: {left} is left");
    }
}

#[tokio::test]
async fn any_fault_at_any_step_is_mended_by_the_next_run() {
    let world = World::with(&[("PEBBLE_WFE_NONCEREJECT", "0")], None);
    let faults = [
        Fault::BadCsr,
        Fault::BadNonce(5),
        Fault::Internal,
        Fault::Unavailable,
        Fault::RateLimited,
        Fault::Reset,
        Fault::Truncated,
    ];
    let possible = |(step, fault): &((&str, &str), Fault)| match (step.0, fault) {
        ("finalize", Fault::BadCsr) => true,
        (_, Fault::BadCsr) | ("newNonce", Fault::BadNonce(_) | Fault::Truncated) => false,
        _ => true,
    };
    let all = STEPS.iter().flat_map(|step| faults.iter().map(move |fault| (*step, *fault)));
    let plays = all.filter(possible).enumerate().map(|(n, (step, fault))| play(&world, n, step, fault));
    let count = futures_util::stream::iter(plays).buffer_unordered(AT_ONCE).count().await;
    assert_eq!(count, 8 * 6 - 2 + 1);
}

/// An order that an earlier run began is not given up because the authority is in trouble when it is looked at again.
#[tokio::test]
async fn an_order_outlives_trouble_in_the_next_run() {
    let world = World::with(&[("PEBBLE_WFE_NONCEREJECT", "0")], None);
    for (number, fault) in [Fault::Internal, Fault::RateLimited].into_iter().enumerate() {
        let name = format!("o{number}.example.test");
        let proxy = Proxy::new(world.dir.path(), &world.url, "/finalize-order/", Some(Fault::Internal)).await;
        maintain(&at(&world, &proxy, &name), true).await.unwrap_err();
        proxy.arm("/my-order/", fault);
        maintain(&at(&world, &proxy, &name), true).await.unwrap_err();
        tokio::time::sleep(Duration::from_secs(PAUSE + 1)).await;
        maintain(&at(&world, &proxy, &name), true).await.unwrap();
        let orders = proxy.seen("/order-plz").into_iter().filter(|status| *status == 201).count();
        assert_eq!(orders, 1, "{fault:?}");
    }
}

/// The pause is the account's: another certificate is not asked for either, nor is the rehearsal, nor after a restart.
#[tokio::test]
async fn an_authority_that_wants_a_pause_is_asked_for_nothing() {
    let world = World::with(&[("PEBBLE_WFE_NONCEREJECT", "0")], None);
    let proxy = Proxy::after(world.dir.path(), &world.url, "/order-plz", Some(Fault::RateLimited), 1).await;
    let table = |n| format!("[[certificate]]\nnames = [\"q{n}.example.test\"]\n");
    let tables: String = (0..4).map(table).collect();
    let toml = world.toml("", &tables).replace(&world.url, &proxy.url);
    let fresh = || engine(&toml, &world.path("work"));
    let run = async |engine: Engine| {
        let turn = engine.turn().await.unwrap();
        let mut results = Vec::new();
        for wanted in engine.select("").unwrap() {
            results.push(engine.maintain(&turn, &wanted, false, &dstack_certbot::engine::Silent).await);
        }
        results
    };
    let first = run(fresh()).await;
    assert!(first[0].is_ok() && first[1].as_ref().unwrap_err().to_string().contains("rateLimited"));
    let quiet = |result: &Result<_, EngineError>| matches!(result, Err(EngineError::Quiet { .. }));
    assert!(first[2..].iter().all(quiet), "{first:?}");
    let asked = proxy.seen("/").len();
    let again = fresh();
    let turn = again.turn().await.unwrap();
    let rehearsal = again.rehearse(&turn, &dstack_certbot::engine::Silent).await.unwrap_err();
    assert!(matches!(rehearsal, EngineError::Quiet { .. }) && rehearsal.to_string().contains("until 2"));
    drop(turn);
    assert!(run(again).await.iter().all(quiet));
    assert_eq!(proxy.seen("/").len(), asked, "nothing was asked");
    tokio::time::sleep(Duration::from_secs(PAUSE + 1)).await;
    let second = run(fresh()).await;
    let early = |result: &Result<_, EngineError>| matches!(result, Err(EngineError::TooEarly { .. }));
    assert!(early(&second[1]) && second.iter().filter(|result| result.is_ok()).count() == 4, "{second:?}");
    assert_eq!(proxy.seen("/order-plz").iter().filter(|status| **status == 201).count(), 4);
}
