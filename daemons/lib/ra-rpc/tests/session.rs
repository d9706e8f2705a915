// SPDX-License-Identifier: Apache-2.0
//! Clients and servers with evidence of a test root, over real sockets.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use axum::Router;
use dstack_core::event_log::{self, Event, Milestone, TRUSTED};
use dstack_core::ids::{AppId, ComposeHash};
use dstack_core::spec::mr_config_id;
use dstack_quote_sim::collateral::Claims;
use dstack_quote_sim::pki::{self, Stored, TestRoot};
use dstack_quote_sim::quote::TdReport;
use dstack_ra_rpc::collateral::{Cache, Fetch, Offline, PlatformId};
use dstack_ra_rpc::peer::{Anchor, BoxFuture, Rules, VERDICT_TTL, Verifier};
use dstack_ra_rpc::tls::{Identity, client_config, server_config};
use dstack_ra_rpc::{ConnectError, Connection, PeerError, Server, Session, connect, serve};
use dstack_ra_tls::certificate::{AttestedKey, OID_APP_ID, OID_USAGE, Usage, extension, report_data};
use dstack_ra_tls::{Policy, Roots};
use dstack_rpc::{Call, ClientError, Listener, RpcError, Service};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, PublicKeyData,
};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime};
use time::OffsetDateTime;
use tokio::net::{UnixListener, UnixStream};
use zeroize::Zeroizing;

static STORED: LazyLock<Stored> = LazyLock::new(|| pki::generate(OffsetDateTime::now_utc()).unwrap());
static ROOT: LazyLock<TestRoot> = LazyLock::new(|| TestRoot::load(&STORED).unwrap());

const HOUR: Duration = Duration::from_secs(3600);

/// Serves the test root's collateral, and counts.
#[derive(Clone, Default)]
struct Pccs(Arc<AtomicUsize>);

impl Fetch for Pccs {
    fn fetch(&self, _platform: PlatformId) -> BoxFuture<'_, Result<Vec<u8>, String>> {
        self.0.fetch_add(1, Ordering::SeqCst);
        let collateral = ROOT.collateral(&Claims::up_to_date(OffsetDateTime::now_utc())).unwrap();
        Box::pin(async move { Ok(serde_json::to_vec(&collateral).unwrap()) })
    }
}

fn verifier() -> Verifier {
    let roots = Roots::test(ROOT.certificate().to_vec());
    Verifier::new(roots, Policy::default(), Cache::new(None, Pccs::default()))
}

fn compose() -> ComposeHash {
    ComposeHash::of(b"{}")
}

/// The log of a boot that came this far.
fn events(count: usize) -> Vec<Event> {
    let (compose, app) = (compose(), compose().app_id());
    let payloads: [&[u8]; 10] =
        [b"", app.as_bytes(), compose.as_bytes(), &[3; 20], b"", &[5; 32], &[6; 32], b"{}", b"ext4", b""];
    TRUSTED.iter().zip(payloads).take(count).map(|(n, p)| Event::runtime(n, p).unwrap()).collect()
}

/// Quote and log of a VM that holds this key.
fn evidence(public_key: &[u8], events: &[Event]) -> (Vec<u8>, Vec<u8>) {
    let mut report = TdReport { report_data: report_data(public_key), ..TdReport::default() };
    report.rtmr[3] = event_log::replay(events).unwrap()[3];
    report.mr_config_id.copy_from_slice(&hex::decode(mr_config_id(&compose())).unwrap());
    (ROOT.quote(&report), serde_json::to_vec(events).unwrap())
}

fn attested(count: usize) -> Identity {
    let key = AttestedKey::generate().unwrap();
    let (quote, log) = evidence(&key.public_key(), &events(count));
    let certificate = key.self_signed("app", &quote, &log, SystemTime::now(), HOUR).unwrap();
    Identity::attested(&key, certificate)
}

