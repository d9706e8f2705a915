// SPDX-License-Identifier: Apache-2.0
//! The key service itself, not a stand-in for it.
#![allow(clippy::unwrap_used, dead_code, missing_docs, missing_debug_implementations, unreachable_pub)]

use super::world::World;
use dstack_keys::Secret;
use dstack_keys::derive::Roots as RootKeys;
use dstack_kms::engine::{Engine, Parts};
use dstack_kms::onboard::OnHost;
use dstack_kms::record::Record;
use dstack_kms::settings::{Input, Settings};
use dstack_kms::vault::{Vault, VaultError};
use dstack_kms::webhook::Nobody;
use dstack_ra_rpc::peer::BoxFuture;
use dstack_ra_tls::certificate::Custody;
use dstack_ra_tls::{Label, Roots};
use dstack_rpc::Listener;
use dstack_service::config::Directories;
use std::path::Path;
use std::sync::Arc;
use tokio::sync::watch;

/// A safe that holds these roots.
#[derive(Debug)]
struct Safe(Record);

impl Vault for Safe {
    fn custody(&self) -> Custody {
        Custody::Host
    }

    fn load(&self) -> Result<Option<Record>, VaultError> {
        Ok(Some(Record::parse(&self.0.to_bytes())?))
    }

    fn seal<'a>(&'a self, _record: &'a Record) -> BoxFuture<'a, Result<(), VaultError>> {
        Box::pin(async { Err(VaultError::Unit("it holds roots already".into())) })
    }
}

pub struct Service {
    pub url: String,
    /// SubjectPublicKeyInfo of its root, and the root's certificate in PEM.
    pub public_key: Vec<u8>,
    pub ca_cert: String,
    _stop: watch::Sender<bool>,
}

fn engine(world: &World, realm: Label) -> Engine {
    let state = world.path("kms");
    let trust = state.join("etc/trust.d");
    std::fs::create_dir_all(&trust).unwrap();
    std::fs::write(trust.join("test.pem"), world.root.certificate_pem()).unwrap();
    let record = Record {
        domain: "kms.example.com".parse().unwrap(),
        realm,
        custody: Custody::Host,
        created_at: 1_700_000_000,
        onboarded: false,
        roots: RootKeys { ca: Secret::from([0x11; 32]), k256: Secret::from([0x22; 32]) },
    };
    let directories = |state: &Path| Directories { vendor: state.join("lib"), operator: state.join("etc") };
    let parts = Parts {
        settings: Settings::from_input(Input::default()).unwrap(),
        directories: directories(&state),
        state,
        verifier: Arc::new(world.verifier()),
        vault: Arc::new(Safe(record)),
        webhook: Arc::new(Nobody),
        attest: Arc::new(OnHost),
    };
    Engine::open(parts).unwrap().0
}

impl Service {
    /// Call it inside a runtime, which serves.
    pub fn start(world: &World) -> Self {
        let realm = Roots::test(world.root.certificate().to_vec()).realm().clone();
        let engine = engine(world, realm);
        let meta = engine.meta().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let (stop, stopped) = watch::channel(false);
        tokio::spawn(async move {
            let listener = Listener::Tcp(tokio::net::TcpListener::from_std(listener).unwrap());
            dstack_kms::rpc::listen(&engine, vec![listener], &stopped).unwrap().wait().await;
        });
        Self { url, public_key: meta.ca_public_key.clone(), ca_cert: meta.ca_cert.clone(), _stop: stop }
    }
}
