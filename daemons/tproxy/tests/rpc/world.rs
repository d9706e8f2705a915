// SPDX-License-Identifier: Apache-2.0
//! An ingress over real sockets: a key service's authority of the test, quotes under a root of the test.

use dstack_core::event_log::{self, Event, TRUSTED};
use dstack_core::ids::{AppId, ComposeHash, InstanceId};
use dstack_core::spec::mr_config_id;
use dstack_core::wireguard::{InterfaceName, Peer, PrivateKey, PublicKey};
use dstack_quote_sim::collateral::Claims;
use dstack_quote_sim::pki::{self, Stored, TestRoot};
use dstack_quote_sim::quote::TdReport;
use dstack_ra_rpc::collateral::{Cache, Fetch, PlatformId};
use dstack_ra_rpc::peer::{Anchor, BoxFuture, Rules, Verifier};
use dstack_ra_rpc::tls::{Identity, client_config};
use dstack_ra_rpc::{ConnectError, connect};
use dstack_ra_tls::certificate::{
    OID_APP_ID, OID_EVENT_LOG, OID_QUOTE, OID_USAGE, Usage, extension, report_data,
};
use dstack_ra_tls::{Policy, Roots};
use dstack_rpc::tproxy::{RegisterCvmRequest, RegisterCvmResponse};
use dstack_rpc::{ClientError, Listener};
use dstack_tproxy::engine::{Engine, Parts, Told};
use dstack_tproxy::rpc;
use dstack_tproxy::settings::{Input, Settings};
use dstack_wireguard::memory::Memory;
use dstack_wireguard::{Error, InterfaceConfig, InterfaceStatus, Wireguard};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    PKCS_ECDSA_P256_SHA256, PublicKeyData,
};
use serde::{Serialize, de::DeserializeOwned};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use time::OffsetDateTime;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use zeroize::Zeroizing;

static STORED: LazyLock<Stored> = LazyLock::new(|| pki::generate(OffsetDateTime::now_utc()).unwrap());
static ROOT: LazyLock<TestRoot> = LazyLock::new(|| TestRoot::load(&STORED).unwrap());

/// Events of a boot that wants its keys, and of one that is ready.
pub const WANTS: usize = 7;
pub const READY: usize = 10;

/// Serves the test root's collateral.
struct Pccs;

impl Fetch for Pccs {
    fn fetch(&self, _platform: PlatformId) -> BoxFuture<'_, Result<Vec<u8>, String>> {
        let collateral = ROOT.collateral(&Claims::up_to_date(OffsetDateTime::now_utc())).unwrap();
        Box::pin(async move { Ok(serde_json::to_vec(&collateral).unwrap()) })
    }
}

pub fn verifier() -> Verifier {
    let roots = Roots::test(ROOT.certificate().to_vec());
    Verifier::new(roots, Policy::default(), Cache::new(None, Pccs))
}

/// A key service, as far as certificates go.
pub struct Kms {
    key: KeyPair,
    params: CertificateParams,
    root: Vec<u8>,
}

/// What a VM boots, and what its certificate says.
#[derive(Debug, Clone)]
pub struct Boot {
    pub app: AppId,
    /// The app id in the certificate.
    pub written: AppId,
    pub instance: Option<InstanceId>,
    pub events: usize,
    pub usage: Usage,
    pub quoted: bool,
    pub provider: String,
}

