// SPDX-License-Identifier: Apache-2.0
//! The load scenarios. Each runs against one proxy and returns one JSON object;
//! every loop is bounded in count and in time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{json, Value};
use tokio::task::JoinSet;

use crate::client::{Conn, Target};
use crate::process::Running;

fn percentile(sorted: &[u64], p: f64) -> f64 {
    if sorted.is_empty() {
        return f64::NAN;
    }
    sorted[((sorted.len() - 1) as f64 * p).round() as usize] as f64 / 1000.0
}

fn latency(mut us: Vec<u64>) -> Value {
    us.sort_unstable();
    json!({"p50_ms": percentile(&us, 0.5), "p99_ms": percentile(&us, 0.99), "p999_ms": percentile(&us, 0.999)})
}

/// Let the proxy finish what the last scenario left, and read its CPU clock.
async fn settle(p: Option<&Running>) -> f64 {
    tokio::time::sleep(Duration::from_millis(100)).await;
    p.map_or(f64::NAN, Running::cpu)
}

/// Fresh connections: open, one 1 KB request and answer, close.
pub async fn connections(
    p: Option<&Running>,
    targets: &[Target],
    count: u64,
    concurrency: usize,
    limit: Duration,
) -> Result<Value> {
    let targets = Arc::new(targets.to_vec());
    let next = Arc::new(AtomicU64::new(0));
    let cpu = settle(p).await;
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..concurrency {
        let (targets, next) = (targets.clone(), next.clone());
        tasks.spawn(async move {
            let (mut us, mut errors, mut resumed, mut last) = (Vec::new(), 0u64, 0u64, None);
            loop {
                let i = next.fetch_add(1, Ordering::Relaxed);
                if i >= count || start.elapsed() > limit {
                    return (us, errors, resumed, last);
                }
                let t0 = Instant::now();
                let t = &targets[i as usize % targets.len()];
                let r: Result<bool> = async {
                    let mut c = t.open().await?;
                    c.echo().await?;
                    let r = c.resumed();
                    c.close().await;
                    Ok(r)
                }
                .await;
                match r {
                    Ok(r) => {
                        us.push(t0.elapsed().as_micros() as u64);
                        resumed += r as u64;
                    }
                    Err(e) => {
                        errors += 1;
                        last = Some(format!("{e:#}"));
                        // a proxy that refuses must not turn this into a busy loop
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                }
            }
        });
    }
    let (mut us, mut errors, mut resumed, mut last) = (Vec::new(), 0, 0, None);
    while let Some(r) = tasks.join_next().await {
        let (u, e, s, l) = r?;
        us.extend(u);
        errors += e;
        resumed += s;
        last = last.or(l);
    }
    let wall = start.elapsed().as_secs_f64();
    let cpu = settle(p).await - cpu;
    let ok = us.len() as f64;
    let mut v = json!({
        "ok": us.len(), "errors": errors, "wall_s": wall, "rate_per_s": ok / wall,
        "cpu_s": cpu, "cpu_s_per_1000": cpu / ok * 1000.0,
        "resumed": resumed as f64 / ok,
    });
    merge(&mut v, latency(us));
    if let Some(l) = last {
        v["last_error"] = json!(l);
    }
    Ok(v)
}

/// Bulk transfer: `streams` connections share `total` bytes.
pub async fn bulk(
    p: Option<&Running>,
    targets: &[Target],
    streams: usize,
    total: u64,
    upload: bool,
    limit: Duration,
) -> Result<Value> {
    let each = total / streams as u64;
    let mut conns = Vec::new();
    for i in 0..streams {
        let mut c = targets[i % targets.len()].open().await?;
        c.echo().await?; // the path is up before the clock starts
        conns.push(c);
    }
    let cpu = settle(p).await;
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for mut c in conns {
        tasks.spawn(async move {
            let mut buf = vec![0u8; 256 << 10];
            let r = if upload {
                c.upload(each, &buf).await
            } else {
                c.download(each, &mut buf).await
            };
            c.close().await;
            r
        });
    }
    let mut errors = 0;
    let mut done = 0u64;
    let all = async {
        while let Some(r) = tasks.join_next().await {
            match r {
                Ok(Ok(())) => done += each,
                _ => errors += 1,
            }
        }
    };
    let timed_out = tokio::time::timeout(limit, all).await.is_err();
    let wall = start.elapsed().as_secs_f64();
    let cpu = settle(p).await - cpu;
    let gb = done as f64 / 1e9;
    Ok(json!({
        "streams": streams, "gb": gb, "errors": errors, "timed_out": timed_out, "wall_s": wall,
        "gb_per_s": gb / wall, "cpu_s": cpu, "cpu_s_per_gb": cpu / gb,
    }))
}

/// Latency of 1 KB requests on keep-alive connections at a fixed total rate.
pub async fn request_latency(
    p: Option<&Running>,
    targets: &[Target],
    conns: usize,
    rate: f64,
    duration: Duration,
) -> Result<Value> {
    let mut open = Vec::new();
    for i in 0..conns {
        let mut c = targets[i % targets.len()].open().await?;
        c.echo().await?;
        open.push(c);
    }
    let cpu = settle(p).await;
    let start = Instant::now();
    let gap = Duration::from_secs_f64(conns as f64 / rate);
    let mut tasks = JoinSet::new();
    for (i, mut c) in open.into_iter().enumerate() {
        tasks.spawn(async move {
            let mut us = Vec::new();
            let mut due = start + gap.mul_f64(i as f64 / conns as f64);
            while due < start + duration {
                tokio::time::sleep_until(due.into()).await;
                let t0 = Instant::now();
                c.echo().await?;
                us.push(t0.elapsed().as_micros() as u64);
                due += gap;
            }
            anyhow::Ok(us)
        });
    }
    let (mut us, mut errors) = (Vec::new(), 0);
    while let Some(r) = tasks.join_next().await {
        match r? {
            Ok(u) => us.extend(u),
            Err(_) => errors += 1,
        }
    }
    let wall = start.elapsed().as_secs_f64();
    let cpu = settle(p).await - cpu;
    let n = us.len() as f64;
    let mut v = json!({
        "conns": conns, "rate_per_s": n / wall, "errors": errors, "cpu_s": cpu,
        "cpu_s_per_1000": cpu / n * 1000.0,
    });
    merge(&mut v, latency(us));
    Ok(v)
}

/// Clients that send a hello and leave the handshake to the proxy: so many at once, five times a second.
const BURST: usize = 200;

/// The same latency beside bursts of handshakes that nobody finishes.
pub async fn burst_latency(
    p: Option<&Running>,
    targets: &[Target],
    conns: usize,
    rate: f64,
    duration: Duration,
) -> Result<Value> {
    let target = targets[0].clone();
    let bursts = tokio::spawn(async move {
        let mut tick = tokio::time::interval(Duration::from_millis(100));
        loop {
            tick.tick().await;
            let opened: JoinSet<_> = (0..BURST)
                .map(|_| tokio::net::TcpStream::connect(target.addr))
                .collect();
            let streams: Vec<_> = opened.join_all().await.into_iter().flatten().collect();
            for stream in &streams {
                let _ = stream.try_write(&target.hello); // an empty buffer takes it
            }
            tick.tick().await;
        }
    });
    let latency = request_latency(p, targets, conns, rate, duration).await;
    bursts.abort();
    latency
}

/// Memory and descriptors per idle established connection.
pub async fn idle(p: &Running, targets: &[Target], conns: usize) -> Result<Value> {
    // Warm up, so that code and pools are resident before the first reading.
    let warm = open_many(targets, 200).await.0;
    drop(warm);
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let (rss0, pss0, fds0) = (p.memory_kib().0, p.memory_kib().1, p.fds());
    let (held, errors) = open_many(targets, conns).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let (rss1, pss1, fds1) = (p.memory_kib().0, p.memory_kib().1, p.fds());
    let n = held.len() as f64;
    drop(held);
    tokio::time::sleep(Duration::from_millis(500)).await;
    Ok(json!({
        "conns": n, "errors": errors,
        "rss_mib_before": rss0 as f64 / 1024.0, "rss_mib_after": rss1 as f64 / 1024.0,
        "kib_per_conn": (rss1 as f64 - rss0 as f64) / n,
        "pss_kib_per_conn": (pss1 as f64 - pss0 as f64) / n,
        "fds_per_conn": (fds1 as f64 - fds0 as f64) / n,
    }))
}

async fn open_many(targets: &[Target], count: usize) -> (Vec<Conn>, usize) {
    let mut held = Vec::with_capacity(count);
    let mut errors = 0;
    let mut tasks = JoinSet::new();
    for i in 0..count {
        if tasks.len() >= 32 {
            if let Some(Ok(r)) = tasks.join_next().await {
                keep(r, &mut held, &mut errors);
            }
        }
        let t = targets[i % targets.len()].clone();
        tasks.spawn(async move {
            let mut c = t.open().await?;
            c.echo().await?;
            anyhow::Ok(c)
        });
    }
    while let Some(r) = tasks.join_next().await {
        if let Ok(r) = r {
            keep(r, &mut held, &mut errors);
        }
    }
    (held, errors)
}

fn keep(r: Result<Conn>, held: &mut Vec<Conn>, errors: &mut usize) {
    match r {
        Ok(c) => held.push(c),
        Err(_) => *errors += 1,
    }
}

pub fn merge(into: &mut Value, from: Value) {
    if let (Some(a), Value::Object(b)) = (into.as_object_mut(), from) {
        a.extend(b);
    }
}

/// One good connection, for checking that a path works at all.
pub async fn check(t: &Target) -> Result<()> {
    let mut c = t.open().await.context("open")?;
    c.echo().await.context("echo")?;
    c.close().await;
    Ok(())
}
