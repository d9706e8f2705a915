// SPDX-License-Identifier: Apache-2.0
//! Collateral over HTTP from a service in PCCS form, and what happens when it gives older collateral than before.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use dstack_core::event_log::{self, Event, TRUSTED};
use dstack_core::ids::ComposeHash;
use dstack_core::spec::mr_config_id;
use dstack_quote_sim::collateral::{Claims, Collateral};
use dstack_quote_sim::pccs;
use dstack_quote_sim::pki::{self, FMSPC, Stored, TestRoot};
use dstack_quote_sim::quote::TdReport;
use dstack_ra_rpc::collateral::{Cache, Fetch, Offline, PlatformId, REFRESH_AGE, SourceError};
use dstack_ra_rpc::tls::{Identity, server_config};
use dstack_ra_rpc::{Pccs, PeerError, Rules, Side, Verifier};
use dstack_ra_tls::certificate::{AttestedKey, report_data};
use dstack_ra_tls::{Policy, Roots};
use rustls::pki_types::CertificateDer;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, SystemTime};
use time::OffsetDateTime;
use tokio::net::{TcpListener, UnixListener};

static STORED: LazyLock<Stored> = LazyLock::new(|| pki::generate(OffsetDateTime::now_utc()).unwrap());
static ROOT: LazyLock<TestRoot> = LazyLock::new(|| TestRoot::load(&STORED).unwrap());
const PLATFORM: PlatformId = PlatformId(FMSPC);

/// A service whose collateral can be changed.
#[derive(Clone)]
struct Served(Arc<Mutex<Claims>>);

impl Served {
    fn new() -> Self {
        Self(Arc::new(Mutex::new(Claims::up_to_date(OffsetDateTime::now_utc()))))
    }

    fn collateral(&self) -> Result<Collateral, String> {
        ROOT.collateral(&self.0.lock().unwrap()).map_err(|e| e.to_string())
    }

    async fn on_tcp(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let served = self.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let served = served.clone();
                tokio::spawn(async move { pccs::serve(stream, || served.collateral()).await });
            }
        });
        format!("http://{address}")
    }
}

async fn fetched(url: &str) -> Result<serde_json::Value, String> {
    let json = Pccs::parse(url).unwrap().fetch(PLATFORM).await?;
    Ok(serde_json::from_slice(&json).unwrap())
}

#[tokio::test]
async fn collateral_arrives_exactly_as_it_was_signed() {
    let served = Served::new();
    let expected = served.collateral().unwrap();
    let url = served.on_tcp().await;
    let got = fetched(&format!("{url}/sgx/certification/v4/")).await.unwrap();
    assert_eq!(got["tcb_info"], expected.tcb_info);
    assert_eq!(got["qe_identity"], expected.qe_identity);
    assert_eq!(got["pck_crl_issuer_chain"], expected.pck_crl_issuer_chain);

    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let listener = UnixListener::bind(&socket).unwrap();
    let unix = served.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let served = unix.clone();
            tokio::spawn(async move { pccs::serve(stream, || served.collateral()).await });
        }
    });
    let got = fetched(&format!("unix:{}", socket.display())).await.unwrap();
    assert_eq!(got["tcb_info_issuer_chain"], expected.tcb_info_issuer_chain);
}

#[tokio::test]
async fn a_service_with_a_certificate_of_nobody_is_enough() {
    let key = AttestedKey::generate().unwrap();
    let der = key.self_signed("pccs", b"q", b"l", SystemTime::now(), Duration::from_secs(3600)).unwrap();
    let config = Arc::new(server_config(&Identity::attested(&key, der)).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let served = Served::new();
    let inner = served.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (served, config) = (inner.clone(), Arc::clone(&config));
            tokio::spawn(async move {
                let stream = tokio_rustls::TlsAcceptor::from(config).accept(stream).await.unwrap();
                pccs::serve(stream, || served.collateral()).await;
            });
        }
    });
    let got = fetched(&format!("https://localhost:{port}")).await.unwrap();
    assert_eq!(got["tcb_info"], served.collateral().unwrap().tcb_info);
}

#[tokio::test]
async fn what_is_wrong_is_named() {
    let served = Served::new();
    let url = served.on_tcp().await;
    let error = fetched(&format!("{url}/elsewhere")).await.unwrap_err();
    assert!(error.contains("/elsewhere/") && error.contains("404"), "{error}");
    let other = Pccs::parse(&url).unwrap().fetch(PlatformId([9; 6])).await.unwrap_err();
    assert!(other.contains("fmspc=090909090909") && other.contains("404"), "{other}");
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    assert!(fetched(&format!("http://{nobody}")).await.unwrap_err().contains(&nobody.to_string()));
}

