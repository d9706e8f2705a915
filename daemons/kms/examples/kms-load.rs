// SPDX-License-Identifier: Apache-2.0
//! How many `GetAppKey` a second, and what they cost: `kms-load [REQUESTS [CLIENTS]]`, best in release mode.
//!
//! The service runs in a process of its own, with simulated quotes that go through the whole verification, and a
//! release log on a real disk (`TMPDIR`). Each request is a new TLS connection with evidence in its certificate, as a
//! booting guest makes it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    dead_code,
    clippy::cast_precision_loss
)]

#[path = "../tests/rpc/world.rs"]
mod world;

use dstack_ra_rpc::peer::{Anchor, Rules};
use dstack_ra_rpc::tls::{Identity, client_config};
use dstack_ra_tls::Roots;
use dstack_ra_tls::certificate::Usage;
use dstack_rpc::kms::{AppKeyResponse, GetAppKeyRequest};
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use world::{Boot, WANTS, World};

const COMPOSE: &[u8] = b"{}";

fn main() {
    let numbers: Vec<usize> = std::env::args().skip(1).map(|a| a.parse().expect("a number")).collect();
    if std::env::var_os("KMS_LOAD_SERVE").is_some() {
        return runtime().block_on(serve());
    }
    let (requests, clients) =
        (numbers.first().copied().unwrap_or(2000), numbers.get(1).copied().unwrap_or(32));
    runtime().block_on(load(requests, clients));
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// The service, and the evidence of one guest: only this process can make quotes under its root.
async fn serve() {
    let world = World::new().await;
    let identity = Boot::of(COMPOSE, WANTS).certificate();
    let key = hex::encode(world.engine.authority().unwrap().public_key());
    let root = hex::encode(world::ROOT.certificate());
    let mut out = std::io::stdout();
    let line =
        [world.url.as_str(), &key, &root, &hex::encode(&identity.0), &hex::encode(&identity.1)].join(" ");
    writeln!(out, "{line}").unwrap();
    out.flush().unwrap();
    std::future::pending::<()>().await;
}

async fn load(requests: usize, clients: usize) {
    let program = std::env::current_exe().unwrap();
    let mut server = Command::new(program).env("KMS_LOAD_SERVE", "1").stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let part: Vec<&str> = line.split_whitespace().collect();
    let bytes = |index: usize| hex::decode(part[index]).unwrap();
    let address = part[0].strip_prefix("https://").unwrap().to_owned();
    let rules = Rules::issued(Anchor::pinned(bytes(1)), vec![Usage::KmsRpc]);
    let identity = Identity::new(vec![bytes(3)], zeroize::Zeroizing::new(bytes(4)));
    let guest = Arc::new(Guest { address, rules, identity, root: bytes(2) });
    guest.call().await;
    println!("RSS before: {} KiB", rss(server.id()));
    let (left, start) = (Arc::new(AtomicUsize::new(requests)), Instant::now());
    let tasks: Vec<_> = (0..clients)
        .map(|_| {
            let (guest, left) = (Arc::clone(&guest), Arc::clone(&left));
            tokio::spawn(async move {
                let mut taken = Vec::new();
                let more = |n: usize| n.checked_sub(1);
                while left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, more).is_ok() {
                    let began = Instant::now();
                    guest.call().await;
                    taken.push(began.elapsed());
                }
                taken
            })
        })
        .collect();
    let mut taken: Vec<Duration> = Vec::new();
    for task in tasks {
        taken.extend(task.await.unwrap());
    }
    let total = start.elapsed();
    taken.sort_unstable();
    let at = |percent: usize| taken[(taken.len() - 1) * percent / 100];
    println!(
        "{requests} GetAppKey by {clients} clients: {:.0}/s, p50 {:?}, p99 {:?}",
        requests as f64 / total.as_secs_f64(),
        at(50),
        at(99)
    );
    println!("RSS after: {} KiB", rss(server.id()));
    server.kill().unwrap();
    server.wait().unwrap();
}

struct Guest {
    address: String,
    rules: Rules,
    identity: Identity,
    root: Vec<u8>,
}

impl Guest {
    async fn call(&self) {
        let judge = world::verifier(Roots::test(self.root.clone()));
        let stream = TcpStream::connect(&self.address).await.unwrap();
        let config = Arc::new(client_config(Some(&self.identity)).unwrap());
        let connection = dstack_ra_rpc::connect(stream, config, &judge, &self.rules).await.unwrap();
        let request = GetAppKeyRequest { api_version: 1, ..GetAppKeyRequest::default() };
        let keys: AppKeyResponse = connection.call("/prpc/KMS.GetAppKey", &request).await.unwrap();
        assert_eq!(keys.k256_key.len(), 32);
    }
}

/// Resident memory, KiB.
fn rss(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
