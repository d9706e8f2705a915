// SPDX-License-Identifier: Apache-2.0
//! What is compared, and how it is said.

use crate::world::{COMPOSE, ROOT, World, said};
use dstack_quote_sim::collateral::Claims;
use dstack_ra_tls::certificate::{AttestedKey, report_data};
use serde_json::{Value, json};
use std::time::{Duration, SystemTime};
use time::OffsetDateTime;

#[test]
fn t04_a_simulated_verdict_says_so_first() {
    let world = World::new();
    let (code, text) = world.verify("");
    assert_eq!(code, 0, "{text}");
    let first = text.lines().next().unwrap();
    assert!(first.starts_with(&format!("SIMULATED root=test:{}", ROOT.fingerprint())), "{first}");
    for part in [
        "VERIFIED as a simulation",
        "UpToDate",
        "only recorded",
        "key provider not compared",
        "upgrades=unknown",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let (code, text) = said(&world.run("verify quote.json --realm intel --collateral collateral.json", None));
    assert_eq!(code, 6, "{text}");
    assert!(
        text.starts_with("root=intel\nREFUSED") && text.contains("does not stand under root intel"),
        "{text}"
    );
}

#[test]
fn json_has_all_of_it() {
    let world = World::new();
    let (code, text) = world.verify("--json --kms 0x3059A0B1 --compose compose.json --nonce 6e6f6e6365");
    let verdict: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}"));
    assert_eq!((code, &verdict["verified"]), (0, &json!(true)), "{text}");
    assert_eq!(verdict["simulated"], true);
    assert_eq!(verdict["boot"]["os_image_hash"], world.hash.to_string());
    assert_eq!((&verdict["upgrades"], &verdict["env"]), (&json!("operator"), &json!("unauthenticated")));
    assert_eq!(verdict["measurements"]["rtmr3"], hex::encode(world.report.rtmr[3]));
    assert_eq!(verdict["image"]["compared"], "none");
}

#[test]
fn what_is_expected_is_compared() {
    let world = World::new();
    world.write("other.json", COMPOSE.replace("hello", "other"));
    for (options, reason) in [
        ("--kms abcd", "expected is kms abcd"),
        ("--compose other.json", "the reviewed one is"),
        ("--nonce 00", "report data does not bind"),
        (&format!("--report-data {}", "11".repeat(64)), "report data does not bind"),
    ] {
        let (code, text) = world.verify(options);
        assert_eq!(code, 6, "{options}: {text}");
        assert!(text.contains(reason), "{options}: {text}");
    }
    for wrong in ["--nonce xy", "--report-data 00", "--root a --realm intel"] {
        let (code, text) = said(&world.run(&format!("verify quote.json {wrong}"), None));
        assert_eq!(code, 2, "{text}");
    }
}

#[test]
fn t02_an_image_is_compared_and_the_difference_explained() {
    let world = World::new();
    let (code, text) = world.verify("--image ./image -c 2 -m 2G");
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("MRTD and RTMR0 to RTMR2 compared"), "{text}");
    let (code, text) = world.verify("--image ./image -c 2 -m 4G");
    assert_eq!(code, 6, "{text}");
    assert!(text.contains("RTMR0 is not that of image") && text.contains("another size of memory"), "{text}");
    let (_, text) = world.verify("--image ./image -c 2 -m 4G --json");
    let verdict: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(verdict["image"]["difference"]["register"], "rtmr0");
}

#[test]
fn t02_a_policy_from_measure_is_what_a_verifier_takes() {
    let world = World::new();
    let output = world.run("measure ./image -c 2 -m 2G --platform simulated --policy", None);
    assert!(output.status.success(), "{output:?}");
    world.write("policy.toml", &output.stdout);
    let (code, text) = world.verify("--policy policy.toml");
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("RTMR2 compared"), "{text}");
    let mut other = World::new();
    other.report.rtmr[2] = [7; 48];
    other.write("policy.toml", &output.stdout);
    let (code, text) = other.verify("--policy policy.toml");
    assert_eq!(code, 6, "{text}");
    assert!(text.contains("RTMR2 is not that of image"), "{text}");
}

