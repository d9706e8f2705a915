// SPDX-License-Identifier: Apache-2.0
//! A key service with known roots: `org.dstack.kms1` on the bus, and a real RA-TLS server.

use super::bus::Bus;
use dstack_core::ids::AppId;
use dstack_keys::derive::{Roots, x25519_public};
use dstack_keys::env::{Variables, decrypt};
use dstack_keys::sign::{PublicKey, env_key_message, public_key, release_head_message, sign};
use dstack_keys::{Secret, ed25519};
use dstack_ra_rpc::collateral::{Cache, Offline};
use dstack_ra_rpc::tls::{Identity, server_config};
use dstack_ra_rpc::{Rules, Server, Session, Verifier, serve};
use dstack_ra_tls::certificate::{Custody, OID_USAGE, Usage, extension, realm_extensions};
use dstack_ra_tls::{Label, Policy, Roots as TrustRoots};
use dstack_rpc::kms::{
    AppId as AppIdMessage, GetMetaResponse, GetReleaseLogResponse, PublicKeyResponse, SubmitUpgradeRequest,
};
use dstack_rpc::{Call, Listener, RpcError, Service};
use dstack_service::api::kms1::{Error, ForecastRow, NAME, OwnedOptions, PATH, ReleaseRow, UpgradeRow};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, PublicKeyData};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use time::OffsetDateTime;
use zbus::{Connection, OwnedVariant, Variant, interface};
use zeroize::Zeroizing;

const HOUR: Duration = Duration::from_secs(3600);

/// What the key service has seen and is.
pub struct Kms {
    pub roots: Roots,
    ca: KeyPair,
    ca_params: CertificateParams,
    custody: Custody,
    /// As the operator would see it.
    pub state: Mutex<State>,
}

#[derive(Debug, Default)]
pub struct State {
    pub bootstrapped: bool,
    /// Signs environment keys by another root.
    pub forges: bool,
    /// Tells this in GetMeta instead of the truth.
    pub lies: Option<fn(&mut GetMetaResponse)>,
    pub upgrades: Vec<UpgradeRow>,
    pub calls: Vec<String>,
    pub address: String,
    /// The realm of its machine, when it is another than usual.
    pub realm: Option<&'static str>,
    /// Why it serves nobody although it has keys.
    pub refused: Option<&'static str>,
}

impl std::fmt::Debug for Kms {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Kms({:?})", self.state)
    }
}

impl Kms {
    pub fn new() -> Arc<Self> {
        Self::with_custody(Custody::Host)
    }

    pub fn with_custody(custody: Custody) -> Arc<Self> {
        let mut ca_params = CertificateParams::default();
        ca_params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        ca_params.custom_extensions =
            realm_extensions(&Label::Test("0011223344556677".into()), custody).to_vec();
        let roots = Roots { ca: Secret::from([0x11; 32]), k256: Secret::from([0x22; 32]) };
        let state = State { bootstrapped: true, address: "https://10.0.0.7:9043".into(), ..State::default() };
        let ca = KeyPair::generate().unwrap();
        Arc::new(Self { roots, ca, ca_params, custody, state: Mutex::new(state) })
    }

    pub fn ca_public_key(&self) -> Vec<u8> {
        self.ca.subject_public_key_info()
    }

    pub fn fingerprint(&self) -> String {
        use sha2::Digest;
        hex::encode(sha2::Sha256::digest(self.ca_public_key()))
    }

    fn k256(&self) -> PublicKey {
        public_key(&self.roots.k256).unwrap()
    }

    /// What an app's guest would decrypt.
    pub fn open(&self, app: &AppId, blob: &[u8]) -> Variables {
        decrypt(blob, &self.roots.env_secret(app).unwrap()).unwrap()
    }

    fn env_key(&self, app: &AppId) -> (Vec<u8>, Vec<u8>) {
        let key = x25519_public(&self.roots.env_secret(app).unwrap()).unwrap();
        let signer = if self.state.lock().unwrap().forges {
            Secret::from([0x33; 32])
        } else {
            self.roots.k256.clone()
        };
        (key.to_vec(), sign(&signer, &env_key_message(app, &key)).unwrap().to_vec())
    }

    fn saw(&self, call: impl Into<String>) {
        self.state.lock().unwrap().calls.push(call.into());
    }

    pub fn called(&self, call: &str) -> bool {
        self.state.lock().unwrap().calls.iter().any(|c| c == call)
    }

