// SPDX-License-Identifier: Apache-2.0
//! The two services for containers over real sockets, on a simulated TEE, with and without a key service.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, missing_docs)]

mod common;

use common::world::{self, World};
use dstack_core::event_log::{self, Milestone};
use dstack_core::quote_sim_wire::Request;
use dstack_keys::derive;
use dstack_keys::handover::Provider;
use dstack_quote_sim::collateral::Claims;
use dstack_ra_tls::certificate::{self, Usage};
use dstack_ra_tls::evidence::Collateral;
use dstack_ra_tls::{Evidence, Expect, Policy, Roots, Verdict, verify};
use dstack_rpc::dstack::{AppInfo, GetKeyArgs, GetKeyResponse};
use dstack_rpc::{Listener, ServeOptions, Stream, client};
use dstack_tappd::agent::Agent;
use dstack_tappd::app::App;
use dstack_tappd::keys::Keys;
use dstack_tappd::leaf::from_pem;
use dstack_tappd::logs::{Logs, Place};
use dstack_tappd::settings::Settings;
use dstack_tappd::vault::Vault;
use dstack_tappd::{dstack_api, report_data, tappd_api};
use hyper::Method;
use prost::Message;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

/// The two sockets of a guest.
struct Guest {
    world: World,
    agent: Arc<Agent>,
}

impl Guest {
    fn new(provider: Provider, recorded: usize) -> Self {
        let world = World::new(provider, recorded);
        let keys = Keys::new(world.keys()).unwrap();
        Self::with(world, Some(keys))
    }

    fn with(world: World, keys: Option<Keys>) -> Self {
        let vault = Vault::new(world.attestor(), keys, Some(world::app_id())).unwrap();
        let logs = Logs::start(Place::Directory(world.run())).unwrap();
        let app = App::load(&world.run()).unwrap();
        let agent = Arc::new(Agent::new(app, vault, logs, &Settings::default()));
        let doors = [
            ("tappd.sock", tappd_api::router(Arc::clone(&agent))),
            ("dstack.sock", dstack_api::router(Arc::clone(&agent))),
        ];
        for (name, router) in doors {
            let listener = Listener::Unix(UnixListener::bind(world.path(name)).unwrap());
            let options = ServeOptions { half_close: true, ..Default::default() };
            tokio::spawn(dstack_rpc::serve(listener, router, options, std::future::pending()));
        }
        Self { world, agent }
    }

    async fn post(&self, socket: &str, path: &str, body: Value) -> (u16, Value) {
        post(&self.world.path(socket), path, body).await
    }

    async fn dstack(&self, method: &str, body: Value) -> (u16, Value) {
        self.post("dstack.sock", &format!("/{method}"), body).await
    }

    async fn tappd(&self, method: &str, body: Value) -> (u16, Value) {
        self.post("tappd.sock", &format!("/prpc/Tappd.{method}?json"), body).await
    }

    /// The verdict over a quote and its log, when all of it is good.
    fn verdict(&self, quote: &str, event_log: &str) -> Verdict {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let signed =
            self.world.root.collateral(&Claims::up_to_date(time::OffsetDateTime::now_utc())).unwrap();
        let collateral = Collateral::parse(&serde_json::to_vec(&signed).unwrap()).unwrap();
        let quote = hex::decode(quote).unwrap();
        let evidence = Evidence { quote: &quote, event_log: event_log.as_bytes(), collateral: &collateral };
        let roots = Roots::test(self.world.root.certificate().to_vec());
        let expect = Expect { report_data: None, milestone: Some(Milestone::Ready) };
        let verdict = verify(&evidence, &roots, &Policy::default(), &expect, now).unwrap();
        assert!(verdict.passed(), "{}", verdict.reasons());
        verdict
    }
}

async fn post(socket: &Path, path: &str, body: Value) -> (u16, Value) {
    let stream = Stream::Unix(UnixStream::connect(socket).await.unwrap());
    let body = serde_json::to_vec(&body).unwrap().into();
    let limit = Duration::from_secs(20);
    let reply = client::exchange(stream, Method::POST, path, body, limit).await.unwrap();
    assert!(reply.body.is_ascii(), "the JavaScript SDK counts characters");
    (reply.status.as_u16(), serde_json::from_slice(&reply.body).unwrap())
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value}")).to_owned()
}

