// SPDX-License-Identifier: Apache-2.0
//! Logs read directly, of both kinds: what they hold is found and proven, and each lie is told.

use crate::certs::issue;
use crate::tree::{Entry, Log, ORIGIN, certificate, noise, precertificate};
use crate::world::{NAMES, OTHERS, OURS, THEIRS, World, domain, http, ids, keys};
use dstack_ctmonitor::engine::Summary;
use dstack_ctmonitor::head::LogKey;
use dstack_ctmonitor::http::Base;
use dstack_ctmonitor::source::Source;
use dstack_ctmonitor::source::log::{Log as Reader, Reading};
use dstack_ctmonitor::source::rfc6962::Rfc6962;
use dstack_ctmonitor::source::statics::Static;

struct Bench {
    log: Log,
    is_static: bool,
}

impl Bench {
    async fn new(is_static: bool) -> Self {
        Self { log: Log::start(is_static).await, is_static }
    }

    fn source(&self, start: Option<u64>, entries: u64) -> Box<dyn Source> {
        let (base, key) =
            (Base::parse(&self.log.server.url).unwrap(), LogKey::from_der(&self.log.key).unwrap());
        let (name, server, domains) = ("Test log".to_owned(), base.schemeless(), vec![domain()]);
        let reading = Reading { name, server, id: *key.id(), start, entries, domains };
        if self.is_static {
            Box::new(Reader::new(Static::new(http(), base, ORIGIN.into(), key), reading))
        } else {
            Box::new(Reader::new(Rfc6962::new(http(), base, key), reading))
        }
    }

    fn world(&self, start: Option<u64>) -> World {
        World::new(vec![self.source(start, 50_000)])
    }
}

fn noises(count: usize) -> Vec<Entry> {
    (0..count).map(noise).collect()
}

fn position(world: &World) -> u64 {
    match &world.engine.positions().unwrap()[0].cursor {
        dstack_ctmonitor::store::Cursor::Log { frontier, .. } => frontier.size(),
        other => panic!("{other:?}"),
    }
}

fn lie(summary: &Summary, word: &str) {
    assert_eq!(summary.new_alerts.len(), 1, "{summary:?}");
    let alert = &summary.new_alerts[0];
    assert!(alert.kind.word() == "log-lies" && alert.text.contains(word), "{alert:?}");
    assert!(alert.text.contains("signature 0403"), "the evidence is there: {alert:?}");
}

#[tokio::test]
async fn certificates_and_precertificates_are_found_and_proven() {
    for is_static in [false, true] {
        let bench = Bench::new(is_static).await;
        let pre = |key, serial| {
            precertificate(&issue(key, &NAMES, serial, 0, true), &issue(key, &NAMES, serial, 0, false))
        };
        bench.log.grow(noises(300));
        bench.log.grow([certificate(&issue(&THEIRS, &NAMES, 1, 0, false)), pre(&OURS, 2)]);
        bench.log.grow([certificate(&issue(&OTHERS, &["example.com"], 3, 0, false)), pre(&OTHERS, 4)]);
        let world = bench.world(Some(0));
        let summary = world.check().await;
        assert_eq!(summary.troubles, Vec::<String>::new());
        assert_eq!(ids(&summary.new_alerts), keys(&[&THEIRS, &OTHERS]));
        assert_eq!((summary.looked_at, position(&world)), (3, 304));
        let places: Vec<String> = world.engine.alerts().into_iter().map(|a| a.place).collect();
        assert!(places.contains(&"Test log entry 300".to_owned()), "{places:?}");
        assert!(world.check().await.new_alerts.is_empty());
    }
}

#[tokio::test]
async fn a_log_is_read_from_now_on_and_over_restarts() {
    for is_static in [false, true] {
        let (bench, dir) = (Bench::new(is_static).await, tempfile::tempdir().unwrap());
        bench.log.grow([certificate(&issue(&THEIRS, &NAMES, 1, 0, false))]);
        bench.log.grow(noises(290));
        let open = || World::at(dir.path(), vec![bench.source(None, 50_000)]);
        let first = open().check().await;
        assert_eq!((first.new_alerts.len(), first.troubles.len()), (0, 0), "{first:?}");
        bench.log.grow([certificate(&issue(&OTHERS, &NAMES, 2, 0, false))]);
        bench.log.grow(noises(250));
        let world = open();
        assert_eq!(ids(&world.check().await.new_alerts), keys(&[&OTHERS]));
        assert_eq!(position(&world), 542);
        let again = open();
        assert!(again.check().await.new_alerts.is_empty());
        // From the middle, and a little at a time.
        for start in [7, 256, 541] {
            let middle = World::new(vec![bench.source(Some(start), 200)]);
            let mut at = start;
            while at < 542 {
                let summary = middle.check().await;
                assert_eq!(summary.troubles, Vec::<String>::new(), "{start}");
                at = (at + 200).min(542);
                assert_eq!(position(&middle), at);
            }
        }
    }
}

#[tokio::test]
async fn partial_tiles_that_are_gone_are_read_from_full_ones() {
    let bench = Bench::new(true).await;
    bench.log.grow(noises(200));
    let world = bench.world(None);
    world.check().await;
    bench.log.grow(noises(56));
    bench.log.change(|state| state.no_partial = true);
    // The level above has a partial tile only; a tree of 256 leaves needs none of it.
    let summary = world.check().await;
    assert_eq!((summary.troubles, position(&world)), (vec![], 256));
}

