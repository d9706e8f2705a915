// SPDX-License-Identifier: Apache-2.0
//! Answers as people give them: in a TOML file, as options, or to questions. Nothing is checked here but names and types.

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

/// Largest file of answers, bytes.
pub const FILE_MAX: usize = 64 * 1024;

/// Everything that can be answered.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Draft {
    /// Domain under which apps appear.
    pub base_domain: Option<String>,
    /// Domain of the key service.
    pub kms_domain: Option<String>,
    /// Realm of the root keys.
    pub realm: Option<String>,
    /// Where guests and clients reach this host.
    pub address: Option<String>,
    /// Ports.
    pub ports: Ports,
    /// The tunnel to apps.
    pub wireguard: Wireguard,
    /// Context ids of VMs.
    pub cid: Cid,
    /// The certificate of the ingress.
    pub certificate: Certificate,
}

/// `[ports]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Ports {
    /// The key service.
    pub kms: Option<u16>,
    /// Registration of instances.
    pub registration: Option<u16>,
    /// TLS of clients.
    pub ingress: Option<u16>,
    /// TLS of clients that is passed through.
    pub passthrough: Option<u16>,
    /// teepod's web port.
    pub teepod: Option<u16>,
}

/// `[wireguard]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Wireguard {
    /// UDP port.
    pub port: Option<u16>,
    /// Where guests reach it.
    pub endpoint: Option<String>,
    /// Network of the tunnel.
    pub range: Option<String>,
    /// The ingress's own address in it.
    pub ip: Option<String>,
}

/// `[cid]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cid {
    /// The first.
    pub start: Option<u32>,
    /// How many.
    pub size: Option<u32>,
}

/// `[certificate]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Certificate {
    /// `acme`, `files` or `none`.
    pub source: Option<String>,
    /// The operator's chain.
    pub chain: Option<String>,
    /// Its key.
    pub key: Option<String>,
    /// Directory of the authority.
    pub acme_url: Option<String>,
    /// Who signs the authority's own TLS certificate.
    pub acme_root: Option<String>,
    /// The authority's name in CAA records.
    pub acme_issuer: Option<String>,
    /// External account.
    pub eab: Eab,
    /// Who changes DNS.
    pub dns: Dns,
}

/// `[certificate.eab]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Eab {
    /// Id of the external account.
    pub key_id: Option<String>,
    /// File with its key.
    pub key_file: Option<String>,
}

/// `[certificate.dns]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Dns {
    /// `cloudflare` or `rfc2136`.
    pub provider: Option<String>,
    /// Resolver that is asked for the servers of the zone.
    pub resolver: Option<String>,
    /// Cloudflare.
    pub cloudflare: Cloudflare,
    /// Dynamic updates.
    pub rfc2136: Rfc2136,
}

/// `[certificate.dns.cloudflare]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cloudflare {
    /// Id of the zone.
    pub zone_id: Option<String>,
    /// File with the token.
    pub token_file: Option<String>,
    /// Where the API is.
    pub base_url: Option<String>,
}

/// `[certificate.dns.rfc2136]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rfc2136 {
    /// Server that takes updates.
    pub server: Option<String>,
    /// The zone.
    pub zone: Option<String>,
    /// Name of the TSIG key.
    pub key_name: Option<String>,
    /// Its digest.
    pub algorithm: Option<String>,
    /// File with the key.
    pub key_file: Option<String>,
}

/// Reads a file of answers.
///
/// # Errors
/// What is wrong, with line and key.
pub fn parse(text: &str) -> Result<Draft, String> {
    if text.len() > FILE_MAX {
        return Err(format!("is larger than {FILE_MAX} bytes"));
    }
    toml::from_str(text).map_err(|e| e.to_string().trim_end().to_owned())
}

impl Draft {
    /// These answers, and where there is none, those.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        let merged = merge(table(&other), table(&self));
        // Both were of this shape, so their union is.
        Value::Table(merged).try_into().unwrap_or(other)
    }
}

fn table(draft: &Draft) -> Table {
    Table::try_from(draft).unwrap_or_default()
}

fn merge(mut under: Table, over: Table) -> Table {
    for (key, value) in over {
        let value = match (under.remove(&key), value) {
            (Some(Value::Table(old)), Value::Table(new)) => Value::Table(merge(old, new)),
            (_, value) => value,
        };
        under.insert(key, value);
    }
    under
}

/// A key of the file: its section, its name, what it is, and what it is like.
type Key = (&'static str, &'static str, &'static str, &'static str);

