// SPDX-License-Identifier: Apache-2.0
//! Every sub-command against the simulated TEE, over a pair of sockets.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use clap::Parser;
use dstack_core::event_log::{self, TRUSTED};
use dstack_core::ids::{ComposeHash, VmName};
use dstack_quote_sim::identity::{Caller, Host, IdentityError};
use dstack_quote_sim::launched::Launched;
use dstack_quote_sim::pki::{self, TestRoot};
use dstack_quote_sim::registry::{Registry, Run, Vm};
use dstack_quote_sim::server::Tee;
use dstack_ra_tls::certificate;
use dstack_tdx_attest::simulated::{Channel, Connect, Simulated};
use dstack_tdx_attest::{EventLog, Platform};
use dstack_tdxctl::{Args, World, run};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use tempfile::TempDir;

struct OneVm;

impl Host for OneVm {
    async fn identify(&self, _caller: Caller) -> Result<Vm, IdentityError> {
        Ok(Vm { name: "hello".parse().unwrap(), run: Run { invocation: "00".into(), main_pid: 1 } })
    }

    async fn launched(&self, _name: &VmName) -> Result<Launched, IdentityError> {
        let compose_hash = ComposeHash::of(b"{}");
        Ok(Launched { measured: [[1; 48], [2; 48], [3; 48], [4; 48]], compose_hash })
    }
}

/// Each connection is one end of a pair; a thread serves the other.
struct Pair(Arc<Tee<OneVm>>);

impl Connect for Pair {
    fn connect(&self) -> io::Result<Box<dyn Channel>> {
        let (ours, theirs) = UnixStream::pair()?;
        let tee = Arc::clone(&self.0);
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                theirs.set_nonblocking(true).unwrap();
                let stream = tokio::net::UnixStream::from_std(theirs).unwrap();
                tee.serve(stream, Caller::Process(1), || true).await.unwrap();
            });
        });
        Ok(Box::new(ours))
    }
}

