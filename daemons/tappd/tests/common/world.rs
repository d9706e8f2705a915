// SPDX-License-Identifier: Apache-2.0
//! A guest's surroundings: a simulated TEE, a boot that has ended, keys, and a key service over RA-TLS.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    dead_code,
    missing_docs,
    missing_debug_implementations,
    unreachable_pub
)]

use dstack_core::compose;
use dstack_core::csr::Csr;
use dstack_core::event_log::{Milestone, TRUSTED};
use dstack_core::ids::{AppId, ComposeHash, VmName};
use dstack_keys::handover::{AppKeys, Provider, VERSION};
use dstack_keys::{Secret, derive, ecdsa, sign};
use dstack_quote_sim::collateral::Claims;
use dstack_quote_sim::identity::{Caller, Host, IdentityError};
use dstack_quote_sim::launched::Launched;
use dstack_quote_sim::pki::{self, TestRoot};
use dstack_quote_sim::registry::{Registry, Run, Vm};
use dstack_quote_sim::server::Tee;
use dstack_ra_rpc::collateral::{Cache, Fetch, PlatformId};
use dstack_ra_rpc::peer::{BoxFuture, Rules, Verifier};
use dstack_ra_rpc::tls::{Identity, server_config};
use dstack_ra_rpc::{Server, Session, serve};
use dstack_ra_tls::certificate::{Custody, OID_APP_ID, OID_USAGE, extension, realm_extensions};
use dstack_ra_tls::{Policy, Roots};
use dstack_rpc::kms::{SignCertRequest, SignCertResponse};
use dstack_rpc::{Call, Listener, RpcError, Service};
use dstack_tappd::attest::{Attestor, Detect};
use dstack_tappd::leaf::to_pem;
use dstack_tdx_attest::simulated::{Simulated, Unix};
use dstack_tdx_attest::{EventLog, Platform};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, SanType, SubjectPublicKeyInfo,
};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use time::{Duration, OffsetDateTime};
use tokio::net::{TcpListener, UnixListener};
use tokio::runtime::Runtime;
use zeroize::Zeroizing;

/// The app: its name is not ASCII, and all of it is public.
pub const COMPOSE: &str = r#"{"manifest_version":2,"name":"héllo","runner":"docker-compose","public_logs":true,
    "public_sysinfo":true,"docker_compose_file":"services: {web: {image: web}}"}"#;
pub const INSTANCE: &str = "00112233445566778899aabbccddeeff00112233";
pub const OS_IMAGE: [u8; 32] = [5; 32];
pub const VM_CONFIG: &str = r#"{"vcpus":1}"#;

pub fn compose_hash() -> ComposeHash {
    compose::hash(COMPOSE.as_bytes())
}

pub fn app_id() -> AppId {
    compose_hash().app_id()
}

/// Whoever connects is the one VM.
struct OneVm;

impl Host for OneVm {
    async fn identify(&self, _caller: Caller) -> Result<Vm, IdentityError> {
        let run = Run { invocation: "00".into(), main_pid: 1 };
        Ok(Vm { name: "hello".parse().unwrap(), run })
    }

    async fn launched(&self, _name: &VmName) -> Result<Launched, IdentityError> {
        Ok(Launched { measured: [[1; 48], [2; 48], [3; 48], [4; 48]], compose_hash: compose_hash() })
    }
}

/// The test root's collateral.
#[derive(Clone)]
pub struct Pccs(Arc<TestRoot>);

impl Fetch for Pccs {
    fn fetch(&self, _platform: PlatformId) -> BoxFuture<'_, Result<Vec<u8>, String>> {
        let collateral = self.0.collateral(&Claims::up_to_date(OffsetDateTime::now_utc())).unwrap();
        Box::pin(async move { Ok(serde_json::to_vec(&collateral).unwrap()) })
    }
}

/// An authority with a fixed key.
pub struct Authority {
    key: KeyPair,
    params: CertificateParams,
}

impl Authority {
    pub fn new(scalar: u8, name: &str, extensions: Vec<rcgen::CustomExtension>) -> Self {
        let pkcs8 = derive::pkcs8(&Secret::from([scalar; 32])).unwrap();
        let key = KeyPair::try_from(pkcs8.as_slice()).unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        params.custom_extensions = extensions;
        Self { key, params }
    }

    pub fn public_key(&self) -> Vec<u8> {
        rcgen::PublicKeyData::subject_public_key_info(&self.key)
    }

    pub fn certificate(&self) -> Vec<u8> {
        self.params.self_signed(&self.key).unwrap().der().to_vec()
    }

