// SPDX-License-Identifier: Apache-2.0
//! Bootstrap over the bus, killed between any two steps.

use crate::systemd::Seal;
use crate::world::World;
use dstack_service::api::kms1::{Error, ManagerProxy, Options};
use futures_util::StreamExt;

async fn bootstrap(world: &World) -> Result<String, Error> {
    world.manager.bootstrap("kms.example.org", Options::new()).await
}

#[tokio::test]
async fn a_fresh_key_service_says_what_to_do() {
    let world = World::new().await;
    assert!(!world.manager.bootstrapped().await.unwrap());
    assert_eq!(world.manager.realm().await.unwrap(), "intel");
    assert_eq!(world.manager.custody().await.unwrap(), "host");
    assert_eq!(world.manager.ca_public_key().await.unwrap(), "");
    let error = world.manager.get_app_env_key(&"0".repeat(40)).await.unwrap_err();
    assert!(matches!(&error, Error::NotBootstrapped(m) if m.contains("dstackctl kms bootstrap")), "{error}");
}

#[tokio::test]
async fn p23_bootstrap_over_the_bus_is_once_and_survives() {
    let mut world = World::new().await;
    let cached = ManagerProxy::new(&world.connection).await.unwrap();
    let mut changes = cached.receive_bootstrapped_changed().await;
    let key = bootstrap(&world).await.unwrap();
    assert!(key.starts_with("3059"), "{key}");
    while !changes.next().await.unwrap().get().await.unwrap() {}
    assert_eq!(world.systemd.inner.started.lock().unwrap().as_slice(), ["dstack-kms-seal.service"]);
    assert!(!world.path("run/kmsroot.new").exists(), "the plaintext is gone");
    assert!(matches!(bootstrap(&world).await, Err(Error::AlreadyBootstrapped(_))));
    world.kill().await;
    world.start().await;
    assert_eq!(world.manager.ca_public_key().await.unwrap(), key);
    assert!(matches!(bootstrap(&world).await, Err(Error::AlreadyBootstrapped(_))));
    assert_eq!(world.manager.domain().await.unwrap(), "kms.example.org");
    assert_eq!(world.manager.address().await.unwrap(), "https://kms.example.org:9043");
}

#[tokio::test]
async fn p23_a_kill_at_any_step_leaves_it_bootstrapped_or_empty() {
    for seal in [Seal::Hangs, Seal::SealsAndHangs] {
        let mut world = World::new().await;
        *world.systemd.inner.seal.lock().unwrap() = seal;
        let manager = world.manager.clone();
        let call = tokio::spawn(async move { manager.bootstrap("kms.example.org", Options::new()).await });
        world.systemd.inner.called.notified().await;
        world.kill().await;
        assert!(call.await.unwrap().is_err());
        *world.systemd.inner.seal.lock().unwrap() = Seal::Done;
        world.start().await;
        assert!(!world.path("run/kmsroot.new").exists(), "nothing is left over");
        let bootstrapped = world.manager.bootstrapped().await.unwrap();
        assert_eq!(bootstrapped, seal == Seal::SealsAndHangs);
        assert_eq!(bootstrapped, world.sealed());
        assert_eq!(bootstrap(&world).await.is_ok(), !bootstrapped, "a clean second try");
    }
}

#[tokio::test]
async fn p23_a_failed_seal_is_told_and_can_be_tried_again() {
    let world = World::new().await;
    *world.systemd.inner.seal.lock().unwrap() = Seal::Fails;
    let error = bootstrap(&world).await.unwrap_err();
    assert!(matches!(&error, Error::SealFailed(m) if m.contains("journalctl -u dstack-kms-seal")), "{error}");
    assert!(!world.manager.bootstrapped().await.unwrap() && !world.path("run/kmsroot.new").exists());
    *world.systemd.inner.seal.lock().unwrap() = Seal::Done;
    assert!(bootstrap(&world).await.is_ok());
}

#[tokio::test]
async fn p23_keys_that_were_sealed_meanwhile_are_not_replaced() {
    let world = World::new().await;
    std::fs::write(world.path("credentials/kmsroot"), "sealed by somebody").unwrap();
    assert!(matches!(bootstrap(&world).await, Err(Error::SealFailed(_))));
    assert_eq!(std::fs::read(world.path("credentials/kmsroot")).unwrap(), b"sealed by somebody");
}

