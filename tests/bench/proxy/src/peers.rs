// SPDX-License-Identifier: Apache-2.0
//! How to start each proxy: configuration from the templates in `peers/`, the
//! command, and the addresses it listens on.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{Read, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{bail, ensure, Context, Result};

use crate::net::{Pki, Table, BASE_DOMAIN, PORT_PLAIN, PORT_RAW, PORT_TLS};
use crate::process::Running;

/// What the command line says about programs that are not Debian packages.
#[derive(Clone)]
pub struct Programs {
    pub original: PathBuf,
    pub envoy: PathBuf,
    pub traefik: PathBuf,
    /// shell command that starts our proxy; placeholders as in the templates
    pub ours_cmd: Option<String>,
    /// a running proxy to measure instead (with `ours_pid`)
    pub ours_addr: Option<SocketAddr>,
    pub ours_pid: Option<u32>,
}

/// Where and with what a proxy is to run.
pub struct Setup<'a> {
    pub table: &'a Table,
    pub pki: &'a Pki,
    pub dir: PathBuf,
    /// first of a block of four free ports
    pub port: u16,
    pub workers: usize,
    pub pin: Option<usize>,
    pub programs: &'a Programs,
}

/// A started proxy. `None` for an address means it cannot do that.
pub struct Proxy {
    pub name: String,
    pub running: Option<Running>,
    pub pass: Option<SocketAddr>,
    pub term: Option<SocketAddr>,
    /// seconds until its routes worked
    pub start_s: f64,
}

pub const NAMES: &str =
    "direct, limit-splice, limit-copy, haproxy, haproxy-splice, nginx, sniproxy, envoy, traefik, \
     original, original-splice, ours";

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

fn fill(template: &str, vars: &HashMap<&str, String>) -> Result<String> {
    let mut out = template.to_string();
    for (k, v) in vars {
        out = out.replace(&format!("{{{{{k}}}}}"), v);
    }
    if let Some(at) = out.find("{{") {
        bail!("unknown placeholder {}", &out[at..out.len().min(at + 30)]);
    }
    Ok(out)
}

/// Write `(name, ip:port)` lines with the given separator and line end.
fn lines(entries: &[(String, String)], sep: &str, end: &str) -> String {
    entries.iter().fold(String::new(), |mut s, (n, a)| {
        let _ = writeln!(s, "{n}{sep}{a}{end}");
        s
    })
}