#[tokio::test]
async fn two_trees_of_one_size_are_a_lie() {
    for is_static in [false, true] {
        let bench = Bench::new(is_static).await;
        bench.log.grow(noises(20));
        let world = bench.world(None);
        world.check().await;
        bench.log.change(|state| {
            state.entries[3] = noise(999);
            state.timestamp += 1;
        });
        let summary = world.check().await;
        lie(&summary, "two different trees");
        assert_eq!(position(&world), 20);
        assert!(world.check().await.new_alerts.is_empty(), "told once");
        assert!(world.engine.view().check.error.contains("two different trees"), "and still said");
    }
}

#[tokio::test]
async fn a_tree_that_rewrites_its_past_is_a_lie() {
    for is_static in [false, true] {
        let bench = Bench::new(is_static).await;
        bench.log.grow([certificate(&issue(&THEIRS, &NAMES, 1, 0, false))]);
        bench.log.grow(noises(300));
        let world = bench.world(None);
        world.check().await;
        bench.log.change(|state| state.entries[0] = noise(999));
        bench.log.grow(noises(10));
        lie(&world.check().await, "does not begin with");
        assert_eq!(position(&world), 301);
    }
}

#[tokio::test]
async fn a_later_and_smaller_tree_is_a_lie_and_an_older_one_is_not() {
    for is_static in [false, true] {
        let bench = Bench::new(is_static).await;
        bench.log.grow(noises(30));
        let old = bench.log.state.lock().unwrap().timestamp;
        bench.log.grow(noises(10));
        let new = old + 2 * 3_600_000;
        bench.log.change(|state| state.timestamp = new);
        let world = bench.world(None);
        world.check().await;
        // Servers of one log differ by a little.
        bench.log.change(|state| (state.shown, state.timestamp) = (30, new - 1000));
        assert_eq!(world.check().await.troubles, Vec::<String>::new());
        bench.log.change(|state| state.timestamp = old);
        let stale = world.check().await;
        assert!(stale.new_alerts.is_empty() && stale.troubles[0].contains("older tree"), "{stale:?}");
        assert_eq!(position(&world), 40);
        bench.log.change(|state| state.timestamp = new + 1000);
        lie(&world.check().await, "fewer entries");
    }
}

#[tokio::test]
async fn an_older_tree_that_never_was_is_a_lie() {
    let bench = Bench::new(false).await;
    bench.log.grow(noises(30));
    let old = bench.log.state.lock().unwrap().timestamp;
    bench.log.grow(noises(10));
    let world = bench.world(None);
    world.check().await;
    bench.log.change(|state| {
        state.entries[5] = noise(999);
        (state.shown, state.timestamp) = (30, old);
    });
    lie(&world.check().await, "does not begin with");
}

#[tokio::test]
async fn wrong_proofs_and_entries_are_lies_and_nothing_of_them_is_taken() {
    for is_static in [false, true] {
        let bench = Bench::new(is_static).await;
        bench.log.grow(noises(300));
        let world = bench.world(None);
        world.check().await;
        bench.log.grow(noises(300));
        bench.log.change(|state| state.wrong_proof = true);
        lie(&world.check().await, "does not begin with");
        bench.log.change(|state| state.wrong_proof = false);
        assert!(world.check().await.troubles.is_empty());
        // A certificate is hidden: another entry is given instead of the one that was hashed.
        bench.log.grow([certificate(&issue(&THEIRS, &NAMES, 1, 0, false)), noise(1)]);
        bench.log.change(|state| state.swapped = Some((600, noise(2))));
        lie(&world.check().await, "entries are not those");
        assert_eq!(position(&world), 600);
        bench.log.change(|state| state.swapped = None);
        assert_eq!(ids(&world.check().await.new_alerts), keys(&[&THEIRS]), "found when it is honest again");
    }
}

#[tokio::test]
async fn a_signature_by_another_key_proves_nothing() {
    for is_static in [false, true] {
        let bench = Bench::new(is_static).await;
        bench.log.grow(noises(5));
        bench.log.change(|state| state.wrong_key = true);
        let world = bench.world(None);
        let summary = world.check().await;
        assert!(summary.new_alerts.is_empty() && summary.troubles[0].contains("signature"), "{summary:?}");
    }
}

#[tokio::test]
async fn an_old_tree_head_is_told_and_an_empty_log_is_none() {
    let bench = Bench::new(false).await;
    let world = bench.world(None);
    assert_eq!((world.check().await.troubles, position(&world)), (vec![], 0));
    bench.log.grow([certificate(&issue(&THEIRS, &NAMES, 1, 0, false))]);
    assert_eq!(ids(&world.check().await.new_alerts), keys(&[&THEIRS]), "the first entry ever");
    world.later(27 * 3600);
    let summary = world.check().await;
    assert!(summary.troubles[0].contains("27 hours old"), "{summary:?}");
}

#[tokio::test]
async fn an_entry_that_mentions_us_and_cannot_be_read_is_an_alert() {
    let bench = Bench::new(false).await;
    let mut broken = certificate(&issue(&THEIRS, &NAMES, 1, 0, false));
    // Its outermost length is wrong.
    broken.leaf[16] ^= 1;
    bench.log.grow([broken, noise(1)]);
    let world = bench.world(Some(0));
    let summary = world.check().await;
    assert_eq!(
        (summary.new_alerts.len(), summary.new_alerts[0].kind.word()),
        (1, "unreadable"),
        "{summary:?}"
    );
}
