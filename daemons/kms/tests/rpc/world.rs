// SPDX-License-Identifier: Apache-2.0
//! A key service over real sockets, with simulated quotes under a root of the test.

use dstack_core::csr::{Config, Csr};
use dstack_core::event_log::{self, Event, TRUSTED};
use dstack_core::ids::{AppId, ComposeHash};
use dstack_core::spec::mr_config_id;
use dstack_keys::Secret;
use dstack_keys::derive::Roots as RootKeys;
use dstack_kms::engine::{Engine, Parts, Told};
use dstack_kms::onboard::{Attest, OnHost};
use dstack_kms::record::Record;
use dstack_kms::rpc;
use dstack_kms::settings::{Input, Settings};
use dstack_kms::vault::{Vault, VaultError};
use dstack_kms::webhook::{Authorize, Nobody};
use dstack_quote_sim::collateral::Claims;
use dstack_quote_sim::pki::{self, Stored, TestRoot};
use dstack_quote_sim::quote::TdReport;
use dstack_ra_rpc::collateral::{Cache, Fetch, PlatformId};
use dstack_ra_rpc::peer::{Anchor, BoxFuture, Rules, Verifier};
use dstack_ra_rpc::tls::{Identity, client_config};
use dstack_ra_rpc::{ConnectError, Connection, connect};
use dstack_ra_tls::certificate::{AttestedKey, Custody, Usage, report_data};
use dstack_ra_tls::{Policy, Roots};
use dstack_rpc::kms::{GetAppKeyRequest, SignCertRequest};
use dstack_rpc::{ClientError, Listener};
use dstack_service::config::Directories;
use serde::{Serialize, de::DeserializeOwned};
use std::path::Path;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, SystemTime};
use time::OffsetDateTime;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use zeroize::Zeroizing;

static STORED: LazyLock<Stored> = LazyLock::new(|| pki::generate(OffsetDateTime::now_utc()).unwrap());
pub static ROOT: LazyLock<TestRoot> = LazyLock::new(|| TestRoot::load(&STORED).unwrap());
const HOUR: Duration = Duration::from_secs(3600);

/// Events of a boot that wants its keys, and of one that is ready.
pub const WANTS: usize = 7;
pub const READY: usize = 10;

/// Serves the test root's collateral.
pub struct Pccs;

impl Fetch for Pccs {
    fn fetch(&self, _platform: PlatformId) -> BoxFuture<'_, Result<Vec<u8>, String>> {
        let collateral = ROOT.collateral(&Claims::up_to_date(OffsetDateTime::now_utc())).unwrap();
        Box::pin(async move { Ok(serde_json::to_vec(&collateral).unwrap()) })
    }
}

/// A safe in memory, which can fail.
#[derive(Debug, Default)]
pub struct Safe {
    pub custody: Option<Custody>,
    pub sealed: Mutex<Option<Vec<u8>>>,
    pub broken: Mutex<bool>,
}

impl Vault for Safe {
    fn custody(&self) -> Custody {
        self.custody.unwrap_or(Custody::Host)
    }

    fn load(&self) -> Result<Option<Record>, VaultError> {
        let sealed = self.sealed.lock().unwrap();
        Ok(sealed.as_ref().map(|bytes| Record::parse(bytes)).transpose()?)
    }

    fn seal<'a>(&'a self, record: &'a Record) -> BoxFuture<'a, Result<(), VaultError>> {
        Box::pin(async move {
            if *self.broken.lock().unwrap() {
                return Err(VaultError::Unit("the safe is broken".into()));
            }
            *self.sealed.lock().unwrap() = Some(record.to_bytes().to_vec());
            Ok(())
        })
    }
}

/// What a VM boots.
#[derive(Debug, Clone)]
pub struct Boot {
    pub compose: Vec<u8>,
    pub app: AppId,
    pub events: usize,
    /// Fills MRTD, so that measurements differ.
    pub mr_td: u8,
}

impl Boot {
    pub fn of(compose: &[u8], events: usize) -> Self {
        let app = ComposeHash::of(compose).app_id();
        Self { compose: compose.to_vec(), app, events, mr_td: 1 }
    }

    pub fn claiming(self, app: AppId) -> Self {
        Self { app, ..self }
    }