#[tokio::test]
async fn p30_damaged_keys_are_told_and_left_alone() {
    let mut world = World::without_kms().await;
    std::fs::write(world.path("credentials/kmsroot"), "{").unwrap();
    world.start().await;
    assert!(world.manager.bootstrapped().await.unwrap());
    let error = world.manager.get_app_env_key(&"0".repeat(40)).await.unwrap_err();
    assert!(matches!(&error, Error::Misconfigured(m) if m.contains("damaged")), "{error}");
    assert!(matches!(bootstrap(&world).await, Err(Error::AlreadyBootstrapped(_))));
}

#[tokio::test]
async fn t04_two_trust_roots_are_an_error() {
    let world = World::without_kms().await;
    std::fs::create_dir(world.path("etc/trust.d")).unwrap();
    let pem = "-----BEGIN CERTIFICATE-----\nAQID\n-----END CERTIFICATE-----\n";
    std::fs::write(world.path("etc/trust.d/a.pem"), pem).unwrap();
    std::fs::write(world.path("etc/trust.d/b.pem"), pem).unwrap();
    assert!(world.start_and_fail());
}

#[tokio::test]
async fn t04_a_root_that_came_after_the_start_is_noticed() {
    let mut world = World::new().await;
    std::fs::create_dir(world.path("etc/trust.d")).unwrap();
    let pem = "-----BEGIN CERTIFICATE-----\nAQID\n-----END CERTIFICATE-----\n";
    std::fs::write(world.path("etc/trust.d/test.pem"), pem).unwrap();
    let refused = bootstrap(&world).await;
    assert!(
        matches!(&refused, Err(Error::Misconfigured(m)) if m.contains("restart dstack-kms")),
        "{refused:?}"
    );
    world.kill().await;
    world.start().await;
    bootstrap(&world).await.unwrap();
    assert_eq!(world.manager.realm().await.unwrap(), "test:039058c6f2c0cb49");
    // And a root that goes away does not make it a service of the other realm.
    std::fs::remove_file(world.path("etc/trust.d/test.pem")).unwrap();
    world.kill().await;
    world.start().await;
    let error = world.manager.get_app_env_key(&"0".repeat(40)).await.unwrap_err();
    assert!(matches!(&error, Error::Misconfigured(m) if m.contains("are of realm test:")), "{error}");
}

#[tokio::test]
async fn options_are_checked() {
    let world = World::new().await;
    let options = Options::from([("custody", "cvm".into())]);
    let refused = world.manager.bootstrap("kms.example.org", options).await;
    assert!(matches!(refused, Err(Error::InvalidArgument(_))));
    let refused = world.manager.bootstrap("not a name", Options::new()).await;
    assert!(matches!(refused, Err(Error::InvalidArgument(_))));
    let refused = world.manager.onboard("https://127.0.0.1:1", Options::new()).await;
    assert!(matches!(&refused, Err(Error::InvalidArgument(m)) if m.contains("ca_public_key")));
    let options = Options::from([("ca_public_key", "00".into())]);
    let refused = world.manager.onboard("https://127.0.0.1:1", options).await;
    assert!(matches!(&refused, Err(Error::PeerRefused(m)) if m.contains("outside of a TEE")), "{refused:?}");
}

#[tokio::test]
async fn t17_a_gateway_certificate_needs_a_gateway() {
    let mut world = World::new().await;
    let key = hex::decode(bootstrap(&world).await.unwrap()).unwrap();
    let refused = world.manager.sign_gateway_certificate(&key).await;
    assert!(matches!(&refused, Err(Error::Misconfigured(m)) if m.contains("gateway_app_id")), "{refused:?}");
    let text = format!("gateway_app_id = \"{}\"", "ab".repeat(20));
    std::fs::write(world.path("etc/kms.toml"), text).unwrap();
    world.kill().await;
    world.start().await;
    let chain = world.manager.sign_gateway_certificate(&key).await.unwrap();
    assert_eq!(chain.len(), 2);
    let log = world.manager.get_release_log(&"ab".repeat(20), 0, 0).await.unwrap();
    assert!(format!("{log:?}").contains("role=gateway:rpc"), "t23: {log:?}");
    let bad = world.manager.sign_gateway_certificate(b"no key").await;
    assert!(matches!(bad, Err(Error::InvalidArgument(_))), "{bad:?}");
}
