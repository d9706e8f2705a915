// SPDX-License-Identifier: Apache-2.0
//! `kms.toml`: merged input -> validated settings.

use dstack_core::ids::AppId;
use dstack_ra_rpc::pccs::Pccs;
use dstack_service::config::ConfigError;
use serde::Deserialize;
use std::path::PathBuf;
use std::time::Duration;

/// Port of the RPC, as `dstack-kms.socket` listens on it.
pub const PORT: u16 = 9043;

/// The file as written; every key has a default, unknown keys are refused.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Input {
    address: String,
    gateway_app_id: String,
    collateral: CollateralInput,
    webhook: WebhookInput,
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct CollateralInput {
    pccs_url: String,
    quote_sim: PathBuf,
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct WebhookInput {
    url: String,
    pin: String,
    timeout: u64,
}

impl Default for CollateralInput {
    fn default() -> Self {
        Self {
            pccs_url: "https://api.trustedservices.intel.com/tdx/certification/v4".into(),
            quote_sim: "/run/dstack/quote-sim.sock".into(),
        }
    }
}

impl Default for WebhookInput {
    fn default() -> Self {
        Self { url: String::new(), pin: String::new(), timeout: 5 }
    }
}

/// Who is asked before each release (trust rule T17).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Webhook {
    /// Where.
    pub endpoint: Endpoint,
    /// Path before `/bootAuth/app`.
    pub base: String,
    /// Time for an answer; none in time is a denial.
    pub timeout: Duration,
}

/// Where a webhook listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// On this host.
    Unix(PathBuf),
    /// Elsewhere, by TLS 1.3 with exactly this key.
    Https {
        /// Host name or address.
        host: String,
        /// Port.
        port: u16,
        /// SHA-256 of the server's SubjectPublicKeyInfo.
        pin: [u8; 32],
    },
}

/// Validated settings.
#[derive(Debug, Clone)]
pub struct Settings {
    /// URL at which guests reach this service; `None`: by the domain of the bootstrap.
    pub address: Option<String>,
    /// App id of the gateway.
    pub gateway_app_id: Option<AppId>,
    /// Where collateral of genuine platforms is served.
    pub pccs: Pccs,
    /// Socket of the simulated TEE, which serves its collateral.
    pub quote_sim: PathBuf,
    /// Who is asked before each release.
    pub webhook: Option<Webhook>,
}

impl Settings {
    /// Checks the merged input.
    ///
    /// # Errors
    /// [`ConfigError::Rule`] names the key and what is allowed.
    pub fn from_input(input: Input) -> Result<Self, ConfigError> {
        let gateway = Some(input.gateway_app_id).filter(|id| !id.is_empty());
        let gateway = gateway.map(|id| id.parse()).transpose();
        Ok(Self {
            address: address(input.address)?,
            gateway_app_id: gateway.map_err(|e| ConfigError::rule("gateway_app_id", format!("{e}")))?,
            pccs: Pccs::parse(&input.collateral.pccs_url)
                .map_err(|e| ConfigError::rule("collateral.pccs_url", e.to_string()))?,
            quote_sim: input.collateral.quote_sim,
            webhook: webhook(&input.webhook)?,
        })
    }
}

fn address(text: String) -> Result<Option<String>, ConfigError> {
    if text.is_empty() {
        return Ok(None);
    }
    match parse_https(&text) {
        Some(_) => Ok(Some(text)),
        None => Err(ConfigError::rule("address", "is no https URL; write e.g. \"https://192.0.2.1:9043\"")),
    }
}

/// Host, port and path of an https URL; the port is [`PORT`] when there is none.
#[must_use]
pub fn parse_https(url: &str) -> Option<(String, u16, String)> {
    let rest = url.strip_prefix("https://")?;
    let (authority, path) = rest.split_once('/').map_or((rest, ""), |(a, p)| (a, p));
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !host.ends_with(':') && !port.contains(']') => (host, port.parse().ok()?),
        _ => (authority, PORT),
    };
    let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    let known = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b':');
    let good = !host.is_empty() && host.bytes().all(known) && path.bytes().all(|b| b.is_ascii_graphic());
    good.then(|| (host.to_owned(), port, path.trim_end_matches('/').to_owned()))
}

