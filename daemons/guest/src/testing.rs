// SPDX-License-Identifier: Apache-2.0
//! A simulated TEE and a key service for tests, both inside the test's process.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use axum::Router;
use axum::http::StatusCode;
use dstack_core::config_disk::{self, File, Files};
use dstack_core::event_log::{self, Milestone};
use dstack_core::ids::{AppId, ComposeHash, InstanceId};
use dstack_core::quote_sim_wire::{self as wire, Certified, Extended, Quoted, Registers, Request};
use dstack_core::spec::mr_config_id;
use dstack_keys::Secret;
use dstack_keys::derive::Roots as KmsRoots;
use dstack_quote_sim::collateral::Claims;
use dstack_quote_sim::pki::{self, Stored, TestRoot};
use dstack_quote_sim::quote::TdReport;
use dstack_ra_rpc::collateral::{Cache, Fetch, Offline, PlatformId};
use dstack_ra_rpc::peer::BoxFuture;
use dstack_ra_rpc::tls::server_config;
use dstack_ra_rpc::{Identity, Rules, Server, Session, Verifier, serve};
use dstack_ra_tls::certificate::{Custody, OID_USAGE, Usage, extension, realm_extensions};
use dstack_ra_tls::roots::Label;
use dstack_ra_tls::{Policy, Roots};
use dstack_rpc::kms::{AppKeyResponse, GetAppKeyRequest};
use dstack_rpc::{Call, Listener, RpcError, Service};
use dstack_tdx_attest::simulated::{Channel, Connect};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, PublicKeyData};
use serde_json::{Value, json};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use time::OffsetDateTime;
use zeroize::Zeroizing;

static STORED: LazyLock<Stored> = LazyLock::new(|| pki::generate(OffsetDateTime::now_utc()).unwrap());
static ROOT: LazyLock<TestRoot> = LazyLock::new(|| TestRoot::load(&STORED).unwrap());

/// The image that the VMs of tests run.
pub const IMAGE: [u8; 32] = [5; 32];
/// What the host keeps for the instance of tests.
pub const SEED: [u8; 20] = [0x5e; 20];

/// The realm of the test root.
pub fn realm() -> Label {
    Roots::test(ROOT.certificate().to_vec()).realm().clone()
}

/// A VM's simulated TEE.
#[derive(Clone)]
pub struct Sim {
    /// Registers of the VM.
    pub registers: Arc<Mutex<Registers>>,
    /// How often RTMR3 was extended.
    pub extends: Arc<AtomicUsize>,
    /// Extensions after which it falls silent.
    pub limit: Arc<AtomicUsize>,
}

impl Sim {
    /// A VM that was launched with this MRCONFIGID.
    pub fn new(mr_config_id: [u8; 48]) -> Self {
        let zero = [0; 48];
        let registers =
            Registers { mrtd: zero, rtmr0: zero, rtmr1: zero, rtmr2: zero, rtmr3: zero, mr_config_id };
        Self {
            registers: Arc::new(Mutex::new(registers)),
            extends: Arc::default(),
            limit: Arc::new(AtomicUsize::new(usize::MAX)),
        }
    }

    /// A VM that was launched for this compose file.
    pub fn launched_for(compose: &[u8]) -> Self {
        let id = hex::decode(mr_config_id(&ComposeHash::of(compose))).unwrap();
        Self::new(id.try_into().unwrap())
    }

    fn answer(&self, request: &Request) -> Option<Vec<u8>> {
        let mut registers = self.registers.lock().unwrap();
        Some(match request {
            Request::Registers => wire::frame(&*registers).unwrap(),
            Request::Extend { digest } => {
                if self.extends.load(Ordering::SeqCst) >= self.limit.load(Ordering::SeqCst) {
                    return None;
                }
                self.extends.fetch_add(1, Ordering::SeqCst);
                registers.rtmr3 = event_log::extend(&registers.rtmr3, digest);
                wire::frame(&Extended { rtmr3: registers.rtmr3 }).unwrap()
            }
            Request::Quote { report_data } => {
                let mut report = TdReport { report_data: *report_data, ..TdReport::default() };
                report.rtmr[3] = registers.rtmr3;
                report.mr_config_id = registers.mr_config_id;
                wire::frame(&Quoted { quote: ROOT.quote(&report) }).unwrap()
            }
            Request::Collateral => {
                let collateral = ROOT.collateral(&Claims::up_to_date(OffsetDateTime::now_utc())).unwrap();
                let collateral = serde_json::to_value(&collateral).unwrap();
                let root = ROOT.certificate_pem().to_owned();
                wire::frame(&Certified { collateral, root }).unwrap()
            }
        })
    }
}