    /// A leaf for a key (SubjectPublicKeyInfo).
    fn issue(&self, public_key: &[u8], change: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let now = OffsetDateTime::now_utc();
        (params.not_before, params.not_after) = (now - Duration::HOUR, now + Duration::days(1));
        change(&mut params);
        let key = SubjectPublicKeyInfo::from_der(public_key).unwrap();
        let issuer = Issuer::from_params(&self.params, &self.key);
        params.signed_by(&key, &issuer).unwrap().der().to_vec()
    }
}

/// A key service that signs for any app whose boot has ended.
#[derive(Clone)]
struct SignCert {
    root: Arc<Authority>,
    session: Session,
    signed: Arc<AtomicUsize>,
}

impl Service for SignCert {
    const NAMES: &'static [&'static str] = &["KMS"];

    async fn call(&self, call: Call) -> Result<Vec<u8>, RpcError> {
        assert_eq!(call.method, "SignCert");
        let app = self.session.peer()?.app_id.unwrap();
        let request: SignCertRequest = call.args()?;
        let csr = Csr::parse(&request.csr).map_err(|e| RpcError::failed(e.to_string()))?;
        assert!(ecdsa::verify(&csr.public_key, &request.csr, &request.signature));
        let leaf = self.root.issue(&csr.public_key, |params| {
            params.distinguished_name.push(DnType::CommonName, csr.config.subject.as_str());
            let names = csr.config.subject_alt_names.iter().map(|name| name.as_str().try_into().unwrap());
            params.subject_alt_names = names.map(SanType::DnsName).collect();
            let date =
                |seconds: u64| OffsetDateTime::from_unix_timestamp(seconds.try_into().unwrap()).unwrap();
            params.not_before = csr.config.not_before.map_or(params.not_before, date);
            params.not_after = csr.config.not_after.map_or(params.not_after, date);
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            params.custom_extensions =
                vec![extension(&OID_USAGE, b"app:custom"), extension(&OID_APP_ID, app.as_bytes())];
            if csr.config.ext_quote {
                let evidence = [
                    (dstack_ra_tls::certificate::OID_QUOTE, &csr.quote),
                    (dstack_ra_tls::certificate::OID_EVENT_LOG, &csr.event_log),
                ];
                params.custom_extensions.extend(evidence.map(|(oid, bytes)| extension(&oid, bytes)));
            }
        });
        self.signed.fetch_add(1, Ordering::SeqCst);
        let chain = [leaf, self.root.certificate()];
        call.reply(&SignCertResponse { certificate_chain: chain.map(|c| to_pem("CERTIFICATE", &c)).into() })
    }
}

/// Ends with its test.
pub struct World {
    pub directory: tempfile::TempDir,
    pub root: Arc<TestRoot>,
    /// Certificates that the key service has signed.
    pub signed: Arc<AtomicUsize>,
    kms: Option<(Arc<Authority>, u16)>,
    runtime: Option<Runtime>,
}

impl Drop for World {
    fn drop(&mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }
}

impl World {
    /// A guest whose boot has recorded this many events.
    pub fn new(provider: Provider, recorded: usize) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let stored = pki::generate(OffsetDateTime::now_utc()).unwrap();
        let root = Arc::new(TestRoot::load(&stored).unwrap());
        let mut world = Self { directory, root, signed: Arc::default(), kms: None, runtime: Some(runtime) };
        for path in [world.private(), world.path("registry"), world.path("credentials")] {
            std::fs::create_dir_all(&path).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
        }
        world.quote_sim(TestRoot::load(&stored).unwrap());
        world.boot(provider, recorded);
        if provider == Provider::Kms {
            world.key_service();
        }
        world.files();
        std::fs::write(world.path("credentials/app-keys"), world.keys().to_json().unwrap()).unwrap();
        world
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn run(&self) -> PathBuf {
        self.path("run")
    }

    pub fn private(&self) -> PathBuf {
        self.path("run/private")
    }

    pub fn socket(&self) -> PathBuf {
        self.path("quote-sim.sock")
    }

    pub fn verifier(&self) -> Verifier {
        let roots = Roots::test(self.root.certificate().to_vec());
        Verifier::new(roots, Policy::default(), Cache::new(None, Pccs(Arc::clone(&self.root))))
    }

