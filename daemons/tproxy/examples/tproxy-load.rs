// SPDX-License-Identifier: Apache-2.0
//! How long instances take to register: `tproxy-load [INSTANCES [CLIENTS]]`, best in release mode, as root.
//!
//! Each registration is complete: a new TLS connection whose certificate has a simulated quote, which the server verifies
//! as in production; a lease that is on a real disk (`TMPDIR`) and a WireGuard peer that is in force before the answer. The
//! tunnel is a real interface in a network of its own: the kernel's, or wireguard-go's by its socket. The server runs in a
//! process of its own, with as many threads as the daemon. What its D-Bus signals would cost is not in it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_precision_loss,
    missing_docs,
    dead_code
)]

#[path = "../tests/rpc/world.rs"]
mod world;

use dstack_core::wireguard::PublicKey;
use dstack_ra_rpc::peer::{Anchor, Rules, Verifier};
use dstack_ra_rpc::tls::{Identity, client_config};
use dstack_ra_tls::certificate::Usage;
use dstack_rpc::Listener;
use dstack_rpc::tproxy::{RegisterCvmRequest, RegisterCvmResponse};
use dstack_tproxy::rpc;
use dstack_tproxy::tunnel::Guarded;
use dstack_wireguard::{System, Wireguard};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use world::{Boot, Kms};
use zeroize::Zeroizing;

const STEP: &str = "TPROXY_LOAD";
const DIR: &str = "TPROXY_LOAD_DIR";
/// An empty /run with the directory of the daemons' sockets, and loopback up.
const SETUP: &str =
    "mount -t tmpfs tmpfs /run && mkdir -m 700 /run/wireguard && ip link set lo up && exec \"$0\" \"$@\"";
/// The daemon's own numbers.
const WORKERS: usize = 2;
const BLOCKING: usize = 8;
/// Ticks of a second in /proc, the same on all machines of Linux's 64-bit architectures.
const USER_HZ: f64 = 100.0;
/// Instances of one app.
const OF_AN_APP: usize = 100;
/// The target.
const SECONDS: f64 = 10.0;

fn main() {
    let step = std::env::var(STEP).unwrap_or_default();
    let numbers: Vec<usize> = std::env::args().skip(1).map(|a| a.parse().expect("a number")).collect();
    let number = |index: usize, usual: usize| numbers.get(index).copied().unwrap_or(usual);
    let (instances, clients) = (number(0, 10_000), number(1, 64));
    match step.as_str() {
        "" => in_a_network_of_its_own(instances, clients),
        "serve" => runtime(BLOCKING).block_on(serve(instances)),
        _ => runtime(8).block_on(load(instances, clients)),
    }
}

fn runtime(blocking: usize) -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(WORKERS).max_blocking_threads(blocking).enable_all().build().unwrap()
}

fn skip(why: &str) -> ! {
    eprintln!("skipped: {why}");
    std::process::exit(77)
}

fn in_a_network_of_its_own(instances: usize, clients: usize) {
    if !rustix::process::geteuid().is_root() {
        skip("WireGuard needs root");
    }
    let program = std::env::current_exe().unwrap();
    let mut command = Command::new("unshare");
    command.args(["--net", "--mount", "sh", "-c", SETUP]).arg(program);
    let error = command.args([instances, clients].map(|n| n.to_string())).env(STEP, "load").exec();
    skip(&format!("unshare cannot be run: {error}"));
}

/// Ends with this process.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// wireguard-go at its socket, as `dstack-wireguard@.socket` has it started. Where the kernel has WireGuard nobody connects.
fn wireguard() -> Process {
    let path = format!("/run/wireguard/{}.sock", world::interface());
    let mut command = Command::new("systemd-socket-activate");
    command.args(["--listen", &path, "--setenv=WG_UAPI_FD=3", "--setenv=LOG_LEVEL=error", "wireguard-go"]);
    command.args(["--foreground", world::interface().as_str()]).stdout(Stdio::null()).stderr(Stdio::null());
    let daemon = command.spawn().unwrap_or_else(|e| skip(&format!("systemd-socket-activate: {e}")));
    while !Path::new(&path).exists() {
        std::thread::sleep(Duration::from_millis(20));
    }
    Process(daemon)
}

/// The ingress; it makes the guests' certificates too, since only this process has the root of their quotes.
async fn serve(instances: usize) {
    let dir = std::path::PathBuf::from(std::env::var_os(DIR).unwrap());
    let system = System::open().unwrap();
    let (engine, mut told) = world::open_with(&dir, Arc::new(Guarded(system)));
    tokio::spawn(async move { while told.recv().await.is_some() {} });
    engine.make_tunnel().await.unwrap();
    let kms = Kms::new();
    guests(&kms, instances, &dir.join("guests"));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (_stop, stopped) = watch::channel(false);
    let listeners = vec![Listener::Tcp(listener)];
    rpc::listen(&engine, &kms.gateway(), kms.public_key(), listeners, &stopped).unwrap();
    say(&format!("{address} {}", hex::encode(kms.public_key())));
    // Not one of tokio's threads: those are the server's.
    let (asked, mut asking) = tokio::sync::mpsc::unbounded_channel();
    std::thread::spawn(move || {
        std::io::stdin().lines().map_while(Result::ok).try_for_each(|_| asked.send(()))
    });
    while asking.recv().await.is_some() {
        let peers = System::open().unwrap().dump(&world::interface()).await.unwrap().peers.len();
        say(&format!("{} {peers}", engine.instances().len()));
    }
}

fn say(line: &str) {
    let mut out = std::io::stdout();
    writeln!(out, "{line}").unwrap();
    out.flush().unwrap();
}

