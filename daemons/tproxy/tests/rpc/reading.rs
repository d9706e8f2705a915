// SPDX-License-Identifier: Apache-2.0
//! What anybody may read.

use crate::world::{Boot, World, interface, open};
use axum::routing::post;
use axum::{Json, Router};
use dstack_core::wireguard::PublicKey;
use dstack_ra_rpc::peer::Shown;
use dstack_ra_rpc::tls::client_config;
use dstack_ra_tls::Label;
use dstack_rpc::dstack::{GetQuoteResponse, RawQuoteArgs};
use dstack_rpc::tproxy::{AcmeInfoResponse, GetInfoRequest, GetInfoResponse, GetMetaResponse, ListResponse};
use dstack_tproxy::acme::Info;
use rcgen::{CertificateParams, KeyPair, PublicKeyData};
use rustls::pki_types::ServerName;
use sha2::{Digest, Sha512};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixListener};

async fn get(world: &World, path: &str) -> String {
    let stream = TcpStream::connect(&world.address).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(client_config(None).unwrap()));
    let name = ServerName::try_from("tproxy.invalid").unwrap();
    let mut stream = connector.connect(name, stream).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // The server may leave without a goodbye; what it said is what counts.
    drop(stream.read_to_end(&mut answer).await);
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn lists_and_numbers_need_no_certificate() {
    let world = World::new().await;
    world.register(&world.boot(1, 1), 1).await.unwrap();
    world.register(&world.boot(2, 2), 2).await.unwrap();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    world.wireguard.handshake(&interface(), &PublicKey::from([2; 32]), now).unwrap();
    world.engine.look().await;
    let list: ListResponse = world.call(None, "/prpc/Tproxy.List", &()).await.unwrap();
    let shown: Vec<(&str, u64)> = list.hosts.iter().map(|h| (h.ip.as_str(), h.latest_handshake)).collect();
    assert_eq!(shown, [("10.0.0.2", 0), ("10.0.0.3", now)]);
    assert_eq!((list.hosts[0].base_domain.as_str(), list.hosts[0].port), ("apps.example.com", 443));
    let ask = |id: String| GetInfoRequest { id };
    let info: GetInfoResponse =
        world.call(None, "/prpc/Tproxy.GetInfo", &ask("02".repeat(20))).await.unwrap();
    assert_eq!(info.info.unwrap().app_id, "02".repeat(20));
    for unknown in ["03".repeat(20), "x".into(), String::new()] {
        let info: GetInfoResponse = world.call(None, "/prpc/Tproxy.GetInfo", &ask(unknown)).await.unwrap();
        assert!(!info.found && info.info.is_none());
    }
    let meta: GetMetaResponse = world.call(None, "/prpc/Tproxy.GetMeta", &()).await.unwrap();
    assert_eq!((meta.registered, meta.online), (2, 1));
    let metrics = get(&world, "/metrics").await;
    assert!(
        metrics.contains("dstack_tproxy_instances 2") && metrics.trim_end().ends_with("# EOF"),
        "{metrics}"
    );
}

#[tokio::test]
async fn the_dashboard_is_inert() {
    let world = World::new().await;
    world.register(&world.boot(1, 1), 1).await.unwrap();
    let page = get(&world, "/").await;
    assert!(page.starts_with("HTTP/1.1 200") && page.contains(&"01".repeat(20)), "{page}");
    assert!(page.contains("content-security-policy: default-src 'none'") && !page.contains("<script"));
}