impl Boot {
    /// An instance of an app that got its keys from `kms`.
    pub fn of(kms: &Kms, app: u8, instance: u8) -> Self {
        let provider = format!(r#"{{"name":"kms","id":"{}"}}"#, hex::encode(kms.public_key()));
        let app = [app; 20].into();
        let instance = Some([instance; 20].into());
        Self { app, written: app, instance, events: READY, usage: Usage::AppCustom, quoted: true, provider }
    }

    fn log(&self) -> Vec<Event> {
        let hash = ComposeHash::of(b"compose");
        let instance = self.instance.map(|i| i.as_bytes().to_vec()).unwrap_or_default();
        let payloads: [&[u8]; 10] = [
            b"",
            self.app.as_bytes(),
            hash.as_bytes(),
            &instance,
            b"",
            &[5; 32],
            &[6; 32],
            self.provider.as_bytes(),
            b"ext4",
            b"",
        ];
        let events = TRUSTED.iter().zip(payloads).take(self.events);
        events.map(|(n, p)| Event::runtime(n, p).unwrap()).collect()
    }

    pub fn evidence(&self, data: [u8; 64]) -> (Vec<u8>, Vec<u8>) {
        let events = self.log();
        let mut report = TdReport { report_data: data, mr_td: [1; 48], ..TdReport::default() };
        report.rtmr[3] = event_log::replay(&events).unwrap()[3];
        let hash = ComposeHash::of(b"compose");
        report.mr_config_id.copy_from_slice(&hex::decode(mr_config_id(&hash)).unwrap());
        (ROOT.quote(&report), serde_json::to_vec(&events).unwrap())
    }
}

impl Kms {
    pub fn new() -> Self {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        let root = params.self_signed(&key).unwrap().der().to_vec();
        Self { key, params, root }
    }

    pub fn public_key(&self) -> Vec<u8> {
        self.key.subject_public_key_info()
    }

    pub fn anchor(&self) -> Anchor {
        Anchor::pinned(self.public_key())
    }

    fn sign(&self, mut params: CertificateParams, key: &KeyPair) -> Vec<Vec<u8>> {
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let leaf = params.signed_by(key, &Issuer::from_params(&self.params, &self.key)).unwrap();
        vec![leaf.der().to_vec(), self.root.clone()]
    }

    /// A gateway's identity.
    pub fn gateway(&self) -> Identity {
        let (chain, key) = self.chain(Usage::GatewayRpc);
        Identity::new(chain, Zeroizing::new(key.serialize_der()))
    }

    /// A chain for whoever has this role, and its key.
    pub fn chain(&self, usage: Usage) -> (Vec<Vec<u8>>, KeyPair) {
        let mut params = CertificateParams::default();
        params.custom_extensions = vec![extension(&OID_USAGE, usage.text().as_bytes())];
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        (self.sign(params, &key), key)
    }

    /// The identity of a boot.
    pub fn app(&self, boot: &Boot) -> Identity {
        let (chain, key) = self.app_chain(boot);
        Identity::new(chain, Zeroizing::new(key))
    }

    /// The same in bytes: its chain, and its key as PKCS#8.
    pub fn app_chain(&self, boot: &Boot) -> (Vec<Vec<u8>>, Vec<u8>) {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = CertificateParams::default();
        let (quote, log) = boot.evidence(report_data(&key.subject_public_key_info()));
        params.custom_extensions = vec![
            extension(&OID_USAGE, boot.usage.text().as_bytes()),
            extension(&OID_APP_ID, boot.written.as_bytes()),
        ];
        if boot.quoted {
            params.custom_extensions.push(extension(&OID_QUOTE, &quote));
            params.custom_extensions.push(extension(&OID_EVENT_LOG, &log));
        }
        (self.sign(params, &key), key.serialize_der())
    }
}

pub fn interface() -> InterfaceName {
    "dstack-wg0".parse().unwrap()
}

pub fn settings(dir: &Path) -> Settings {
    let text = format!(
        "[wg]\nendpoint='192.0.2.1:51820'\n[proxy]\nbase_domain='apps.example.com'\nlisten_port=443\n\
         cert_chain='{0}/cert.pem'\ncert_key='{0}/key.pem'\n[certbot]\nworkdir='{0}/certbot'\nagent='{0}/agent.sock'\n",
        dir.display()
    );
    let input: Input = toml::from_str(&text).unwrap();
    Settings::from_input(input).unwrap().unwrap()
}

pub fn open(dir: &Path, wireguard: &Arc<Memory>) -> (Engine, mpsc::UnboundedReceiver<Told>) {
    open_with(dir, Arc::<Memory>::clone(wireguard))
}

pub fn open_with(dir: &Path, wireguard: Arc<dyn Wireguard>) -> (Engine, mpsc::UnboundedReceiver<Told>) {
    let parts = Parts {
        settings: settings(dir),
        state: dir.to_owned(),
        private_key: PrivateKey::from([7; 32]),
        public_key: server_key(),
        verifier: Arc::new(verifier()),
        wireguard,
    };
    Engine::open(parts).unwrap()
}

/// A tunnel that takes everything and keeps nothing.
#[derive(Debug)]
pub struct Nowhere;

impl Wireguard for Nowhere {
    fn ensure<'a>(&'a self, _: &'a InterfaceConfig) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async { Ok(()) })
    }

