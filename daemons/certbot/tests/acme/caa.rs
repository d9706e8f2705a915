// SPDX-License-Identifier: Apache-2.0
//! A DNS provider that fails at any change of the CAA records: nothing of others is touched, nothing is lost, and no guard
//! stays.

use crate::cloudflare::writer;
use crate::servers::kdig;
use crate::world::{World, engine, parts, settings};
use dstack_certbot::acme::BoxFuture;
use dstack_certbot::caa::Caa;
use dstack_certbot::dns::{Data, DnsError, Kind, Provider};
use dstack_certbot::engine::{Engine, EngineError, Parts, Silent};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

const NAME: &str = "apps.example.test";
/// More changes than any run makes.
const CHANGES_MAX: usize = 20;

/// Fails at the changes with these numbers, from 1.
#[derive(Debug)]
struct Failing {
    provider: Arc<dyn Provider>,
    changes: AtomicUsize,
    failing: std::ops::Range<usize>,
}

impl Failing {
    fn count(&self) -> Result<(), DnsError> {
        let change = self.changes.fetch_add(1, Ordering::SeqCst) + 1;
        match self.failing.contains(&change) {
            true => Err(DnsError::Api("the provider is in trouble".into())),
            false => Ok(()),
        }
    }
}

impl Provider for Failing {
    fn list<'a>(
        &'a self,
        name: &'a dstack_certbot::names::DnsName,
        kind: Kind,
    ) -> BoxFuture<'a, Result<Vec<Data>, DnsError>> {
        self.provider.list(name, kind)
    }

    fn add<'a>(
        &'a self,
        name: &'a dstack_certbot::names::DnsName,
        data: &'a Data,
    ) -> BoxFuture<'a, Result<(), DnsError>> {
        Box::pin(async move {
            self.count()?;
            self.provider.add(name, data).await
        })
    }

    fn remove<'a>(
        &'a self,
        name: &'a dstack_certbot::names::DnsName,
        data: &'a Data,
    ) -> BoxFuture<'a, Result<(), DnsError>> {
        Box::pin(async move {
            self.count()?;
            self.provider.remove(name, data).await
        })
    }
}

fn others() -> [Caa; 4] {
    let wild = Caa { flags: 128, ..Caa::new("issuewild", ";") };
    [
        Caa::new("issue", "other.example"),
        Caa::new("issuewild", "other.example"),
        Caa::new("iodef", "mailto:admin@example.test"),
        wild,
    ]
}

/// One of the account of before, which goes.
fn old() -> Caa {
    Caa::new("issue", "ca.test;accounturi=https://ca.test/acct/0")
}

/// Puts the name into the state in which each run begins.
async fn begin(world: &World, with_others: bool) {
    let (writer, name) = (writer(world.dns), NAME.parse().unwrap());
    for record in writer.list(&name, Kind::Caa).await.unwrap() {
        writer.remove(&name, &record).await.unwrap();
    }
    let others = others().into_iter().filter(|_| with_others);
    for record in others.chain([old()]) {
        writer.add(&name, &Data::Caa(record)).await.unwrap();
    }
    std::fs::create_dir_all(world.path("work")).unwrap();
    let book = serde_json::json!({NAME: {"owned": [old()], "busy": false}});
    dstack_service::state::store(&world.path("work/caa.json"), 1, &book).unwrap();
}

async fn shown(world: &World) -> Vec<Caa> {
    let data = writer(world.dns).list(&NAME.parse().unwrap(), Kind::Caa).await.unwrap();
    let caa = |data| match data {
        Data::Caa(caa) => caa,
        Data::Txt(_) => panic!(),
    };
    data.into_iter().map(caa).collect()
}

async fn set_caa(engine: &Engine) -> Result<(), EngineError> {
    let turn = engine.turn().await?;
    engine.set_caa(&turn, &engine.select("")?[0], &Silent).await
}

/// An engine whose provider fails at these changes.
fn failing(world: &World, failing: std::ops::Range<usize>) -> Engine {
    let parts = parts(settings(&world.toml("", "")), &world.path("work"));
    let provider = Failing { provider: parts.provider.clone(), changes: AtomicUsize::default(), failing };
    Engine::new(Parts { provider: Arc::new(provider), ..parts })
}

/// Records of others are there, and what was there is lost to nobody before what is wanted is there.
fn check(shown: &[Caa], with_others: bool, at: usize) {
    let lost: Vec<Caa> = others().into_iter().filter(|other| with_others && !shown.contains(other)).collect();
    assert_eq!(lost, [], "change {at}: {shown:?}");
    let ours = shown.iter().filter(|caa| caa.value.contains("validationmethods")).count();
    assert!(shown.contains(&old()) || ours == 2, "change {at}: {shown:?}");
}

fn own_guards(shown: &[Caa]) -> usize {
    shown.iter().filter(|caa| caa.is_guard() && caa.flags == 0).count()
}

#[tokio::test]
async fn a_provider_that_fails_once_costs_nobody_a_record_and_leaves_no_guard() {
    let world = World::new();
    world.engine().account(&world.engine().turn().await.unwrap(), &Silent).await.unwrap();
    for with_others in [false, true] {
        for at in 1..CHANGES_MAX {
            begin(&world, with_others).await;
            let result = set_caa(&failing(&world, at..at + 1)).await;
            let seen = shown(&world).await;
            check(&seen, with_others, at);
            if result.is_err() {
                assert_eq!(own_guards(&seen), 0, "change {at}: {seen:?}");
            }
            set_caa(&world.engine()).await.unwrap();
            let end = shown(&world).await;
            check(&end, with_others, at);
            assert!(own_guards(&end) == 0 && !end.contains(&old()), "change {at}: {end:?}");
            if result.is_ok() {
                assert!(at > 6, "only {at} changes");
                break;
            }
        }
    }
}

/// It fails from one change on, so that the guards cannot be taken back: the next run does, whatever the settings are then.
#[tokio::test]
async fn guards_that_could_not_be_taken_back_are_by_the_next_run() {
    let world = World::new();
    let off = engine(&world.toml("auto_set_caa = false", ""), &world.path("work"));
    crate::world::maintain(&off, true).await.unwrap();
    for at in 1..CHANGES_MAX {
        begin(&world, true).await;
        let Err(error) = set_caa(&failing(&world, at..usize::MAX)).await else {
            assert!(at > 6, "only {at} changes");
            return;
        };
        assert!(error.to_string().contains("in trouble"), "{error}");
        let seen = shown(&world).await;
        check(&seen, true, at);
        // Nothing is due, and no CAA records are to be made: the guards go.
        crate::world::maintain(&off, false).await.unwrap();
        let end = shown(&world).await;
        check(&end, true, at);
        assert_eq!(own_guards(&end), 0, "change {at}: {end:?}");
    }
    panic!("no run went well");
}

/// A guard that somebody else made stays.
#[tokio::test]
async fn a_guard_of_somebody_else_stays() {
    let world = World::new();
    begin(&world, false).await;
    let theirs = Caa::new("issue", ";");
    writer(world.dns).add(&NAME.parse().unwrap(), &Data::Caa(theirs.clone())).await.unwrap();
    set_caa(&world.engine()).await.unwrap();
    let seen = shown(&world).await;
    assert!(seen.contains(&theirs) && own_guards(&seen) == 1 && seen.len() == 3, "{seen:?}");
    assert_eq!(kdig(world.dns, NAME, "CAA").len(), 3);
}
