// SPDX-License-Identifier: Apache-2.0
//! `proxybench`: runs SNI-routing TLS proxies side by side under the same load.
//! See README.md. Loopback only; every loop is bounded in count and time.

#![forbid(unsafe_code)]

mod backend;
mod client;
mod crypto;
mod limit;
mod load;
mod net;
mod peers;
mod process;
mod report;
mod robust;
mod targets;

use std::collections::BTreeSet;
use std::io::Write;
use std::net::{SocketAddr, SocketAddrV4};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use serde_json::{json, Value};

use client::{Path, Target};
use net::{client_hello, ClientOpts, Pki, Table};
use peers::{Programs, Proxy, Setup};

#[derive(Parser)]
#[command(about = "Side-by-side load harness for SNI-routing TLS proxies")]
struct Cli {
    #[command(subcommand)]
    cmd: Cmd,
}

#[derive(Subcommand)]
enum Cmd {
    /// Run proxies side by side; one JSON line per scenario, then a table
    Compare(Compare),
    /// The yardstick passthrough forwarder (started by `compare`)
    Limit {
        #[arg(long)]
        listen: SocketAddrV4,
        #[arg(long)]
        routes: PathBuf,
        #[arg(long, default_value_t = 2)]
        threads: usize,
        #[arg(long, default_value_t = 0)]
        splice_after: u64,
    },
    /// What the cryptography alone costs (no sockets)
    Limits {
        #[arg(long, default_value = "target/bench-work")]
        work_dir: PathBuf,
    },
    /// Print the table of an earlier run's JSON lines
    Table { file: PathBuf },
}

#[derive(Args)]
struct Compare {
    /// comma-separated: direct, limit-splice, limit-copy, limit-adaptive, haproxy,
    /// haproxy-splice, nginx, sniproxy, envoy, traefik, original, original-splice, ours
    #[arg(long, default_value = "haproxy,nginx,original", value_delimiter = ',')]
    proxies: Vec<String>,
    /// comma-separated: pt_conn, pt_conn_raw, pt_bulk1, pt_bulk64, pt_up1, pt_lat,
    /// term_conn, term_resume, term_conn12, term_bulk1, term_bulk64, term_up1,
    /// term_lat, term_burst, pt_idle, term_idle, routes, robust
    #[arg(
        long,
        default_value = "pt_conn,pt_conn_raw,pt_bulk1,pt_bulk64,pt_lat,term_conn,term_resume,term_bulk1,term_bulk64,term_lat,term_burst,pt_idle,term_idle,routes,robust",
        value_delimiter = ','
    )]
    scenarios: Vec<String>,
    /// times that each load scenario is repeated, the proxies taking turns
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// multiplies every count (connections, bytes, seconds)
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// idle connections in the memory scenarios
    #[arg(long, default_value_t = 5000)]
    idle: usize,
    /// routes in the large table of the `routes` scenario
    #[arg(long, default_value_t = 10000)]
    routes: usize,
    /// one worker per proxy on core 1, load and backends on core 0
    #[arg(long)]
    pin: bool,
    #[arg(long, default_value = "target/bench-work")]
    work_dir: PathBuf,
    /// JSON lines are appended here too
    #[arg(long)]
    out: Option<PathBuf>,
    /// shell command that starts our proxy; placeholders {{PT_PORT}}, {{ROUTES}}
    /// (file of `id ip` lines), {{CERT_PEM}}, {{KEY_PEM}}, {{BASE}}, {{WORKERS}}, {{DIR}}
    #[arg(long)]
    ours_cmd: Option<String>,
    /// measure a proxy that is already running at this address instead
    #[arg(long)]
    ours_addr: Option<SocketAddr>,
    #[arg(long)]
    ours_pid: Option<u32>,
    #[arg(long, default_value = "dstack-gateway")]
    original_bin: PathBuf,
    #[arg(long, default_value = "envoy")]
    envoy_bin: PathBuf,
    #[arg(long, default_value = "traefik")]
    traefik_bin: PathBuf,
}

