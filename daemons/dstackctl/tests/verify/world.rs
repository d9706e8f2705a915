// SPDX-License-Identifier: Apache-2.0
//! An image, and the evidence of a VM that booted it, under a test root.

use dstack_core::event_log::{self, Event, TRUSTED};
use dstack_core::ids::{ComposeHash, OsImageHash};
use dstack_core::measure::mrtd::PageOrder;
use dstack_core::measure::{Booted, Platform, Shape};
use dstack_core::spec::mr_config_id;
use dstack_quote_sim::collateral::Claims;
use dstack_quote_sim::pki::{self, TestRoot};
use dstack_quote_sim::quote::TdReport;
use serde_json::{Value, json};
use sha2::{Digest, Sha256, Sha512};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::LazyLock;
use time::OffsetDateTime;

pub static ROOT: LazyLock<TestRoot> =
    LazyLock::new(|| TestRoot::load(&pki::generate(OffsetDateTime::now_utc()).unwrap()).unwrap());
const SHAPE: Shape = Shape { vcpus: 2, memory: 2 << 30 };
pub const KMS: &str = "3059a0b1";
pub const COMPOSE: &str = r#"{"manifest_version":2,"name":"hello","runner":"docker-compose","docker_compose_file":"services: {web: {image: x}}",
    "key_provider":"kms","key_provider_id":"3059a0b1"}"#;

/// A UKI and firmware that measure something.
fn sample(name: &str) -> Vec<u8> {
    let target = dstack_fuzz::TARGETS.iter().find(|t| t.name == name).unwrap();
    (target.samples)().remove(0)
}

pub struct World {
    dir: tempfile::TempDir,
    pub hash: OsImageHash,
    pub report: TdReport,
    pub events: Vec<Event>,
}

impl World {
    /// An image, and the evidence of a VM that booted it.
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let hash = image(&dir.path().join("image"));
        let write = |name: &str, bytes: &[u8]| std::fs::write(dir.path().join(name), bytes).unwrap();
        write("root.pem", ROOT.certificate_pem().as_bytes());
        write("compose.json", COMPOSE.as_bytes());
        let collateral = ROOT.collateral(&Claims::up_to_date(OffsetDateTime::now_utc())).unwrap();
        write("collateral.json", &serde_json::to_vec(&collateral).unwrap());
        let booted =
            Booted::of(&sample("tdvf"), &sample("uki"), Platform::Simulated, PageOrder::OnePass).unwrap();
        let [mr_td, rtmr0, rtmr1, rtmr2] = booted.simulated(SHAPE);
        let compose = ComposeHash::of(COMPOSE.as_bytes());
        let provider = json!({"name": "kms", "id": KMS}).to_string();
        let app = compose.app_id();
        let payloads: [&[u8]; 10] = [
            b"",
            app.as_bytes(),
            compose.as_bytes(),
            &[3; 20],
            b"",
            hash.as_bytes(),
            &[6; 32],
            provider.as_bytes(),
            b"ext4",
            b"",
        ];
        let events: Vec<Event> =
            TRUSTED.iter().zip(payloads).map(|(n, p)| Event::runtime(n, p).unwrap()).collect();
        let rtmr3 = event_log::replay(&events).unwrap()[3];
        let mut report = TdReport { mr_td, rtmr: [rtmr0, rtmr1, rtmr2, rtmr3], ..TdReport::default() };
        report.mr_config_id.copy_from_slice(&hex::decode(mr_config_id(&compose)).unwrap());
        report.report_data = Sha512::digest(b"app-data:nonce").into();
        Self { dir, hash, report, events }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What tappd prints.
    pub fn reply(&self) -> Value {
        let log = serde_json::to_string(&self.events).unwrap();
        json!({"quote": hex::encode(ROOT.quote(&self.report)), "event_log": log, "hash_algorithm": "sha512"})
    }

    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), bytes).unwrap();
    }

    /// Runs `dstackctl` in the directory, `args` split at spaces.
    pub fn run(&self, args: &str, input: Option<&[u8]>) -> Output {
        let mut child = Command::new(env!("CARGO_BIN_EXE_dstackctl"))
            .args(args.split_whitespace())
            .current_dir(self.dir.path())
            .env("XDG_CACHE_HOME", self.path("cache"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(input.unwrap_or_default()).unwrap();
        drop(stdin);
        child.wait_with_output().unwrap()
    }

    pub fn verify(&self, more: &str) -> (i32, String) {
        self.write("quote.json", self.reply().to_string());
        let args = format!("verify quote.json --root root.pem --collateral collateral.json {more}");
        said(&self.run(&args, None))
    }
}

pub fn said(output: &Output) -> (i32, String) {
    let text = [output.stdout.as_slice(), &output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8(text).unwrap())
}

fn image(directory: &Path) -> OsImageHash {
    std::fs::create_dir(directory).unwrap();
    let root_hash = "ab".repeat(32);
    let metadata = json!({"name": "dstack", "version": "1", "uki": "u", "root": "r", "root_hash": root_hash,
        "firmware": "f"});
    let files = [
        ("f", sample("tdvf")),
        ("metadata.json", metadata.to_string().into_bytes()),
        ("r", vec![1]),
        ("u", sample("uki")),
    ];
    let mut sums = String::new();
    for (name, bytes) in files {
        sums.push_str(&format!("{}  {name}\n", hex::encode(Sha256::digest(&bytes))));
        std::fs::write(directory.join(name), bytes).unwrap();
    }
    std::fs::write(directory.join("sha256sum.txt"), &sums).unwrap();
    OsImageHash::of(sums.as_bytes())
}