#[test]
fn measure_prints_registers_and_events() {
    let world = World::new();
    let (code, text) = said(&world.run("measure ./image -c 2 -m 2G --platform simulated --events", None));
    assert_eq!(code, 0, "{text}");
    for part in
        ["MRTD", &hex::encode(world.report.rtmr[1]), "command-line", "Linux: quiet ro", "protect nothing"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    let (code, text) = said(&world.run("--json measure ./image -c 2 -m 2G", None));
    assert_eq!(code, 1, "the sample has no configuration volume: {text}");
    let (code, text) = said(&world.run("measure ./image -c 2 -m 2G --policy", None));
    assert_eq!(code, 1, "{text}");
    std::fs::write(world.path("image/u"), b"MZ").unwrap();
    let (code, text) = said(&world.run("measure ./image -c 2 -m 2G --platform simulated", None));
    assert!(code == 1 && text.contains("has not the sum"), "{text}");
    assert_eq!(world.run("measure ./nowhere -c 2 -m 2G", None).status.code(), Some(3));
    assert_eq!(world.run("-H host measure ./image -c 2 -m 2G", None).status.code(), Some(2));
}

#[test]
fn evidence_comes_in_many_forms() {
    let mut world = World::new();
    let trust = "--root root.pem --collateral collateral.json";
    let log = serde_json::to_vec(&world.events).unwrap();
    world.write("log.json", &log);
    world.write("quote.bin", ROOT.quote(&world.report));
    world.write("quote.hex", hex::encode(ROOT.quote(&world.report)));
    for args in ["verify quote.bin --event-log log.json", "verify quote.hex --event-log log.json"] {
        let (code, text) = said(&world.run(&format!("{args} {trust}"), None));
        assert_eq!(code, 0, "{text}");
    }
    let mut reply = world.reply();
    reply["event_log"] = serde_json::from_slice(&log).unwrap();
    let input = reply.to_string();
    let (code, text) = said(&world.run(&format!("verify - {trust}"), Some(input.as_bytes())));
    assert_eq!(code, 0, "{text}");
    let (code, text) = said(&world.run(&format!("verify quote.bin {trust}"), None));
    assert!(code == 1 && text.contains("--event-log"), "{text}");
    let (code, text) = said(&world.run(&format!("verify - {trust}"), Some(b"hello")));
    assert!(code == 1 && text.contains("no quote, no certificate"), "{text}");

    let (key, other) = (AttestedKey::generate().unwrap(), AttestedKey::generate().unwrap());
    world.report.report_data = report_data(&key.public_key());
    let quote = ROOT.quote(&world.report);
    let hour = Duration::from_secs(3600);
    for (key, code) in [(&key, 0), (&other, 6)] {
        let der = key.self_signed("app", &quote, &log, SystemTime::now(), hour).unwrap();
        world.write("leaf.der", &der);
        world.write("leaf.pem", pem::encode(&pem::Pem::new("CERTIFICATE", der)));
        for file in ["leaf.der", "leaf.pem"] {
            let (found, text) = said(&world.run(&format!("verify {file} {trust}"), None));
            assert_eq!(found, code, "{file}: {text}");
        }
    }
}

#[test]
fn a_server_is_judged_by_its_certificate_and_collateral_by_url() {
    let mut world = World::new();
    let key = AttestedKey::generate().unwrap();
    world.report.report_data = report_data(&key.public_key());
    let log = serde_json::to_vec(&world.events).unwrap();
    let hour = Duration::from_secs(3600);
    let der = key.self_signed("app", &ROOT.quote(&world.report), &log, SystemTime::now(), hour).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let identity = dstack_ra_rpc::tls::Identity::attested(&key, der);
    let config = std::sync::Arc::new(dstack_ra_rpc::tls::server_config(&identity).unwrap());
    let (tls, plain) = runtime.block_on(async {
        let bind = || tokio::net::TcpListener::bind("127.0.0.1:0");
        (bind().await.unwrap(), bind().await.unwrap())
    });
    let (port, pccs) = (tls.local_addr().unwrap().port(), plain.local_addr().unwrap().port());
    runtime.spawn(async move {
        while let Ok((stream, _)) = tls.accept().await {
            let acceptor = tokio_rustls::TlsAcceptor::from(std::sync::Arc::clone(&config));
            drop(acceptor.accept(stream).await);
        }
    });
    runtime.spawn(async move {
        while let Ok((stream, _)) = plain.accept().await {
            let give = || {
                let claims = Claims::up_to_date(OffsetDateTime::now_utc());
                ROOT.collateral(&claims).map_err(|e| e.to_string())
            };
            tokio::spawn(async move { dstack_quote_sim::pccs::serve(stream, give).await });
        }
    });
    let args = format!("verify https://127.0.0.1:{port} --root root.pem --pccs http://127.0.0.1:{pccs}");
    let (code, text) = said(&world.run(&args, None));
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("compared"), "{text}");
    // Without the server's collateral, what was fetched is used.
    let args = format!("verify https://127.0.0.1:{port} --root root.pem --pccs http://127.0.0.1:1");
    assert_eq!(said(&world.run(&args, None)).0, 0);
    let (code, text) = said(&world.run("verify https://127.0.0.1:1 --root root.pem", None));
    assert!(code == 1 && text.contains("cannot reach"), "{text}");
}
