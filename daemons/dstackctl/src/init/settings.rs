// SPDX-License-Identifier: Apache-2.0
//! From answers to the files that daemons and sockets read. Pure.

use super::answers::{Acme, Answers, Certificate, Dns, Ports};
use super::draft::render;
use super::units::{CERTBOT, CT_MONITOR, Component, KMS, TEEPOD, TPROXY};
use std::fmt::Write;
use std::path::Path;
use toml::Value;

/// Where the answers are kept for the next run.
pub const SAVED: &str = "/etc/dstack/init.toml";
/// What certbot is told.
pub const CERTBOT_FILE: &str = "/etc/dstack/certbot.toml.d/20-init.toml";
/// The credential of Cloudflare's token.
pub const CLOUDFLARE_TOKEN: &str = "certbot-cloudflare";
/// The credential of the TSIG key.
pub const TSIG_KEY: &str = "certbot-tsig";
/// The credential of the external account's key.
pub const EAB_KEY: &str = "certbot-eab";

const SAVED_HEAD: &str = "\
# SPDX-License-Identifier: Apache-2.0
# The answers to `dstackctl init`. Change them here or by its options, and run it again.";
const HEAD: &str = "\
# Written by `dstackctl init`, which replaces it: run it again for other answers. Put settings of your own into another
# file of this directory; where its name comes later, it wins.
";

/// A file as it is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Absolute path.
    pub path: &'static str,
    /// Its text; `None`: it is not to be there.
    pub text: Option<String>,
    /// Whose it is; `None`: ours.
    pub of: Option<&'static Component>,
    /// The socket whose unit it changes.
    pub socket: Option<&'static str>,
}

/// All files, in the order in which they are written. `gateway` is the app id of the gateway, unless the operator's own
/// files name one.
#[must_use]
pub fn files(answers: &Answers, gateway: Option<&str>) -> Vec<Wanted> {
    let daemon = |path, of, text| Wanted { path, text, of: Some(of), socket: None };
    let mut all = vec![
        daemon("/etc/dstack/kms.toml.d/20-init.toml", &KMS, Some(kms(answers, gateway))),
        daemon("/etc/dstack/tproxy.toml.d/20-init.toml", &TPROXY, Some(tproxy(answers))),
        daemon("/etc/dstack/teepod.toml.d/20-init.toml", &TEEPOD, Some(teepod(answers))),
        daemon(CERTBOT_FILE, &CERTBOT, answers.acme().map(|a| certbot(answers, a))),
        daemon(
            "/etc/dstack/ct-monitor.toml.d/20-init.toml",
            &CT_MONITOR,
            (answers.certificate != Certificate::None).then(|| ct_monitor(answers)),
        ),
    ];
    all.extend(sockets(&answers.ports));
    let saved = render(&answers.to_draft(), SAVED_HEAD);
    all.push(Wanted { path: SAVED, text: Some(saved), of: None, socket: None });
    all
}

/// Lines of TOML.
struct Lines(String);

impl Lines {
    fn new() -> Self {
        Self(HEAD.to_owned())
    }

    fn section(mut self, name: &str) -> Self {
        // Writing to a string cannot fail.
        let _ = write!(self.0, "\n[{name}]\n");
        self
    }

    fn key(mut self, name: &str, value: impl Into<Value>) -> Self {
        let _ = writeln!(self.0, "{name} = {}", value.into());
        self
    }

    fn some(self, name: &str, value: Option<impl Into<Value>>) -> Self {
        match value {
            Some(value) => self.key(name, value),
            None => self,
        }
    }
}

