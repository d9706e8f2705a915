// SPDX-License-Identifier: Apache-2.0
//! Who gets an app's keys, and which.

use crate::world::{Boot, READY, ROOT, Setup, WANTS, World, reason};
use dstack_core::ids::AppId;
use dstack_kms::engine::Told;
use dstack_kms::release_log::{Entry, Kind, line_hash};
use dstack_quote_sim::pki::{self, TestRoot};
use dstack_ra_rpc::peer::{Anchor, Rules};
use dstack_ra_tls::certificate::Usage;
use dstack_ra_tls::{Label, Roots};
use dstack_rpc::kms::{
    AppId as AppIdRequest, GetAppKeyRequest, GetMetaResponse, GetReleaseLogRequest, GetReleaseLogResponse,
    PublicKeyResponse,
};
use serde_json::Value;
use time::OffsetDateTime;

pub const COMPOSE: &[u8] =
    br#"{"manifest_version":2,"name":"a","runner":"docker-compose","docker_compose_file":"services: {}"}"#;

/// A compose file with another hash.
pub fn other_compose(n: u32) -> Vec<u8> {
    format!(
        r#"{{"manifest_version":2,"name":"a{n}","runner":"docker-compose","docker_compose_file":"services: {{}}"}}"#
    )
    .into_bytes()
}

/// App and instance of the published vectors: the app id is a claim that the operator allows here.
#[tokio::test]
async fn published_vectors_come_out_of_the_whole_service() {
    let world = World::new().await;
    let app: AppId = "3327603e03f5bd1f830812ca4a789277fc31f577".parse().unwrap();
    let boot = Boot::of(COMPOSE, WANTS).claiming(app);
    world.engine.allow_upgrade(&app.to_string(), &boot.hash().to_string()).unwrap();
    let keys = world.app_key(&boot).await.unwrap();
    assert_eq!(
        hex::encode(&keys.disk_crypt_key),
        "0b1f243958ceef0218284656fb6dcc405955665617d2a1101519272d72fda4f9"
    );
    assert_eq!(
        hex::encode(&keys.env_crypt_key),
        "91b4422e7a0a650188fd11aa417d3e42250a5e566781335a3935b57e3ebf49c2"
    );
    assert_eq!(
        hex::encode(&keys.k256_key),
        "cf8e2da891fdc16167e0eb7f8701cc75d89a6bbc7804f8d58d3fdf0512d6027b"
    );
    let signature = "1d5d3b27e3eed0b0c24ad2b0a152506beea076f27e2f518cff19b740c374dcd7\
                     184745917abb05389ca8126e9ced4529c5dfc590a6ad24aaad30cbc394be04c301";
    assert_eq!(hex::encode(&keys.k256_signature), signature);
    assert_eq!(keys.os_image_hash, [5; 32]);
    let env: PublicKeyResponse = world
        .call(None, "GetAppEnvEncryptPubKey", &AppIdRequest { app_id: app.as_bytes().to_vec() })
        .await
        .unwrap();
    assert_eq!(
        hex::encode(env.public_key),
        "b69a7043cda25ae1f07c1b610024b38792c439a9a222e199e2eb7b6e76008459"
    );
    let signature = "fe4f30f3986af8952d10ae923012368e58896a6915cc7b90f3514be94840f692\
                     43735d4dbd2bbda9f80ab63e7d1e5c57b7a7fbb674d2b02708bb964ff9b1f76700";
    assert_eq!(hex::encode(env.signature), signature);
    assert!(env.timestamp > 0 && env.signature_v1.len() == 65);
    let meta: GetMetaResponse = world.call(None, "GetMeta", &()).await.unwrap();
    assert_eq!(
        hex::encode(meta.k256_pubkey),
        "02466d7fcae563e5cb09a0d1870bb580344804617879a14949cf22285f1bae3f27"
    );
}

