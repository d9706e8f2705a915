// SPDX-License-Identifier: Apache-2.0
//! Whose keys are ours: an ingress that tells them over RA-TLS, and what happens when nobody answers.

use crate::certs::{issue, key_id};
use crate::crtsh::Crtsh;
use crate::world::{NAMES, OTHERS, OURS, THEIRS, World, ids, keys, search};
use dstack_core::kms_address::Address;
use dstack_ctmonitor::engine::Refusal;
use dstack_ctmonitor::keys::{Keys, Pin, Tproxy};
use dstack_ctmonitor::store::Store;
use dstack_quote_sim::pki::{self, TestRoot};
use dstack_ra_rpc::collateral::{Cache, Fetch, PlatformId};
use dstack_ra_rpc::peer::{Anchor, BoxFuture, Rules, Verifier};
use dstack_ra_rpc::tls::{Identity, server_config};
use dstack_ra_rpc::{Server, Session, serve};
use dstack_ra_tls::certificate::{OID_APP_ID, OID_USAGE, Usage, extension};
use dstack_ra_tls::{Policy, Roots};
use dstack_rpc::tproxy::AcmeInfoResponse;
use dstack_rpc::{Call, Listener, RpcError, Service};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    PKCS_ECDSA_P256_SHA256, PublicKeyData,
};
use std::sync::{Arc, LazyLock, Mutex};
use time::OffsetDateTime;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use zeroize::Zeroizing;

static ROOT: LazyLock<TestRoot> =
    LazyLock::new(|| TestRoot::load(&pki::generate(OffsetDateTime::now_utc()).unwrap()).unwrap());

/// Nobody brings evidence here, so none is asked for.
struct Nothing;

impl Fetch for Nothing {
    fn fetch(&self, _: PlatformId) -> BoxFuture<'_, Result<Vec<u8>, String>> {
        Box::pin(async { Err("nothing".to_owned()) })
    }
}

fn verifier() -> Arc<Verifier> {
    let roots = Roots::test(ROOT.certificate().to_vec());
    Arc::new(Verifier::new(roots, Policy::default(), Cache::new(None, Nothing)))
}

/// The ingress, as far as its keys go.
#[derive(Clone, Default)]
struct Ingress(Arc<Mutex<Vec<Vec<u8>>>>);

impl Service for Ingress {
    const NAMES: &'static [&'static str] = &["Tproxy"];

    async fn call(&self, call: Call) -> Result<Vec<u8>, RpcError> {
        match call.method.as_str() {
            "AcmeInfo" => {
                let hist_keys = self.0.lock().unwrap().clone();
                call.reply(&AcmeInfoResponse {
                    account_uri: "https://acme/1".into(),
                    hist_keys,
                    ..Default::default()
                })
            }
            other => Err(RpcError::unknown_method(other)),
        }
    }
}

struct Kms {
    key: KeyPair,
    params: CertificateParams,
}

impl Kms {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        Self { key: KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap(), params }
    }

    fn public_key(&self) -> Vec<u8> {
        self.key.subject_public_key_info()
    }

    fn issue(&self, usage: Usage, app: [u8; 20]) -> Identity {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = CertificateParams::default();
        params.custom_extensions =
            vec![extension(&OID_USAGE, usage.text().as_bytes()), extension(&OID_APP_ID, &app)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let leaf = params.signed_by(&key, &Issuer::from_params(&self.params, &self.key)).unwrap();
        let root = self.params.self_signed(&self.key).unwrap();
        Identity::new(vec![leaf.der().to_vec(), root.der().to_vec()], Zeroizing::new(key.serialize_der()))
    }
}

struct Running {
    address: Address,
    ingress: Ingress,
    stop: oneshot::Sender<()>,
}

async fn start(identity: &Identity) -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}/prpc", listener.local_addr().unwrap());
    let ingress = Ingress::default();
    let rules = Rules::issued(Anchor::pinned(Vec::new()), vec![Usage::AppCustom]);
    let server = Server::new(Arc::new(server_config(identity).unwrap()), verifier(), rules);
    let (stop, stopped) = oneshot::channel::<()>();
    let shared = ingress.clone();
    let router = move |_: Session| dstack_rpc::router("/prpc", Arc::new(shared.clone()));
    let until = async move { drop(stopped.await) };
    tokio::spawn(serve(Listener::Tcp(listener), server, router, until));
    Running { address: Address::parse(&url).unwrap(), ingress, stop }
}

fn asked(running: &Running, pin: Vec<u8>, app: Option<[u8; 20]>) -> Tproxy {
    Tproxy::new(running.address.clone(), Pin::Key(pin), app.map(Into::into), verifier())
}