fn main() -> Result<()> {
    match Cli::parse().cmd {
        Cmd::Limit {
            listen,
            routes,
            threads,
            splice_after,
        } => limit::run(
            limit::Options {
                listen,
                threads,
                splice_after,
            },
            limit::read_routes(&routes)?,
        ),
        Cmd::Limits { work_dir } => crypto::run(&work_dir),
        Cmd::Table { file } => {
            let rows = std::fs::read_to_string(file)?
                .lines()
                .filter_map(|l| serde_json::from_str(l).ok())
                .collect::<Vec<Value>>();
            println!("{}\n{}", report::table(&rows), targets::judge(&rows));
            Ok(())
        }
        Cmd::Compare(c) => {
            if c.pin {
                process::pin_to(0);
            }
            let rt = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(if c.pin { 1 } else { 2 })
                .enable_all()
                .build()?;
            let r = rt.block_on(Bench::new(c)?.run());
            rt.shutdown_background();
            r
        }
    }
}

struct Bench {
    c: Compare,
    programs: Programs,
    pki: Pki,
    rows: Vec<Value>,
    out: Option<std::fs::File>,
    next_port: u16,
    /// addresses that have backends
    served: BTreeSet<std::net::Ipv4Addr>,
}

const LOAD: &[&str] = &[
    "pt_conn",
    "pt_conn_raw",
    "pt_bulk1",
    "pt_bulk64",
    "pt_up1",
    "pt_lat",
    "term_conn",
    "term_resume",
    "term_conn12",
    "term_bulk1",
    "term_bulk64",
    "term_up1",
    "term_lat",
    "term_burst",
];

impl Bench {
    fn new(c: Compare) -> Result<Bench> {
        std::fs::create_dir_all(&c.work_dir)?;
        let mut c = c;
        c.work_dir = c.work_dir.canonicalize()?;
        process::raise_nofile();
        let pki = Pki::create(&c.work_dir)?;
        let out = match &c.out {
            Some(p) => Some(
                std::fs::OpenOptions::new()
                    .create(true)
                    .append(true)
                    .open(p)?,
            ),
            None => None,
        };
        let programs = Programs {
            original: c.original_bin.clone(),
            envoy: c.envoy_bin.clone(),
            traefik: c.traefik_bin.clone(),
            ours_cmd: c.ours_cmd.clone(),
            ours_addr: c.ours_addr,
            ours_pid: c.ours_pid,
        };
        Ok(Bench {
            c,
            programs,
            pki,
            rows: Vec::new(),
            out,
            next_port: 21000,
            served: BTreeSet::new(),
        })
    }

    async fn run(mut self) -> Result<()> {
        let small = Table::new(10);
        self.serve(&small)?;
        if LOAD.iter().any(|s| self.wants(s)) {
            self.load(&small).await?;
        }
        for (scenario, term) in [("pt_idle", false), ("term_idle", true)] {
            if self.wants(scenario) {
                self.idle(&small, scenario, term).await?;
            }
        }
        if self.wants("routes") {
            self.routes(&small).await?;
        }
        if self.wants("robust") {
            self.robust(&small).await?;
        }
        println!("\n{}\n{}", report::table(&self.rows), targets::judge(&self.rows));
        Ok(())
    }

    fn wants(&self, scenario: &str) -> bool {
        self.c.scenarios.iter().any(|s| s == scenario)
    }

    /// Start backends for the driven routes of `t` that have none yet.
    fn serve(&mut self, t: &Table) -> Result<()> {
        let new: Vec<_> = t
            .driven()
            .into_iter()
            .map(|r| r.ip)
            .filter(|ip| self.served.insert(*ip))
            .collect();
        backend::start(&new, self.pki.server()?)
    }

    fn emit(&mut self, proxy: &str, scenario: &str, round: usize, mut v: Value) {
        load::merge(
            &mut v,
            json!({"proxy": proxy, "scenario": scenario, "round": round, "pinned": self.c.pin}),
        );
        println!("{v}");
        if let Some(f) = &mut self.out {
            let _ = writeln!(f, "{v}");
        }
        self.rows.push(v);
    }

    /// Start one proxy (`None`, with a note, when it cannot be started).
    async fn start(&mut self, name: &str, table: &Table, tag: &str) -> Option<Proxy> {
        let port = self.next_port;
        self.next_port += 4;
        let setup = Setup {
            table,
            pki: &self.pki,
            dir: peers::dir(&self.c.work_dir, &format!("{name}{tag}")),
            port,
            workers: if self.c.pin { 1 } else { 2 },
            pin: self.c.pin.then_some(1),
            programs: &self.programs,
        };
        // blocking, and the backends must go on answering meanwhile
        let began = std::time::Instant::now();
        let started = tokio::task::block_in_place(|| peers::start(name, &setup));
        let ready = match started {
            Ok(mut p) => match self.ready(&p, table).await {
                Ok(()) => {
                    p.start_s = began.elapsed().as_secs_f64();
                    Ok(p)
                }
                Err(e) => Err(e),
            },
            Err(e) => Err(e),
        };
        match ready {
            Ok(p) => Some(p),
            Err(e) => {
                self.emit(
                    name,
                    "start",
                    0,
                    json!({"failed": format!("{e:#}"), "routes": table.routes.len()}),
                );
                None
            }
        }
    }

