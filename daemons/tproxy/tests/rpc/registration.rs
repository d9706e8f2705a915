// SPDX-License-Identifier: Apache-2.0
//! Who may register, and what is done then.

use crate::world::{
    Boot, Kms, Nowhere, WANTS, World, interface, open, open_with, reason, request, server_key,
};
use dstack_core::wireguard::PublicKey;
use dstack_ra_rpc::peer::Rules;
use dstack_ra_tls::certificate::Usage;
use dstack_rpc::tproxy::{GatewayRegisterResponse, RegisterCvmRequest};
use dstack_tproxy::engine::Told;
use dstack_tproxy::registry::{Claim, Ports};
use std::sync::Arc;
use std::time::{Duration, Instant};

fn peer_address(world: &World, key: u8) -> Option<String> {
    let key = PublicKey::from([key; 32]);
    let peer = world.wireguard.with(&interface(), |i| i.peers.get(&key).cloned()).unwrap()?;
    assert_eq!(peer.allowed.len(), 1, "one address and no other");
    Some(peer.allowed[0].to_string())
}

#[tokio::test]
async fn an_instance_gets_its_lease_and_keeps_it() {
    let mut world = World::new().await;
    let answer = world.register(&world.boot(1, 1), 1).await.unwrap();
    let wg = answer.wg.unwrap();
    assert_eq!((wg.client_ip.as_str(), wg.server_ip.as_str()), ("10.0.0.2", "10.0.0.1"));
    assert_eq!(
        (wg.server_endpoint.as_str(), wg.server_public_key),
        ("192.0.2.1:51820", server_key().to_string())
    );
    let agent = answer.tappd.unwrap();
    assert_eq!(
        (agent.external_port, agent.internal_port, agent.domain.as_str()),
        (443, 8090, "apps.example.com")
    );
    assert_eq!(peer_address(&world, 1).as_deref(), Some("10.0.0.2/32"));
    assert!(matches!(world.told.recv().await, Some(Told::Added(i)) if i.address.to_string() == "10.0.0.2"));
    let other = world.register(&world.boot(1, 2), 2).await.unwrap();
    assert_eq!(other.wg.unwrap().client_ip, "10.0.0.3");
    // A new boot has a new key; the address stays, and the old key is out at once.
    let again = world.register(&world.boot(1, 1), 9).await.unwrap();
    assert_eq!(again.wg.unwrap().client_ip, "10.0.0.2");
    assert_eq!((peer_address(&world, 1), peer_address(&world, 9).as_deref()), (None, Some("10.0.0.2/32")));
    // It is on the disk.
    let (restarted, _told) = open(&world.path(""), &world.wireguard);
    let entries = restarted.instances();
    assert_eq!(entries.len(), 2);
    assert_eq!(entries[0].instance.public_key, PublicKey::from([9; 32]));
    assert_eq!(entries[0].instance.address.to_string(), "10.0.0.2");
}

#[tokio::test]
async fn the_newer_answer_is_for_callers_of_the_newer_service() {
    let world = World::new().await;
    let identity = world.kms.app(&world.boot(1, 1));
    let answer: GatewayRegisterResponse =
        world.call(Some(&identity), "/prpc/Gateway.RegisterCvm", &request(1)).await.unwrap();
    let wg = answer.wg.unwrap();
    assert_eq!((wg.client_ip.as_str(), wg.servers.len()), ("10.0.0.2", 1));
    assert_eq!((wg.servers[0].ip.as_str(), wg.servers[0].endpoint.as_str()), ("10.0.0.1", "192.0.2.1:51820"));
    assert_eq!(answer.agent.unwrap().app_address_ns_prefix, "_dstack-app-address");
}