#[tokio::test]
async fn t17_only_the_pinned_key_services_gateway_is_believed() {
    let (kms, other) = (Kms::new(), Kms::new());
    let gateway = start(&kms.issue(Usage::GatewayRpc, [1; 20])).await;
    gateway.ingress.0.lock().unwrap().push(OURS.subject_public_key_info());
    let found = asked(&gateway, kms.public_key(), None).fetch().await.unwrap();
    assert_eq!(found.iter().map(ToString::to_string).collect::<Vec<_>>(), [key_id(&OURS)]);
    assert!(asked(&gateway, kms.public_key(), Some([1; 20])).fetch().await.is_ok());
    let wrong_app = asked(&gateway, kms.public_key(), Some([2; 20])).fetch().await.unwrap_err();
    assert!(wrong_app.contains("another app"), "{wrong_app}");
    let wrong_kms = asked(&gateway, other.public_key(), None).fetch().await.unwrap_err();
    assert!(wrong_kms.contains("pinned authority"), "{wrong_kms}");
    let app = start(&kms.issue(Usage::AppCustom, [1; 20])).await;
    let no_gateway = asked(&app, kms.public_key(), None).fetch().await.unwrap_err();
    assert!(no_gateway.contains("gateway:rpc"), "{no_gateway}");
}

#[tokio::test]
async fn keys_of_before_are_used_while_nobody_answers_and_a_new_key_settles_its_alert() {
    let (crtsh, dir) = (Crtsh::start().await, tempfile::tempdir().unwrap());
    crtsh.list(1, issue(&OURS, &NAMES, 1, 0, false));
    crtsh.list(2, issue(&THEIRS, &NAMES, 2, 0, false));
    let kms = Kms::new();
    let gateway = start(&kms.issue(Usage::GatewayRpc, [1; 20])).await;
    gateway.ingress.0.lock().unwrap().push(OURS.subject_public_key_info());
    let open = |tproxy: Tproxy| {
        let sources = vec![search(&crtsh.server.url, false, 9)];
        World::with(sources, vec![Box::new(tproxy)], false, Store::open(dir.path()).unwrap())
    };
    let world = open(asked(&gateway, kms.public_key(), None));
    assert_eq!(ids(&world.check().await.new_alerts), keys(&[&THEIRS]));
    // The ingress has got that certificate itself, and tells its key late.
    gateway.ingress.0.lock().unwrap().push(THEIRS.subject_public_key_info());
    world.check().await;
    assert_eq!((world.engine.view().open, world.engine.view().known), (0, 2));
    let address = gateway.address.clone();
    gateway.stop.send(()).unwrap();
    let gone = Tproxy::new(address, Pin::Key(Kms::new().public_key()), None, verifier());
    let world = open(gone);
    crtsh.list(3, issue(&OTHERS, &NAMES, 3, 0, false));
    crtsh.list(4, issue(&THEIRS, &NAMES, 4, 0, false));
    let summary = world.check().await;
    assert_eq!(ids(&summary.new_alerts), keys(&[&OTHERS]));
    assert!(summary.troubles[0].contains("keys of before"), "{summary:?}");
}

#[tokio::test]
async fn an_ingress_that_forgets_a_key_makes_no_alert_of_its_certificate() {
    let (crtsh, dir) = (Crtsh::start().await, tempfile::tempdir().unwrap());
    let kms = Kms::new();
    let gateway = start(&kms.issue(Usage::GatewayRpc, [1; 20])).await;
    let keys_of = |keys: &[&KeyPair]| keys.iter().map(|key| key.subject_public_key_info()).collect();
    *gateway.ingress.0.lock().unwrap() = keys_of(&[&OURS, &THEIRS]);
    let open = || {
        let tproxy = asked(&gateway, kms.public_key(), None);
        let sources = vec![search(&crtsh.server.url, false, 9)];
        World::with(sources, vec![Box::new(tproxy)], false, Store::open(dir.path()).unwrap())
    };
    assert!(open().check().await.troubles.is_empty());
    // Installed anew: it knows its newest key alone. The logs know the others.
    *gateway.ingress.0.lock().unwrap() = keys_of(&[&OTHERS]);
    crtsh.list(1, issue(&THEIRS, &NAMES, 1, 0, false));
    crtsh.list(2, issue(&OTHERS, &NAMES, 2, 0, false));
    for _ in 0..2 {
        let world = open();
        let summary = world.check().await;
        assert!(summary.new_alerts.is_empty() && summary.troubles.is_empty(), "{summary:?}");
        assert_eq!(world.engine.view().known, 3);
    }
}

#[tokio::test]
async fn p30_without_any_key_nothing_is_judged_and_that_becomes_an_alert() {
    let crtsh = Crtsh::start().await;
    crtsh.list(1, issue(&OURS, &NAMES, 1, 0, false));
    let nobody = Address::parse("https://127.0.0.1:1").unwrap();
    let tproxy = Tproxy::new(nobody, Pin::Key(vec![0x30]), None, verifier());
    let sources = vec![search(&crtsh.server.url, false, 9)];
    let world = World::with(sources, vec![Box::new(tproxy)], false, Store::memory());
    let refused = world.try_check().await.unwrap_err();
    assert!(
        matches!(refused, Refusal::NoKeys(_)) && refused.to_string().contains("127.0.0.1:1"),
        "{refused}"
    );
    assert!(world.engine.alerts().is_empty() && crtsh.server.take().is_empty());
    assert!(world.engine.view().check.error.contains("no certificate can be judged"));
    world.later(86_400);
    world.try_check().await.unwrap_err();
    assert_eq!(world.engine.alerts()[0].kind.word(), "blind");
}
