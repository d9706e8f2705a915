// SPDX-License-Identifier: Apache-2.0
//! In a CVM the guest agent brings our own certificate.

use crate::world::Kms;
use axum::routing::post;
use axum::{Json, Router};
use dstack_ra_tls::certificate::Usage;
use dstack_rpc::dstack::GetTlsKeyArgs;
use dstack_rpc::tappd::GetTlsKeyResponse;
use dstack_tproxy::issuer::{GuestAgent, Issued, Issuer};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use std::path::Path;
use tokio::net::UnixListener;

/// What an agent with this answer makes of us.
async fn issued(reply: GetTlsKeyResponse, pinned: Option<Vec<u8>>) -> Result<Issued, String> {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("agent.sock");
    serve(&socket, reply);
    GuestAgent { socket, pinned }.issue().await
}

fn serve(socket: &Path, reply: GetTlsKeyResponse) {
    let listener = UnixListener::bind(socket).unwrap();
    let answer = move |Json(args): Json<GetTlsKeyArgs>| {
        assert_eq!(args.subject, "dstack gateway", "the role is asked for by the subject");
        assert!(args.usage_server_auth && args.alt_names.is_empty());
        let reply = reply.clone();
        async { Json(reply) }
    };
    let router = Router::new().route("/GetTlsKey", post(answer));
    tokio::spawn(async move { axum::serve(listener, router).await });
}

fn reply(chain: &[Vec<u8>], key: &KeyPair) -> GetTlsKeyResponse {
    let pem = |der: &Vec<u8>| pem::encode(&pem::Pem::new("CERTIFICATE", der.clone()));
    GetTlsKeyResponse { key: key.serialize_pem(), certificate_chain: chain.iter().map(pem).collect() }
}

#[tokio::test]
async fn t17_in_a_cvm_the_agent_brings_a_gateways_certificate() {
    let kms = Kms::new();
    let (chain, key) = kms.chain(Usage::GatewayRpc);
    let ours = reply(&chain, &key);
    assert_eq!(issued(ours.clone(), None).await.unwrap().kms, kms.public_key());
    assert!(issued(ours.clone(), Some(kms.public_key())).await.is_ok());
    let error = issued(ours.clone(), Some(Kms::new().public_key())).await.unwrap_err();
    assert!(error.contains("kms.public_key"), "{error}");

    let (app, its_key) = kms.chain(Usage::AppCustom);
    let error = issued(reply(&app, &its_key), None).await.unwrap_err();
    assert!(error.contains("not what was asked for"), "{error}");
    let foreign = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    assert!(issued(reply(&chain, &foreign), None).await.is_err(), "a certificate of another key");
    assert!(issued(reply(&chain[..1], &key), None).await.is_err(), "without the key service");
    let broken = GetTlsKeyResponse { key: "none".into(), ..ours };
    assert!(issued(broken, None).await.unwrap_err().contains("no key"));
}

#[tokio::test]
async fn an_agent_that_is_away_is_named() {
    let agent = GuestAgent { socket: "/nowhere/agent.sock".into(), pinned: None };
    let error = agent.issue().await.unwrap_err();
    assert!(error.contains("/nowhere/agent.sock"), "{error}");
}