impl Connect for Sim {
    fn connect(&self) -> io::Result<Box<dyn Channel>> {
        let (ours, mut theirs) = UnixStream::pair()?;
        let sim = self.clone();
        std::thread::spawn(move || {
            let mut head = [0; 4];
            theirs.read_exact(&mut head).unwrap();
            let mut body = vec![0; wire::length(head, wire::REQUEST_MAX).unwrap()];
            theirs.read_exact(&mut body).unwrap();
            if let Some(answer) = sim.answer(&wire::parse_request(&body).unwrap()) {
                theirs.write_all(&answer).unwrap();
            }
        });
        Ok(Box::new(ours))
    }
}

/// A host where nobody answers.
#[derive(Clone)]
pub struct Nobody;

impl Connect for Nobody {
    fn connect(&self) -> io::Result<Box<dyn Channel>> {
        Err(io::ErrorKind::ConnectionRefused.into())
    }
}

/// The root's certificate, PEM.
pub fn root_pem() -> &'static str {
    ROOT.certificate_pem()
}

/// Serves the root's collateral.
pub struct Collateral;

impl Fetch for Collateral {
    fn fetch(&self, _platform: PlatformId) -> BoxFuture<'_, Result<Vec<u8>, String>> {
        let collateral = ROOT.collateral(&Claims::up_to_date(OffsetDateTime::now_utc())).unwrap();
        Box::pin(async move { Ok(serde_json::to_vec(&collateral).unwrap()) })
    }
}

/// What a key service of tests does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Its work.
    Good,
    /// It refuses.
    Refuse,
    /// It fails the first three times.
    Flaky,
}

/// A key service on loopback.
pub struct Kms {
    /// Its CA.
    pub ca: KeyPair,
    /// Its certificate, PEM.
    pub pem: String,
    /// Where it listens.
    pub port: u16,
    /// Requests so far.
    pub asked: Arc<AtomicUsize>,
    _stop: tokio::sync::oneshot::Sender<()>,
}

/// The key roots of every key service of tests.
pub fn kms_roots() -> KmsRoots {
    KmsRoots { ca: Secret::from([0x11; 32]), k256: Secret::from([0x22; 32]) }
}

struct Handler {
    session: Session,
    mode: Mode,
    ca_pem: String,
    asked: Arc<AtomicUsize>,
}

impl Service for Handler {
    const NAMES: &'static [&'static str] = &["KMS"];

    async fn call(&self, call: Call) -> Result<Vec<u8>, RpcError> {
        assert_eq!(call.method, "GetAppKey");
        let nth = self.asked.fetch_add(1, Ordering::SeqCst);
        let request: GetAppKeyRequest = call.args()?;
        match self.mode {
            Mode::Refuse => return Err(RpcError::forbidden("compose hash is not allowed")),
            Mode::Flaky if nth < 3 => {
                return Err(RpcError {
                    status: StatusCode::SERVICE_UNAVAILABLE,
                    ..RpcError::failed("starting")
                });
            }
            _ => {}
        }
        let peer = self.session.peer()?;
        let boot = peer.verdict.as_ref().unwrap().boot.clone().unwrap();
        assert_eq!(ComposeHash::of(&request.app_compose), boot.compose_hash);
        let roots = kms_roots();
        call.reply(&AppKeyResponse {
            ca_cert: self.ca_pem.clone(),
            disk_crypt_key: roots
                .disk_key(&boot.app_id, boot.instance_id.as_ref())
                .unwrap()
                .expose()
                .to_vec(),
            env_crypt_key: roots.env_secret(&boot.app_id).unwrap().expose().to_vec(),
            k256_key: roots.app_key(&boot.app_id).unwrap().expose().to_vec(),
            k256_signature: vec![1; 65],
            gateway_app_id: String::new(),
            tproxy_app_id: String::new(),
            os_image_hash: IMAGE.to_vec(),
        })
    }
}

impl Kms {
    /// A key service of this realm.
    pub fn start(mode: Mode, realm: &Label) -> Self {
        Self::start_with(mode, realm, OffsetDateTime::now_utc() - time::Duration::hours(1))
    }