/// All keys, in the order in which they are printed.
const KEYS: &[Key] = &[
    (
        "",
        "base_domain",
        "Apps are https://<id>.<base_domain>; point *.<base_domain> to this host.",
        "\"apps.example.com\"",
    ),
    (
        "",
        "kms_domain",
        "Name of this installation's key service, written into its CA for good.",
        "\"kms.example.com\"",
    ),
    (
        "",
        "realm",
        "What root keys are made for, for good: \"intel\", genuine TDX machines; \"test\", trials, with dstack-testroot.",
        "\"intel\"",
    ),
    (
        "",
        "address",
        "Name or address at which guests and clients reach this host; no loopback address.",
        "\"198.51.100.7\"",
    ),
    ("ports", "kms", "The key service.", "9043"),
    ("ports", "registration", "Instances of apps register here with the ingress.", "9070"),
    ("ports", "ingress", "Clients reach apps here; the ingress ends TLS, or passes it through.", "9443"),
    ("ports", "passthrough", "Clients reach apps here; TLS is always passed through.", "9008"),
    ("ports", "teepod", "Web port of the VM manager, on 127.0.0.1.", "9080"),
    ("wireguard", "port", "UDP port of the tunnel to apps.", "51820"),
    (
        "wireguard",
        "endpoint",
        "Where guests reach it; by default the address above.",
        "\"198.51.100.7:51820\"",
    ),
    ("wireguard", "range", "Network of the tunnel; nothing else may use it.", "\"10.0.0.0/16\""),
    ("wireguard", "ip", "The ingress's own address in it; by default the first.", "\"10.0.0.1\""),
    ("cid", "start", "First vsock context id of VMs.", "1000"),
    ("cid", "size", "How many there are.", "1000"),
    (
        "certificate",
        "source",
        "\"acme\": ordered and renewed by dstack-certbot; \"files\": yours; \"none\": later.",
        "\"none\"",
    ),
    (
        "certificate",
        "chain",
        "Of \"files\": certificate chain and private key, PEM, readable by the group dstack-tproxy.",
        "\"/etc/dstack/certs/cert.pem\"",
    ),
    ("certificate", "key", "", "\"/etc/dstack/certs/key.pem\""),
    (
        "certificate",
        "acme_url",
        "Of \"acme\": directory of the authority, or \"letsencrypt\", or \"letsencrypt-staging\".",
        "\"letsencrypt\"",
    ),
    (
        "certificate",
        "acme_root",
        "PEM file of who signs the authority's own TLS certificate; by default the system's.",
        "\"/etc/ssl/private-ca.pem\"",
    ),
    (
        "certificate",
        "acme_issuer",
        "The authority's name in CAA records; by default what its directory says.",
        "\"ca.example.com\"",
    ),
    ("certificate.eab", "key_id", "Id of an external account, for authorities that want one.", "\"kid-1\""),
    (
        "certificate.eab",
        "key_file",
        "File with its key, base64url; init stores it encrypted, and the file may go.",
        "\"/root/eab.key\"",
    ),
    (
        "certificate.dns",
        "provider",
        "Who changes DNS records: \"cloudflare\" or \"rfc2136\".",
        "\"cloudflare\"",
    ),
    (
        "certificate.dns",
        "resolver",
        "DNS server that is asked for the servers of the zone; by default the system's.",
        "\"192.0.2.1:53\"",
    ),
    (
        "certificate.dns.cloudflare",
        "zone_id",
        "Id of the zone; by default it is looked for.",
        "\"0123456789abcdef0123456789abcdef\"",
    ),
    (
        "certificate.dns.cloudflare",
        "token_file",
        "File with the API token; init stores it encrypted, and the file may go.",
        "\"/root/cloudflare.token\"",
    ),
    (
        "certificate.dns.cloudflare",
        "base_url",
        "Where the API is.",
        "\"https://api.cloudflare.com/client/v4\"",
    ),
    ("certificate.dns.rfc2136", "server", "Server that takes dynamic updates.", "\"192.0.2.1:53\""),
    ("certificate.dns.rfc2136", "zone", "The zone; by default the server is asked.", "\"example.com\""),
    ("certificate.dns.rfc2136", "key_name", "Name of the TSIG key.", "\"dstack\""),
    (
        "certificate.dns.rfc2136",
        "algorithm",
        "\"hmac-sha256\", \"hmac-sha384\" or \"hmac-sha512\".",
        "\"hmac-sha256\"",
    ),
    (
        "certificate.dns.rfc2136",
        "key_file",
        "File with the key, base64; init stores it encrypted, and the file may go.",
        "\"/root/tsig.key\"",
    ),
];

/// Whether there is such a key, `SECTION.NAME`.
#[must_use]
pub fn is_key(key: &str) -> bool {
    let (of, name) = key.rsplit_once('.').unwrap_or(("", key));
    KEYS.iter().any(|(section, known, ..)| (*section, *known) == (of, name))
}

/// As a file with comments: what is answered, and behind `#` what the rest would be like.
#[must_use]
pub fn render(draft: &Draft, head: &str) -> String {
    let table = table(draft);
    let mut text = format!("{head}\n");
    let mut section = "";
    for (of, key, comment, example) in KEYS {
        if *of != section {
            section = of;
            text += &format!("\n[{of}]\n");
        }
        if !comment.is_empty() {
            text += &format!("# {comment}\n");
        }
        match value(&table, of, key) {
            Some(value) => text += &format!("{key} = {value}\n"),
            None => text += &format!("#{key} = {example}\n"),
        }
    }
    text
}

fn value<'t>(table: &'t Table, section: &str, key: &str) -> Option<&'t Value> {
    let parts = section.split('.').filter(|part| !part.is_empty());
    let mut found = table;
    for part in parts {
        found = found.get(part)?.as_table()?;
    }
    found.get(key)
}

#[cfg(test)]
#[path = "draft_tests.rs"]
mod tests;