#[tokio::test]
async fn t01_another_compose_file_gets_no_keys_of_the_app() {
    let mut world = World::new().await;
    let victim = Boot::of(COMPOSE, WANTS);
    assert!(world.app_key(&victim).await.is_ok());
    let attacker = Boot::of(&other_compose(1), WANTS).claiming(victim.app);
    let (app, hash) = (victim.app, attacker.hash());
    let expected = format!(
        "compose hash {hash} is not allowed for app {app}; allow it with: dstackctl kms allow-upgrade {app} {hash}"
    );
    assert_eq!(reason(world.app_key(&attacker).await), expected);
    assert!(matches!(world.told.recv().await.unwrap(), Told::Released(a, ..) if a == app.to_string()));
    let told = world.told.recv().await.unwrap();
    assert_eq!(told, Told::Denied(app.to_string(), hash.to_string(), expected));
}

#[tokio::test]
async fn t07_keys_are_for_a_boot_that_has_started_nothing() {
    let world = World::new().await;
    let ready = Boot::of(COMPOSE, READY);
    let error = reason(world.app_key(&ready).await);
    assert!(error.contains("measured its inputs and started nothing"), "{error}");
}

#[tokio::test]
async fn p21_nobody_gets_keys_without_evidence() {
    let world = World::new().await;
    let request = GetAppKeyRequest { api_version: 1, ..Default::default() };
    for method in ["GetAppKey", "GetKmsKey"] {
        assert!(reason(world.call::<_, Value>(None, method, &request).await).contains("no certificate"));
    }
    for method in ["GetTempCaCert", "Bootstrap", "Onboard"] {
        assert!(reason(world.call::<_, Value>(None, method, &()).await).contains("no method"));
    }
    // A certificate of this very service without evidence is nobody, either.
    let identity = world.engine.authority().unwrap().rpc_identity(std::time::SystemTime::now()).unwrap();
    let error = reason(world.call::<_, Value>(Some(&identity), "GetAppKey", &request).await);
    assert!(error.contains("no quote"), "{error}");
}

#[tokio::test]
async fn t04_a_guest_of_another_realm_gets_nothing() {
    let other = TestRoot::load(&pki::generate(OffsetDateTime::now_utc()).unwrap()).unwrap();
    for roots in [Roots::intel(), Roots::test(other.certificate().to_vec())] {
        let setup = Setup { roots: roots.clone(), ..Setup::default() };
        let mut record = crate::world::record();
        record.realm = roots.realm().clone();
        *setup.safe.sealed.lock().unwrap() = Some(record.to_bytes().to_vec());
        let world = World::empty(setup).await;
        let error = reason(world.app_key(&Boot::of(COMPOSE, WANTS)).await);
        assert!(error.contains("does not stand under root"), "{error}");
    }
}

#[tokio::test]
async fn t04_keys_of_another_realm_are_not_used() {
    let setup = Setup { roots: Roots::intel(), ..Setup::default() };
    let world = World::with(setup).await;
    assert!(world.engine.status().contains("the root keys are of realm test:"), "{}", world.engine.status());
    let error = world.engine.meta().unwrap_err().to_string();
    assert!(error.contains("trust.d"), "{error}");
    assert_eq!(*world.engine.realm(), Label::Intel);
}

#[tokio::test]
async fn the_sent_compose_file_must_be_the_measured_one() {
    let world = World::new().await;
    let boot = Boot::of(COMPOSE, WANTS);
    let request = GetAppKeyRequest { api_version: 1, app_compose: b"{}".to_vec(), ..Default::default() };
    let answer = world.call::<_, Value>(Some(&boot.identity()), "GetAppKey", &request).await;
    assert!(reason(answer).contains("not the measured one"));
    let request = GetAppKeyRequest { api_version: 9, ..request };
    let answer = world.call::<_, Value>(Some(&boot.identity()), "GetAppKey", &request).await;
    assert!(reason(answer).contains("api_version 1"));
}

