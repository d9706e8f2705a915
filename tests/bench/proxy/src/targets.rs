// SPDX-License-Identifier: Apache-2.0
//! What our proxy must reach, and whether it did. CPU is compared within the run, with the peers that took part.

use serde_json::Value;

use crate::report::median;

/// Medians of a proxy's metric in a scenario; `None` when it was not measured.
fn measured(rows: &[Value], proxy: &str, scenario: &str, metric: &str) -> Option<f64> {
    let of = |row: &&Value| row["proxy"] == proxy && row["scenario"] == scenario;
    let all: Vec<f64> = rows.iter().filter(of).filter_map(|row| row[metric].as_f64()).collect();
    (!all.is_empty()).then(|| median(all))
}

/// The best of the peers, without the bare forwarders.
fn best_peer(rows: &[Value], scenario: &str, metric: &str) -> Option<f64> {
    const PEERS: &[&str] = &[
        "haproxy", "haproxy-splice", "nginx", "sniproxy", "envoy", "traefik", "original", "original-splice",
    ];
    PEERS.iter().filter_map(|peer| measured(rows, peer, scenario, metric)).min_by(f64::total_cmp)
}

/// CPU with the large table against the small one.
fn routes_ratio(rows: &[Value], scenario: &str) -> Option<f64> {
    let ours = |row: &&Value| row["proxy"] == "ours" && row["scenario"] == scenario;
    let mut sizes: Vec<u64> = rows.iter().filter(ours).filter_map(|row| row["routes"].as_u64()).collect();
    sizes.sort_unstable();
    let cpu = |size: Option<&u64>| {
        let of = rows.iter().filter(ours).filter(|row| row["routes"].as_u64() == size.copied());
        let all: Vec<f64> = of.filter_map(|row| row["cpu_s_per_1000"].as_f64()).collect();
        (!all.is_empty()).then(|| median(all))
    };
    Some(cpu(sizes.last())? / cpu(sizes.first())?)
}

/// One line per target: what it is, ours, the limit, and whether it was reached.
pub fn judge(rows: &[Value]) -> String {
    let mut out = String::from("| target | ours | at most | |\n|---|---|---|---|\n");
    let mut line = |what: &str, ours: Option<f64>, limit: Option<f64>| {
        let (Some(ours), Some(limit)) = (ours, limit) else {
            out += &format!("| {what} | - | - | not measured |\n");
            return;
        };
        let verdict = if ours <= limit { "reached" } else { "MISSED" };
        out += &format!("| {what} | {ours:.3} | {limit:.3} | {verdict} |\n");
    };
    let ours = |scenario: &str, metric: &str| measured(rows, "ours", scenario, metric);
    let (conn, gb) = ("cpu_s_per_1000", "cpu_s_per_gb");
    let splice = |scenario: &str| measured(rows, "limit-splice", scenario, gb).map(|cpu| cpu * 1.05);
    line("1,000 connections passed through, CPU s (best peer)", ours("pt_conn_raw", conn), best_peer(rows, "pt_conn_raw", conn));
    line("GB passed through, 1 stream, CPU s (1.05 x bare splice)", ours("pt_bulk1", gb), splice("pt_bulk1"));
    line("GB passed through, 64 streams, CPU s (1.05 x bare splice)", ours("pt_bulk64", gb), splice("pt_bulk64"));
    line("1,000 TLS handshakes, CPU s", ours("term_conn", conn), Some(0.25));
    line("1,000 resumed TLS handshakes, CPU s", ours("term_resume", conn), Some(0.22));
    line("GB of TLS, 1 stream, CPU s", ours("term_bulk1", gb), Some(0.85));
    line("GB of TLS, 64 streams, CPU s", ours("term_bulk64", gb), Some(0.85));
    line("idle connection passed through, KiB", ours("pt_idle", "kib_per_conn"), Some(1.0));
    line("idle TLS connection, KiB", ours("term_idle", "kib_per_conn"), Some(12.0));
    line("CPU with the large routing table / small, passed through", routes_ratio(rows, "routes_pt"), Some(1.05));
    line("CPU with the large routing table / small, TLS", routes_ratio(rows, "routes_term"), Some(1.05));
    line("p99 passed through, ms (best peer)", ours("pt_lat", "p99_ms"), best_peer(rows, "pt_lat", "p99_ms"));
    line("p99 of TLS, ms (best peer)", ours("term_lat", "p99_ms"), best_peer(rows, "term_lat", "p99_ms"));
    out
}
