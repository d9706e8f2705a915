// SPDX-License-Identifier: Apache-2.0
//! Who will be refused, by collateral, policy and time that change after the keys were released.

use crate::keys::{COMPOSE, other_compose};
use crate::world::{Boot, ROOT, Setup, WANTS, World, open};
use dstack_kms::forecast::{Cause, Outlook};
use dstack_quote_sim::collateral::Claims;
use dstack_ra_rpc::collateral::{Cache, Fetch, PlatformId};
use dstack_ra_rpc::peer::{BoxFuture, Verifier};
use dstack_ra_tls::{Policy, Roots};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;
use time::{Duration, OffsetDateTime};

const DAY: u64 = 86_400;

/// Serves collateral that says this; nobody answers when there is none.
#[derive(Clone)]
struct Source(Arc<Mutex<Option<Claims>>>);

impl Fetch for Source {
    fn fetch(&self, _platform: PlatformId) -> BoxFuture<'_, Result<Vec<u8>, String>> {
        Box::pin(async {
            let claims = self.0.lock().unwrap().clone().ok_or("nobody answers")?;
            Ok(serde_json::to_vec(&ROOT.collateral(&claims).unwrap()).unwrap())
        })
    }
}

/// A key service that has released keys, and what can change then.
struct Later {
    world: World,
    verifier: Arc<Verifier>,
    source: Source,
    ahead: Arc<AtomicU64>,
    boot: Boot,
}

fn claims(platform: &str, days: i64) -> Claims {
    let now = OffsetDateTime::now_utc();
    let advisories = vec!["INTEL-SA-00001".to_owned()];
    Claims {
        platform: platform.to_owned(),
        advisories,
        validity: Duration::days(days),
        ..Claims::up_to_date(now)
    }
}

fn grace(days: u32) -> Policy {
    Policy::parse(&format!("tcb_grace_days = {days}")).unwrap()
}

fn seconds(at: OffsetDateTime) -> u64 {
    u64::try_from(at.unix_timestamp()).unwrap()
}

impl Later {
    async fn new(claims: Claims, policy: Policy) -> Self {
        let (source, ahead) = (Source(Arc::new(Mutex::new(Some(claims)))), Arc::<AtomicU64>::default());
        let roots = Roots::test(ROOT.certificate().to_vec());
        let clock = Arc::clone(&ahead);
        let clock = move || seconds(OffsetDateTime::now_utc()) + clock.load(Ordering::SeqCst);
        let verifier = Verifier::new(roots, policy, Cache::new(None, source.clone()));
        let verifier = Arc::new(verifier.with_clock(Arc::new(clock)));
        let world = World::with(Setup { verifier: Some(Arc::clone(&verifier)), ..Setup::default() }).await;
        let boot = Boot::of(COMPOSE, WANTS);
        world.app_key(&boot).await.unwrap();
        Self { world, verifier, source, ahead, boot }
    }

    async fn rows(&self) -> Vec<Outlook> {
        self.world.engine.look_ahead().await.unwrap()
    }

    /// The one instance's cause, when, and why.
    async fn one(&self) -> (Cause, u64, String) {
        let rows = self.rows().await;
        let [row] = rows.as_slice() else { panic!("{rows:?}") };
        assert_eq!((row.app, row.compose_hash), (Some(self.boot.app), Some(self.boot.hash())));
        (row.ahead.cause, row.ahead.when, row.ahead.reason.clone())
    }

    fn wait(&self, days: u64) {
        self.ahead.fetch_add(days * DAY, Ordering::SeqCst);
    }

    /// Another answer from now on, asked for as the timer does.
    async fn served(&self, claims: Option<Claims>) -> usize {
        *self.source.0.lock().unwrap() = claims;
        self.verifier.collateral().refresh(SystemTime::now()).await
    }
}

#[tokio::test]
async fn t22_nobody_falls_out_of_a_platform_that_is_up_to_date() {
    let later = Later::new(claims("UpToDate", 30), Policy::default()).await;
    assert_eq!(later.rows().await, []);
}