    fn quote_sim(&self, root: TestRoot) {
        let runtime = self.runtime.as_ref().unwrap();
        let stored = Registry::new(self.path("registry"));
        let tee = Arc::new(Tee::new(root, OneVm, stored));
        let _context = runtime.enter();
        let listener = UnixListener::bind(self.socket()).unwrap();
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let tee = Arc::clone(&tee);
                tokio::spawn(async move { tee.serve(stream, Caller::Process(1), || true).await });
            }
        });
    }

    pub fn platform(&self) -> Arc<dyn Platform> {
        Arc::new(Simulated::new(Unix(self.socket())))
    }

    pub fn attestor(&self) -> Attestor {
        let socket = self.socket();
        let detect: Detect = Arc::new(move || Ok(Box::new(Simulated::new(Unix(socket.clone())))));
        Attestor::new(&self.private(), detect)
    }

    /// What dstack-prepare records.
    fn boot(&self, provider: Provider, recorded: usize) {
        let (hash, app) = (compose_hash(), app_id());
        let instance = hex::decode(INSTANCE).unwrap();
        let name = if provider == Provider::Kms { "kms" } else { "none" };
        let provider = format!(r#"{{"name":"{name}","id":""}}"#);
        let payloads: [&[u8]; 10] = [
            b"",
            app.as_bytes(),
            hash.as_bytes(),
            &instance,
            b"",
            &OS_IMAGE,
            &[6; 32],
            provider.as_bytes(),
            b"ext4",
            b"",
        ];
        if recorded > 0 {
            let mut log = EventLog::open(&self.private(), self.platform()).unwrap();
            for (name, payload) in TRUSTED.iter().zip(payloads).take(recorded) {
                log.append(name, payload).unwrap();
            }
        }
    }

    fn files(&self) {
        std::fs::write(self.run().join("app-compose.json"), COMPOSE).unwrap();
        let instance = format!(r#"{{"app_id":"{}","instance_id":"{INSTANCE}"}}"#, app_id());
        std::fs::write(self.run().join("instance.json"), instance).unwrap();
    }

    fn key_service(&mut self) {
        let realm = Roots::test(self.root.certificate().to_vec()).realm().clone();
        let extensions = realm_extensions(&realm, Custody::Host).to_vec();
        let root = Arc::new(Authority::new(0x11, "KMS root", extensions));
        let pkcs8 = derive::pkcs8(&Secret::from([0x12; 32])).unwrap();
        let public = derive::p256(&Secret::from([0x12; 32])).unwrap().public_key_to_der().unwrap();
        let leaf = root.issue(&public, |params| {
            params.custom_extensions = vec![extension(&OID_USAGE, b"kms:rpc")];
        });
        let identity = Identity::new(vec![leaf, root.certificate()], Zeroizing::new(pkcs8.to_vec()));
        let config = Arc::new(server_config(&identity).unwrap());
        let server = Server::new(config, Arc::new(self.verifier()), Rules::attested(Some(Milestone::Ready)));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (authority, signed) = (Arc::clone(&root), Arc::clone(&self.signed));
        let router = move |session: Session| {
            let service = SignCert { root: Arc::clone(&authority), session, signed: Arc::clone(&signed) };
            dstack_rpc::router("/prpc", Arc::new(service))
        };
        let runtime = self.runtime.as_ref().unwrap();
        let _context = runtime.enter();
        let listener = Listener::Tcp(TcpListener::from_std(listener).unwrap());
        runtime.spawn(serve(listener, server, router, std::future::pending()));
        self.kms = Some((root, port));
    }

    /// What dstack-prepare hands over.
    pub fn keys(&self) -> AppKeys {
        let roots = derive::Roots { ca: Secret::from([0x11; 32]), k256: Secret::from([0x22; 32]) };
        let k256_key = roots.app_key(&app_id()).unwrap();
        let message = sign::app_key_message(&app_id(), &sign::public_key(&k256_key).unwrap());
        let kms = self.kms.as_ref();
        let ephemeral = Authority::new(0x44, "App CA of this boot", Vec::new());
        let ca = kms.map_or_else(|| ephemeral.certificate(), |(root, _)| root.certificate());
        let signature = kms.map(|_| hex::encode(sign::sign(&roots.k256, &message).unwrap()));
        AppKeys {
            version: VERSION,
            provider: if kms.is_some() { Provider::Kms } else { Provider::None },
            provider_id: kms.map(|(root, _)| hex::encode(root.public_key())).unwrap_or_default(),
            // The first is nobody's: each is tried.
            kms_urls: kms.map_or(Vec::new(), |(_, port)| {
                vec!["https://127.0.0.1:1".into(), format!("https://127.0.0.1:{port}/prpc")]
            }),
            ca_cert: to_pem("CERTIFICATE", &ca),
            ca_key: kms.is_none().then(|| Secret::from([0x44; 32])),
            k256_key,
            k256_signature: signature.unwrap_or_default(),
            gateway_app_id: String::new(),
            os_image_hash: hex::encode(OS_IMAGE),
            vm_config: VM_CONFIG.into(),
        }
    }

    /// `tappd.toml` for this world.
    pub fn settings(&self, journal: Option<&Path>) -> String {
        let journal = journal.map(|j| format!("journal_directory = {j:?}\n")).unwrap_or_default();
        format!(
            "run_directory = {:?}\nsimulated_socket = {:?}\ndocker_socket = \"/nonexistent\"\n{journal}",
            self.run(),
            self.socket()
        )
    }
}