struct Bench {
    dir: TempDir,
    platform: Arc<dyn Platform>,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["registry", "log"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let root = TestRoot::load(&pki::generate(time::OffsetDateTime::now_utc()).unwrap()).unwrap();
        let tee = Arc::new(Tee::new(root, OneVm, Registry::new(dir.path().join("registry"))));
        Self { dir, platform: Arc::new(Simulated::new(Pair(tee))) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn run(&self, arguments: &[&str], input: &[u8]) -> Result<Vec<u8>, String> {
        let args = Args::try_parse_from([&["tdxctl"], arguments].concat()).map_err(|e| e.to_string())?;
        let platform = || Ok(Arc::clone(&self.platform));
        let world = World { platform: &platform, log: &self.path("log") };
        let mut output = Vec::new();
        run(&args.command, &world, &mut &*input, &mut output).map_err(|e| e.to_string())?;
        Ok(output)
    }

    fn boot(&self) {
        let mut log = EventLog::open(&self.path("log"), Arc::clone(&self.platform)).unwrap();
        let compose = ComposeHash::of(b"{}");
        let app = compose.app_id();
        let payloads: [&[u8]; 10] =
            [b"", app.as_bytes(), compose.as_bytes(), &[3; 20], b"", &[5; 32], &[6; 32], b"{}", b"ext4", b""];
        TRUSTED.iter().zip(payloads).for_each(|(name, payload)| log.append(name, payload).unwrap());
    }
}

#[test]
fn quote_and_report_carry_the_report_data() {
    let bench = Bench::new();
    let quote = bench.run(&["quote"], &[9; 64]).unwrap();
    assert_eq!(quote[568..632], [9; 64]);
    let report = bench.run(&["report"], &[9; 64]).unwrap();
    assert_eq!((report.len(), &report[128..192]), (1024, &[9; 64][..]));
    // Both tell the same registers.
    assert_eq!(report[528..576], quote[184..232]);
    for bad in [0, 63, 65] {
        assert!(bench.run(&["quote"], &vec![0; bad]).unwrap_err().contains("64 bytes"), "{bad}");
    }
}

#[test]
fn t14_extend_adds_to_log_and_register_together() {
    let bench = Bench::new();
    assert!(bench.run(&["extend", "-e", "my-event", "-p", "0102"], b"").is_err(), "before the boot is done");
    bench.boot();
    let said = bench.run(&["extend", "-e", "my-event", "-p", "0102"], b"").unwrap();
    let digest = hex::encode(event_log::digest(event_log::EVENT_TYPE, "my-event", &[1, 2]));
    assert_eq!(String::from_utf8(said).unwrap(), format!("extended RTMR3 by {digest}\n"));
    let shown: serde_json::Value = serde_json::from_slice(&bench.run(&["show"], b"").unwrap()).unwrap();
    assert_eq!(shown["consistent"], true);
    assert_eq!(shown["ready"], true);
    assert_eq!(shown["platform"], "simulated");
    assert_eq!(shown["app_id"], ComposeHash::of(b"{}").app_id().to_string());
    assert_eq!(shown["events"].as_array().unwrap().len(), 11);
    assert_eq!(shown["mr_config_id"].as_str().unwrap()[..4], *"0144");
}

#[test]
fn p11_extend_cannot_forge_an_event_of_the_boot() {
    let bench = Bench::new();
    bench.boot();
    for (name, payload) in [("app-id", "00"), ("a:b", ""), ("", ""), ("x", "zz"), ("x", "1")] {
        assert!(bench.run(&["extend", "-e", name, "-p", payload], b"").is_err(), "{name:?} {payload:?}");
    }
    assert!(bench.run(&["extend", "-e", "x", "-i", "2"], b"").is_err());
    let owner = EventLog::open(&bench.path("log"), Arc::clone(&bench.platform)).unwrap();
    let refused = bench.run(&["extend", "-e", "x"], b"").unwrap_err();
    assert!(refused.contains("another owner"), "{refused}");
    drop(owner);
}

#[test]
fn certificates_carry_evidence_of_their_key() {
    let bench = Bench::new();
    bench.boot();
    let (cert, key) = (bench.path("cert.pem"), bench.path("key.pem"));
    let (c, k) = (cert.to_str().unwrap(), key.to_str().unwrap());
    for arguments in [["gen-ra-cert", "-c", c, "-k", k], ["gen-ca-cert", "--cert", c, "--key", k]] {
        assert_eq!(bench.run(&arguments, b"").unwrap(), b"");
        let der = pem::parse(std::fs::read(&cert).unwrap()).unwrap();
        let claims = certificate::parse(der.contents()).unwrap();
        let quote = claims.quote.unwrap();
        assert_eq!(quote[568..632], certificate::report_data(&claims.public_key));
        let events = event_log::parse(&claims.event_log.unwrap()).unwrap();
        assert_eq!(event_log::replay(&events).unwrap()[3], quote[520..568]);
        assert_eq!(pem::parse(std::fs::read(&key).unwrap()).unwrap().tag(), "PRIVATE KEY");
    }
}

#[test]
fn p03_keys_are_private_also_over_an_open_file() {
    let bench = Bench::new();
    bench.boot();
    let (cert, key, random) = (bench.path("cert.pem"), bench.path("key.pem"), bench.path("random"));
    for path in [&key, &random] {
        std::fs::write(path, "old").unwrap();
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o644)).unwrap();
    }
    bench.run(&["gen-ra-cert", "-c", cert.to_str().unwrap(), "-k", key.to_str().unwrap()], b"").unwrap();
    bench.run(&["rand", "-o", random.to_str().unwrap()], b"").unwrap();
    for path in [&key, &random] {
        assert_eq!(std::fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
    }
    assert_eq!(std::fs::read(&random).unwrap().len(), 20);
}

#[test]
fn hex_and_rand() {
    let bench = Bench::new();
    assert_eq!(bench.run(&["hex"], &[0, 0xab, 0xff]).unwrap(), b"00abff\n");
    let file = bench.path("file");
    std::fs::write(&file, [1; 20_000]).unwrap();
    assert_eq!(bench.run(&["hex", file.to_str().unwrap()], b"").unwrap().len(), 40_001);
    assert_eq!(bench.run(&["rand"], b"").unwrap().len(), 20);
    let text = bench.run(&["rand", "-n", "32", "-x"], b"").unwrap();
    assert_eq!(hex::decode(&text).unwrap().len(), 32);
    assert_ne!(bench.run(&["rand", "-n", "32", "-x"], b"").unwrap(), text);
    assert!(bench.run(&["rand", "-n", "0"], b"").is_err());
}