pub fn start(name: &str, s: &Setup) -> Result<Proxy> {
    std::fs::create_dir_all(&s.dir)?;
    let d = s.dir.display().to_string();
    let mut pass = Vec::new();
    let mut term = Vec::new();
    for r in &s.table.routes {
        pass.push((r.sni_tls(), format!("{}:{PORT_TLS}", r.ip)));
        pass.push((r.sni_raw(), format!("{}:{PORT_RAW}", r.ip)));
        term.push((r.sni_term(), format!("{}:{PORT_PLAIN}", r.ip)));
    }
    let base = name.split('-').next().unwrap_or(name);
    let splice = name.ends_with("-splice");
    let mut vars: HashMap<&str, String> = HashMap::from([
        ("DIR", d.clone()),
        ("BASE", BASE_DOMAIN.into()),
        ("WORKERS", s.workers.to_string()),
        ("PT_PORT", s.port.to_string()),
        ("TERM_PORT", (s.port + 1).to_string()),
        ("ADMIN_PORT", (s.port + 2).to_string()),
        ("DEBUG_PORT", (s.port + 3).to_string()),
        ("RPC_PORT", (s.port + 1).to_string()),
        ("CERT_PEM", s.pki.cert_pem.display().to_string()),
        ("KEY_PEM", s.pki.key_pem.display().to_string()),
        ("BOTH_PEM", s.pki.both_pem.display().to_string()),
        ("CA_PEM", s.pki.ca_pem.display().to_string()),
        ("ROUTES", format!("{d}/routes.txt")),
    ]);
    // `id ip` per line: what our own proxy is told (see README.md)
    std::fs::write(
        s.dir.join("routes.txt"),
        s.table
            .routes
            .iter()
            .map(|r| format!("{} {}\n", r.id, r.ip))
            .collect::<String>(),
    )?;
    let put = |file: &str, text: String| std::fs::write(s.dir.join(file), text);
    let mut env = Vec::new();
    let argv = |a: &[&str]| a.iter().map(|s| s.to_string()).collect::<Vec<_>>();
    let (command, has_term, one_port) = match base {
        "direct" => {
            return Ok(Proxy {
                name: name.into(),
                running: None,
                pass: None,
                term: None,
                start_s: 0.0,
            })
        }
        "limit" => {
            put("pass.map", lines(&pass, " ", ""))?;
            let me = std::env::current_exe()?.display().to_string();
            let after = if name.ends_with("-copy") {
                u64::MAX
            } else if name.ends_with("-adaptive") {
                65536
            } else {
                0
            };
            (
                argv(&[
                    &me,
                    "limit",
                    "--listen",
                    &loopback(s.port).to_string(),
                    "--routes",
                    &format!("{d}/pass.map"),
                    "--threads",
                    &s.workers.to_string(),
                    "--splice-after",
                    &after.to_string(),
                ]),
                false,
                true,
            )
        }
        "haproxy" => {
            put("pass.map", lines(&pass, " ", ""))?;
            put("term.map", lines(&term, " ", ""))?;
            vars.insert(
                "SPLICE",
                if splice {
                    "option splice-request\n    option splice-response".into()
                } else {
                    String::new()
                },
            );
            put(
                "haproxy.cfg",
                fill(include_str!("../peers/haproxy.cfg.tmpl"), &vars)?,
            )?;
            (
                argv(&["haproxy", "-db", "-f", &format!("{d}/haproxy.cfg")]),
                true,
                false,
            )
        }
        "nginx" => {
            put("pass.nginx", lines(&pass, " ", ";"))?;
            put("term.nginx", lines(&term, " ", ";"))?;
            put(
                "nginx.conf",
                fill(include_str!("../peers/nginx.conf.tmpl"), &vars)?,
            )?;
            (
                argv(&["nginx", "-p", &d, "-c", &format!("{d}/nginx.conf")]),
                true,
                false,
            )
        }
        "sniproxy" => {
            let table: Vec<_> = pass
                .iter()
                .map(|(n, a)| (format!("    ^{}$", n.replace('.', "\\.")), a.clone()))
                .collect();
            vars.insert("SNIPROXY_TABLE", lines(&table, " ", ""));
            put(
                "sniproxy.conf",
                fill(include_str!("../peers/sniproxy.conf.tmpl"), &vars)?,
            )?;
            (
                argv(&["sniproxy", "-f", "-c", &format!("{d}/sniproxy.conf")]),
                false,
                true,
            )
        }
        "envoy" => {
            let (chains, clusters) = envoy(&pass, &term, &vars);
            vars.insert("ENVOY_CHAINS", chains);
            vars.insert("ENVOY_CLUSTERS", clusters);
            // flow-style braces may stand next to each other here, so no `fill` check
            let mut text = include_str!("../peers/envoy.yaml.tmpl").to_string();
            for (k, v) in &vars {
                text = text.replace(&format!("{{{{{k}}}}}"), v);
            }
            put("envoy.yaml", text)?;
            let exe = s.programs.envoy.display().to_string();
            (
                argv(&[
                    &exe,
                    "-c",
                    &format!("{d}/envoy.yaml"),
                    "--concurrency",
                    &s.workers.to_string(),
                    "--log-level",
                    "error",
                    "--disable-hot-restart",
                ]),
                true,
                true,
            )
        }
        "traefik" => {
            put(
                "traefik.yml",
                fill(include_str!("../peers/traefik.yml.tmpl"), &vars)?,
            )?;
            put("dynamic.yml", traefik(&pass, &term, &vars))?;
            env.push(("GOMAXPROCS".into(), s.workers.to_string()));
            let exe = s.programs.traefik.display().to_string();
            (
                argv(&[&exe, &format!("--configFile={d}/traefik.yml")]),
                true,
                true,
            )
        }
        "original" => {
            let splice = if splice {
                "[core.proxy.tcp_splice]\nafter_bytes = 65536\nrelease_idle_pipes = true\n"
            } else {
                ""
            };
            vars.insert("SPLICE", splice.into());
            // registrations persist, so that 10,000 of them are made only once
            let data = s.dir.join(format!("data-{}", s.table.routes.len()));
            vars.insert("DATA_DIR", data.display().to_string());
            put(
                "gateway.toml",
                fill(include_str!("../peers/original.toml.tmpl"), &vars)?,
            )?;
            let bin = s.dir.join("bin");
            std::fs::create_dir_all(&bin)?;
            std::fs::write(bin.join("wg"), "#!/bin/sh\nexit 0\n")?;
            std::process::Command::new("chmod")
                .arg("+x")
                .arg(bin.join("wg"))
                .status()?;
            env.push((
                "PATH".into(),
                format!("{}:{}", bin.display(), std::env::var("PATH")?),
            ));
            env.push(("RUST_LOG".into(), "off".into()));
            let exe = s.programs.original.display().to_string();
            (
                argv(&[&exe, "-c", &format!("{d}/gateway.toml")]),
                true,
                true,
            )
        }
        "ours" => match (&s.programs.ours_cmd, s.programs.ours_addr) {
            (Some(cmd), _) => (
                argv(&["/bin/sh", "-c", &format!("exec {}", fill(cmd, &vars)?)]),
                true,
                true,
            ),
            (None, Some(addr)) => {
                let running = s.programs.ours_pid.map(Running::attach);
                return Ok(Proxy {
                    name: name.into(),
                    running,
                    pass: Some(addr),
                    term: Some(addr),
                    start_s: 0.0,
                });
            }
            _ => bail!("'ours' needs --ours-cmd, or --ours-addr with --ours-pid"),
        },
        _ => bail!("unknown proxy {name}; known: {NAMES}"),
    };
    let mut running = Running::spawn(&command, &env, &s.dir.join("log.txt"), s.pin)?;
    running
        .wait_listening(loopback(s.port), Duration::from_secs(90))
        .with_context(|| format!("{name}: see {d}/log.txt"))?;
    if base == "original" {
        // its debug RPC comes up after the proxy itself
        running.wait_listening(loopback(s.port + 3), Duration::from_secs(20))?;
        register(s).context("registering routes with the original")?;
    }
    Ok(Proxy {
        name: name.into(),
        running: Some(running),
        pass: Some(loopback(s.port)),
        term: has_term.then(|| loopback(if one_port { s.port } else { s.port + 1 })),
        start_s: 0.0,
    })
}