    /// Some proxies listen before they know their routes: wait until both kinds
    /// of route work.
    async fn ready(&self, p: &Proxy, table: &Table) -> Result<()> {
        if p.name == "ours" && self.programs.ours_cmd.is_none() {
            return Ok(()); // it runs already, and may be able to do one kind only
        }
        let began = std::time::Instant::now();
        for path in [Path::Raw, Path::Term] {
            let targets = self.targets(p, table, path, ClientOpts::default())?;
            let Some(last) = targets.last() else { continue };
            while let Err(e) = load::check(last).await {
                if began.elapsed() > Duration::from_secs(60) {
                    return Err(e.context("listens, but its routes do not work"));
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        Ok(())
    }

    fn targets(
        &self,
        p: &Proxy,
        table: &Table,
        path: Path,
        opts: ClientOpts,
    ) -> Result<Vec<Target>> {
        let tls = self.pki.client(opts)?;
        let mut out = Vec::new();
        for r in table.driven() {
            let (sni, port, via) = match path {
                Path::Tls => (r.sni_tls(), net::PORT_TLS, p.pass),
                Path::Raw => (r.sni_raw(), net::PORT_RAW, p.pass),
                // without a proxy in between TLS ends at the TLS backend
                Path::Term => (r.sni_term(), net::PORT_TLS, p.term),
            };
            let addr = match (p.name.as_str(), via) {
                ("direct", _) => SocketAddr::from((r.ip, port)),
                (_, Some(a)) => a,
                (_, None) => return Ok(Vec::new()),
            };
            out.push(Target {
                addr,
                path,
                hello: Arc::new(client_hello(&tls, &sni)?),
                tls: tls.clone(),
                sni,
            });
        }
        Ok(out)
    }

    async fn load(&mut self, table: &Table) -> Result<()> {
        let mut proxies = Vec::new();
        for name in self.c.proxies.clone() {
            if let Some(p) = self.start(&name, table, "").await {
                proxies.push(p);
            }
        }
        let scenarios: Vec<String> = self
            .c
            .scenarios
            .iter()
            .filter(|s| LOAD.contains(&s.as_str()))
            .cloned()
            .collect();
        for scenario in scenarios {
            for round in 0..self.c.rounds {
                let mut order: Vec<usize> = (0..proxies.len()).collect();
                if round % 2 == 1 {
                    order.reverse();
                }
                for i in order {
                    let p = &proxies[i];
                    let (path, opts) = match scenario.as_str() {
                        "pt_conn" => (Path::Tls, ClientOpts::default()),
                        s if s.starts_with("pt") => (Path::Raw, ClientOpts::default()),
                        "term_resume" => (
                            Path::Term,
                            ClientOpts {
                                resume: true,
                                ..Default::default()
                            },
                        ),
                        "term_conn12" => (
                            Path::Term,
                            ClientOpts {
                                tls12: true,
                                ..Default::default()
                            },
                        ),
                        _ => (Path::Term, ClientOpts::default()),
                    };
                    let targets = self.targets(p, table, path, opts)?;
                    if targets.is_empty() {
                        continue; // it cannot do this
                    }
                    let v = self.one(p, &scenario, &targets).await;
                    let v = v.unwrap_or_else(|e| json!({"failed": format!("{e:#}")}));
                    let name = p.name.clone();
                    self.emit(&name, &scenario, round, v);
                }
            }
        }
        Ok(())
    }

    async fn one(&self, p: &Proxy, scenario: &str, t: &[Target]) -> Result<Value> {
        let r = p.running.as_ref();
        let n = |x: f64| (x * self.c.scale).max(1.0) as u64;
        let secs = |x: f64| Duration::from_secs_f64(x * self.c.scale.max(0.2));
        load::check(&t[0]).await.context("the path does not work")?;
        match scenario {
            "pt_conn" => load::connections(r, t, n(4000.0), 16, secs(15.0)).await,
            "pt_conn_raw" => load::connections(r, t, n(10000.0), 16, secs(15.0)).await,
            "term_conn" | "term_resume" | "term_conn12" => {
                load::connections(r, t, n(4000.0), 16, secs(15.0)).await
            }
            "pt_bulk1" => load::bulk(r, t, 1, n(8e9), false, secs(20.0)).await,
            "pt_bulk64" => load::bulk(r, t, 64, n(8e9), false, secs(20.0)).await,
            "pt_up1" => load::bulk(r, t, 1, n(8e9), true, secs(20.0)).await,
            "term_bulk1" => load::bulk(r, t, 1, n(2e9), false, secs(20.0)).await,
            "term_bulk64" => load::bulk(r, t, 64, n(2e9), false, secs(20.0)).await,
            "term_up1" => load::bulk(r, t, 1, n(2e9), true, secs(20.0)).await,
            "pt_lat" | "term_lat" => load::request_latency(r, t, 64, 2000.0, secs(4.0)).await,
            "term_burst" => load::burst_latency(r, t, 64, 1000.0, secs(4.0)).await,
            _ => anyhow::bail!("unknown scenario {scenario}"),
        }
    }

    async fn idle(&mut self, table: &Table, scenario: &str, term: bool) -> Result<()> {
        let count = self.c.idle;
        for name in self.c.proxies.clone() {
            if name == "direct" {
                continue;
            }
            let Some(p) = self.start(&name, table, "").await else {
                continue;
            };
            let path = if term { Path::Term } else { Path::Raw };
            let t = self.targets(&p, table, path, ClientOpts::default())?;
            if let (Some(r), false) = (p.running.as_ref(), t.is_empty()) {
                let v = load::idle(r, &t, count).await?;
                self.emit(&name, scenario, 0, v);
            }
        }
        Ok(())
    }

    /// The same load against a small and a large routing table, taking turns.
    async fn routes(&mut self, small: &Table) -> Result<()> {
        let large = Table::new(self.c.routes);
        self.serve(&large)?;
        for name in self.c.proxies.clone() {
            if name == "direct" {
                continue;
            }
            let Some(a) = self.start(&name, small, "-small").await else {
                continue;
            };
            let Some(b) = self.start(&name, &large, "-large").await else {
                continue;
            };
            if a.pass == b.pass {
                continue; // an attached proxy cannot be given two tables
            }
            for (scenario, path) in [("routes_pt", Path::Raw), ("routes_term", Path::Term)] {
                for round in 0..self.c.rounds {
                    for (p, table) in [(&a, small), (&b, &large)] {
                        let t = self.targets(p, table, path, ClientOpts::default())?;
                        if t.is_empty() {
                            continue;
                        }
                        let n = (3000.0 * self.c.scale) as u64;
                        let v = load::connections(
                            p.running.as_ref(),
                            &t,
                            n,
                            16,
                            Duration::from_secs(15),
                        )
                        .await;
                        let mut v = v.unwrap_or_else(|e| json!({"failed": format!("{e:#}")}));
                        let mem = p.running.as_ref().map_or(0, |r| r.memory_kib().0);
                        load::merge(
                            &mut v,
                            json!({
                                "routes": table.routes.len(), "start_s": p.start_s, "rss_mib": mem as f64 / 1024.0
                            }),
                        );
                        self.emit(&name, scenario, round, v);
                    }
                }
            }
        }
        Ok(())
    }

    async fn robust(&mut self, table: &Table) -> Result<()> {
        for name in self.c.proxies.clone() {
            if name == "direct" || name.starts_with("limit") {
                continue;
            }
            for (scenario, path) in [("robust_pt", Path::Raw), ("robust_term", Path::Term)] {
                let Some(mut p) = self.start(&name, table, "").await else {
                    continue;
                };
                let t = self.targets(&p, table, path, ClientOpts::default())?;
                let (Some(good), Some(running)) = (t.first(), p.running.as_mut()) else {
                    continue;
                };
                let v = robust::run(running, good, path == Path::Raw, &self.pki).await;
                let v = v.unwrap_or_else(|e| json!({"failed": format!("{e:#}")}));
                self.emit(&name, scenario, 0, v);
            }
        }
        Ok(())
    }
}
