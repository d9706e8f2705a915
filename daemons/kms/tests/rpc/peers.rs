// SPDX-License-Identifier: Apache-2.0
//! A second key service fetches the root keys.

use crate::keys::COMPOSE;
use crate::world::{Attested, Boot, READY, Safe, Setup, WANTS, World, reason};
use dstack_core::ids::AppId;
use dstack_kms::engine::Phase;
use dstack_quote_sim::pki::{self, TestRoot};
use dstack_ra_rpc::tls::Identity;
use dstack_ra_tls::certificate::Custody;
use dstack_rpc::kms::GetKmsKeyRequest;
use dstack_service::api::kms1::Error;
use serde_json::Value;
use std::sync::Arc;
use time::OffsetDateTime;

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
    assert!(
        peer.engine.authority().unwrap().record().onboarded
            && !source.engine.authority().unwrap().record().onboarded
    );
    let again = peer.engine.onboard(&source.url, key).await;
    assert!(matches!(again, Err(Error::AlreadyBootstrapped(_))), "{again:?}");
    assert_eq!(source.engine.log().head().seq, 1, "it is in the release log");
}

/// Both ways at once: the source judges the peer's quote on the connection on which the peer judges the source's pin.
#[tokio::test]
async fn t11_p23_a_second_key_service_is_onboarded_once_and_derives_the_same_keys() {
    let (source, peer) = (World::new().await, second().await);
    let key = source.engine.authority().unwrap().public_key();
    let ask = |realm: &str, custody: &str| GetKmsKeyRequest { realm: realm.into(), custody: custody.into() };
    let realm = source.engine.realm().to_string();
    let as_kms = async |identity: Identity, request: GetKmsKeyRequest| {
        source.call::<_, Value>(Some(&identity), "GetKmsKey", &request).await
    };

    let before = peer.engine.onboard(&source.url, key.clone()).await.unwrap_err().to_string();
    source.engine.allow_peer(&measurement(&before), 60).unwrap();
    // Announced is this measurement alone, in this realm, with this custody; none of these spends the announcement.
    let other = Boot { mr_td: 8, ..kms() };
    let refusal = reason(as_kms(other.identity(), ask(&realm, "host")).await);
    assert!(refusal.contains("is announced") && measurement(&refusal) != measurement(&before), "{refusal}");
    assert!(reason(as_kms(kms().identity(), ask("intel", "host")).await).contains("realm"));
    assert!(
        reason(as_kms(kms().identity(), ask(&realm, "cvm")).await).contains("never become those of a CVM")
    );
    let root = TestRoot::load(&pki::generate(OffsetDateTime::now_utc()).unwrap()).unwrap();
    let foreign = as_kms(kms().identity_under(&root), ask(&realm, "host")).await;
    assert!(foreign.is_err(), "a quote under another root is no evidence: {foreign:?}");
    assert!(source.call::<_, Value>(None, "GetKmsKey", &ask(&realm, "host")).await.is_err(), "no evidence");

    peer.engine.onboard(&source.url, key.clone()).await.unwrap();
    peer.served.renew(&peer.engine).unwrap();
    let again = second().await.engine.onboard(&source.url, key).await.unwrap_err().to_string();
    assert!(again.contains("is announced"), "an announcement is for one fetch: {again}");

    // App and instance of the published vectors, from both.
    let app: AppId = "3327603e03f5bd1f830812ca4a789277fc31f577".parse().unwrap();
    let boot = Boot::of(COMPOSE, WANTS).claiming(app);
    for kms in [&source, &peer] {
        kms.engine.allow_upgrade(&app.to_string(), &boot.hash().to_string()).unwrap();
    }
    let (ours, theirs) = (source.app_key(&boot).await.unwrap(), peer.app_key(&boot).await.unwrap());
    let disk = "0b1f243958ceef0218284656fb6dcc405955665617d2a1101519272d72fda4f9";
    assert_eq!(hex::encode(&theirs.disk_crypt_key), disk);
    assert_eq!(
        (&ours.disk_crypt_key, &ours.env_crypt_key, &ours.k256_key, &ours.k256_signature),
        (&theirs.disk_crypt_key, &theirs.env_crypt_key, &theirs.k256_key, &theirs.k256_signature)
    );
    let owner = peer.engine.authority().unwrap();
    assert_eq!(owner.k256_public(), source.engine.authority().unwrap().k256_public());
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