fn guests(kms: &Kms, instances: usize, path: &Path) {
    let mut out = std::io::BufWriter::new(std::fs::File::create(path).unwrap());
    let mut put = |bytes: &[u8]| {
        out.write_all(&u32::try_from(bytes.len()).unwrap().to_le_bytes()).unwrap();
        out.write_all(bytes).unwrap();
    };
    for n in 0..instances {
        let mut id = [0; 20];
        id[..8].copy_from_slice(&(n as u64).to_be_bytes());
        let app = u8::try_from(n / OF_AN_APP % 256).unwrap();
        let boot = Boot { instance: Some(id.into()), ..Boot::of(kms, app, 0) };
        let (chain, key) = kms.app_chain(&boot);
        [&chain[0], &chain[1], &key].into_iter().for_each(|bytes| put(bytes));
    }
}

/// What each guest shows.
fn read_guests(path: &Path) -> Vec<Identity> {
    let mut input = BufReader::new(std::fs::File::open(path).unwrap());
    let mut next = || {
        let mut length = [0; 4];
        input.read_exact(&mut length).ok()?;
        let mut bytes = vec![0; u32::from_le_bytes(length) as usize];
        input.read_exact(&mut bytes).unwrap();
        Some(bytes)
    };
    let mut guests = Vec::new();
    while let Some(leaf) = next() {
        let (root, key) = (next().unwrap(), next().unwrap());
        guests.push(Identity::new(vec![leaf, root], Zeroizing::new(key)));
    }
    guests
}

struct Load {
    address: String,
    rules: Rules,
    judge: Verifier,
    guests: Vec<Identity>,
    next: AtomicUsize,
}

impl Load {
    async fn register(&self, n: usize) {
        let mut key = [7; 32];
        key[..8].copy_from_slice(&(n as u64).to_be_bytes());
        let stream = TcpStream::connect(&self.address).await.unwrap();
        let config = Arc::new(client_config(Some(&self.guests[n])).unwrap());
        let connection = dstack_ra_rpc::connect(stream, config, &self.judge, &self.rules).await.unwrap();
        let client_public_key = PublicKey::from(key).to_string();
        let request = RegisterCvmRequest { client_public_key, ..RegisterCvmRequest::default() };
        let answer: RegisterCvmResponse =
            connection.call("/prpc/Tproxy.RegisterCvm", &request).await.unwrap();
        assert!(answer.wg.unwrap().client_ip.starts_with("10."));
    }

    /// Registers one after the other, as long as there are any; gives how long each took.
    async fn client(self: Arc<Self>) -> Vec<Duration> {
        let mut taken = Vec::new();
        loop {
            let n = self.next.fetch_add(1, Ordering::SeqCst);
            if n >= self.guests.len() {
                return taken;
            }
            let began = Instant::now();
            self.register(n).await;
            taken.push(began.elapsed());
        }
    }
}

async fn load(instances: usize, clients: usize) {
    let dir = tempfile::tempdir().unwrap();
    let tunnel = wireguard();
    let program = std::env::current_exe().unwrap();
    let mut server = Command::new(program);
    server.args([instances, clients].map(|n| n.to_string())).env(STEP, "serve").env(DIR, dir.path());
    let mut server = Process(server.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap());
    let mut said = BufReader::new(server.0.stdout.take().unwrap()).lines();
    let line = said.next().expect("the server has not started").unwrap();
    let (address, kms) = line.split_once(' ').unwrap();
    let rules = Rules::issued(Anchor::pinned(hex::decode(kms).unwrap()), vec![Usage::GatewayRpc]);
    let guests = read_guests(&dir.path().join("guests"));
    let load =
        Load { address: address.into(), rules, judge: world::verifier(), guests, next: AtomicUsize::new(0) };
    let pids = [server.0.id(), tunnel.0.id(), std::process::id()];
    let (before, start, load) = (pids.map(cpu), Instant::now(), Arc::new(load));
    let tasks: Vec<_> = (0..clients).map(|_| tokio::spawn(Arc::clone(&load).client())).collect();
    let mut taken: Vec<Duration> = Vec::new();
    for task in tasks {
        taken.extend(task.await.unwrap());
    }
    let (wall, after) = (start.elapsed().as_secs_f64(), pids.map(cpu));
    let spent = [0, 1, 2].map(|index| after[index] - before[index]);
    writeln!(server.0.stdin.take().unwrap(), "count").unwrap();
    let counted = said.next().unwrap().unwrap();
    assert_eq!(counted, format!("{instances} {instances}"), "instances and peers");
    taken.sort_unstable();
    report(wall, spent, &taken);
}

fn report(wall: f64, [server, tunnel, clients]: [f64; 3], taken: &[Duration]) {
    let count = taken.len();
    let at = |percent: usize| taken[(count - 1) * percent / 100];
    println!(
        "{count} instances registered, with quotes and peers in force, in {wall:.2} s: {:.0}/s, p50 {:.1?}, p99 {:.1?}",
        count as f64 / wall,
        at(50),
        at(99)
    );
    let each = server * 1e6 / count as f64;
    println!(
        "CPU of the ingress {server:.2} s ({each:.0} us each), of wireguard-go {tunnel:.2} s, of the clients {clients:.2} s"
    );
    let outcome = |seconds: f64| if seconds <= SECONDS { "reached" } else { "MISSED" };
    println!("target: 10 s with the clients on the same cores: {}", outcome(wall * 10_000.0 / count as f64));
    println!(
        "target: 10 s of CPU for ingress and tunnel together: {}",
        outcome((server + tunnel) * 10_000.0 / count as f64)
    );
}

/// CPU of a process and its threads so far, seconds.
fn cpu(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    let ticks: f64 = fields[11..13].iter().map(|ticks| ticks.parse::<f64>().unwrap()).sum();
    ticks / USER_HZ
}