/// An authority that issues what it is told.
struct Authority {
    key: KeyPair,
    params: CertificateParams,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        Self { key: KeyPair::generate().unwrap(), params }
    }

    fn anchor(&self) -> Anchor {
        Anchor::pinned(self.key.subject_public_key_info())
    }

    fn certificate(&self) -> Vec<u8> {
        self.params.self_signed(&self.key).unwrap().der().to_vec()
    }

    fn issue(&self, change: impl FnOnce(&mut CertificateParams, &[u8])) -> Identity {
        self.issue_under(self.certificate(), change)
    }

    /// A leaf that this authority signed, sent with that root.
    fn issue_under(&self, root: Vec<u8>, change: impl FnOnce(&mut CertificateParams, &[u8])) -> Identity {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        let now = OffsetDateTime::now_utc();
        (params.not_before, params.not_after) = (now - HOUR, now + 12 * HOUR);
        change(&mut params, &key.subject_public_key_info());
        let leaf = params.signed_by(&key, &Issuer::from_params(&self.params, &self.key)).unwrap();
        Identity::new(vec![leaf.der().to_vec(), root], Zeroizing::new(key.serialize_der()))
    }

    fn issue_for(&self, usage: Usage) -> Identity {
        self.issue(|params, _| {
            params.custom_extensions = vec![extension(&OID_USAGE, usage.text().as_bytes())]
        })
    }
}

/// Tells the caller's app id.
struct WhoAmI(Session);

impl Service for WhoAmI {
    const NAMES: &'static [&'static str] = &["KMS"];

    async fn call(&self, call: Call) -> Result<Vec<u8>, RpcError> {
        match call.method.as_str() {
            "Public" => call.reply(&"open".to_owned()),
            "WhoAmI" => call.reply(&self.0.peer()?.app_id.map(|id| id.to_string()).unwrap_or_default()),
            other => Err(RpcError::unknown_method(other)),
        }
    }
}

/// A server on a Unix socket, and the rules by which its clients judge it.
struct Bench {
    dir: tempfile::TempDir,
    kms: Authority,
    verifier: Arc<Verifier>,
    /// Each connection that was judged.
    judged: Arc<tokio::sync::Notify>,
    _stop: tokio::sync::oneshot::Sender<()>,
}

impl Bench {
    fn new(client_rules: Rules) -> Self {
        Self::with(client_rules, verifier(), None)
    }

    fn with(client_rules: Rules, verifier: Verifier, identity: Option<Identity>) -> Self {
        let (dir, kms) = (tempfile::tempdir().unwrap(), Authority::new());
        let verifier = Arc::new(verifier);
        let identity = identity.unwrap_or_else(|| kms.issue_for(Usage::KmsRpc));
        let config = Arc::new(server_config(&identity).unwrap());
        let server = Server::new(config, Arc::clone(&verifier), client_rules);
        let listener = Listener::Unix(UnixListener::bind(dir.path().join("s")).unwrap());
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let judged = Arc::new(tokio::sync::Notify::new());
        let told = Arc::clone(&judged);
        let router = move |session: Session| -> Router {
            told.notify_one();
            dstack_rpc::router("/prpc", Arc::new(WhoAmI(session)))
        };
        tokio::spawn(serve(listener, server, router, async { drop(stopped.await) }));
        Self { dir, kms, verifier, judged, _stop: stop }
    }

    async fn connect(&self, identity: Option<&Identity>) -> Result<Connection<UnixStream>, ConnectError> {
        let rules = Rules::issued(self.kms.anchor(), vec![Usage::KmsRpc]);
        self.connect_by(identity, &rules).await
    }

    async fn connect_by(
        &self,
        identity: Option<&Identity>,
        rules: &Rules,
    ) -> Result<Connection<UnixStream>, ConnectError> {
        let stream = UnixStream::connect(self.dir.path().join("s")).await.unwrap();
        connect(stream, Arc::new(client_config(identity).unwrap()), &self.verifier, rules).await
    }

    async fn ask(&self, identity: Option<&Identity>, method: &str) -> Result<String, ClientError> {
        let connection = self.connect(identity).await.unwrap();
        connection.call(&format!("/prpc/KMS.{method}?json"), &()).await
    }
}