fn envoy(
    pass: &[(String, String)],
    term: &[(String, String)],
    vars: &HashMap<&str, String>,
) -> (String, String) {
    let (mut chains, mut clusters) = (String::new(), String::new());
    let tls = format!(
        "      transport_socket: {{ name: tls, typed_config: {{ \"@type\": \
         type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext, \
         common_tls_context: {{ tls_certificates: [ {{ certificate_chain: {{ filename: \"{}\" }}, \
         private_key: {{ filename: \"{}\" }} }} ] }} }} }}\n",
        vars["CERT_PEM"], vars["KEY_PEM"]
    );
    for (i, ((name, to), ends)) in pass
        .iter()
        .map(|e| (e, false))
        .chain(term.iter().map(|e| (e, true)))
        .enumerate()
    {
        let (ip, port) = to.split_once(':').unwrap_or((to, "0"));
        let _ = write!(
            chains,
            "    - filter_chain_match: {{ server_names: [\"{name}\"] }}\n{}      filters:\n      - name: tcp\n        \
             typed_config: {{ \"@type\": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, \
             stat_prefix: p, cluster: c{i} }}\n",
            if ends { tls.as_str() } else { "" }
        );
        let _ = write!(
            clusters,
            "  - {{ name: c{i}, type: STATIC, connect_timeout: 5s, load_assignment: {{ cluster_name: c{i}, endpoints: \
             [ {{ lb_endpoints: [ {{ endpoint: {{ address: {{ socket_address: {{ address: {ip}, port_value: {port} \
             }} }} }} }} ] }} ] }} }}\n"
        );
    }
    (chains, clusters)
}

