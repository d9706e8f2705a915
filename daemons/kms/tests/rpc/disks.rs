// SPDX-License-Identifier: Apache-2.0
//! Rollback protection: which boot may go on with its disk.

use crate::keys::{COMPOSE, other_compose};
use crate::world::{Boot, READY, Safe, Setup, WANTS, World, reason, record};
use dstack_kms::engine::Told;
use dstack_kms::record::Record;
use dstack_kms::release_log::Kind;
use dstack_rpc::ClientError;
use dstack_rpc::disk::{BeginEpoch, DiskEpochRequest, DiskEpochResponse, Epoch};
use dstack_service::api::kms1::Error;
use std::sync::Arc;

const INSTANCE: &str = "00112233445566778899aabbccddeeff00112233";

fn boot() -> Boot {
    Boot::of(COMPOSE, WANTS)
}

type Answer = Result<DiskEpochResponse, ClientError>;

async fn ask(world: &World, boot: &Boot, request: DiskEpochRequest) -> Answer {
    world.call(Some(&boot.identity()), "DiskEpoch", &request).await
}

async fn begins(world: &World, disk: Option<Epoch>, warn: bool) -> Answer {
    let begin = BeginEpoch { fresh: disk.is_none(), disk, warn };
    ask(world, &boot(), DiskEpochRequest { begin: Some(begin), commit: None }).await
}

async fn begin(world: &World, disk: Option<&Epoch>) -> Epoch {
    begins(world, disk.cloned(), false).await.unwrap().epoch.unwrap()
}

async fn commit(world: &World, epoch: &Epoch) -> Answer {
    ask(world, &boot(), DiskEpochRequest { begin: None, commit: Some(epoch.clone()) }).await
}

fn status<T: std::fmt::Debug>(answer: Result<T, ClientError>) -> u16 {
    match answer {
        Err(ClientError::Remote { status, .. }) => status.as_u16(),
        other => panic!("{other:?}"),
    }
}

/// Kinds of the app's lines in the release log.
fn kinds(world: &World) -> Vec<(Kind, String)> {
    let entries = world.engine.releases(&boot().app.to_string(), 0, 0).unwrap();
    entries.into_iter().map(|(entry, _)| (entry.event.kind, entry.event.reason)).collect()
}

#[tokio::test]
async fn p07_t13_a_disk_that_was_put_back_is_refused_recorded_and_told() {
    let mut world = World::new().await;
    let first = begin(&world, None).await;
    commit(&world, &first).await.unwrap();
    let second = begin(&world, Some(&first)).await;
    assert_eq!((first.number, second.number), (1, 2));
    commit(&world, &second).await.unwrap();
    let expected = format!(
        "the data disk (epoch 1) is older than this key service knows (epoch 2); if you have put back a backup on \
         purpose: dstackctl kms forget-disk {} {INSTANCE}",
        boot().app
    );
    for _ in 0..2 {
        let answer = begins(&world, Some(first.clone()), false).await;
        assert_eq!(reason(answer), expected);
    }
    assert_eq!(status(begins(&world, None, false).await), 409, "an empty disk is older, too");
    let told = world.told.recv().await.unwrap();
    assert_eq!(told, Told::Denied(boot().app.to_string(), boot().hash().to_string(), expected.clone()));
    let log = kinds(&world);
    let settled = |n| (Kind::DiskEpoch, format!("epoch {n}"));
    assert_eq!(log[..3], [settled(1), settled(2), (Kind::Denied, expected)]);
    assert_eq!(log.len(), 4, "the same denial stands there once: {log:?}");
    // The last one goes on.
    let third = begin(&world, Some(&second)).await;
    commit(&world, &third).await.unwrap();
}

#[tokio::test]
async fn t13_a_key_service_that_is_killed_loses_nothing() {
    let mut world = World::new().await;
    // Killed before the answer of begin arrived, before that of commit, and once the guest was killed in between.
    let lost = begin(&world, None).await;
    world = world.restarted().await;
    let first = begin(&world, None).await;
    world = world.restarted().await;
    assert_eq!(status(commit(&world, &lost).await), 409);
    commit(&world, &first).await.unwrap();
    world = world.restarted().await;
    commit(&world, &first).await.unwrap();
    let written = begin(&world, Some(&first)).await;
    world = world.restarted().await;
    let next = begin(&world, Some(&written)).await;
    commit(&world, &next).await.unwrap();
    world = world.restarted().await;
    for old in [&first, &written] {
        assert_eq!(status(begins(&world, Some(old.clone()), false).await), 409);
    }
    let settled = kinds(&world).into_iter().filter(|(kind, _)| *kind == Kind::DiskEpoch);
    assert_eq!(settled.count(), 2, "an answer that is given again is no second boot");
}

