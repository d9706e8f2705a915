// SPDX-License-Identifier: Apache-2.0
//! The process is killed at every step, and the next run ends well: one account, no half certificate, no TXT record and
//! no guard left.

use crate::servers::kdig;
use crate::world::{OTHER, World, engine, maintain_seen};
use dstack_certbot::account;
use dstack_certbot::acme::Acme;
use dstack_certbot::acme::client::Authority;
use dstack_certbot::engine::Observer;
use dstack_certbot::http::Http;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

const DIR: &str = "DSTACK_TEST_CERTBOT_DIR";
const STEP: &str = "DSTACK_TEST_CERTBOT_STEP";
/// More steps than any run has.
const STEPS_MAX: usize = 100;

/// Ends the process as SIGKILL would: nothing is cleaned up.
struct Killer {
    left: AtomicUsize,
}

impl Observer for Killer {
    fn step(&self, _step: &'static str) {
        if self.left.fetch_sub(1, Ordering::SeqCst) == 1 {
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).unwrap();
        }
    }
}

/// A run in a directory; by itself it is a test of a first run, and the tests below start it as a process to be killed.
#[tokio::test]
async fn a_run_in_a_process_of_its_own() {
    let given = std::env::var_os(DIR).map(PathBuf::from);
    let world = given.is_none().then(World::new);
    let (toml, work) = match (&given, &world) {
        (Some(dir), _) => (std::fs::read_to_string(dir.join("certbot.toml")).unwrap(), dir.join("work")),
        (None, world) => {
            let world = world.as_ref().unwrap();
            (world.toml("", ""), world.path("work"))
        }
    };
    let left = std::env::var(STEP).ok().and_then(|s| s.parse().ok()).unwrap_or(usize::MAX);
    let engine = engine(&toml, &work);
    maintain_seen(&engine, true, &Killer { left: left.into() }).await.unwrap();
    if let Some(world) = world {
        world.check(&engine);
    }
}

/// Gives whether it was killed.
fn run(world: &World, step: Option<usize>) -> bool {
    std::fs::write(world.path("certbot.toml"), world.toml("", "")).unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "kills::a_run_in_a_process_of_its_own"]).env(DIR, world.dir.path());
    if let Some(step) = step {
        command.env(STEP, step.to_string());
    }
    let output = command.output().unwrap();
    let killed = std::os::unix::process::ExitStatusExt::signal(&output.status) == Some(9);
    assert!(killed || output.status.success(), "step {step:?}: {}", String::from_utf8_lossy(&output.stdout));
    killed
}

/// The key that an unfinished registration has, or the account's.
fn account_key(world: &World) -> Option<Vec<u8>> {
    if let Some(found) = account::read(&world.path("work")).unwrap() {
        return Some(found.key.to_vec());
    }
    let waiting = account::key(&world.path("work"), &world.url, || Err("there is none".into()));
    waiting.ok().map(|key| key.to_vec())
}

async fn is_the_only_account(world: &World, key: Option<Vec<u8>>) {
    let found = account::read(&world.path("work")).unwrap().unwrap();
    if let Some(key) = key {
        assert_eq!(found.key.as_slice(), key, "the account of the run before is gone");
    }
    let http = Http::new(Some(&world.path("roots.pem"))).unwrap();
    let authority = Authority::new(http, world.url.clone(), Duration::from_secs(5));
    assert_eq!(authority.find(&found.key).await.unwrap(), found.id);
}

#[tokio::test]
async fn p30_killed_at_any_step_of_the_first_issue() {
    let world = World::new();
    for step in 1..STEPS_MAX {
        drop(std::fs::remove_dir_all(world.path("work")));
        forget_caa(&world).await;
        let others = plant_others(&world).await;
        let killed = run(&world, Some(step));
        let key = account_key_of(&world);
        if killed {
            run(&world, None);
        }
        world.check(&engine(&world.toml("", ""), &world.path("work")));
        is_the_only_account(&world, key).await;
        let shown = kdig(world.dns, "apps.example.test", "CAA");
        assert!(others.iter().all(|other| shown.contains(other)), "step {step}: {shown:?}");
        if !killed {
            assert!(step > 20, "only {step} steps");
            return;
        }
    }
    panic!("no run has ended");
}

fn account_key_of(world: &World) -> Option<Vec<u8>> {
    world.path("work").exists().then(|| account_key(world)).flatten()
}

#[tokio::test]
async fn killed_at_any_step_of_a_renewal() {
    let world = World::new();
    run(&world, None);
    let read = || engine(&world.toml("", ""), &world.path("work")).live("").unwrap().unwrap().leaf;
    for step in 1..STEPS_MAX {
        let before = read();
        let killed = run(&world, Some(step));
        // Whatever happened, a whole pair is live.
        let between = read();
        if killed {
            run(&world, None);
        }
        let engine = engine(&world.toml("", ""), &world.path("work"));
        let after = world.check(&engine);
        assert!(after.public_key != before.public_key, "step {step}: it is renewed");
        assert!(engine.history("").unwrap().contains(&between.public_key));
        if !killed {
            assert!(step > 12, "only {step} steps");
            return;
        }
    }
    panic!("no run has ended");
}

/// Another run's records at the name are somebody else's for this one.
async fn forget_caa(world: &World) {
    use dstack_certbot::dns::{Kind, Provider};
    let (provider, name) = (crate::cloudflare::writer(world.dns), "apps.example.test".parse().unwrap());
    for record in provider.list(&name, Kind::Caa).await.unwrap() {
        provider.remove(&name, &record).await.unwrap();
    }
}

/// Records of somebody else, which nothing may touch; as kdig shows them.
async fn plant_others(world: &World) -> Vec<String> {
    use dstack_certbot::{caa::Caa, dns::Data, dns::Provider};
    let (provider, name) = (crate::cloudflare::writer(world.dns), "apps.example.test".parse().unwrap());
    for (tag, value) in [("issue", OTHER.to_owned()), ("iodef", format!("mailto:admin@{OTHER}"))] {
        provider.add(&name, &Data::Caa(Caa::new(tag, &value))).await.unwrap();
    }
    kdig(world.dns, "apps.example.test", "CAA")
}