    fn set_peers<'a>(&'a self, _: &'a InterfaceName, _: &'a [Peer]) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async { Ok(()) })
    }

    fn update_peers<'a>(
        &'a self,
        _: &'a InterfaceName,
        _: &'a [Peer],
        _: &'a [PublicKey],
    ) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async { Ok(()) })
    }

    fn dump<'a>(&'a self, _: &'a InterfaceName) -> BoxFuture<'a, Result<InterfaceStatus, Error>> {
        Box::pin(async { Ok(InterfaceStatus::default()) })
    }

    fn delete<'a>(&'a self, _: &'a InterfaceName) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async { Ok(()) })
    }
}

pub fn server_key() -> PublicKey {
    [8; 32].into()
}

pub struct World {
    pub engine: Engine,
    pub told: mpsc::UnboundedReceiver<Told>,
    pub wireguard: Arc<Memory>,
    pub kms: Kms,
    pub address: String,
    pub judge: Verifier,
    _stop: watch::Sender<bool>,
    dir: tempfile::TempDir,
}

impl World {
    pub async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (wireguard, kms) = (Arc::<Memory>::default(), Kms::new());
        let (engine, told) = open(dir.path(), &wireguard);
        engine.make_tunnel().await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (stop, stopped) = watch::channel(false);
        let listeners = vec![Listener::Tcp(listener)];
        rpc::listen(&engine, &kms.gateway(), kms.public_key(), listeners, &stopped).unwrap();
        Self { engine, told, wireguard, kms, address, judge: verifier(), _stop: stop, dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub async fn call<Q: Serialize + Sync, R: DeserializeOwned>(
        &self,
        identity: Option<&Identity>,
        path: &str,
        args: &Q,
    ) -> Result<R, ClientError> {
        let rules = Rules::issued(self.kms.anchor(), vec![Usage::GatewayRpc]);
        self.connect(identity, &rules).await.unwrap().call(path, args).await
    }

    pub async fn connect(
        &self,
        identity: Option<&Identity>,
        rules: &Rules,
    ) -> Result<dstack_ra_rpc::Connection<TcpStream>, ConnectError> {
        let stream = TcpStream::connect(&self.address).await.unwrap();
        connect(stream, Arc::new(client_config(identity).unwrap()), &self.judge, rules).await
    }

    pub async fn register(&self, boot: &Boot, key: u8) -> Result<RegisterCvmResponse, ClientError> {
        let identity = self.kms.app(boot);
        self.call(Some(&identity), "/prpc/Tproxy.RegisterCvm", &request(key)).await
    }

    pub fn boot(&self, app: u8, instance: u8) -> Boot {
        Boot::of(&self.kms, app, instance)
    }
}

pub fn request(key: u8) -> RegisterCvmRequest {
    let key = PublicKey::from([key; 32]);
    RegisterCvmRequest { client_public_key: key.to_string(), ..RegisterCvmRequest::default() }
}

/// The sentence of a refusal.
pub fn reason<T: std::fmt::Debug>(result: Result<T, ClientError>) -> String {
    match result {
        Err(ClientError::Remote { message, .. }) => message,
        other => panic!("{other:?}"),
    }
}
