// SPDX-License-Identifier: Apache-2.0
//! Boots against the key service itself, not a stand-in for it.
#![allow(clippy::unwrap_used, clippy::panic)]

use crate::clock::Clock;
use crate::disk::{DiskKey, Watch};
use crate::layout::Layout;
use crate::prepare::{Boot, PrepareError};
use crate::tee::Behind;
use crate::testing::{self, Sim};
use dstack_core::boot::Failure;
use dstack_core::config_disk::{self, Files};
use dstack_core::ids::InstanceId;
use dstack_keys::Secret;
use dstack_keys::derive::Roots as RootKeys;
use dstack_keys::handover::AppKeys;
use dstack_kms::engine::{Engine, Parts};
use dstack_kms::onboard::OnHost;
use dstack_kms::record::Record;
use dstack_kms::settings::{Input, Settings};
use dstack_kms::vault::{Vault, VaultError};
use dstack_kms::webhook::Nobody;
use dstack_ra_rpc::Verifier;
use dstack_ra_rpc::collateral::Cache;
use dstack_ra_rpc::peer::BoxFuture;
use dstack_ra_tls::certificate::Custody;
use dstack_ra_tls::{Policy, Roots};
use dstack_rpc::Listener;
use dstack_service::config::Directories;
use serde_json::{Value, json};
use std::fs;
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

/// A key service in a thread of its own.
pub struct Service {
    pub url: String,
    pub pin: String,
    roots: RootKeys,
    stop: watch::Sender<bool>,
    thread: std::thread::JoinHandle<()>,
    pub state: Arc<tempfile::TempDir>,
}

fn roots() -> RootKeys {
    RootKeys { ca: Secret::from([0x11; 32]), k256: Secret::from([0x22; 32]) }
}

fn engine(state: &Path) -> Engine {
    let trust = state.join("etc/trust.d");
    fs::create_dir_all(&trust).unwrap();
    fs::write(trust.join("test.pem"), testing::root_pem()).unwrap();
    let record = Record {
        domain: "kms.example.com".parse().unwrap(),
        realm: testing::realm(),
        custody: Custody::Host,
        created_at: 1_700_000_000,
        onboarded: false,
        roots: roots(),
    };
    let trusted = Roots::test_pem(testing::root_pem()).unwrap();
    let verifier = Verifier::new(trusted, Policy::default(), Cache::new(None, testing::Collateral));
    let parts = Parts {
        settings: Settings::from_input(Input::default()).unwrap(),
        directories: Directories { vendor: state.join("lib"), operator: state.join("etc") },
        state: state.to_owned(),
        verifier: Arc::new(verifier),
        vault: Arc::new(Safe(record)),
        webhook: Arc::new(Nobody),
        attest: Arc::new(OnHost),
    };
    Engine::open(parts).unwrap().0
}

impl Service {
    pub fn start() -> Self {
        Self::at(Arc::new(tempfile::tempdir().unwrap()), "127.0.0.1:0")
    }

    /// Ends it, and starts it again with the same state at the same address.
    pub fn restarted(self) -> Self {
        let (state, url) = (Arc::clone(&self.state), self.url.clone());
        self.end();
        Self::at(state, url.trim_start_matches("https://"))
    }

    /// Ends it.
    pub fn end(self) {
        self.stop.send_replace(true);
        self.thread.join().unwrap();
    }

    /// Starts one with this state, at this address.
    pub fn at(state: Arc<tempfile::TempDir>, address: &str) -> Self {
        let listener = std::net::TcpListener::bind(address).unwrap();
        listener.set_nonblocking(true).unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let (stop, stopped) = watch::channel(false);
        let (told, learned) = std::sync::mpsc::channel();
        let path = state.path().to_owned();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let engine = engine(&path);
                told.send(hex::encode(engine.meta().unwrap().ca_public_key)).unwrap();
                let listener = Listener::Tcp(tokio::net::TcpListener::from_std(listener).unwrap());
                dstack_kms::rpc::listen(&engine, vec![listener], &stopped).unwrap().wait().await;
            });
        });
        let pin = learned.recv().unwrap();
        Self { url, pin, roots: roots(), stop, thread, state }
    }

    pub fn compose(&self, name: &str) -> Vec<u8> {
        self.compose_with(&json!({"name": name}))
    }

    /// The compose file of an app that pins this service, with more keys.
    pub fn compose_with(&self, extra: &Value) -> Vec<u8> {
        let mut all = json!({"key_provider": "kms", "key_provider_id": self.pin});
        all.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        testing::compose(&all)
    }
}

/// Boots a fresh guest; its keys, and the passphrase and label of its disk.
fn boot(files: &Files, compose: &[u8]) -> Result<(AppKeys, String, String), PrepareError> {
    let dir = tempfile::tempdir().unwrap();
    let (layout, device) = (Layout::at(&dir.path().join("run"), dir.path()), dir.path().join("config"));
    fs::create_dir(layout.run()).unwrap();
    fs::write(&device, config_disk::write(files).unwrap()).unwrap();
    let opened = std::cell::RefCell::new((String::new(), String::new()));
    let disk = |key: &DiskKey, _: &mut dyn Watch| {
        if let DiskKey::Persistent { key, label } = key {
            *opened.borrow_mut() = (key.expose_hex().to_string(), label.clone());
        }
        Ok(())
    };
    let tee = Behind(Sim::launched_for(compose));
    let clock = Clock::of_image();
    Boot { layout: &layout, tee: &tee, config_disk: &device, clock, disk: &disk }.run()?;
    let keys = AppKeys::parse(&fs::read(layout.app_keys()).unwrap()).unwrap();
    let (passphrase, label) = opened.into_inner();
    Ok((keys, passphrase, label))
}

#[test]
fn t03_t07_the_key_service_gives_a_measured_boot_its_keys_again_and_again() {
    let service = Service::start();
    let compose = service.compose("hello");
    let files = testing::files(compose.clone(), std::slice::from_ref(&service.url));
    let (app, instance): (_, InstanceId) = testing::ids(&compose);
    let expected = service.roots.disk_key(&app, Some(&instance)).unwrap().expose_hex();
    // Another boot of the same instance, as after a stop and a start: the same disk.
    for _ in 0..2 {
        let (keys, passphrase, label) = boot(&files, &compose).unwrap();
        assert_eq!((passphrase, label), (expected.to_string(), format!("dstack-{instance}")));
        assert_eq!(keys.k256_key, service.roots.app_key(&app).unwrap());
        assert_eq!((keys.provider_id, keys.k256_signature.len()), (service.pin.clone(), 130));
    }
}

#[test]
fn an_upgrade_that_nobody_allowed_is_refused() {
    let service = Service::start();
    let app = testing::ids(&service.compose("hello")).0;
    let upgrade = service.compose("upgraded");
    let mut files = testing::files(upgrade.clone(), std::slice::from_ref(&service.url));
    let info = json!({"app_id": app.to_string(), "instance_id_seed": hex::encode(testing::SEED)});
    files.insert(config_disk::File::InstanceInfo, info.to_string().into_bytes());
    let error = boot(&files, &upgrade).unwrap_err();
    assert_eq!(error.failure(), Failure::KeysRefused);
    assert!(error.to_string().contains("dstackctl kms allow-upgrade"), "{error}");
}