    pub fn hash(&self) -> ComposeHash {
        ComposeHash::of(&self.compose)
    }

    fn log(&self) -> Vec<Event> {
        let hash = self.hash();
        let payloads: [&[u8]; 10] = [
            b"",
            self.app.as_bytes(),
            hash.as_bytes(),
            &hex::decode("00112233445566778899aabbccddeeff00112233").unwrap(),
            b"",
            &[5; 32],
            &[6; 32],
            b"{}",
            b"ext4",
            b"",
        ];
        let events = TRUSTED.iter().zip(payloads).take(self.events);
        events.map(|(n, p)| Event::runtime(n, p).unwrap()).collect()
    }

    /// Quote and log of this boot, over report data.
    pub fn evidence(&self, data: [u8; 64]) -> (Vec<u8>, Vec<u8>) {
        self.evidence_under(&ROOT, data)
    }

    fn evidence_under(&self, root: &TestRoot, data: [u8; 64]) -> (Vec<u8>, Vec<u8>) {
        let events = self.log();
        let mut report = TdReport { report_data: data, mr_td: [self.mr_td; 48], ..TdReport::default() };
        report.rtmr[3] = event_log::replay(&events).unwrap()[3];
        report.mr_config_id.copy_from_slice(&hex::decode(mr_config_id(&self.hash())).unwrap());
        (root.quote(&report), serde_json::to_vec(&events).unwrap())
    }

    /// A certificate with evidence, and its key as PKCS#8, DER both.
    pub fn certificate(&self) -> (Vec<u8>, Zeroizing<Vec<u8>>) {
        self.certificate_under(&ROOT)
    }

    fn certificate_under(&self, root: &TestRoot) -> (Vec<u8>, Zeroizing<Vec<u8>>) {
        let key = AttestedKey::generate().unwrap();
        let (quote, log) = self.evidence_under(root, report_data(&key.public_key()));
        let certificate = key.self_signed("app", &quote, &log, SystemTime::now(), HOUR).unwrap();
        (certificate, Zeroizing::new(key.expose_pkcs8()))
    }

    pub fn identity(&self) -> Identity {
        let (certificate, key) = self.certificate();
        Identity::new(vec![certificate], key)
    }

    /// The same under another root.
    pub fn identity_under(&self, root: &TestRoot) -> Identity {
        let (certificate, key) = self.certificate_under(root);
        Identity::new(vec![certificate], key)
    }

    /// A signed request for a certificate of a fresh key.
    pub fn csr(&self, config: Config) -> SignCertRequest {
        let key = AttestedKey::generate().unwrap();
        let (quote, event_log) = self.evidence(report_data(&key.public_key()));
        let csr = Csr { public_key: key.public_key(), config, quote, event_log }.encode().unwrap();
        let pkcs8 = Zeroizing::new(key.expose_pkcs8());
        let signature = dstack_keys::ecdsa::sign(&pkcs8, &csr).unwrap();
        SignCertRequest { csr, signature }
    }
}

/// Vouches for a key service that boots this.
#[derive(Debug)]
pub struct Attested(pub Boot);

impl Attest for Attested {
    fn identity(&self) -> BoxFuture<'_, Result<Identity, String>> {
        Box::pin(async { Ok(self.0.identity()) })
    }
}

pub struct Setup {
    pub roots: Roots,
    pub safe: Arc<Safe>,
    pub webhook: Arc<dyn Authorize>,
    pub attest: Arc<dyn Attest>,
    /// Judges instead of the one that `roots` make.
    pub verifier: Option<Arc<Verifier>>,
    /// `gateway_app_id` of the settings.
    pub gateway: Option<AppId>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            roots: Roots::test(ROOT.certificate().to_vec()),
            safe: Arc::default(),
            webhook: Arc::new(Nobody),
            attest: Arc::new(OnHost),
            verifier: None,
            gateway: None,
        }
    }
}

pub fn verifier(roots: Roots) -> Verifier {
    Verifier::new(roots, Policy::default(), Cache::new(None, Pccs))
}

/// The published root keys.
pub fn record() -> Record {
    Record {
        domain: "kms.example.com".parse().unwrap(),
        realm: Roots::test(ROOT.certificate().to_vec()).realm().clone(),
        custody: Custody::Host,
        created_at: 1_700_000_000,
        onboarded: false,
        roots: RootKeys { ca: Secret::from([0x11; 32]), k256: Secret::from([0x22; 32]) },
    }
}