#[tokio::test]
async fn auditors_get_account_and_keys() {
    let world = World::new().await;
    let none: AcmeInfoResponse = world.call(None, "/prpc/Tproxy.AcmeInfo", &()).await.unwrap();
    assert_eq!(none, AcmeInfoResponse::default());
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["*.apps.example.com".to_owned()]).unwrap();
    std::fs::write(world.path("cert.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
    let info: AcmeInfoResponse = world.call(None, "/prpc/Tproxy.AcmeInfo", &()).await.unwrap();
    assert_eq!(info.hist_keys, [key.subject_public_key_info()]);
}

/// A guest agent of this boot, as far as quotes go; it tells how many it gave.
fn agent(world: &World, boot: Boot, lies: bool) -> Arc<AtomicUsize> {
    let (listener, given) =
        (UnixListener::bind(world.path("agent.sock")).unwrap(), Arc::<AtomicUsize>::default());
    let count = Arc::clone(&given);
    let quote = move |Json(args): Json<RawQuoteArgs>| {
        count.fetch_add(1, Ordering::SeqCst);
        let data: [u8; 64] = args.report_data.try_into().unwrap();
        let (quote, log) = boot.evidence(data);
        let report_data = if lies { vec![0; 64] } else { data.to_vec() };
        let event_log = String::from_utf8(log).unwrap();
        let reply = GetQuoteResponse { quote, event_log, report_data, vm_config: String::new() };
        async { Json(reply) }
    };
    let router = Router::new().route("/GetQuote", post(quote));
    tokio::spawn(async move { axum::serve(listener, router).await });
    given
}

#[tokio::test]
async fn in_a_cvm_the_account_is_quoted() {
    let world = World::new().await;
    let account = |uri: &str| Info { account_uri: uri.into(), public_keys: Vec::new() };
    let ask = async || world.call::<_, AcmeInfoResponse>(None, "/prpc/Tproxy.AcmeInfo", &()).await;
    world.engine.set_certbot(Ok(account("https://acme/1")));
    assert_eq!(ask().await.unwrap().account_quote, "", "this is a host");
    let given = agent(&world, world.boot(1, 1), false);
    for uri in ["https://acme/1", "https://acme/1", "https://acme/2"] {
        world.engine.set_certbot(Ok(account(uri)));
        let said: GetQuoteResponse = serde_json::from_str(&ask().await.unwrap().account_quote).unwrap();
        let shown = Shown { quote: said.quote, event_log: said.event_log.into_bytes() };
        let verdict = world.judge.judge_again(shown, world.judge.now()).await.unwrap();
        assert!(matches!(verdict.root, Label::Test(_)) && verdict.passed(), "{verdict:?}");
        let data: [u8; 64] = Sha512::digest(format!("acme-account:{uri}")).into();
        assert_eq!(verdict.report_data, data, "the quote is of this account");
    }
    assert_eq!(given.load(Ordering::SeqCst), 2, "the same account again costs nothing");
}

#[tokio::test]
async fn a_quote_of_something_else_is_no_answer() {
    let world = World::new().await;
    world.engine.set_certbot(Ok(Info { account_uri: "https://acme/1".into(), public_keys: Vec::new() }));
    agent(&world, world.boot(1, 1), true);
    let error = world.call::<_, AcmeInfoResponse>(None, "/prpc/Tproxy.AcmeInfo", &()).await.unwrap_err();
    assert!(error.to_string().contains("something else"), "{error}");
}

#[tokio::test]
async fn auditors_hear_of_every_key_also_when_its_teller_forgets_it() {
    let world = World::new().await;
    let hist = async || {
        let info: AcmeInfoResponse = world.call(None, "/prpc/Tproxy.AcmeInfo", &()).await.unwrap();
        (info.account_uri, info.hist_keys)
    };
    let said = Info { account_uri: "https://acme/1".into(), public_keys: vec![vec![1], vec![2]] };
    world.engine.set_certbot(Ok(said));
    world.engine.remember().await;
    // It was removed, and then it was installed anew; in between we were started anew.
    world.engine.set_certbot(Ok(Info::default()));
    assert_eq!(hist().await, ("https://acme/1".to_owned(), vec![vec![1], vec![2]]));
    world.engine.set_certbot(Ok(Info { account_uri: "https://acme/2".into(), public_keys: vec![vec![3]] }));
    assert_eq!(hist().await, ("https://acme/2".to_owned(), vec![vec![1], vec![2], vec![3]]));
    let (restarted, _told) = open(&world.path(""), &world.wireguard);
    assert_eq!(restarted.acme().await.unwrap().public_keys.len(), 3);
    // One that does not answer may have new ones.
    restarted.set_certbot(Err("certbot does not answer".into()));
    assert!(restarted.acme().await.unwrap_err().contains("does not answer"));
}
