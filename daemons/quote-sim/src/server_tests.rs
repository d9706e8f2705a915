// SPDX-License-Identifier: Apache-2.0
use super::*;
use crate::launched::Launched;
use crate::pki;
use crate::registry::Run;
use dstack_core::event_log;
use dstack_core::ids::{ComposeHash, VmName};
use serde::de::DeserializeOwned;
use std::sync::Arc;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use tokio::io::DuplexStream;

static STORED: LazyLock<pki::Stored> = LazyLock::new(|| pki::generate(OffsetDateTime::now_utc()).unwrap());

/// Processes 10 and 11 are VMs `a` and `b`; so are CIDs 10 and 11. Anything else is nobody.
struct FakeHost {
    main_pid: AtomicU32,
}

impl Host for FakeHost {
    async fn identify(&self, caller: Caller) -> Result<Vm, IdentityError> {
        let (Caller::Process(number) | Caller::Cid(number)) = caller;
        let name = match number {
            10 => "a",
            11 => "b",
            _ => return Err(IdentityError::NotAVm),
        };
        let run = Run { invocation: "00".into(), main_pid: self.main_pid.load(Ordering::SeqCst) };
        Ok(Vm { name: name.parse().unwrap(), run })
    }

    async fn launched(&self, name: &VmName) -> Result<Launched, IdentityError> {
        let compose_hash = ComposeHash::of(name.as_str().as_bytes());
        Ok(Launched { measured: [[1; 48], [2; 48], [3; 48], [4; 48]], compose_hash })
    }
}

struct Bench {
    tee: Arc<Tee<FakeHost>>,
    _dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::new(dir.path().to_owned());
        let root = TestRoot::load(&STORED).unwrap();
        let tee = Arc::new(Tee::new(root, FakeHost { main_pid: AtomicU32::new(1) }, registry));
        Self { tee, _dir: dir }
    }

    fn connect(&self, caller: Caller) -> DuplexStream {
        self.connect_alive(caller, true)
    }

    fn connect_alive(&self, caller: Caller, alive: bool) -> DuplexStream {
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        let tee = Arc::clone(&self.tee);
        tokio::spawn(async move { tee.serve(theirs, caller, move || alive).await });
        ours
    }
}

async fn ask<T: DeserializeOwned>(stream: &mut DuplexStream, request: &Request) -> Result<T, WireError> {
    stream.write_all(&wire::frame(request).unwrap()).await.unwrap();
    let mut head = [0; 4];
    stream.read_exact(&mut head).await.unwrap();
    let mut body = vec![0; wire::length(head, wire::FRAME_MAX).unwrap()];
    stream.read_exact(&mut body).await.unwrap();
    wire::parse_reply(&body)
}

#[tokio::test]
async fn a_vm_extends_and_quotes_its_own_register() {
    let bench = Bench::new();
    let mut a = bench.connect(Caller::Process(10));
    let first: Registers = ask(&mut a, &Request::Registers).await.unwrap();
    assert_eq!(first.rtmr3, [0; 48]);
    let extended: Extended = ask(&mut a, &Request::Extend { digest: [7; 48] }).await.unwrap();
    assert_eq!(extended.rtmr3, event_log::extend(&[0; 48], &[7; 48]));
    let quoted: Quoted = ask(&mut a, &Request::Quote { report_data: [9; 64] }).await.unwrap();
    // Header 48, then MRTD at 136, RTMR3 at 472, report data at 520 of the report.
    assert_eq!(quoted.quote[48 + 136..][..48], first.mrtd);
    assert_eq!(quoted.quote[48 + 472..][..48], extended.rtmr3);
    assert_eq!(quoted.quote[48 + 520..][..64], [9; 64]);
    // The same VM by its CID has the same register, another VM its own.
    let again: Registers = ask(&mut bench.connect(Caller::Cid(10)), &Request::Registers).await.unwrap();
    assert_eq!(again.rtmr3, extended.rtmr3);
    let other: Registers = ask(&mut bench.connect(Caller::Process(11)), &Request::Registers).await.unwrap();
    assert_eq!(other.rtmr3, [0; 48]);
    assert_ne!(other.mr_config_id, again.mr_config_id);
}

#[tokio::test]
async fn t04_whoever_is_no_vm_gets_no_quote() {
    let bench = Bench::new();
    for caller in [Caller::Process(1), Caller::Cid(99)] {
        let mut stream = bench.connect(caller);
        for request in
            [Request::Quote { report_data: [0; 64] }, Request::Extend { digest: [0; 48] }, Request::Registers]
        {
            let refused = ask::<serde_json::Value>(&mut stream, &request).await;
            assert!(matches!(refused, Err(WireError::Refused(_))), "{refused:?}");
        }
        assert!(ask::<Certified>(&mut stream, &Request::Collateral).await.is_ok(), "anybody may verify");
    }
    let mut gone = bench.connect_alive(Caller::Process(10), false);
    assert!(ask::<Registers>(&mut gone, &Request::Registers).await.is_err(), "a number that was given away");
}

#[tokio::test]
async fn t14_another_process_of_the_vm_starts_from_zero() {
    let bench = Bench::new();
    let extend = Request::Extend { digest: [7; 48] };
    ask::<Extended>(&mut bench.connect(Caller::Process(10)), &extend).await.unwrap();
    bench.tee.host.main_pid.store(2, Ordering::SeqCst);
    let fresh: Registers = ask(&mut bench.connect(Caller::Process(10)), &Request::Registers).await.unwrap();
    assert_eq!(fresh.rtmr3, [0; 48]);
}

#[tokio::test]
async fn p15_frames_over_the_limit_end_the_connection() {
    let bench = Bench::new();
    let mut stream = bench.connect(Caller::Process(10));
    let refused = ask::<Registers>(&mut stream, &Request::Registers).await;
    assert!(refused.is_ok());
    stream.write_all(&u32::MAX.to_be_bytes()).await.unwrap();
    assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0);
    // Bad JSON is answered, and the connection goes on.
    let mut stream = bench.connect(Caller::Process(10));
    assert!(ask::<Registers>(&mut stream, &Request::Registers).await.is_ok());
    stream.write_all(&[0, 0, 0, 2, b'{', b'}']).await.unwrap();
    let mut head = [0; 4];
    stream.read_exact(&mut head).await.unwrap();
    assert!(wire::length(head, 4096).unwrap() > 2);
}

#[tokio::test]
async fn collateral_is_signed_once_an_hour() {
    let bench = Bench::new();
    let now = OffsetDateTime::now_utc();
    let first = bench.tee.certified(now).unwrap();
    assert_eq!(bench.tee.certified(now + time::Duration::minutes(59)).unwrap(), first);
    let later = bench.tee.certified(now + time::Duration::hours(2)).unwrap();
    assert_ne!(later.collateral, first.collateral);
    assert_ne!(bench.tee.certified(now).unwrap().collateral, later.collateral, "a clock set back signs anew");
    assert!(first.root.starts_with("-----BEGIN CERTIFICATE"));
}