#[tokio::test]
async fn p15_arguments_have_their_form() {
    let world = World::new().await;
    for length in [0, 19, 21] {
        let request = AppIdRequest { app_id: vec![1; length] };
        let answer = world.call::<_, Value>(None, "GetAppEnvEncryptPubKey", &request).await;
        assert!(reason(answer).contains("exactly 20 bytes"));
    }
}

#[tokio::test]
async fn t23_every_release_and_denial_is_in_the_signed_log() {
    let world = World::new().await;
    let boot = Boot::of(COMPOSE, WANTS);
    let attacker = Boot::of(&other_compose(1), WANTS).claiming(boot.app);
    world.app_key(&boot).await.unwrap();
    for _ in 0..3 {
        reason(world.app_key(&attacker).await);
    }
    world.app_key(&Boot::of(&other_compose(2), WANTS)).await.unwrap();
    let request = GetReleaseLogRequest { app_id: boot.app.as_bytes().to_vec(), after: 0, limit: 0 };
    let log: GetReleaseLogResponse = world.call(None, "GetReleaseLog", &request).await.unwrap();
    let entries: Vec<Entry> = log.entries.iter().map(|e| serde_json::from_str(e).unwrap()).collect();
    let kinds: Vec<(u64, Kind)> = entries.iter().map(|e| (e.seq, e.event.kind)).collect();
    assert_eq!(kinds, [(1, Kind::Released), (2, Kind::Denied)], "a repeated denial is recorded once");
    assert!(entries[0].event.verdict.starts_with("root=test:"), "{:?}", entries[0]);
    assert!(entries[0].event.verdict.contains("upgrades=first"), "{:?}", entries[0]);
    assert_eq!(entries[1].prev, hex::encode(line_hash(log.entries[0].as_bytes())));
    assert_eq!(log.head_seq, 3);
    let head = <[u8; 32]>::try_from(log.head_hash).unwrap();
    let message = dstack_keys::sign::release_head_message(log.head_seq, &head);
    let signature = log.head_signature.try_into().unwrap();
    let signer = dstack_keys::sign::recover(&message, &signature).unwrap();
    assert_eq!(&signer, world.engine.authority().unwrap().k256_public());
}

#[tokio::test]
async fn t23_evidence_that_breaks_the_policy_is_recorded_and_told() {
    let mut world = World::new().await;
    let policy = dstack_ra_tls::Policy { min_evaluation_number: 1_000_000, ..Default::default() };
    world.engine.verifier().set_policy(policy);
    let boot = Boot::of(COMPOSE, WANTS);
    assert!(reason(world.app_key(&boot).await).contains("older than 1000000"));
    let told = world.told.recv().await.unwrap();
    assert!(
        matches!(&told, Told::Denied(app, _, why) if *app == boot.app.to_string() && why.contains("older"))
    );
    assert_eq!(world.engine.log().of_app(&boot.app, 0, 0).unwrap().0.len(), 1);
}

#[tokio::test]
async fn t03_a_guest_that_pins_the_ca_finds_this_service_and_no_other() {
    let (world, other) = (World::new().await, World::empty(Setup::default()).await);
    other.engine.bootstrap("kms.example.com").await.unwrap();
    other.served.renew(&other.engine).unwrap();
    let meta: GetMetaResponse = world.call(None, "GetMeta", &()).await.unwrap();
    let pinned = || Rules::issued(Anchor::pinned(meta.ca_public_key.clone()), vec![Usage::KmsRpc]);
    assert!(world.connect(None, &pinned()).await.is_ok());
    assert!(other.connect(None, &pinned()).await.is_err(), "the same name is not the same service");
}

#[tokio::test]
async fn p22_an_apps_certificate_is_no_key_service() {
    let world = World::new().await;
    let rules = Rules::issued(world.anchor(), vec![Usage::AppCustom]);
    assert!(world.connect(None, &rules).await.is_err(), "the service shows kms:rpc");
    let rules = Rules::issued(world.anchor(), vec![Usage::KmsRpc]);
    assert!(world.connect(None, &rules).await.is_ok());
    assert!(!ROOT.certificate().is_empty());
}
