// SPDX-License-Identifier: Apache-2.0
//! A second key service fetches the root keys.

use crate::keys::COMPOSE;
use crate::world::{Attested, Boot, READY, Safe, Setup, World, reason};
use dstack_kms::engine::Phase;
use dstack_ra_tls::certificate::Custody;
use dstack_rpc::kms::GetKmsKeyRequest;
use dstack_service::api::kms1::Error;
use serde_json::Value;
use std::sync::Arc;

fn kms() -> Boot {
    Boot { mr_td: 9, ..Boot::of(COMPOSE, READY) }
}

async fn second() -> World {
    World::empty(Setup { attest: Arc::new(Attested(kms())), ..Setup::default() }).await
}

/// The measurement in the source's refusal, as its operator copies it.
fn measurement(refusal: &str) -> String {
    let at = refusal.find("AllowPeer st ").unwrap() + "AllowPeer st ".len();
    refusal[at..at + 64].to_owned()
}

#[tokio::test]
async fn t11_a_peer_gets_the_keys_only_when_it_is_announced() {
    let (source, peer) = (World::new().await, second().await);
    let key = source.engine.authority().unwrap().public_key();
    let refused = match peer.engine.onboard(&source.url, key.clone()).await {
        Err(Error::PeerRefused(reason)) => reason,
        other => panic!("{other:?}"),
    };
    assert!(refused.contains("is announced"), "{refused}");
    assert!(matches!(peer.engine.phase(), Phase::Empty));
    source.engine.allow_peer(&measurement(&refused), 60).unwrap();
    peer.engine.onboard(&source.url, key.clone()).await.unwrap();
    assert_eq!(peer.engine.authority().unwrap().public_key(), key);
    assert_eq!(peer.engine.authority().unwrap().record().custody, Custody::Host);
    let again = peer.engine.onboard(&source.url, key).await;
    assert!(matches!(again, Err(Error::AlreadyBootstrapped(_))), "{again:?}");
    assert_eq!(source.engine.log().head().seq, 1, "it is in the release log");
}

#[tokio::test]
async fn t11_an_announcement_ends() {
    let source = World::new().await;
    for (measurement, ttl) in [("00", 60), (&*"0".repeat(64), 0), (&*"0".repeat(64), 100_000)] {
        assert!(source.engine.allow_peer(measurement, ttl).is_err());
    }
    let peer = second().await;
    let key = source.engine.authority().unwrap().public_key();
    let refused = peer.engine.onboard(&source.url, key.clone()).await.unwrap_err().to_string();
    source.engine.allow_peer(&measurement(&refused), 1).unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    assert!(peer.engine.onboard(&source.url, key).await.is_err());
}

#[tokio::test]
async fn t11_a_hosts_keys_never_become_a_cvms() {
    let source = World::new().await;
    let safe = Arc::new(Safe { custody: Some(Custody::Cvm), ..Safe::default() });
    let setup = Setup { attest: Arc::new(Attested(kms())), safe, ..Setup::default() };
    let peer = World::empty(setup).await;
    let key = source.engine.authority().unwrap().public_key();
    let error = peer.engine.onboard(&source.url, key).await.unwrap_err();
    assert!(matches!(error, Error::PeerRefused(_)), "{error}");
    // The source refuses, too, whatever the peer would do with them.
    let request = GetKmsKeyRequest { realm: source.engine.realm().to_string(), custody: "cvm".into() };
    let answer = source.call::<_, Value>(Some(&kms().identity()), "GetKmsKey", &request).await;
    assert!(reason(answer).contains("never become those of a CVM"));
}

#[tokio::test]
async fn t04_peers_are_of_one_realm() {
    let source = World::new().await;
    let request = GetKmsKeyRequest { realm: "intel".into(), custody: "host".into() };
    let answer = source.call::<_, Value>(Some(&kms().identity()), "GetKmsKey", &request).await;
    assert!(reason(answer).contains("realm"));
}

#[tokio::test]
async fn p23_the_source_is_the_pinned_one_on_the_very_connection() {
    let (source, peer) = (World::new().await, second().await);
    let other = dstack_keys::derive::p256(&dstack_keys::Secret::from([3; 32])).unwrap();
    let error = peer.engine.onboard(&source.url, other.public_key_to_der().unwrap()).await.unwrap_err();
    assert!(error.to_string().contains("not of the pinned authority"), "{error}");
    assert!(matches!(peer.engine.onboard("http://x", vec![1]).await, Err(Error::PeerRefused(_))));
}

#[tokio::test]
async fn t11_a_key_service_on_a_host_cannot_vouch_for_itself() {
    let (source, peer) = (World::new().await, World::empty(Setup::default()).await);
    let key = source.engine.authority().unwrap().public_key();
    let error = peer.engine.onboard(&source.url, key).await.unwrap_err().to_string();
    assert!(error.contains("outside of a TEE"), "{error}");
}