#[tokio::test]
async fn quotes_of_both_services_pass_the_verifier_and_carry_what_was_asked() {
    let guest = Guest::new(Provider::None, 10);
    let (status, reply) = guest.tappd("TdxQuote", json!({"report_data": "0x1234deadbeef"})).await;
    assert_eq!(
        (status, &reply["hash_algorithm"], &reply["prefix"]),
        (200, &json!("sha512"), &json!("app-data"))
    );
    let verdict = guest.verdict(&text(&reply["quote"]), &text(&reply["event_log"]));
    let expected = report_data::hashed("", "", &[0x12, 0x34, 0xde, 0xad, 0xbe, 0xef]).unwrap().0;
    assert_eq!(verdict.report_data, expected);
    assert!(verdict.root.to_string().starts_with("test:"));
    let boot = verdict.boot.unwrap();
    assert_eq!((boot.app_id, boot.compose_hash), (world::app_id(), world::compose_hash()));

    let (_, reply) = guest
        .tappd("TdxQuote", json!({"report_data": "00", "prefix": "x", "hash_algorithm": "sha256"}))
        .await;
    assert_eq!((&reply["hash_algorithm"], &reply["prefix"]), (&json!("sha256"), &json!("app-data")));
    let (_, reply) = guest.tappd("RawQuote", json!({"report_data": "07".repeat(64)})).await;
    assert_eq!((&reply["hash_algorithm"], &reply["prefix"]), (&json!("raw"), &json!("")));
    let (status, reply) = guest.tappd("RawQuote", json!({"report_data": "07"})).await;
    assert!(status == 400 && text(&reply["error"]).contains("exactly 64"), "{reply}");

    let (_, reply) = guest.dstack("GetQuote", json!({"report_data": "0707"})).await;
    let verdict = guest.verdict(&text(&reply["quote"]), &text(&reply["event_log"]));
    assert_eq!(hex::encode(verdict.report_data), text(&reply["report_data"]));
    assert_eq!(text(&reply["report_data"]), format!("0707{}", "00".repeat(62)));
    assert_eq!(text(&reply["vm_config"]), world::VM_CONFIG);
    let (_, reply) = guest.dstack("Attest", json!({"report_data": "0707"})).await;
    let blob = hex::decode(text(&reply["attestation"])).unwrap();
    assert_eq!(&blob[..2], [0, 0]);
    assert!(blob.ends_with(&[&[7, 7][..], &[0; 62], &[44], world::VM_CONFIG.as_bytes()].concat()));
}