#[tokio::test]
async fn t13_of_two_clones_exactly_one_goes_on() {
    let world = World::new().await;
    let first = begin(&world, None).await;
    commit(&world, &first).await.unwrap();
    let disk = Some(first);
    let (one, two) = tokio::join!(begins(&world, disk.clone(), false), begins(&world, disk, false));
    let (one, two) = (one.unwrap().epoch.unwrap(), two.unwrap().epoch.unwrap());
    let (one, two) = tokio::join!(commit(&world, &one), commit(&world, &two));
    assert!(one.is_ok() != two.is_ok(), "{one:?} {two:?}");
    let lost = reason(if one.is_ok() { two } else { one });
    assert!(lost.contains("another boot of this instance has begun since"), "{lost}");
}

#[tokio::test]
async fn t13_where_the_app_is_warned_everybody_can_see_it() {
    let world = World::new().await;
    let first = begin(&world, None).await;
    commit(&world, &first).await.unwrap();
    let answer = begins(&world, None, true).await.unwrap();
    assert_eq!(answer.warning, "the data disk (no epoch) is older than this key service knows (epoch 1)");
    assert_eq!(kinds(&world)[1], (Kind::DiskOlder, answer.warning));
    let epoch = answer.epoch.unwrap();
    assert_eq!(epoch.number, 2);
    commit(&world, &epoch).await.unwrap();
    assert_eq!(begins(&world, Some(epoch), true).await.unwrap().warning, "");
}

#[tokio::test]
async fn t13_a_backup_passes_once_when_the_operator_says_so() {
    let world = World::new().await;
    let old = begin(&world, None).await;
    commit(&world, &old).await.unwrap();
    let newer = begin(&world, Some(&old)).await;
    commit(&world, &newer).await.unwrap();
    let app = boot().app.to_string();
    assert!(matches!(world.engine.forget_disk(&app, "x").await, Err(Error::InvalidArgument(_))));
    world.engine.forget_disk(&app, INSTANCE).await.unwrap();
    let world = world.restarted().await;
    let epoch = begin(&world, Some(&old)).await;
    commit(&world, &epoch).await.unwrap();
    for gone in [old, newer] {
        assert_eq!(status(begins(&world, Some(gone), false).await), 409);
    }
    assert!(kinds(&world).iter().any(|(kind, _)| *kind == Kind::DiskForgotten));
}

#[tokio::test]
async fn t13_t07_only_a_boot_that_may_have_keys_has_a_disk() {
    let world = World::new().await;
    let request = || DiskEpochRequest { begin: Some(BeginEpoch::default()), commit: None };
    assert!(reason(world.call::<_, ()>(None, "DiskEpoch", &request()).await).contains("no certificate"));
    let late = ask(&world, &Boot::of(COMPOSE, READY), request()).await;
    assert!(reason(late).contains("has started nothing"));
    let claims = Boot::of(&other_compose(1), WANTS).claiming(boot().app);
    assert!(reason(ask(&world, &claims, request()).await).contains("allow-upgrade"));
    let app = boot().app.to_string();
    world.engine.revoke_upgrade(&app, &app).unwrap();
    assert_eq!(status(ask(&world, &boot(), request()).await), 403, "a revoked compose file");
    world.engine.allow_upgrade(&app, &app).unwrap();
    assert!(ask(&world, &boot(), request()).await.is_ok());
}

#[tokio::test]
async fn p15_a_step_is_one_of_two() {
    let world = World::new().await;
    let epoch = Some(Epoch { number: 1, token: vec![1; 16] });
    let begin = || Some(BeginEpoch::default());
    for request in [
        DiskEpochRequest::default(),
        DiskEpochRequest { begin: begin(), commit: epoch },
        DiskEpochRequest { begin: None, commit: Some(Epoch::default()) },
        DiskEpochRequest {
            begin: Some(BeginEpoch {
                disk: Some(Epoch { number: 1, token: vec![1] }),
                ..BeginEpoch::default()
            }),
            commit: None,
        },
    ] {
        assert_eq!(status(ask(&world, &boot(), request).await), 400);
    }
}

#[tokio::test]
async fn t13_t11_a_replica_keeps_no_epochs() {
    let onboarded = Record { onboarded: true, ..record() };
    let safe = Safe::default();
    *safe.sealed.lock().unwrap() = Some(onboarded.to_bytes().to_vec());
    let world = World::empty(Setup { safe: Arc::new(safe), ..Setup::default() }).await;
    let answer = begins(&world, None, false).await;
    assert_eq!(status(answer), 421);
    let error = world.engine.forget_disk(&boot().app.to_string(), INSTANCE).await.unwrap_err();
    assert!(error.to_string().contains("keeps no epochs"), "{error}");
}

#[tokio::test]
async fn p30_an_epoch_that_cannot_be_read_is_not_absent() {
    let world = World::new().await;
    let first = begin(&world, None).await;
    let file = world.state().join(format!("epochs/{}/{INSTANCE}.json", boot().app));
    std::fs::write(&file, "{").unwrap();
    assert_eq!(status(begins(&world, None, false).await), 503);
    assert_eq!(status(commit(&world, &first).await), 503);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "{");
}
