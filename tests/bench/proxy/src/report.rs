// SPDX-License-Identifier: Apache-2.0
//! The table: medians over the rounds, one row per proxy.

use std::collections::BTreeMap;

use serde_json::Value;

/// Load columns: scenario, metrics, heading.
const COLUMNS: &[(&str, &[&str], &str)] = &[
    (
        "pt_conn",
        &["rate_per_s", "cpu_s_per_1000"],
        "pt TLS conn/s (CPU s/1000)",
    ),
    (
        "pt_conn_raw",
        &["rate_per_s", "cpu_s_per_1000"],
        "pt raw conn/s (CPU s/1000)",
    ),
    (
        "pt_bulk1",
        &["gb_per_s", "cpu_s_per_gb"],
        "pt 1 stream GB/s (CPU s/GB)",
    ),
    (
        "pt_bulk64",
        &["gb_per_s", "cpu_s_per_gb"],
        "pt 64 streams GB/s (CPU s/GB)",
    ),
    (
        "pt_up1",
        &["gb_per_s", "cpu_s_per_gb"],
        "pt upload GB/s (CPU s/GB)",
    ),
    (
        "pt_lat",
        &["p50_ms", "p99_ms", "cpu_s_per_1000"],
        "pt p50/p99 ms (CPU s/1000)",
    ),
    (
        "term_conn",
        &["rate_per_s", "cpu_s_per_1000"],
        "term conn/s (CPU s/1000)",
    ),
    (
        "term_resume",
        &["rate_per_s", "cpu_s_per_1000", "resumed"],
        "term resumed conn/s (CPU s/1000, share)",
    ),
    (
        "term_conn12",
        &["rate_per_s", "cpu_s_per_1000"],
        "term TLS 1.2 conn/s (CPU s/1000)",
    ),
    (
        "term_bulk1",
        &["gb_per_s", "cpu_s_per_gb"],
        "term 1 stream GB/s (CPU s/GB)",
    ),
    (
        "term_bulk64",
        &["gb_per_s", "cpu_s_per_gb"],
        "term 64 streams GB/s (CPU s/GB)",
    ),
    (
        "term_up1",
        &["gb_per_s", "cpu_s_per_gb"],
        "term upload GB/s (CPU s/GB)",
    ),
    (
        "term_lat",
        &["p50_ms", "p99_ms", "cpu_s_per_1000"],
        "term p50/p99 ms (CPU s/1000)",
    ),
    (
        "term_burst",
        &["p50_ms", "p99_ms"],
        "term p50/p99 ms beside bursts of handshakes",
    ),
    (
        "pt_idle",
        &["kib_per_conn", "fds_per_conn"],
        "pt idle KiB/conn (fds)",
    ),
    (
        "term_idle",
        &["kib_per_conn", "fds_per_conn"],
        "term idle KiB/conn (fds)",
    ),
];

fn number(x: f64) -> String {
    match x.abs() {
        a if !a.is_finite() => "-".into(),
        a if a >= 100.0 => format!("{x:.0}"),
        a if a >= 10.0 => format!("{x:.1}"),
        a if a >= 1.0 => format!("{x:.2}"),
        _ => format!("{x:.3}"),
    }
}

pub fn median(mut v: Vec<f64>) -> f64 {
    v.sort_by(f64::total_cmp);
    match v.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => v[n / 2],
        n => (v[n / 2 - 1] + v[n / 2]) / 2.0,
    }
}

fn text(v: &Value, key: &str) -> String {
    v[key].as_str().unwrap_or("").to_string()
}

fn med(rows: &[&Value], metric: &str) -> f64 {
    median(rows.iter().filter_map(|r| r[metric].as_f64()).collect())
}