fn url(answers: &Answers, port: u16) -> String {
    format!("https://{}:{port}", answers.host())
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn kms(answers: &Answers, gateway: Option<&str>) -> String {
    let lines = Lines::new().key("address", url(answers, answers.ports.kms));
    lines.some("gateway_app_id", gateway).0
}

fn tproxy(answers: &Answers) -> String {
    let mut lines = Lines::new()
        .section("proxy")
        .key("base_domain", answers.base_domain.as_str())
        .key("listen_port", u32::from(answers.ports.ingress));
    if let Certificate::Files { chain, key } = &answers.certificate {
        lines = lines.key("cert_chain", text(chain)).key("cert_key", text(key));
    }
    if answers.acme().is_some() {
        // Also where files of before are still there.
        lines = lines.section("certbot").key("domain", answers.base_domain.as_str());
    }
    let wireguard = &answers.wireguard;
    lines
        .section("wg")
        .key("endpoint", wireguard.endpoint.as_str())
        .key("ip", wireguard.ip.to_string())
        .key("client_ip_range", wireguard.range.to_string())
        .key("listen_port", u32::from(wireguard.port))
        .0
}

fn teepod(answers: &Answers) -> String {
    let one = |port| Value::Array(vec![Value::String(url(answers, port))]);
    Lines::new()
        .section("cvm")
        .key("cid_start", answers.cid_start)
        .key("cid_pool_size", answers.cid_size)
        .key("kms_urls", one(answers.ports.kms))
        .key("tproxy_urls", one(answers.ports.registration))
        .section("gateway")
        .key("base_domain", answers.base_domain.as_str())
        .key("port", u32::from(answers.ports.ingress))
        .0
}

/// The keys that are ours are those of this host's ingress, which tells that of the operator's files, too, and of its
/// certbot. Whoever signs ours, any other certificate for the domain in a public log is news.
fn ct_monitor(answers: &Answers) -> String {
    let mut lines = Lines::new().key("domains", vec![answers.base_domain.clone()]);
    if answers.acme().is_some() {
        lines = lines.section("certbot").key("enabled", true);
    }
    let lines = lines.0;
    format!("{lines}\n[[tproxy]]\nuri = \"https://127.0.0.1:{}\"\n", answers.ports.registration)
}

fn certbot(answers: &Answers, acme: &Acme) -> String {
    let mut lines = Lines::new()
        .key("domain", format!("*.{}", answers.base_domain))
        .key("acme_url", acme.url.as_str())
        .some("acme_root", acme.root.as_deref().map(text))
        .some("issuer", acme.issuer.clone());
    if let Dns::Cloudflare { zone_id: Some(id), .. } = &acme.dns {
        lines = lines.key("cf_zone_id", id.as_str());
    }
    lines = dns(lines, &acme.dns);
    if let Some(resolver) = &acme.resolver {
        lines = lines.section("propagation").key("resolver", resolver.as_str());
    }
    if let Some((id, _)) = &acme.eab {
        lines = lines.section("eab").key("key_id", id.as_str());
    }
    lines.0
}

fn dns(lines: Lines, dns: &Dns) -> Lines {
    match dns {
        Dns::Cloudflare { base_url, .. } => lines
            .section("dns")
            .key("provider", "cloudflare")
            .section("dns.cloudflare")
            .key("base_url", base_url.as_str()),
        Dns::Rfc2136 { server, zone, key_name, algorithm, .. } => lines
            .section("dns")
            .key("provider", "rfc2136")
            .section("dns.rfc2136")
            .key("server", server.to_string())
            .some("zone", zone.as_deref())
            .key("key_name", key_name.as_str())
            .key("algorithm", algorithm.as_str()),
    }
}

/// Drop-ins of sockets whose port is another than in their units.
fn sockets(ports: &Ports) -> [Wanted; 5] {
    let default = Ports::DEFAULT;
    let public = |path, of, socket, port, usual| Wanted {
        path,
        text: (port != usual).then(|| socket_dropin(&format!("ListenStream={port}\n"))),
        of: Some(of),
        socket: Some(socket),
    };
    let teepod =
        format!("ListenStream=127.0.0.1:{}\nListenSequentialPacket=/run/dstack/vm.sock\n", ports.teepod);
    [
        public(
            "/etc/systemd/system/dstack-kms.socket.d/20-init.conf",
            &KMS,
            "dstack-kms.socket",
            ports.kms,
            default.kms,
        ),
        public(
            "/etc/systemd/system/dstack-tproxy-rpc.socket.d/20-init.conf",
            &TPROXY,
            "dstack-tproxy-rpc.socket",
            ports.registration,
            default.registration,
        ),
        public(
            "/etc/systemd/system/dstack-tproxy.socket.d/20-init.conf",
            &TPROXY,
            "dstack-tproxy.socket",
            ports.ingress,
            default.ingress,
        ),
        public(
            "/etc/systemd/system/dstack-tproxy-passthrough.socket.d/20-init.conf",
            &TPROXY,
            "dstack-tproxy-passthrough.socket",
            ports.passthrough,
            default.passthrough,
        ),
        Wanted {
            path: "/etc/systemd/system/dstack-teepod.socket.d/20-init.conf",
            text: (ports.teepod != default.teepod).then(|| socket_dropin(&teepod)),
            of: Some(&TEEPOD),
            socket: Some("dstack-teepod.socket"),
        },
    ]
}

/// An empty assignment forgets what the unit itself listens on, of every kind.
fn socket_dropin(listen: &str) -> String {
    format!("{HEAD}[Socket]\nListenStream=\n{listen}")
}

#[cfg(test)]
#[path = "settings_tests.rs"]
mod tests;