    fn identity(&self, usage: Usage) -> Identity {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        let now = OffsetDateTime::now_utc();
        (params.not_before, params.not_after) = (now - HOUR, now + 12 * HOUR);
        params.custom_extensions = vec![extension(&OID_USAGE, usage.text().as_bytes())];
        let leaf = params.signed_by(&key, &Issuer::from_params(&self.ca_params, &self.ca)).unwrap();
        let root = self.ca_params.self_signed(&self.ca).unwrap();
        Identity::new(vec![leaf.der().to_vec(), root.der().to_vec()], Zeroizing::new(key.serialize_der()))
    }

    /// Serves over RA-TLS; the URL.
    pub async fn serve(self: &Arc<Self>) -> String {
        self.serve_as(Usage::KmsRpc).await
    }

    pub async fn serve_as(self: &Arc<Self>, usage: Usage) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let config = Arc::new(server_config(&self.identity(usage)).unwrap());
        let verifier = Verifier::new(TrustRoots::intel(), Policy::default(), Cache::new(None, Offline));
        let server = Server::new(config, Arc::new(verifier), Rules::attested(None));
        let kms = Arc::clone(self);
        let router = move |_: Session| dstack_rpc::router("/prpc", Arc::new(Rpc(Arc::clone(&kms))));
        tokio::spawn(serve(Listener::Tcp(listener), server, router, std::future::pending()));
        url
    }

    /// Puts it on the bus.
    pub async fn start(self: &Arc<Self>, bus: &Bus) -> Connection {
        let builder = zbus::connection::Builder::address(bus.address.as_str());
        builder.serve_at(PATH, Manager(Arc::clone(self))).name(NAME).build().await.unwrap()
    }
}

/// Says that an app's keys were refused.
pub async fn deny(bus: &Connection, app: &AppId, hash: &str) -> String {
    let reason = format!(
        "compose hash {hash} is not allowed for app {app}; allow it with: dstackctl kms allow-upgrade {app} {hash}"
    );
    let body = (app.to_string(), hash, &reason);
    bus.emit_signal(None::<&str>, PATH, "org.dstack.kms1.Manager", "KeyDenied", &body).await.unwrap();
    reason
}

struct Rpc(Arc<Kms>);

impl Service for Rpc {
    const NAMES: &'static [&'static str] = &["KMS"];

    async fn call(&self, call: Call) -> Result<Vec<u8>, RpcError> {
        let kms = &self.0;
        kms.saw(format!("rpc {}", call.method));
        match call.method.as_str() {
            "GetMeta" => {
                let mut meta = GetMetaResponse {
                    k256_pubkey: kms.k256().to_vec(),
                    realm: "test:0011223344556677".into(),
                    custody: kms.custody.text().into(),
                    ca_public_key: kms.ca_public_key(),
                    domain: "kms.test".into(),
                    ..GetMetaResponse::default()
                };
                if let Some(lie) = kms.state.lock().unwrap().lies {
                    lie(&mut meta);
                }
                call.reply(&meta)
            }
            "GetAppEnvEncryptPubKey" => {
                let args: AppIdMessage = call.args()?;
                let app = AppId::from(<[u8; 20]>::try_from(args.app_id.as_slice()).unwrap());
                let (public_key, signature) = kms.env_key(&app);
                call.reply(&PublicKeyResponse { public_key, signature, ..PublicKeyResponse::default() })
            }
            "SubmitUpgrade" => {
                let args: SubmitUpgradeRequest = call.args()?;
                kms.saw(format!("statement {}", hex::encode(&args.statement)));
                call.reply(&())
            }
            "GetReleaseLog" => {
                let hash = [7; 32];
                let entry =
                    r#"{"seq":1,"time":1700000000,"kind":"denied","compose_hash":"aa","reason":"why"}"#;
                let signer = if kms.state.lock().unwrap().forges { [0x33; 32] } else { [0x22; 32] };
                call.reply(&GetReleaseLogResponse {
                    entries: vec![entry.to_owned()],
                    head_seq: 1,
                    head_hash: hash.to_vec(),
                    head_signature: sign(&Secret::from(signer), &release_head_message(1, &hash))
                        .unwrap()
                        .to_vec(),
                    more: false,
                })
            }
            other => Err(RpcError::unknown_method(other)),
        }
    }
}

struct Manager(Arc<Kms>);

#[interface(name = "org.dstack.kms1.Manager")]
impl Manager {
    fn bootstrap(&self, domain: String, options: OwnedOptions) -> Result<String, Error> {
        assert!(options.is_empty());
        self.0.saw(format!("Bootstrap {domain}"));
        let mut state = self.0.state.lock().unwrap();
        if state.bootstrapped {
            return Err(Error::AlreadyBootstrapped("there are root keys already".into()));
        }
        state.bootstrapped = true;
        Ok(hex::encode(self.0.ca_public_key()))
    }

