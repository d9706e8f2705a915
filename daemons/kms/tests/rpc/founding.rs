// SPDX-License-Identifier: Apache-2.0
//! Bootstrap: once, whole or not at all.

use crate::keys::COMPOSE;
use crate::world::{Boot, Setup, WANTS, World, open, reason};
use dstack_kms::engine::{Phase, Told};
use dstack_kms::record::Record;
use dstack_ra_rpc::peer::{Anchor, Rules};
use dstack_ra_tls::certificate::{Custody, Usage};
use dstack_rpc::kms::GetMetaResponse;
use dstack_service::api::kms1::Error;
use serde_json::Value;
use std::sync::Arc;

#[tokio::test]
async fn without_keys_it_says_so_with_the_remedy() {
    let world = World::empty(Setup::default()).await;
    assert!(world.engine.status().contains("dstackctl kms bootstrap"), "{}", world.engine.status());
    let error = world.engine.meta().unwrap_err();
    assert!(matches!(&error, Error::NotBootstrapped(m) if m.contains("dstackctl kms bootstrap")), "{error}");
    // Nobody takes it for a key service.
    let rules = Rules::issued(Anchor::pinned(vec![1]), vec![Usage::KmsRpc]);
    assert!(world.connect(None, &rules).await.is_err());
}

#[tokio::test]
async fn p23_t04_bootstrap_is_once() {
    let mut world = World::empty(Setup::default()).await;
    assert!(matches!(world.engine.bootstrap("not a name").await, Err(Error::InvalidArgument(_))));
    let key = world.engine.bootstrap("kms.example.org").await.unwrap();
    assert_eq!(world.told.recv().await, Some(Told::Bootstrapped));
    for _ in 0..2 {
        let again = world.engine.bootstrap("kms.example.org").await;
        assert!(matches!(again, Err(Error::AlreadyBootstrapped(_))), "{again:?}");
    }
    world.served.renew(&world.engine).unwrap();
    let meta: GetMetaResponse = world.call(None, "GetMeta", &()).await.unwrap();
    assert_eq!(hex::encode(&meta.ca_public_key), key);
    assert!(meta.realm.starts_with("test:"), "{}", meta.realm);
    assert_eq!((meta.custody.as_str(), meta.domain.as_str()), ("host", "kms.example.org"));
    assert!(!meta.allow_any_upgrade);
    let record = Record::parse(world.safe.sealed.lock().unwrap().as_ref().unwrap()).unwrap();
    assert_eq!((record.custody, record.realm.to_string()), (Custody::Host, meta.realm));
}

#[tokio::test]
async fn p23_a_start_after_the_seal_has_the_same_keys() {
    let setup = Setup::default();
    let dir = tempfile::tempdir().unwrap();
    let key = {
        let (engine, _told) = open(&setup, dir.path());
        engine.bootstrap("kms.example.org").await.unwrap()
    };
    let (engine, _told) = open(&setup, dir.path());
    assert_eq!(hex::encode(engine.authority().unwrap().public_key()), key);
    assert!(matches!(engine.bootstrap("kms.example.org").await, Err(Error::AlreadyBootstrapped(_))));
}

#[tokio::test]
async fn p23_a_failed_seal_leaves_it_empty() {
    let setup = Setup::default();
    *setup.safe.broken.lock().unwrap() = true;
    let world = World::empty(setup).await;
    assert!(matches!(world.engine.bootstrap("kms.example.org").await, Err(Error::SealFailed(_))));
    assert!(matches!(world.engine.phase(), Phase::Empty));
    assert!(world.safe.sealed.lock().unwrap().is_none());
    *world.safe.broken.lock().unwrap() = false;
    assert!(world.engine.bootstrap("kms.example.org").await.is_ok());
}

#[tokio::test]
async fn p30_sealed_keys_that_cannot_be_read_are_not_absent() {
    let setup = Setup::default();
    *setup.safe.sealed.lock().unwrap() = Some(b"{".to_vec());
    let world = World::empty(setup).await;
    assert!(matches!(world.engine.phase(), Phase::Refused(_)));
    assert!(matches!(world.engine.bootstrap("a.b").await, Err(Error::AlreadyBootstrapped(_))));
}

#[tokio::test]
async fn p23_only_one_of_many_makes_the_keys() {
    let world = Arc::new(World::empty(Setup::default()).await);
    let calls = (0..8).map(|n| {
        let engine = world.engine.clone();
        tokio::spawn(async move { engine.bootstrap(&format!("kms{n}.example.org")).await.is_ok() })
    });
    let mut made = 0;
    for call in calls.collect::<Vec<_>>() {
        made += usize::from(call.await.unwrap());
    }
    assert_eq!(made, 1);
}

#[tokio::test]
async fn an_app_gets_keys_right_after_the_bootstrap() {
    let world = World::empty(Setup::default()).await;
    world.engine.bootstrap("kms.example.org").await.unwrap();
    world.served.renew(&world.engine).unwrap();
    let boot = Boot::of(COMPOSE, WANTS);
    assert_eq!(world.app_key(&boot).await.unwrap().k256_key.len(), 32);
    assert!(reason(world.call::<_, Value>(None, "NoSuch", &()).await).contains("no method"));
}