pub fn open(setup: &Setup, state: &Path) -> (Engine, mpsc::UnboundedReceiver<Told>) {
    let trust = state.join("etc/trust.d");
    std::fs::create_dir_all(&trust).unwrap();
    if setup.roots.realm().is_simulated() {
        std::fs::write(trust.join("test.pem"), dstack_kms::authority::pem(ROOT.certificate())).unwrap();
    }
    let parts = Parts {
        settings: Settings {
            gateway_app_id: setup.gateway,
            ..Settings::from_input(Input::default()).unwrap()
        },
        directories: Directories { vendor: state.join("lib"), operator: state.join("etc") },
        state: state.to_owned(),
        verifier: setup.verifier.clone().unwrap_or_else(|| Arc::new(verifier(setup.roots.clone()))),
        vault: Arc::<Safe>::clone(&setup.safe),
        webhook: Arc::clone(&setup.webhook),
        attest: Arc::clone(&setup.attest),
    };
    Engine::open(parts).unwrap()
}

pub struct World {
    pub engine: Engine,
    pub told: mpsc::UnboundedReceiver<Told>,
    pub safe: Arc<Safe>,
    pub served: rpc::Served,
    pub url: String,
    judge: Verifier,
    _stop: watch::Sender<bool>,
    pub dir: tempfile::TempDir,
}

impl World {
    /// A key service with the published root keys.
    pub async fn new() -> Self {
        Self::with(Setup::default()).await
    }

    pub async fn with(setup: Setup) -> Self {
        *setup.safe.sealed.lock().unwrap() = Some(record().to_bytes().to_vec());
        Self::empty(setup).await
    }

    /// Whatever the safe holds.
    pub async fn empty(setup: Setup) -> Self {
        Self::over(setup, tempfile::tempdir().unwrap()).await
    }

    /// Another start of the service with the same state, after a kill.
    pub async fn restarted(self) -> Self {
        let Self { safe, dir, .. } = self;
        Self::over(Setup { safe, ..Setup::default() }, dir).await
    }

    async fn over(setup: Setup, dir: tempfile::TempDir) -> Self {
        let (engine, told) = open(&setup, dir.path());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let (stop, stopped) = watch::channel(false);
        let served = rpc::listen(&engine, vec![Listener::Tcp(listener)], &stopped).unwrap();
        let judge = verifier(Roots::test(ROOT.certificate().to_vec()));
        Self { engine, told, safe: setup.safe, served, url, judge, _stop: stop, dir }
    }

    /// The service's state directory.
    pub fn state(&self) -> &Path {
        self.dir.path()
    }

    pub fn anchor(&self) -> Anchor {
        Anchor::pinned(self.engine.authority().unwrap().public_key())
    }

    pub async fn connect(
        &self,
        identity: Option<&Identity>,
        rules: &Rules,
    ) -> Result<Connection<TcpStream>, ConnectError> {
        let address = self.url.strip_prefix("https://").unwrap();
        let stream = TcpStream::connect(address).await.unwrap();
        connect(stream, Arc::new(client_config(identity).unwrap()), &self.judge, rules).await
    }

    pub async fn call<Q: Serialize + Sync, R: DeserializeOwned>(
        &self,
        identity: Option<&Identity>,
        method: &str,
        args: &Q,
    ) -> Result<R, ClientError> {
        let rules = Rules::issued(self.anchor(), vec![Usage::KmsRpc]);
        let connection = self.connect(identity, &rules).await.unwrap();
        connection.call(&format!("/prpc/KMS.{method}"), args).await
    }

    pub async fn app_key(&self, boot: &Boot) -> Result<dstack_rpc::kms::AppKeyResponse, ClientError> {
        let request =
            GetAppKeyRequest { api_version: 1, vm_config: "{}".into(), app_compose: boot.compose.clone() };
        self.call(Some(&boot.identity()), "GetAppKey", &request).await
    }
}

/// The sentence of a refusal.
pub fn reason<T: std::fmt::Debug>(result: Result<T, ClientError>) -> String {
    match result {
        Err(ClientError::Remote { message, .. }) => message,
        other => panic!("{other:?}"),
    }
}