fn reason(result: Result<String, ClientError>) -> String {
    match result {
        Err(ClientError::Remote { status, message }) if status == 403 => message,
        other => panic!("{other:?}"),
    }
}

fn refused<T: std::fmt::Debug>(result: Result<T, ConnectError>) -> PeerError {
    match result {
        Err(ConnectError::Peer(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_attested_client_is_who_its_verdict_says() {
    let bench = Bench::new(Rules::attested(Some(Milestone::KeysWanted)));
    assert_eq!(bench.ask(Some(&attested(7)), "WhoAmI").await.unwrap(), compose().app_id().to_string());
    assert_eq!(bench.ask(None, "Public").await.unwrap(), "open");
    assert!(reason(bench.ask(None, "WhoAmI").await).contains("no certificate"));
}

#[tokio::test]
async fn t07_root_keys_are_for_a_boot_that_wants_them_now() {
    let bench = Bench::new(Rules::attested(Some(Milestone::KeysWanted)));
    assert!(
        reason(bench.ask(Some(&attested(10)), "WhoAmI").await).contains("point at which this may be asked")
    );
    let ready = Bench::new(Rules::attested(Some(Milestone::Ready)));
    assert!(ready.ask(Some(&attested(10)), "WhoAmI").await.is_ok());
    assert!(reason(ready.ask(Some(&attested(7)), "WhoAmI").await).contains("point at which"));
}

#[tokio::test]
async fn p23_evidence_of_another_key_is_nobodys() {
    let bench = Bench::new(Rules::attested(None));
    let (mine, other) = (AttestedKey::generate().unwrap(), AttestedKey::generate().unwrap());
    let (quote, log) = evidence(&other.public_key(), &events(7));
    let certificate = mine.self_signed("app", &quote, &log, SystemTime::now(), HOUR).unwrap();
    let reason = reason(bench.ask(Some(&Identity::attested(&mine, certificate.clone())), "WhoAmI").await);
    assert!(reason.contains("does not bind the key"), "{reason}");
    // A certificate without its key does not pass the handshake.
    let stolen = Identity::attested(&other, certificate);
    assert!(client_config(Some(&stolen)).is_err());
}

#[tokio::test]
async fn p21_nothing_but_evidence_makes_a_client() {
    let bench = Bench::new(Rules::attested(None));
    let bare = bench.kms.issue_for(Usage::AppCustom);
    assert!(reason(bench.ask(Some(&bare), "WhoAmI").await).contains("no quote"));
}

#[tokio::test]
async fn p22_a_certificate_for_an_app_is_no_kms() {
    let kms = Authority::new();
    let server = kms.issue_for(Usage::AppCustom);
    let bench = Bench::with(Rules::attested(None), verifier(), Some(server));
    let rules = Rules::issued(kms.anchor(), vec![Usage::KmsRpc]);
    let error = refused(bench.connect_by(None, &rules).await);
    assert!(matches!(error, PeerError::Usage { found: "app:custom", .. }), "{error}");
    let rules = Rules::issued(kms.anchor(), vec![Usage::AppCustom]);
    assert!(bench.connect_by(None, &rules).await.is_ok());
}

#[tokio::test]
async fn t03_the_kms_is_the_one_that_is_pinned() {
    let bench = Bench::new(Rules::attested(None));
    let other = Rules::issued(Authority::new().anchor(), vec![Usage::KmsRpc]);
    assert!(matches!(refused(bench.connect_by(None, &other).await), PeerError::Authority));
    // An attacker who appends the real authority's certificate does not get its signature.
    let (real, fake) = (Authority::new(), Authority::new());
    let forged = fake.issue_under(real.certificate(), |params, _| {
        params.custom_extensions = vec![extension(&OID_USAGE, b"kms:rpc")];
    });
    let bench = Bench::with(Rules::attested(None), verifier(), Some(forged));
    let rules = Rules::issued(real.anchor(), vec![Usage::KmsRpc]);
    assert!(matches!(refused(bench.connect_by(None, &rules).await), PeerError::Path(_)));
}

#[tokio::test]
async fn t20_usages_of_a_self_signed_certificate_count_for_nothing() {
    let key = KeyPair::generate().unwrap();
    let (quote, log) = evidence(&key.subject_public_key_info(), &events(10));
    let mut params = CertificateParams::default();
    let now = OffsetDateTime::now_utc();
    (params.not_before, params.not_after) = (now - HOUR, now + HOUR);
    params.custom_extensions = vec![
        extension(&dstack_ra_tls::certificate::OID_QUOTE, &quote),
        extension(&dstack_ra_tls::certificate::OID_EVENT_LOG, &log),
        extension(&OID_USAGE, b"kms:rpc"),
        extension(&OID_APP_ID, &[0xee; 20]),
    ];
    let certificate = params.self_signed(&key).unwrap().der().to_vec();
    let identity = Identity::new(vec![certificate], Zeroizing::new(key.serialize_der()));
    let bench = Bench::with(Rules::attested(None), verifier(), Some(identity));
    let connection = bench.connect_by(None, &Rules::attested(None)).await.unwrap();
    assert_eq!(connection.peer().usage, None);
    assert_eq!(connection.peer().app_id, Some(compose().app_id()));
}

#[tokio::test]
async fn t01_an_issued_app_id_must_be_the_measured_one() {
    let bench = Bench::new(Rules::attested(None));
    let kms = Authority::new();
    let issue = |app: AppId| {
        kms.issue(|params, key| {
            let (quote, log) = evidence(key, &events(10));
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            params.custom_extensions = vec![
                extension(&dstack_ra_tls::certificate::OID_QUOTE, &quote),
                extension(&dstack_ra_tls::certificate::OID_EVENT_LOG, &log),
                extension(&OID_USAGE, b"app:custom"),
                extension(&OID_APP_ID, app.as_bytes()),
            ];
        })
    };
    let rules = Rules::issued_and_attested(kms.anchor(), vec![Usage::AppCustom], Some(Milestone::Ready));
    for (app, good) in [(compose().app_id(), true), (AppId::from([0xee; 20]), false)] {
        let other = Bench::with(Rules::attested(None), verifier(), Some(issue(app)));
        match other.connect_by(None, &rules).await {
            Ok(connection) => assert!(good && connection.peer().verdict.is_some()),
            Err(error) => assert!(!good && matches!(error, ConnectError::Peer(PeerError::AppId)), "{error}"),
        }
    }
    drop(bench);
}

#[tokio::test]
async fn p24_old_and_eternal_certificates_are_refused() {
    let bench = Bench::new(Rules::attested(None));
    let key = AttestedKey::generate().unwrap();
    let (quote, log) = evidence(&key.public_key(), &events(7));
    let now = SystemTime::now();
    let cases = [
        (now - 10 * HOUR, 5 * HOUR, "expired"),
        (now + 10 * HOUR, HOUR, "not valid yet"),
        (now, 24 * 365 * HOUR, "more than 7 days"),
    ];
    for (from, validity, expected) in cases {
        let certificate = key.self_signed("app", &quote, &log, from, validity).unwrap();
        let reason = reason(bench.ask(Some(&Identity::attested(&key, certificate)), "WhoAmI").await);
        assert!(reason.contains(expected), "{reason}");
    }
}

#[tokio::test]
async fn p24_a_verdict_gets_old_on_an_open_connection() {
    let now = Arc::new(AtomicU64::new(u64::try_from(OffsetDateTime::now_utc().unix_timestamp()).unwrap()));
    let clock = Arc::clone(&now);
    let verifier = verifier().with_clock(Arc::new(move || clock.load(Ordering::SeqCst)));
    let bench = Bench::with(Rules::attested(None), verifier, None);
    let identity = {
        let key = AttestedKey::generate().unwrap();
        let (quote, log) = evidence(&key.public_key(), &events(7));
        Identity::attested(&key, key.self_signed("app", &quote, &log, SystemTime::now(), 10 * HOUR).unwrap())
    };
    let connection = bench.connect(Some(&identity)).await.unwrap();
    bench.judged.notified().await;
    now.fetch_add(VERDICT_TTL.as_secs(), Ordering::SeqCst);
    assert!(reason(connection.call("/prpc/KMS.WhoAmI?json", &()).await).contains("connect again"));
    assert!(bench.ask(Some(&identity), "WhoAmI").await.is_ok(), "a fresh verdict");
}

#[tokio::test]
async fn t04_another_realm_is_refused_on_both_sides() {
    let other = TestRoot::load(&pki::generate(OffsetDateTime::now_utc()).unwrap()).unwrap();
    for roots in [Roots::intel(), Roots::test(other.certificate().to_vec())] {
        let cache = || Cache::new(None, Pccs::default());
        let strict = Verifier::new(roots.clone(), Policy::default(), cache());
        let bench = Bench::with(Rules::attested(None), strict, Some(attested(10)));
        let error = refused(bench.connect_by(None, &Rules::attested(None)).await);
        assert!(matches!(error, PeerError::Verify(_)), "{error}");
        let strict = Verifier::new(roots, Policy::default(), cache());
        let bench = Bench::with(Rules::attested(None), strict, None);
        let reason = reason(bench.ask(Some(&attested(7)), "WhoAmI").await);
        assert!(reason.contains("does not stand under root"), "{reason}");
    }
}

#[tokio::test]
async fn p15_chains_have_limits() {
    let bench = Bench::new(Rules::attested(None));
    let kms = Authority::new();
    let root = kms.certificate();
    let key = AttestedKey::generate().unwrap();
    let (quote, log) = evidence(&key.public_key(), &events(7));
    let leaf = key.self_signed("app", &quote, &log, SystemTime::now(), HOUR).unwrap();
    let long = std::iter::once(leaf).chain(std::iter::repeat_n(root, 4)).collect();
    let identity = Identity::new(long, Zeroizing::new(key.expose_pkcs8()));
    let connection = bench.connect(Some(&identity)).await.unwrap();
    // TLS 1.3 tells a client of its refusal with the first read.
    assert!(connection.call::<_, String>("/prpc/KMS.Public?json", &()).await.is_err());
}

#[tokio::test]
async fn collateral_is_fetched_once_and_used_offline() {
    let dir = tempfile::tempdir().unwrap();
    let (pccs, now) = (Pccs::default(), SystemTime::now());
    let (quote, _) = evidence(b"key", &events(7));
    let cache = Cache::new(Some(dir.path().to_owned()), pccs.clone());
    for _ in 0..3 {
        cache.get(&quote, now).await.unwrap();
    }
    assert_eq!(pccs.0.load(Ordering::SeqCst), 1);
    cache.get(&quote, now + 7 * HOUR).await.unwrap();
    assert_eq!(pccs.0.load(Ordering::SeqCst), 2);
    assert_eq!(cache.refresh(now + 8 * HOUR).await, 0);
    assert_eq!(pccs.0.load(Ordering::SeqCst), 3);
    let name = format!("{}.json", PlatformId::of(&quote).unwrap());
    assert!(dir.path().join(&name).exists(), "{name}");
    let offline = Cache::new(Some(dir.path().to_owned()), Offline);
    assert!(offline.get(&quote, now + 100 * HOUR).await.is_ok());
    assert_eq!(offline.refresh(now).await, 1);
    let nothing = Cache::new(None, Offline).get(&quote, now).await.unwrap_err();
    assert!(nothing.to_string().contains("no server is set up"), "{nothing}");
    assert!(Cache::new(None, Offline).get(b"no quote", now).await.is_err());
    std::fs::write(dir.path().join(&name), "{").unwrap();
    assert!(Cache::new(Some(dir.path().to_owned()), Offline).get(&quote, now).await.is_err());
}
