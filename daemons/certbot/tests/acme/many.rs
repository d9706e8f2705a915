// SPDX-License-Identifier: Apache-2.0
//! Many names: how long it takes, and what it costs the authority and the DNS server. `DSTACK_TEST_NAMES=1000` measures a
//! thousand of them.

use crate::counting::Counting;
use crate::proxy::{Fault, PAUSE, Proxy};
use crate::world::{World, parts, settings};
use dstack_certbot::engine::{Engine, EngineError, Outcome, Parts, Silent};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Names of a usual run.
const NAMES: usize = 12;
/// What one name may cost of the authority: authorization, challenge, and looking whether it is done.
const PER_NAME: usize = 3;
/// What one certificate may cost besides: directory, nonce, order, looks at it, finalization, chain.
const PER_CERTIFICATE: usize = 16;
/// Changes of DNS for a name: two guards, two CAA records and a TXT record come; the guards and the TXT record go.
const CHANGES: usize = 8;

/// Half of the names in certificates of at most a hundred, the others in one each.
fn tables(count: usize) -> (String, usize) {
    let names: Vec<String> = (0..count).map(|n| format!("\"n{n}.example.test\"")).collect();
    let (large, small) = names.split_at(count / 2);
    let tables: Vec<String> = large
        .chunks(100)
        .chain(small.chunks(1))
        .map(|names| format!("[[certificate]]\nnames = [{}]\n", names.join(", ")))
        .collect();
    (tables.concat(), tables.len())
}

async fn run(engine: &Engine) -> Vec<Result<Outcome, EngineError>> {
    let turn = engine.turn().await.unwrap();
    let mut results = Vec::new();
    for wanted in engine.select("").unwrap() {
        results.push(engine.maintain(&turn, &wanted, false, &Silent).await);
    }
    results
}

#[tokio::test(flavor = "multi_thread")]
async fn many_names_cost_a_bounded_number_of_requests_and_nothing_when_nothing_is_due() {
    let names = std::env::var("DSTACK_TEST_NAMES").map_or(NAMES, |text| text.parse().unwrap());
    let world = World::with(&[("PEBBLE_WFE_NONCEREJECT", "0")], None);
    let (tables, certificates) = tables(names);
    // In the middle the authority has enough.
    let middle = certificates / 2;
    let proxy =
        Proxy::after(world.dir.path(), &world.url, "/order-plz", Some(Fault::RateLimited), middle).await;
    let text = world.toml("", "").replace(&world.url, &proxy.url);
    let text = format!("{}{tables}", text.split("[[certificate]]").next().unwrap());
    let counting = Arc::new(Counting::new(world.dns));
    let fresh = || {
        let parts = parts(settings(&text), &world.path("work"));
        Engine::new(Parts { provider: counting.clone(), ..parts })
    };
    let begin = Instant::now();
    let first = run(&fresh()).await;
    let quiet = |result: &Result<_, EngineError>| matches!(result, Err(EngineError::Quiet { .. }));
    assert!(first[..middle].iter().all(Result::is_ok) && first[middle].is_err(), "{first:?}");
    assert!(first[middle + 1..].iter().all(quiet), "it was asked on");
    let took = begin.elapsed();
    tokio::time::sleep(Duration::from_secs(PAUSE + 1)).await;
    let begin = Instant::now();
    // The one that was refused has a pause of its own, and is asked for when that is over.
    let second = run(&fresh()).await;
    let took = took + begin.elapsed();
    assert_eq!(second.iter().filter(|result| result.is_err()).count(), 1, "{second:?}");
    let (asked, changed) = (proxy.seen("/").len(), counting.changes.load(Ordering::SeqCst));
    println!(
        "{names} names in {certificates} certificates: {:.1} s, {asked} requests to the authority, {changed} changes of DNS",
        took.as_secs_f64()
    );
    assert!(asked <= PER_NAME * names + PER_CERTIFICATE * certificates, "{asked} requests");
    assert!(changed <= CHANGES * names, "{changed} changes");
    let orders = proxy.seen("/order-plz").into_iter().filter(|status| *status == 201).count();
    assert_eq!(orders, certificates - 1);
    // The first look at a new certificate asks once when to renew it.
    run(&fresh()).await;
    let asked = proxy.seen("/").len();
    // Nothing is due, so nobody is asked and nothing is changed; the refused one still waits.
    run(&fresh()).await;
    assert_eq!(proxy.seen("/").len(), asked, "{:?}", proxy.paths().split_off(asked));
    assert_eq!(counting.changes.load(Ordering::SeqCst), changed);
}