    fn allow_upgrade(&self, app: String, hash: String) -> Result<(), Error> {
        self.0.saw(format!("AllowUpgrade {app} {hash}"));
        self.0.state.lock().unwrap().upgrades.push((hash, "operator".into(), 0));
        Ok(())
    }

    fn revoke_upgrade(&self, app: String, hash: String) -> Result<(), Error> {
        self.0.saw(format!("RevokeUpgrade {app} {hash}"));
        Err(Error::NoSuchUpgrade(format!("compose hash {hash} is not allowed for app {app}")))
    }

    fn forget_disk(&self, app: String, instance: String) {
        self.0.saw(format!("ForgetDisk {app} {instance}"));
    }

    fn list_upgrades(&self, _app: String) -> Vec<UpgradeRow> {
        self.0.state.lock().unwrap().upgrades.clone()
    }

    fn submit_upgrade(&self, json: String) -> Result<(), Error> {
        let signed = dstack_core::upgrade::Signed::parse(json.as_bytes())
            .map_err(|e| Error::StatementRefused(e.to_string()))?;
        let message = signed.statement.to_bytes();
        let good = signed.signatures.iter().all(|s| ed25519::verify(&s.key, &message, &s.signature).unwrap());
        assert!(good && !signed.signatures.is_empty());
        self.0.saw(format!("SubmitUpgrade {}", signed.statement.seq));
        Ok(())
    }

    fn get_app_env_key(&self, app: String) -> Result<(Vec<u8>, Vec<u8>), Error> {
        self.0.saw(format!("GetAppEnvKey {app}"));
        if let Some(reason) = self.0.state.lock().unwrap().refused {
            return Err(Error::Misconfigured(reason.into()));
        }
        Ok(self.0.env_key(&app.parse().unwrap()))
    }

    fn get_release_log(&self, _app: String, after: u64, _limit: u32) -> Vec<ReleaseRow> {
        let value = |v: Variant<'static>| OwnedVariant::try_from(v).unwrap();
        let row: ReleaseRow = [
            ("seq".to_owned(), value((after + 1).into())),
            ("time".to_owned(), value(1_700_000_000_u64.into())),
            ("kind".to_owned(), value("released".into())),
            ("instance".to_owned(), value("77".repeat(20).into())),
            ("compose_hash".to_owned(), value("aa".repeat(32).into())),
            ("reason".to_owned(), value("".into())),
        ]
        .into();
        vec![row]
    }

    fn forecast(&self) -> Vec<ForecastRow> {
        let value = |v: Variant<'static>| OwnedVariant::try_from(v).unwrap();
        let row = |when: u64, cause: &'static str| -> ForecastRow {
            [
                ("when".to_owned(), value(when.into())),
                ("app".to_owned(), value("11".repeat(20).into())),
                ("instance".to_owned(), value("77".repeat(20).into())),
                ("cause".to_owned(), value(cause.into())),
                ("reason".to_owned(), value("TCB status is OutOfDate".into())),
            ]
            .into()
        };
        vec![row(1_700_000_000, "refused"), row(4_102_444_800, "grace-ends")]
    }

    fn allow_peer(&self, measurement: String, ttl: u64) {
        self.0.saw(format!("AllowPeer {measurement} {ttl}"));
    }

    fn onboard(&self, source: String, options: OwnedOptions) {
        let key: String = options.get("ca_public_key").unwrap().try_clone().unwrap().try_into().unwrap();
        self.0.saw(format!("Onboard {source} {key}"));
    }

    #[zbus(property)]
    fn bootstrapped(&self) -> bool {
        self.0.state.lock().unwrap().bootstrapped
    }
    #[zbus(property)]
    fn realm(&self) -> String {
        self.0.state.lock().unwrap().realm.unwrap_or("test:0011223344556677").to_owned()
    }
    #[zbus(property)]
    fn custody(&self) -> String {
        self.0.custody.text().to_owned()
    }
    #[zbus(property)]
    fn domain(&self) -> String {
        "kms.test".to_owned()
    }
    #[zbus(property)]
    fn ca_public_key(&self) -> String {
        if self.0.state.lock().unwrap().refused.is_some() {
            return String::new();
        }
        hex::encode(self.0.ca_public_key())
    }
    #[zbus(property, name = "K256PublicKey")]
    fn k256_public_key(&self) -> String {
        hex::encode(self.0.k256())
    }
    #[zbus(property)]
    fn address(&self) -> String {
        self.0.state.lock().unwrap().address.clone()
    }
    #[zbus(property)]
    fn version(&self) -> String {
        "0.1.0".to_owned()
    }
}