#[tokio::test]
async fn t22_the_end_of_grace_is_forecast_and_each_use_is_logged() {
    let given = claims("OutOfDate", 60);
    let ends = seconds(given.issued) + 30 * DAY;
    let later = Later::new(given, grace(30)).await;
    let (lines, _) = later.world.engine.log().of_app(&later.boot.app, 0, 0).unwrap();
    assert!(lines[0].contains("released") && lines[0].contains("passes by grace"), "{lines:?}");
    let (cause, when, reason) = later.one().await;
    assert_eq!((cause, when), (Cause::GraceEnds, ends), "{reason}");
    later.wait(29);
    assert_eq!(later.one().await.0, Cause::GraceEnds);
    later.wait(1);
    let (cause, when, reason) = later.one().await;
    assert!(
        cause == Cause::Refused && when >= ends && reason.contains("TCB status is OutOfDate"),
        "{reason}"
    );
}

#[tokio::test]
async fn t22_a_platform_that_fell_behind_is_refused_from_now_on() {
    let later = Later::new(claims("UpToDate", 30), Policy::default()).await;
    let newer = Claims { evaluation: 18, ..claims("OutOfDate", 30) };
    assert_eq!(later.served(Some(newer.clone())).await, 0);
    let (cause, _, reason) = later.one().await;
    assert!(cause == Cause::Refused && reason.contains("INTEL-SA-00001"), "{reason}");
    later.verifier.set_policy(grace(7));
    let (cause, when, _) = later.one().await;
    assert_eq!((cause, when), (Cause::GraceEnds, seconds(newer.issued) + 7 * DAY));
}

#[tokio::test]
async fn t22_collateral_that_nobody_renews_is_forecast_offline() {
    let given = claims("UpToDate", 30);
    let ends = seconds(given.issued) + 30 * DAY;
    let later = Later::new(given, Policy::default()).await;
    assert_eq!(later.served(None).await, 1, "nobody answers");
    assert_eq!(later.rows().await, [], "there is time");
    later.wait(25);
    let (cause, when, _) = later.one().await;
    assert_eq!((cause, when), (Cause::CollateralEnds, ends));
    later.wait(10);
    let (cause, when, reason) = later.one().await;
    assert_eq!((cause, when), (Cause::CollateralEnds, ends), "{reason}");
}

#[tokio::test]
async fn t22_a_policy_that_got_stricter_is_seen() {
    let later = Later::new(claims("UpToDate", 30), Policy::default()).await;
    for (policy, word) in
        [("images = []", "is not on the list"), ("min_evaluation_number = 18", "older than 18")]
    {
        later.verifier.set_policy(Policy::parse(policy).unwrap());
        let (cause, _, reason) = later.one().await;
        assert!(cause == Cause::Refused && reason.contains(word), "{policy}: {reason}");
    }
}

#[tokio::test]
async fn t22_the_forecast_survives_a_restart_and_tells_what_it_cannot_read() {
    let later = Later::new(claims("OutOfDate", 60), grace(30)).await;
    let second = Boot::of(&other_compose(1), WANTS);
    later.world.app_key(&second).await.unwrap();
    let file = std::fs::read_dir(later.world.dir.path().join("instances")).unwrap();
    let second_app = second.app.to_string();
    let file = file.map(|e| e.unwrap().path()).find(|p| p.to_string_lossy().contains(&second_app)).unwrap();
    std::fs::write(file, "{").unwrap();
    let setup = Setup { verifier: Some(Arc::clone(&later.verifier)), ..Setup::default() };
    let (again, _told) = open(&setup, later.world.dir.path());
    let rows = again.forecast().await.unwrap();
    let found: Vec<_> = rows.iter().map(|row| (row.app.unwrap(), row.ahead.cause)).collect();
    assert_eq!(found, [(second.app, Cause::Unreadable), (later.boot.app, Cause::GraceEnds)]);
    assert!(rows[0].ahead.reason.contains("damaged"), "{rows:?}");
}