#[tokio::test]
async fn t01_only_a_checked_app_joins_its_app() {
    let world = World::new().await;
    let boot = world.boot(1, 1);
    let cases: [(Boot, &str); 7] = [
        (Boot { quoted: false, ..boot.clone() }, "no quote"),
        (Boot { written: [2; 20].into(), ..boot.clone() }, "another app"),
        (Boot { events: WANTS, ..boot.clone() }, ""),
        (Boot { usage: Usage::KmsRpc, ..boot.clone() }, "app:custom"),
        (Boot { usage: Usage::GatewayRpc, ..boot.clone() }, "app:custom"),
        (Boot { provider: r#"{"name":"none","id":""}"#.into(), ..boot.clone() }, "another key service"),
        (
            Boot { provider: boot.provider.replace("\"id\":\"30", "\"id\":\"31"), ..boot.clone() },
            "another key service",
        ),
    ];
    for (boot, expected) in cases {
        let said = reason(world.register(&boot, 1).await);
        assert!(said.contains(expected), "{boot:?}: {said}");
    }
    // An authority that is not ours, with everything else right.
    let foreign = Kms::new();
    let boot = Boot { provider: boot.provider.clone(), ..Boot::of(&foreign, 1, 1) };
    let identity = foreign.app(&boot);
    let said = reason(
        world.call::<_, serde_json::Value>(Some(&identity), "/prpc/Tproxy.RegisterCvm", &request(1)).await,
    );
    assert!(said.contains("pinned authority"), "{said}");
    let nobody =
        reason(world.call::<_, serde_json::Value>(None, "/prpc/Tproxy.RegisterCvm", &request(1)).await);
    assert!(nobody.contains("no certificate"), "{nobody}");
    assert!(world.engine.instances().is_empty());
}

#[tokio::test]
async fn t17_a_guest_sees_a_gateway_of_its_key_service() {
    let world = World::new().await;
    let rules = |usage| Rules::issued(world.kms.anchor(), vec![usage]);
    let connection = world.connect(None, &rules(Usage::GatewayRpc)).await.unwrap();
    assert_eq!(connection.peer().usage, Some(Usage::GatewayRpc));
    assert!(world.connect(None, &rules(Usage::KmsRpc)).await.is_err());
    assert!(world.connect(None, &Rules::issued(Kms::new().anchor(), vec![Usage::GatewayRpc])).await.is_err());
}

#[tokio::test]
async fn t21_an_empty_instance_id_is_refused_and_clones_are_told() {
    let mut world = World::new().await;
    let said = reason(world.register(&Boot { instance: None, ..world.boot(1, 1) }, 1).await);
    assert!(said.contains("instance id is empty"), "{said}");
    for key in [1, 2, 1] {
        world.register(&world.boot(1, 1), key).await.unwrap();
    }
    assert!(matches!(world.told.recv().await, Some(Told::Added(_))));
    assert!(
        matches!(world.told.recv().await, Some(Told::Cloned(i)) if i.public_key == PublicKey::from([1; 32]))
    );
    world.register(&world.boot(1, 1), 3).await.unwrap();
    let said = reason(world.register(&world.boot(1, 1), 4).await);
    assert!(said.contains("try again later"), "{said}");
    assert!(peer_address(&world, 3).is_some() && peer_address(&world, 4).is_none());
}

#[tokio::test]
async fn p27_keys_and_ports_are_parsed() {
    let world = World::new().await;
    let identity = world.kms.app(&world.boot(1, 1));
    let good = request(1);
    let key = |text: &str| RegisterCvmRequest { client_public_key: text.into(), ..good.clone() };
    let injected = format!("{}\nAllowedIPs = 0.0.0.0/0", good.client_public_key);
    for (bad, expected) in [
        (key(""), "no WireGuard key"),
        (key(&injected), "no WireGuard key"),
        (key(&server_key().to_string()), "not usable"),
        (RegisterCvmRequest { allowed_ports: vec![0], ..good.clone() }, "1 to 65535"),
        (RegisterCvmRequest { proxy_protocol_ports: vec![65_536], ..good.clone() }, "1 to 65535"),
        (RegisterCvmRequest { allowed_ports: vec![1; 65], ..good.clone() }, "at most 64"),
    ] {
        let said = reason(
            world.call::<_, serde_json::Value>(Some(&identity), "/prpc/Tproxy.RegisterCvm", &bad).await,
        );
        assert!(said.contains(expected), "{said}");
    }
    // Nobody takes the peer of another instance by its key.
    world.register(&world.boot(1, 1), 1).await.unwrap();
    let said = reason(world.register(&world.boot(2, 2), 1).await);
    assert!(said.contains("belongs to another instance"), "{said}");
    assert_eq!(peer_address(&world, 1).as_deref(), Some("10.0.0.2/32"));
}

#[tokio::test]
async fn a_tunnel_that_lost_its_peers_gets_them_back() {
    let world = World::new().await;
    for n in 1..=3 {
        world.register(&world.boot(1, n), n).await.unwrap();
    }
    world.wireguard.with(&interface(), |i| i.peers.clear()).unwrap();
    world.engine.look().await;
    assert_eq!(peer_address(&world, 3).as_deref(), Some("10.0.0.4/32"));
    let stray = PublicKey::from([99; 32]);
    world
        .wireguard
        .with(&interface(), |i| i.peers.insert(stray, dstack_core::wireguard::PeerStatus::new(stray)))
        .unwrap();
    world.engine.look().await;
    assert_eq!(peer_address(&world, 99), None, "whoever is not registered has no tunnel");
    dstack_wireguard::Wireguard::delete(&*world.wireguard, &interface()).await.unwrap();
    world.engine.look().await;
    assert!(world.engine.tunnel().is_ok() && peer_address(&world, 1).is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_instances_register_within_ten_seconds() {
    // The tunnel in memory looks at all peers for each; WireGuard does not.
    let dir = tempfile::tempdir().unwrap();
    let (engine, _told) = open_with(dir.path(), Arc::new(Nowhere));
    let started = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..10_000_u32 {
        let engine = engine.clone();
        let mut id = [0; 20];
        id[16..].copy_from_slice(&n.to_be_bytes());
        let mut key = [1; 32];
        key[28..].copy_from_slice(&n.to_be_bytes());
        let claim = Claim {
            app_id: [1; 20].into(),
            instance_id: id.into(),
            public_key: key.into(),
            ports: Ports::default(),
        };
        tasks.spawn(async move { engine.register(claim).await.unwrap() });
    }
    while let Some(instance) = tasks.join_next().await {
        instance.unwrap();
    }
    let passed = started.elapsed();
    eprintln!("10,000 registrations took {passed:?}");
    assert!(passed < Duration::from_secs(10), "{passed:?}");
    let (restarted, _told) = open_with(dir.path(), Arc::new(Nowhere));
    assert_eq!(restarted.instances().len(), 10_000);
}
