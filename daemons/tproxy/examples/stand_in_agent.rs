// SPDX-License-Identifier: Apache-2.0
//! A guest agent for tests of a host without VMs: it gives what `dstack-tappd` gives to `dstack-network`, a certificate of
//! the host's own key service with a quote inside. The quote is made here with the keys of the simulated TEE, which only
//! root of a test machine has; key service, `dstack-network` and ingress are the real ones.
//!
//! `stand_in_agent SOCKET TESTROOT.JSON KMS-ADDRESS KMS-PUBLIC-KEY-HEX COMPOSE INSTANCE-ID` prints the app id and serves.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use axum::routing::post;
use axum::{Json, Router};
use dstack_core::csr::{Config, Csr};
use dstack_core::event_log::{self, Event, TRUSTED};
use dstack_core::ids::{ComposeHash, InstanceId};
use dstack_core::spec::mr_config_id;
use dstack_keys::ecdsa;
use dstack_quote_sim::pki::TestRoot;
use dstack_quote_sim::quote::TdReport;
use dstack_quote_sim::store;
use dstack_ra_rpc::collateral::{Cache, Offline};
use dstack_ra_rpc::tls::client_config;
use dstack_ra_rpc::{Anchor, Rules, Verifier, connect};
use dstack_ra_tls::certificate::{AttestedKey, Usage, report_data};
use dstack_ra_tls::{Policy, Roots};
use dstack_rpc::Listener;
use dstack_rpc::kms::{SignCertRequest, SignCertResponse};
use dstack_rpc::tappd::GetTlsKeyResponse;
use std::sync::Arc;
use tokio::net::{TcpStream, UnixListener};
use zeroize::Zeroizing;

/// The boot that is claimed: finished, with keys of this key service.
struct Boot {
    compose: ComposeHash,
    instance: InstanceId,
    kms: Vec<u8>,
}

impl Boot {
    fn log(&self) -> Vec<Event> {
        let provider = format!(r#"{{"name":"kms","id":"{}"}}"#, hex::encode(&self.kms));
        let app = self.compose.app_id();
        let payloads: [&[u8]; 10] = [
            b"",
            app.as_bytes(),
            self.compose.as_bytes(),
            self.instance.as_bytes(),
            b"",
            &[5; 32],
            &[6; 32],
            provider.as_bytes(),
            b"ext4",
            b"",
        ];
        TRUSTED.iter().zip(payloads).map(|(name, payload)| Event::runtime(name, payload).unwrap()).collect()
    }

    /// Quote and event log over a public key.
    fn evidence(&self, root: &TestRoot, public_key: &[u8]) -> (Vec<u8>, Vec<u8>) {
        let events = self.log();
        let mut report =
            TdReport { report_data: report_data(public_key), mr_td: [1; 48], ..Default::default() };
        report.rtmr[3] = event_log::replay(&events).unwrap()[3];
        report.mr_config_id.copy_from_slice(&hex::decode(mr_config_id(&self.compose)).unwrap());
        (root.quote(&report), serde_json::to_vec(&events).unwrap())
    }
}

struct Agent {
    root: TestRoot,
    boot: Boot,
    address: String,
}

impl Agent {
    /// A fresh key with a certificate for it.
    async fn key(&self) -> GetTlsKeyResponse {
        let key = AttestedKey::generate().unwrap();
        let pkcs8 = Zeroizing::new(key.expose_pkcs8());
        let config = Config {
            subject: "stand-in".into(),
            usage_client_auth: true,
            ext_quote: true,
            ..Config::default()
        };
        let (quote, event_log) = self.boot.evidence(&self.root, &key.public_key());
        let csr = Csr { public_key: key.public_key(), config, quote, event_log }.encode().unwrap();
        let signature = ecdsa::sign(&pkcs8, &csr).unwrap();
        let certificate_chain = self.sign(SignCertRequest { csr, signature }).await;
        let key = pem::encode(&pem::Pem::new("PRIVATE KEY", pkcs8.as_slice()));
        GetTlsKeyResponse { key, certificate_chain }
    }

    async fn sign(&self, request: SignCertRequest) -> Vec<String> {
        let roots = Roots::test(self.root.certificate().to_vec());
        let verifier = Verifier::new(roots, Policy::default(), Cache::new(None, Offline));
        let rules = Rules::issued(Anchor::pinned(self.boot.kms.clone()), vec![Usage::KmsRpc]);
        let stream = TcpStream::connect(&self.address).await.unwrap();
        let config = Arc::new(client_config(None).unwrap());
        let connection = connect(stream, config, &verifier, &rules).await.unwrap();
        let reply: SignCertResponse = connection.call("/prpc/KMS.SignCert?json", &request).await.unwrap();
        reply.certificate_chain
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [socket, root, address, kms, compose, instance] = arguments.as_slice() else {
        panic!("usage: SOCKET TESTROOT.JSON KMS-ADDRESS KMS-PUBLIC-KEY-HEX COMPOSE INSTANCE-ID");
    };
    let boot = Boot {
        compose: ComposeHash::of(compose.as_bytes()),
        instance: instance.parse().expect("40 hex digits"),
        kms: hex::decode(kms).expect("hex"),
    };
    println!("{}", boot.compose.app_id());
    let root = store::parse(&std::fs::read(root).unwrap()).unwrap();
    let agent = Arc::new(Agent { root, boot, address: address.clone() });
    let handler = move || {
        let agent = Arc::clone(&agent);
        async move { Json(agent.key().await) }
    };
    let router = Router::new().route("/GetTlsKey", post(handler));
    let listener = Listener::Unix(UnixListener::bind(socket).unwrap());
    dstack_service::lifecycle::ready("Serving");
    dstack_rpc::serve(listener, router, Default::default(), std::future::pending()).await;
}
