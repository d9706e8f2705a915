// SPDX-License-Identifier: Apache-2.0
//! Start, reload, and what the daemon says when something is missing.

use crate::world::{PATIENCE, World};
use dstack_core::flow::{self, FromFlow, ToFlow};
use dstack_ra_rpc::tls::client_config;
use dstack_service::api::tproxy1::Error;
use rustls::pki_types::ServerName;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Waits for a TLS handshake with the RPC port; tells whether it succeeded.
async fn shakes_hands(world: &World) -> bool {
    let stream = TcpStream::connect(&world.rpc).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(client_config(None).unwrap()));
    let handshake = connector.connect(ServerName::try_from("tproxy.invalid").unwrap(), stream);
    timeout(PATIENCE, handshake).await.expect("nobody answers").is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn without_settings_it_says_so_and_waits() {
    let mut world = World::stopped(true).await;
    world.start().await;
    assert!(!world.manager.configured().await.unwrap());
    let status = world.manager.status().await.unwrap();
    assert!(status.contains("proxy.base_domain") && status.contains("systemctl restart"), "{status}");
    for refused in [world.manager.list_instances().await.map(drop), world.manager.reload().await] {
        assert!(matches!(&refused, Err(Error::NotConfigured(m)) if m.contains("tproxy.toml")), "{refused:?}");
    }
    assert!(world.systemd.said().is_empty(), "no data plane without settings");
    assert_eq!(world.manager.base_domain().await.unwrap(), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configured_ingress_serves_and_knows_its_instances() {
    let world = World::new().await;
    assert!(shakes_hands(&world).await);
    assert_eq!(world.systemd.said(), ["start dstack-tproxy-flow@1.service"]);
    let manager = &world.manager;
    assert_eq!(manager.base_domain().await.unwrap(), "apps.example.com");
    assert_eq!(manager.endpoint().await.unwrap(), "192.0.2.1:51820");
    assert_eq!(manager.public_key().await.unwrap().len(), 44);
    assert!(manager.list_instances().await.unwrap().is_empty());
    assert!(manager.list_routes().await.unwrap().is_empty());
    assert_eq!(manager.stats().await.unwrap()["accepted"], 0);
    let id = "01".repeat(20);
    for refused in
        [manager.get_instance(&id).await.map(drop), manager.drain(&id).await, manager.remove(&id).await]
    {
        assert!(
            matches!(&refused, Err(Error::NoSuchInstance(m)) if m.contains("dstackctl proxy list")),
            "{refused:?}"
        );
    }
    assert!(matches!(manager.undrain("x").await, Err(Error::InvalidArgument(_))));
    assert!(manager.status().await.unwrap().starts_with("Serving apps.example.com: 0 instances"));
}

#[tokio::test(flavor = "multi_thread")]
async fn it_waits_for_the_key_service_and_notices_its_keys() {
    let mut world = World::stopped(false).await;
    world.configure("");
    world.certificate();
    world.start().await;
    world.until_started().await;
    let status = world.manager.status().await.unwrap();
    assert!(status.contains("nobody can register") && status.contains("dstackctl kms bootstrap"), "{status}");
    world.kms.bootstrap().await;
    assert!(shakes_hands(&world).await, "it did not notice");
    assert_eq!(world.kms.inner.issued.load(Ordering::Relaxed), 1);
    let status = world.manager.status().await.unwrap();
    assert!(!status.contains("nobody can register"), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn t17_a_key_service_that_is_not_the_pinned_one_is_not_used() {
    let mut world = World::stopped(true).await;
    world.configure("[kms]\npublic_key='3059'");
    world.certificate();
    world.start().await;
    world.until_started().await;
    let status = world.manager.status().await.unwrap();
    assert!(status.contains("kms.public_key"), "{status}");
    world.kill().await;
    let own = hex::encode(world.kms.inner.public_key());
    world.configure(&format!("[kms]\npublic_key='{own}'"));
    world.start().await;
    assert!(shakes_hands(&world).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_replaces_the_data_plane_and_what_is_wrong_changes_nothing() {
    let world = World::new().await;
    world.manager.reload().await.unwrap();
    let expected = [
        "start dstack-tproxy-flow@1.service",
        "start dstack-tproxy-flow@2.service",
        "stop dstack-tproxy-flow@1.service",
    ];
    assert_eq!(world.systemd.said(), expected);
    world.manager.reload().await.unwrap();
    let expected = [
        expected[0],
        expected[1],
        expected[2],
        "start dstack-tproxy-flow@3.service",
        "stop dstack-tproxy-flow@2.service",
    ];
    assert_eq!(world.systemd.said(), expected, "and once more");
    for (settings, said) in [("connect_top_n = 0", "connect_top_n"), ("[kms]\npublic_key='3059'", "restart")]
    {
        world.configure(settings);
        let refused = world.manager.reload().await;
        assert!(matches!(&refused, Err(Error::Misconfigured(m)) if m.contains(said)), "{refused:?}");
    }
    world.configure("");
    std::fs::write(world.path("cert.pem"), "x").unwrap();
    let refused = world.manager.reload().await;
    assert!(matches!(&refused, Err(Error::Misconfigured(m)) if m.contains("cert.pem")), "{refused:?}");
    assert_eq!(world.systemd.said(), expected, "nothing was replaced");
    world.certificate();
    world.systemd.inner.lock().unwrap().fails = true;
    let refused = world.manager.reload().await;
    assert!(matches!(&refused, Err(Error::DataPlaneFailed(m)) if m.contains("journalctl")), "{refused:?}");
    let running = world.systemd.inner.lock().unwrap().running.clone();
    assert_eq!(running, ["dstack-tproxy-flow@3.service"], "the old one goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_ingress_comes_back_with_its_key_and_its_data_plane() {
    let mut world = World::new().await;
    let key = world.manager.public_key().await.unwrap();
    world.kill().await;
    world.start().await;
    assert!(shakes_hands(&world).await);
    assert_eq!(world.manager.public_key().await.unwrap(), key);
    assert_eq!(world.systemd.said(), ["start dstack-tproxy-flow@1.service"], "the running one is kept");
}

/// What the next data plane that connects is told first.
fn first_frames(mut stream: UnixStream) -> Vec<ToFlow> {
    let hello = FromFlow::Hello { version: flow::PROTOCOL, generation: 1, pid: 1 };
    stream.write_all(&flow::format(&hello).unwrap()).unwrap();
    let (mut decoder, mut frames, mut piece) = (flow::Decoder::default(), Vec::new(), [0; 4096]);
    while !frames.iter().any(|frame| matches!(frame, ToFlow::Routes { .. })) {
        let read = stream.read(&mut piece).unwrap();
        assert!(read > 0, "{frames:?}");
        decoder.push(&piece[..read]);
        while let Some(body) = decoder.next_frame().unwrap() {
            let flow::Parsed::Known(frame) = flow::parse(body).unwrap() else { panic!("unknown") };
            frames.push(frame);
        }
    }
    frames
}

/// Connects before the ingress starts, so that it waits in the socket's queue.
async fn told_at_the_start(world: &mut World) -> Vec<ToFlow> {
    let stream = UnixStream::connect(world.path("flow.sock")).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let told = tokio::task::spawn_blocking(move || first_frames(stream));
    world.start().await;
    told.await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_plane_that_outlived_the_ingress_is_told_nothing_that_takes_names_away() {
    let mut world = World::new().await;
    world.kill().await;
    let told = told_at_the_start(&mut world).await;
    let config =
        |frame: &ToFlow| matches!(frame, ToFlow::Config(c) if c.base_domains == ["apps.example.com"]);
    assert!(config(&told[0]), "{told:?}");
    assert!(matches!(&told[1], ToFlow::Certificates(all) if all.len() == 1), "{told:?}");

    // Nor when the certificate cannot be read now.
    world.kill().await;
    std::fs::write(world.path("cert.pem"), "x").unwrap();
    let told = told_at_the_start(&mut world).await;
    assert!(config(&told[0]) && !told.iter().any(|f| matches!(f, ToFlow::Certificates(_))), "{told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn p30_a_damaged_state_is_told_and_left_alone() {
    let world = World::stopped(true).await;
    world.configure("");
    std::fs::write(world.path("state/instances.jsonl"), "x\n").unwrap();
    assert!(world.start_and_fail());
    assert_eq!(std::fs::read_to_string(world.path("state/instances.jsonl")).unwrap(), "x\n");
}

#[tokio::test]
async fn bad_settings_are_told_and_cost_neither_sockets_nor_data_planes() {
    let mut world = World::stopped(true).await;
    world.certificate();
    for (settings, key) in [
        ("[proxy]\nbase_domian = 'a.b'", "base_domian"),
        (
            "[wg]\nendpoint='192.0.2.1:51820'\nclient_ip_range='foo'\n[proxy]\nbase_domain='a.b'",
            "client_ip_range",
        ),
    ] {
        std::fs::write(world.path("etc/tproxy.toml"), settings).unwrap();
        world.start().await;
        let status = world.manager.status().await.unwrap();
        assert!(status.starts_with("Misconfigured: ") && status.contains(key), "{status}");
        assert!(!status.contains('\n') && status.ends_with("systemctl restart dstack-tproxy"), "{status}");
        assert!(!world.manager.configured().await.unwrap());
        let refused = world.manager.list_instances().await.unwrap_err();
        assert!(refused.to_string().contains(key), "{refused}");
        assert_eq!(world.systemd.said(), [""; 0], "no data plane is started, and none is stopped");
        world.kill().await;
    }
    world.configure("");
    world.start().await;
    world.until_started().await;
    assert!(world.manager.configured().await.unwrap());
}