/// A leaf with evidence of a finished boot.
fn leaf() -> Vec<CertificateDer<'static>> {
    let key = AttestedKey::generate().unwrap();
    let compose = ComposeHash::of(b"{}");
    let app = compose.app_id();
    let payloads: [&[u8]; 10] =
        [b"", app.as_bytes(), compose.as_bytes(), &[3; 20], b"", &[5; 32], &[6; 32], b"{}", b"ext4", b""];
    let events: Vec<Event> =
        TRUSTED.iter().zip(payloads).map(|(n, p)| Event::runtime(n, p).unwrap()).collect();
    let mut report = TdReport { report_data: report_data(&key.public_key()), ..TdReport::default() };
    report.rtmr[3] = event_log::replay(&events).unwrap()[3];
    report.mr_config_id.copy_from_slice(&hex::decode(mr_config_id(&compose)).unwrap());
    let log = serde_json::to_vec(&events).unwrap();
    let hour = Duration::from_secs(3600);
    let der = key.self_signed("app", &ROOT.quote(&report), &log, SystemTime::now(), hour).unwrap();
    vec![CertificateDer::from(der)]
}

fn verifier(directory: &std::path::Path, fetch: impl Fetch) -> Verifier {
    let roots = Roots::test(ROOT.certificate().to_vec());
    Verifier::new(roots, Policy::default(), Cache::new(Some(directory.to_owned()), fetch))
}

async fn judge(verifier: &Verifier) -> Result<(), PeerError> {
    verifier.judge(&leaf(), Side::Client, &Rules::attested(None)).await.map(drop)
}

#[tokio::test]
async fn t12_an_evaluation_never_falls() {
    let dir = tempfile::tempdir().unwrap();
    let served = Served::new();
    let url = served.on_tcp().await;
    let first = verifier(dir.path(), Pccs::parse(&url).unwrap());
    judge(&first).await.unwrap();

    // A service that gives an older evaluation: what is cached goes on being used.
    served.0.lock().unwrap().evaluation = 16;
    assert_eq!(first.collateral().refresh(SystemTime::now()).await, 1);
    judge(&first).await.unwrap();
    // The same after a restart, and also when the cache itself was put back.
    let old = ROOT.collateral(&served.0.lock().unwrap()).unwrap();
    let file = dir.path().join(format!("{PLATFORM}.json"));
    std::fs::write(&file, serde_json::to_vec(&old).unwrap()).unwrap();
    let second = verifier(dir.path(), Offline);
    let refused = judge(&second).await.unwrap_err().to_string();
    assert!(refused.contains("TCB evaluation 16 is older than 17"), "{refused}");
    // Without the file nothing is known, and nothing is taken from the service either.
    std::fs::remove_file(&file).unwrap();
    let third = verifier(dir.path(), Pccs::parse(&url).unwrap());
    let refused = judge(&third).await.unwrap_err();
    assert!(
        matches!(&refused, PeerError::Collateral(SourceError::Unavailable { reason, .. })
        if reason.contains("17 was verified before")),
        "{refused}"
    );
}

#[tokio::test]
async fn t12_the_time_is_not_before_what_was_verified() {
    let dir = tempfile::tempdir().unwrap();
    let url = Served::new().on_tcp().await;
    let first = verifier(dir.path(), Pccs::parse(&url).unwrap());
    judge(&first).await.unwrap();
    let floor = first.collateral().floors().not_earlier_than();
    let year_ago = Arc::new(|| 1_000_000);
    let second = verifier(dir.path(), Offline).with_clock(year_ago);
    assert_eq!(second.now(), floor);
    judge(&second).await.unwrap();
    // A forged text raises nothing.
    let mut forged = serde_json::to_value(Served::new().collateral().unwrap()).unwrap();
    let text = forged["tcb_info"].as_str().unwrap().replace(":17", ":99");
    forged["tcb_info"] = text.into();
    let other = tempfile::tempdir().unwrap();
    std::fs::write(other.path().join(format!("{PLATFORM}.json")), forged.to_string()).unwrap();
    let third = verifier(other.path(), Offline);
    assert!(matches!(judge(&third).await, Err(PeerError::Verify(_))));
    assert_eq!(third.collateral().floors().of(PLATFORM).evaluation_number, 0);
}

#[tokio::test]
async fn what_an_earlier_run_left_is_refreshed() {
    let dir = tempfile::tempdir().unwrap();
    let served = Served::new();
    let url = served.on_tcp().await;
    let first = verifier(dir.path(), Pccs::parse(&url).unwrap());
    judge(&first).await.unwrap();
    served.0.lock().unwrap().evaluation = 18;
    let second = verifier(dir.path(), Pccs::parse(&url).unwrap());
    assert_eq!(second.collateral().refresh(SystemTime::now() + REFRESH_AGE).await, 0);
    judge(&second).await.unwrap();
    assert_eq!(second.collateral().floors().of(PLATFORM).evaluation_number, 18);
}