#[tokio::test]
async fn info_has_all_that_any_client_reads() {
    let guest = Guest::new(Provider::None, 10);
    let app = world::app_id().to_string();
    for (status, info) in [guest.dstack("Info", json!({})).await, guest.tappd("Info", json!({})).await] {
        assert_eq!(status, 200, "{info}");
        for name in ["device_id", "mr_aggregated", "os_image_hash", "compose_hash"] {
            assert_eq!(text(&info[name]).len(), 64, "{name}");
        }
        assert_eq!(
            (text(&info["app_id"]), text(&info["instance_id"])),
            (app.clone(), world::INSTANCE.into())
        );
        assert_eq!(
            (text(&info["app_name"]), text(&info["vm_config"])),
            ("héllo".into(), world::VM_CONFIG.into())
        );
        assert_eq!(text(&info["key_provider_info"]), r#"{"name":"none","id":""}"#);
        assert!(info["public_logs"] == true && info["app_cert"].is_string());
        let tcb: Value = serde_json::from_str(&text(&info["tcb_info"])).unwrap();
        for name in ["mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3"] {
            assert_eq!(text(&tcb[name]).len(), 96, "{name}");
        }
        for name in ["mr_aggregated", "os_image_hash", "compose_hash", "device_id"] {
            assert_eq!(tcb[name], info[name], "{name}");
        }
        assert_eq!(text(&tcb["rootfs_hash"]), hex::encode(world::OS_IMAGE));
        assert_eq!(text(&tcb["app_compose"]), world::COMPOSE);
        let events = event_log::parse(tcb["event_log"].to_string().as_bytes()).unwrap();
        let [.., rtmr3] = event_log::replay(&events).unwrap();
        assert_eq!((events.len(), text(&tcb["rtmr3"])), (10, hex::encode(rtmr3)));
    }
    // What the page and the host see is what the app makes public.
    assert!(!guest.agent.worker_info().await.tcb_info.is_empty());
    assert_eq!(guest.agent.guest_info().await.tcb_info, guest.agent.worker_info().await.tcb_info);
}

#[tokio::test]
async fn what_is_not_public_does_not_leave_the_guest() {
    let world = World::new(Provider::None, 10);
    let private = world::COMPOSE.replacen('{', r#"{"public_tcbinfo":false,"#, 1);
    std::fs::write(world.run().join("app-compose.json"), private).unwrap();
    let keys = Keys::new(world.keys()).unwrap();
    let guest = Guest::with(world, Some(keys));
    let (worker, host) = (guest.agent.worker_info().await, guest.agent.guest_info().await);
    assert_eq!((worker.tcb_info, host.tcb_info, host.app_cert), Default::default());
    assert!(!text(&guest.dstack("Info", json!({})).await.1["tcb_info"]).is_empty());
}

#[tokio::test]
async fn keys_and_signatures_in_both_formats() {
    let guest = Guest::new(Provider::Kms, 10);
    let args = json!({"path": "wallet/eth", "purpose": "mainnet"});
    let (_, key) = guest.dstack("GetKey", args.clone()).await;
    let app_key = guest.world.keys().k256_key.clone();
    assert_eq!(text(&key["key"]), *derive::of_path(&app_key, "wallet/eth").unwrap().expose_hex());
    let (_, older) = guest.tappd("DeriveK256Key", args).await;
    assert_eq!((&older["k256_key"], &older["k256_signature_chain"]), (&key["key"], &key["signature_chain"]));

    let stream = Stream::Unix(UnixStream::connect(guest.world.path("dstack.sock")).await.unwrap());
    let body = GetKeyArgs { path: "wallet/eth".into(), purpose: "mainnet".into(), ..Default::default() };
    let request = hyper::Request::post("/GetKey")
        .header("connection", "close")
        .body(http_body_util::Full::new(body.encode_to_vec().into()))
        .unwrap();
    let reply = client::send(stream, request).await.unwrap();
    let bytes = http_body_util::BodyExt::collect(reply.response.into_body()).await.unwrap().to_bytes();
    let same = GetKeyResponse::decode(bytes).unwrap();
    assert_eq!(hex::encode(same.key), text(&key["key"]));

    let (_, signed) = guest.dstack("Sign", json!({"algorithm": "secp256k1", "data": "00"})).await;
    assert_eq!(signed["signature_chain"][0], signed["signature"]);
    assert_eq!(signed["signature_chain"].as_array().unwrap().len(), 3);
    let verified = |data: &str| {
        json!({"algorithm": "secp256k1", "data": data, "signature": signed["signature"],
               "public_key": signed["public_key"]})
    };
    assert_eq!(guest.dstack("Verify", verified("00")).await, (200, json!({"valid": true})));
    assert_eq!(guest.dstack("Verify", verified("01")).await, (200, json!({"valid": false})));
    let (status, version) = guest.dstack("Version", json!({})).await;
    assert!(status == 200 && version["version"].is_string() && version["rev"].is_string());
}

#[tokio::test]
async fn p11_t07_apps_cannot_forge_what_the_boot_records() {
    let guest = Guest::new(Provider::None, 10);
    let emit = async |event: &str| guest.dstack("EmitEvent", json!({"event": event, "payload": "0a"})).await;
    for reserved in event_log::TRUSTED {
        let (status, reply) = emit(reserved).await;
        assert!(status == 400 && text(&reply["error"]).contains("reserved"), "{reserved}: {reply}");
    }
    for odd in ["", "a:b", ":", "a\u{0}", "a\nb", "ü", &"x".repeat(65)] {
        assert_eq!(emit(odd).await.0, 400, "{odd:?}");
    }
    let long = json!({"event": "a", "payload": "00".repeat(4097)});
    assert_eq!(guest.dstack("EmitEvent", long).await.0, 400);
    assert_eq!(emit("my-event").await, (200, Value::Null));
    let (_, reply) = guest.dstack("GetQuote", json!({"report_data": "00"})).await;
    let verdict = guest.verdict(&text(&reply["quote"]), &text(&reply["event_log"]));
    assert_eq!(verdict.events.iter().map(|e| e.event.as_str()).next_back(), Some("my-event"));
    assert_eq!(verdict.events.len(), 11, "what was refused is nowhere");
}

#[tokio::test]
async fn t14_quotes_and_events_at_the_same_time_always_agree() {
    let guest = Arc::new(Guest::new(Provider::None, 10));
    let mut calls = tokio::task::JoinSet::new();
    for number in 0..12 {
        let guest = Arc::clone(&guest);
        calls.spawn(async move {
            if number % 3 == 0 {
                let event = json!({"event": format!("e{number}"), "payload": ""});
                assert_eq!(guest.dstack("EmitEvent", event).await.0, 200);
            } else {
                let (_, reply) = guest.dstack("GetQuote", json!({"report_data": "00"})).await;
                guest.verdict(&text(&reply["quote"]), &text(&reply["event_log"]));
            }
        });
    }
    while let Some(done) = calls.join_next().await {
        done.unwrap();
    }
    let (_, reply) = guest.dstack("GetQuote", json!({"report_data": "00"})).await;
    assert_eq!(guest.verdict(&text(&reply["quote"]), &text(&reply["event_log"])).events.len(), 14);
}

#[tokio::test]
async fn t14_a_caller_that_goes_away_does_not_give_its_turn_back_early() {
    let guest = Guest::new(Provider::None, 10);
    let attestor = guest.agent.vault.attestor();
    for number in 0..20 {
        let emit = attestor.emit(format!("e{number}"), Vec::new());
        drop(tokio::time::timeout(Duration::from_micros(number * 50), emit).await);
    }
    let attested = attestor.attest([0; 64]).await.unwrap();
    let (whole, platform) = (attestor.quotes().whole.sum(), attestor.quotes().platform.sum());
    assert_eq!(whole.count, platform.count);
    assert!(whole.count > 0 && whole.sum >= platform.sum, "{whole:?} {platform:?}");
    guest.verdict(&hex::encode(attested.quote), &String::from_utf8(attested.event_log).unwrap());
}

/// Extends the register as nobody may.
async fn extend_behind_the_back(socket: PathBuf) {
    let request = Request::Extend { digest: [9; 48] };
    let frame = dstack_core::quote_sim_wire::frame(&request).unwrap();
    let mut stream = UnixStream::connect(socket).await.unwrap();
    stream.write_all(&frame).await.unwrap();
    stream.read_u32().await.unwrap();
}

#[tokio::test]
async fn t14_a_poisoned_log_is_reported_and_nothing_is_attested() {
    let guest = Guest::new(Provider::None, 10);
    assert_eq!(guest.dstack("GetQuote", json!({"report_data": "00"})).await.0, 200);
    extend_behind_the_back(guest.world.socket()).await;
    let calls = [
        ("GetQuote", json!({"report_data": "00"})),
        ("Attest", json!({"report_data": "00"})),
        ("EmitEvent", json!({"event": "a"})),
        ("GetTlsKey", json!({"usage_ra_tls": true})),
    ];
    for (method, body) in calls {
        let (status, reply) = guest.dstack(method, body).await;
        assert!(status == 400 && text(&reply["error"]).contains("does not give RTMR3"), "{method} {reply}");
    }
    assert_eq!(guest.dstack("GetKey", json!({"path": "a"})).await.0, 200, "data stay readable");
}

#[tokio::test]
async fn t07_before_system_ready_nothing_is_given() {
    for recorded in [1, 7, 9] {
        let guest = Guest::new(Provider::None, recorded);
        let dstack = ["GetKey", "GetTlsKey", "GetQuote", "Attest", "Info", "EmitEvent", "Sign"];
        for method in dstack {
            let body = json!({"event": "a", "algorithm": "ed25519", "report_data": "00"});
            let body = if method == "GetKey" { json!({}) } else { body };
            let (status, reply) = guest.dstack(method, body).await;
            assert!(status == 400 && text(&reply["error"]).contains("system-ready"), "{method} {reply}");
        }
        for method in ["DeriveKey", "DeriveK256Key", "TdxQuote", "Info"] {
            let (status, reply) = guest.tappd(method, json!({})).await;
            assert!(status == 400 && text(&reply["error"]).contains("system-ready"), "{method} {reply}");
        }
        // The owner is still dstack-prepare, and it gets its log.
        let mut log =
            dstack_tdx_attest::EventLog::open(&guest.world.private(), guest.world.platform()).unwrap();
        assert_eq!(log.events().len(), recorded);
        assert!(log.append("not-the-next", b"").is_err());
    }
}

#[tokio::test]
async fn without_keys_quotes_are_given_and_keys_are_not() {
    let guest = Guest::with(World::new(Provider::None, 10), None);
    for method in ["GetKey", "GetTlsKey", "Sign"] {
        let (status, reply) = guest.dstack(method, json!({})).await;
        assert!(status == 400 && text(&reply["error"]).contains("has no keys"), "{method} {reply}");
    }
    assert_eq!(guest.dstack("GetQuote", json!({"report_data": "00"})).await.0, 200);
    // A guest that nothing attests has keys and no quotes.
    let guest = Guest::new(Provider::None, 0);
    assert_eq!(guest.dstack("GetKey", json!({})).await.0, 200);
    assert_eq!(guest.dstack("GetQuote", json!({"report_data": "00"})).await.0, 400);
    assert_eq!(guest.dstack("Info", json!({})).await.1["tcb_info"], "");
}

fn leaf(reply: &Value) -> certificate::Claims {
    let chain: Vec<String> = reply["certificate_chain"].as_array().unwrap().iter().map(text).collect();
    assert_eq!(chain.len(), 2);
    certificate::parse(&from_pem(&chain[0]).unwrap()).unwrap()
}

#[tokio::test]
async fn t24_certificates_without_a_key_service_are_by_the_authority_of_this_boot() {
    let guest = Guest::new(Provider::None, 10);
    let args = json!({"subject": "a.example.com", "alt_names": ["a.example.com"], "usage_server_auth": true});
    let (status, reply) = guest.dstack("GetTlsKey", args.clone()).await;
    assert_eq!(status, 200, "{reply}");
    let claims = leaf(&reply);
    assert_eq!((claims.usage, claims.app_id), (Some(Usage::AppCustom), Some(world::app_id())));
    assert!(claims.quote.is_none());
    let (_, other) = guest.dstack("GetTlsKey", args).await;
    assert_ne!(other["key"], reply["key"], "random each time");

    let (_, reply) = guest.dstack("GetTlsKey", json!({"usage_ra_tls": true, "not_after": null})).await;
    let claims = leaf(&reply);
    let log = String::from_utf8(claims.event_log.unwrap()).unwrap();
    let verdict = guest.verdict(&hex::encode(claims.quote.unwrap()), &log);
    assert_eq!(verdict.report_data, certificate::report_data(&claims.public_key));

    let (_, one) = guest.tappd("DeriveKey", json!({"path": "my/path", "subject": "my/path"})).await;
    let (_, same) = guest.tappd("DeriveKey", json!({"path": "my/path", "subject": "x"})).await;
    let (_, random) = guest.tappd("DeriveKey", json!({"path": "my/path", "random_seed": true})).await;
    assert_eq!(one["key"], same["key"]);
    assert_ne!(one["key"], random["key"]);
    let der = pem::parse(text(&one["key"])).unwrap().into_contents();
    let expected = derive::of_path(&guest.world.keys().k256_key, "my/path").unwrap();
    assert_eq!(&der[36..68], expected.expose());
}

#[tokio::test]
async fn certificates_are_signed_by_the_key_service_over_ra_tls() {
    let guest = Guest::new(Provider::Kms, 10);
    let args = json!({"subject": "app", "alt_names": ["a.example.com"], "usage_ra_tls": true});
    let (status, reply) = guest.dstack("GetTlsKey", args).await;
    assert_eq!(status, 200, "{reply}");
    let claims = leaf(&reply);
    assert_eq!((claims.usage, claims.app_id), (Some(Usage::AppCustom), Some(world::app_id())));
    let log = String::from_utf8(claims.event_log.unwrap()).unwrap();
    let verdict = guest.verdict(&hex::encode(claims.quote.unwrap()), &log);
    assert_eq!(verdict.report_data, certificate::report_data(&claims.public_key));
    let (_, reply) = guest.tappd("DeriveKey", json!({"path": "p"})).await;
    let der = pem::parse(text(&reply["key"])).unwrap().into_contents();
    assert_eq!(&der[36..68], derive::of_path(&guest.world.keys().k256_key, "p").unwrap().expose());
    assert_eq!(guest.world.signed.load(Ordering::SeqCst), 2);
    let (status, reply) = guest.dstack("GetTlsKey", json!({"alt_names": ["kms.example.com"]})).await;
    assert!(status == 400 && text(&reply["error"]).contains("infrastructure"), "{reply}");
    assert_eq!(guest.world.signed.load(Ordering::SeqCst), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_service_itself_signs_for_this_guest() {
    let world = World::new(Provider::Kms, 10);
    let service = common::real_kms::Service::start(&world);
    let mut handed = world.keys();
    handed.kms_urls = vec![service.url.clone()];
    handed.provider_id = hex::encode(&service.public_key);
    handed.ca_cert.clone_from(&service.ca_cert);
    let guest = Guest::with(world, Some(Keys::new(handed).unwrap()));
    let args = json!({"subject": "app", "alt_names": ["a.example.com"], "usage_ra_tls": true,
                      "usage_server_auth": true});
    let (status, reply) = guest.dstack("GetTlsKey", args).await;
    assert_eq!(status, 200, "{reply}");
    let chain: Vec<_> = reply["certificate_chain"].as_array().unwrap().iter().map(text).collect();
    assert_eq!(chain.len(), 3, "leaf, app CA, root");
    let claims = certificate::parse(&from_pem(&chain[0]).unwrap()).unwrap();
    assert_eq!((claims.usage, claims.app_id), (Some(Usage::AppCustom), Some(world::app_id())));
    assert!(claims.quote.is_some());
    assert_eq!(guest.tappd("DeriveKey", json!({"path": "p", "subject": "p"})).await.0, 200);
    let early = json!({"not_after": 1});
    assert!(text(&guest.dstack("GetTlsKey", early).await.1["error"]).contains("valid"));
}

#[tokio::test]
async fn t03_only_the_pinned_key_service_signs() {
    let world = World::new(Provider::Kms, 10);
    let mut handed = world.keys();
    let impostor = world::Authority::new(0x55, "impostor", Vec::new());
    handed.provider_id = hex::encode(impostor.public_key());
    assert!(Vault::new(world.attestor(), Some(Keys::new(handed.clone()).unwrap()), None).is_err());
    // The keys name another authority than the one that answers.
    let realm = Roots::test(world.root.certificate().to_vec()).realm().clone();
    let extensions = certificate::realm_extensions(&realm, certificate::Custody::Host).to_vec();
    let pinned = world::Authority::new(0x55, "pinned", extensions);
    handed.ca_cert = dstack_tappd::leaf::to_pem("CERTIFICATE", &pinned.certificate());
    let guest = Guest::with(world, Some(Keys::new(handed).unwrap()));
    let (status, reply) = guest.dstack("GetTlsKey", json!({})).await;
    assert!(status == 400 && text(&reply["error"]).contains("not of the pinned authority"), "{reply}");
    assert_eq!(guest.world.signed.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn t04_a_key_service_of_another_realm_is_not_asked() {
    for extensions in [
        Vec::new(),
        certificate::realm_extensions(&dstack_ra_tls::Label::Intel, certificate::Custody::Host).to_vec(),
    ] {
        let world = World::new(Provider::Kms, 10);
        let mut handed = world.keys();
        let other = world::Authority::new(0x11, "KMS root", extensions);
        handed.ca_cert = dstack_tappd::leaf::to_pem("CERTIFICATE", &other.certificate());
        let guest = Guest::with(world, Some(Keys::new(handed).unwrap()));
        let (status, reply) = guest.dstack("GetTlsKey", json!({})).await;
        assert!(status == 400 && text(&reply["error"]).contains("realm"), "{reply}");
        assert_eq!(guest.world.signed.load(Ordering::SeqCst), 0);
    }
}

#[tokio::test]
async fn a_key_service_that_is_away_is_named_with_its_address() {
    let world = World::new(Provider::Kms, 10);
    let mut handed = world.keys();
    handed.kms_urls.truncate(1);
    let guest = Guest::with(world, Some(Keys::new(handed).unwrap()));
    let (_, reply) = guest.dstack("GetTlsKey", json!({})).await;
    assert!(text(&reply["error"]).contains("127.0.0.1:1: "), "{reply}");
    assert_eq!(guest.dstack("GetKey", json!({})).await.0, 200);
}

#[tokio::test]
async fn the_javascript_sdk_gets_its_length_and_its_answer_after_a_half_close() {
    let guest = Guest::new(Provider::None, 10);
    for (socket, path) in [("dstack.sock", "/Info"), ("tappd.sock", "/prpc/Tappd.Info")] {
        let mut stream = UnixStream::connect(guest.world.path(socket)).await.unwrap();
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{{}}"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let length = head.lines().find_map(|l| l.strip_prefix("content-length: ")).unwrap();
        assert_eq!(length.parse::<usize>().unwrap(), body.chars().count());
        assert!(!head.contains("chunked") && body.contains("h\\u00e9llo"), "{answer}");
    }
}

#[tokio::test]
async fn odd_requests_are_answered_with_an_error() {
    let guest = Guest::new(Provider::None, 10);
    let cases = [
        ("GetKey", json!({"algorithm": "rsa"})),
        ("GetKey", json!({"path": 7})),
        ("GetKey", json!({"path": "x".repeat(1025)})),
        ("GetQuote", json!({"report_data": "0"})),
        ("GetQuote", json!({"report_data": "zz"})),
        ("GetQuote", json!({"report_data": "00".repeat(65)})),
        ("GetTlsKey", json!({"not_after": -1})),
        ("GetTlsKey", json!({"not_after": 1})),
        ("GetTlsKey", json!({"alt_names": ["a b"]})),
        ("GetTlsKey", json!({"subject": "a\nb"})),
        ("Sign", json!({"algorithm": ""})),
        ("Verify", json!({"algorithm": "ed25519"})),
    ];
    for (method, body) in cases {
        let (status, reply) = guest.dstack(method, body.clone()).await;
        assert!(status == 400 && reply["error"].is_string(), "{method} {body}: {status} {reply}");
    }
    assert_eq!(guest.dstack("Dance", json!({})).await.0, 404);
    assert_eq!(guest.dstack("GetKey", json!({"path": null, "unknown": [1]})).await.0, 200);
    let (_, empty) = guest.dstack("GetQuote", json!({})).await;
    assert_eq!(text(&empty["report_data"]), "00".repeat(64));
    assert!(serde_json::from_value::<AppInfo>(guest.dstack("Info", Value::Null).await.1).is_ok());
    // Old names and both encodings of arguments.
    for path in ["/GetKey?path=a", "/DstackGuest.GetKey?path=a&json"] {
        let stream = Stream::Unix(UnixStream::connect(guest.world.path("dstack.sock")).await.unwrap());
        let limit = Duration::from_secs(10);
        let reply = client::exchange(stream, Method::GET, path, Default::default(), limit).await.unwrap();
        assert_eq!(reply.status.as_u16(), 200, "{path}");
    }
}