    /// The same with a leaf that is valid from a time on.
    pub fn start_with(mode: Mode, realm: &Label, from: OffsetDateTime) -> Self {
        let ca = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        params.custom_extensions = realm_extensions(realm, Custody::Host).to_vec();
        let root = params.self_signed(&ca).unwrap();
        let (key, mut leaf) = (KeyPair::generate().unwrap(), CertificateParams::default());
        (leaf.not_before, leaf.not_after) = (from, from + time::Duration::hours(24));
        leaf.custom_extensions = vec![extension(&OID_USAGE, Usage::KmsRpc.text().as_bytes())];
        let leaf = leaf.signed_by(&key, &Issuer::from_params(&params, &ca)).unwrap();
        let chain = vec![leaf.der().to_vec(), root.der().to_vec()];
        let identity = Identity::new(chain, Zeroizing::new(key.serialize_der()));
        let (asked, (stop, stopped)) = (Arc::<AtomicUsize>::default(), tokio::sync::oneshot::channel());
        let pem = root.pem();
        let port = run(&identity, mode, pem.clone(), Arc::clone(&asked), stopped);
        Self { ca, pem, port, asked, _stop: stop }
    }

    /// What an app pins.
    pub fn pin(&self) -> String {
        hex::encode(self.ca.subject_public_key_info())
    }

    /// Its address as a hint.
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }
}

fn run(
    identity: &Identity,
    mode: Mode,
    ca_pem: String,
    asked: Arc<AtomicUsize>,
    stopped: tokio::sync::oneshot::Receiver<()>,
) -> u16 {
    let roots = Roots::test(ROOT.certificate().to_vec());
    let verifier = Arc::new(Verifier::new(roots, Policy::default(), Cache::new(None, Collateral)));
    let rules = Rules::attested(Some(Milestone::KeysWanted));
    let server = Server::new(Arc::new(server_config(identity).unwrap()), verifier, rules);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let listener = Listener::Tcp(tokio::net::TcpListener::from_std(listener).unwrap());
            let router = move |session: Session| -> Router {
                let handler = Handler { session, mode, ca_pem: ca_pem.clone(), asked: Arc::clone(&asked) };
                dstack_rpc::router("/prpc", Arc::new(handler))
            };
            serve(listener, server, router, async { drop(stopped.await) }).await;
        });
    });
    port
}

/// `app-compose.json` with more keys.
pub fn compose(extra: &Value) -> Vec<u8> {
    let mut object = json!({
        "manifest_version": 2, "name": "hello", "runner": "docker-compose",
        "docker_compose_file": "services:\n  web:\n    image: web\n",
    });
    object.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    object.to_string().into_bytes()
}

/// The same for an app that pins this key service.
pub fn kms_compose(kms: &Kms, extra: &Value) -> Vec<u8> {
    let mut all = json!({"key_provider": "kms", "key_provider_id": kms.pin()});
    all.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    compose(&all)
}

/// The host's files around a compose file.
pub fn files(compose: Vec<u8>, urls: &[String]) -> Files {
    let sys =
        json!({"kms_urls": urls, "os_image_hash": hex::encode(IMAGE), "vm_config": "{\"cpu_count\":1}"});
    let info = json!({"instance_id_seed": hex::encode(SEED)});
    [
        (File::AppCompose, compose),
        (File::SysConfig, sys.to_string().into_bytes()),
        (File::InstanceInfo, info.to_string().into_bytes()),
    ]
    .into()
}

/// Parsed inputs of these files.
pub fn inputs(files: &Files) -> crate::inputs::Inputs {
    crate::inputs::parse(&config_disk::write(files).unwrap(), [0; 20]).unwrap()
}

/// App and instance of a compose file in tests.
pub fn ids(compose: &[u8]) -> (AppId, InstanceId) {
    let app = ComposeHash::of(compose).app_id();
    (app, crate::inputs::instance_id(&SEED, &app))
}

/// A verifier of the test root without collateral, by a clock.
pub fn verifier(clock: &crate::clock::Clock) -> Verifier {
    let (roots, clock) = (Roots::test(ROOT.certificate().to_vec()), clock.clone());
    let verifier = Verifier::new(roots, Policy::default(), Cache::new(None, Offline));
    verifier.with_clock(Arc::new(move || clock.now()))
}