fn traefik(
    pass: &[(String, String)],
    term: &[(String, String)],
    vars: &HashMap<&str, String>,
) -> String {
    let (mut routers, mut services) = (String::new(), String::new());
    for (i, ((name, to), ends)) in pass
        .iter()
        .map(|e| (e, false))
        .chain(term.iter().map(|e| (e, true)))
        .enumerate()
    {
        let tls = if ends { "{}" } else { "{ passthrough: true }" };
        let _ = writeln!(routers, "    r{i}: {{ entryPoints: [tls], rule: \"HostSNI(`{name}`)\", service: s{i}, tls: {tls} }}");
        let _ = writeln!(
            services,
            "    s{i}: {{ loadBalancer: {{ servers: [ {{ address: \"{to}\" }} ] }} }}"
        );
    }
    format!(
        "tcp:\n  routers:\n{routers}  services:\n{services}tls:\n  certificates:\n  - {{ certFile: \"{}\", keyFile: \"{}\" }}\n",
        vars["CERT_PEM"], vars["KEY_PEM"]
    )
}

/// Tell a running original about every route, over its debug RPC.
fn register(s: &Setup) -> Result<()> {
    let done = s.dir.join(format!("registered-{}", s.table.routes.len()));
    if done.exists() {
        return Ok(());
    }
    for (i, r) in s.table.routes.iter().enumerate() {
        let key = base64_key(i);
        let body = format!(
            "{{\"client_public_key\":\"{key}\",\"app_id\":\"{}\",\"instance_id\":\"{}\"}}",
            r.id.chars().rev().collect::<String>(),
            r.id
        );
        let answer = http_post(loopback(s.port + 3), "/prpc/RegisterCvm?json", &body)?;
        ensure!(
            answer.starts_with("HTTP/1.1 200"),
            "registration {i} answered {answer}"
        );
        ensure!(
            answer.contains(&format!("\"{}\"", r.ip)),
            "registration {i}: another address: {answer}"
        );
    }
    // the store is written every 2 s, and port policies are fetched meanwhile
    std::thread::sleep(Duration::from_secs(4));
    std::fs::write(done, "")?;
    Ok(())
}

/// 32 bytes that differ per route, in base64 (a WireGuard public key).
fn base64_key(i: usize) -> String {
    const A: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut raw = [0u8; 32];
    raw[..8].copy_from_slice(&(i as u64 + 1).to_be_bytes());
    let mut out = String::new();
    for c in raw.chunks(3) {
        let n = (c[0] as u32) << 16
            | (*c.get(1).unwrap_or(&0) as u32) << 8
            | *c.get(2).unwrap_or(&0) as u32;
        for k in 0..4 {
            out.push(if k <= c.len() {
                A[(n >> (18 - 6 * k) & 63) as usize] as char
            } else {
                '='
            });
        }
    }
    out
}

fn http_post(addr: SocketAddr, path: &str, body: &str) -> Result<String> {
    let mut s = TcpStream::connect_timeout(&addr, Duration::from_secs(5))?;
    s.set_read_timeout(Some(Duration::from_secs(30)))?;
    write!(
        s,
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )?;
    let mut out = String::new();
    s.read_to_string(&mut out)?;
    Ok(out)
}

/// A directory for one proxy's files.
pub fn dir(work: &Path, name: &str) -> PathBuf {
    work.join(name)
}