fn webhook(input: &WebhookInput) -> Result<Option<Webhook>, ConfigError> {
    if input.url.is_empty() {
        return Ok(None);
    }
    if !(1..=60).contains(&input.timeout) {
        return Err(ConfigError::rule("webhook.timeout", "must be 1 to 60 seconds"));
    }
    let timeout = Duration::from_secs(input.timeout);
    if let Some(path) = input.url.strip_prefix("unix:") {
        let endpoint = Endpoint::Unix(path.into());
        return if path.starts_with('/') {
            Ok(Some(Webhook { endpoint, base: String::new(), timeout }))
        } else {
            Err(ConfigError::rule("webhook.url", "needs an absolute path after unix:"))
        };
    }
    let (host, port, path) = parse_https(&input.url).ok_or_else(|| {
        ConfigError::rule(
            "webhook.url",
            "must be unix:/path/of/a/socket, or https://HOST:PORT with webhook.pin",
        )
    })?;
    let mut pin = [0; 32];
    let digits = input.pin.strip_prefix("sha256:").unwrap_or_default();
    hex::decode_to_slice(digits, &mut pin).map_err(|_| {
        ConfigError::rule(
            "webhook.pin",
            "must be \"sha256:\" and 64 hex digits of the server's public key (SPKI)",
        )
    })?;
    let base = if path.is_empty() { path } else { format!("/{path}") };
    Ok(Some(Webhook { endpoint: Endpoint::Https { host, port, pin }, base, timeout }))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn settings(text: &str) -> Result<Settings, String> {
        let input = toml::from_str(text).map_err(|e| e.to_string())?;
        Settings::from_input(input).map_err(|e| e.to_string())
    }

    #[test]
    fn the_shipped_file_is_the_default() {
        let shipped = include_str!("../../../units/host/kms.toml");
        let printed = |text: &str| format!("{:?}", settings(text).unwrap());
        assert_eq!(printed(shipped), printed(""));
        assert!(settings("[collateral]\npccs_url='x'").unwrap_err().contains("pccs_url"));
        let active: String =
            shipped.lines().filter_map(|l| l.strip_prefix('#')).collect::<Vec<_>>().join("\n");
        let keys = active.lines().filter(|l| l.contains(" = ") || l.starts_with('[')).collect::<Vec<_>>();
        assert!(toml::from_str::<Input>(&keys.join("\n")).is_ok(), "{keys:?}");
    }

    #[test]
    fn what_init_writes_is_understood() {
        let written = include_str!("../../dstackctl/testdata/init/rfc2136/kms.toml");
        let settings = settings(written).unwrap();
        assert_eq!(settings.address.as_deref(), Some("https://host.example.com:19043"));
        assert!(settings.gateway_app_id.is_some());
        let v6 = self::settings(include_str!("../../dstackctl/testdata/init/cloudflare/kms.toml")).unwrap();
        assert_eq!(v6.address.as_deref(), Some("https://[2001:db8::7]:9043"));
    }

    #[test]
    fn t17_a_webhook_is_pinned_or_local() {
        let pin = "ab".repeat(32);
        assert!(settings("[webhook]\nurl='unix:/run/auth.sock'").unwrap().webhook.is_some());
        let https = format!("[webhook]\nurl='https://auth.example.com:8443/x/'\npin='sha256:{pin}'");
        let webhook = settings(&https).unwrap().webhook.unwrap();
        assert_eq!(webhook.base, "/x");
        assert!(matches!(webhook.endpoint, Endpoint::Https { port: 8443, pin: [0xab, ..], .. }));
        for bad in [
            "url='https://auth.example.com'",
            "url='http://127.0.0.1:1'",
            "url='unix:relative'",
            "url='https://a'\npin='sha256:00'",
            "url='unix:/x'\ntimeout=0",
        ] {
            assert!(settings(&format!("[webhook]\n{bad}")).is_err(), "{bad}");
        }
    }

    #[test]
    fn addresses() {
        assert_eq!(parse_https("https://a.b"), Some(("a.b".into(), PORT, String::new())));
        assert_eq!(parse_https("https://[::1]:1/x/"), Some(("::1".into(), 1, "x".into())));
        assert_eq!(parse_https("https://[::1]"), Some(("::1".into(), PORT, String::new())));
        for bad in ["", "http://a", "https://", "https://a b", "https://a:99999", "https://a@b"] {
            assert_eq!(parse_https(bad), None, "{bad}");
        }
        assert!(settings("address='kms'").is_err());
        assert!(settings("gateway_app_id='any'").unwrap_err().contains("40"));
        assert!(settings("allow_any_upgrade=true").is_err());
    }
}