pub fn table(rows: &[Value]) -> String {
    let mut order: Vec<String> = Vec::new();
    let mut cells: BTreeMap<(String, String), Vec<&Value>> = BTreeMap::new();
    for r in rows {
        let (p, s) = (text(r, "proxy"), text(r, "scenario"));
        if !order.contains(&p) {
            order.push(p.clone());
        }
        cells.entry((p, s)).or_default().push(r);
    }
    let get = |p: &str, s: &str| {
        cells
            .get(&(p.to_string(), s.to_string()))
            .cloned()
            .unwrap_or_default()
    };
    let mut out = String::new();

    // transposed: a scenario per row, a proxy per column
    let used: Vec<_> = COLUMNS
        .iter()
        .filter(|c| order.iter().any(|p| !get(p, c.0).is_empty()))
        .collect();
    if !used.is_empty() {
        out += &format!(
            "| scenario | {} |\n|---|{}\n",
            order.join(" | "),
            "---|".repeat(order.len())
        );
        for (scenario, metrics, heading) in used {
            out += &format!("| {heading} |");
            for p in &order {
                let r = get(p, scenario);
                if r.is_empty() {
                    out += " - |";
                    continue;
                }
                let nums: Vec<_> = metrics.iter().map(|m| number(med(&r, m))).collect();
                let errors: u64 = r.iter().filter_map(|v| v["errors"].as_u64()).sum();
                let failed = r.iter().filter(|v| !v["failed"].is_null()).count();
                out += &match (scenario, nums.as_slice()) {
                    (s, [a, b, c]) if s.ends_with("lat") => format!(" {a} / {b} ({c})"),
                    (_, [a, b, c]) => format!(" {a} ({b}, {c})"),
                    (_, [a, b]) => format!(" {a} ({b})"),
                    _ => String::new(),
                };
                if errors > 0 {
                    out += &format!(" [{errors} errors]");
                }
                if failed > 0 {
                    out += &format!(" [{failed} runs failed]");
                }
                out += " |";
            }
            out.push('\n');
        }
    }

    for scenario in ["routes_pt", "routes_term"] {
        if !order.iter().any(|p| !get(p, scenario).is_empty()) {
            continue;
        }
        out += &format!("\n{scenario}: small and large table\n\n| proxy | routes | start s | RSS MiB | conn/s | CPU s/1000 | CPU ratio large/small |\n|---|---|---|---|---|---|---|\n");
        for p in &order {
            let r = get(p, scenario);
            let mut sizes: Vec<u64> = r.iter().filter_map(|v| v["routes"].as_u64()).collect();
            sizes.sort_unstable();
            sizes.dedup();
            let mut first = f64::NAN;
            for n in sizes {
                let of: Vec<&Value> = r.iter().filter(|v| v["routes"] == n).copied().collect();
                let cpu = med(&of, "cpu_s_per_1000");
                let ratio = if first.is_nan() {
                    "1".into()
                } else {
                    number(cpu / first)
                };
                if first.is_nan() {
                    first = cpu;
                }
                out += &format!(
                    "| {p} | {n} | {} | {} | {} | {} | {ratio} |\n",
                    number(med(&of, "start_s")),
                    number(med(&of, "rss_mib")),
                    number(med(&of, "rate_per_s")),
                    number(cpu)
                );
            }
        }
    }

    for scenario in ["robust_pt", "robust_term"] {
        let have: Vec<&String> = order
            .iter()
            .filter(|p| !get(p, scenario).is_empty())
            .collect();
        if have.is_empty() {
            continue;
        }
        let skip = ["proxy", "scenario", "round", "pinned"];
        let mut keys: Vec<String> = Vec::new();
        for p in &have {
            for (k, _) in get(p, scenario)[0].as_object().into_iter().flatten() {
                if !keys.contains(k) && !skip.contains(&k.as_str()) {
                    keys.push(k.clone());
                }
            }
        }
        out += &format!(
            "\n{scenario}\n\n| check | {} |\n|---|{}\n",
            have.iter()
                .map(|s| s.as_str())
                .collect::<Vec<_>>()
                .join(" | "),
            "---|".repeat(have.len())
        );
        for k in keys {
            out += &format!("| {k} |");
            for p in &have {
                let v = &get(p, scenario)[0][&k];
                let v = v.as_str().map_or_else(|| v.to_string(), str::to_string);
                out += &format!(" {} |", v.replace('|', "/"));
            }
            out.push('\n');
        }
    }
    for r in rows.iter().filter(|r| r["scenario"] == "start") {
        out += &format!(
            "\nnot started: {} with {} routes: {}\n",
            text(r, "proxy"),
            r["routes"],
            text(r, "failed")
        );
    }
    out
}
