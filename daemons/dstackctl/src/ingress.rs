// SPDX-License-Identifier: Apache-2.0
//! The names that the host's ingress gives an app.

use crate::client::Client;
use crate::errors::{Failure, is_away};
use dstack_core::compose::{AppCompose, PortPolicy};
use dstack_core::ids::AppId;
use dstack_service::api::tproxy1::{Error, ManagerProxy};
use serde_json::Value;
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::time::{Instant, sleep};
use zbus::{DBusError, Variant};

/// How long an instance may take to register after its app is up; the guest asks about once a minute.
pub const PATIENCE: Duration = Duration::from_secs(90);
/// Handshakes of the tunnel are no events on the bus, so it is asked again after this time.
const PAUSE: Duration = Duration::from_millis(500);
/// Most ports that get an address of their own in what is printed.
const PORTS_MAX: usize = 8;
/// Longest answer that is waited for.
const ANSWER: Duration = Duration::from_secs(30);

/// Where the ingress of a host is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ingress {
    /// Apps are below this domain.
    pub domain: String,
    /// TCP port of its TLS.
    pub port: u16,
}

/// The host's ingress; `None` where there is none, or it has no settings yet.
///
/// # Errors
/// When it is there, and does not answer.
pub async fn find(client: &Client) -> Result<Option<Ingress>, Failure> {
    let asked = tokio::time::timeout(ANSWER, ask(client)).await;
    match asked.map_err(|_| Failure::new("dstack-tproxy does not answer"))? {
        Ok(found) => Ok(found),
        Err(zbus::Error::MethodError(name, ..)) if is_away(name.as_str()) => Ok(None),
        Err(zbus::Error::FDO(error)) if is_away(error.name().as_str()) => Ok(None),
        Err(error) => Err(Error::from(error).into()),
    }
}

async fn ask(client: &Client) -> zbus::Result<Option<Ingress>> {
    let builder = ManagerProxy::builder(&client.connection);
    let proxy = builder.cache_properties(zbus::proxy::CacheProperties::No).build().await?;
    if !proxy.configured().await? {
        return Ok(None);
    }
    Ok(Some(Ingress { domain: proxy.base_domain().await?, port: proxy.listen_port().await? }))
}

impl Ingress {
    /// The addresses of an app, one for each of its ports.
    #[must_use]
    pub fn urls(&self, app: &AppId, ports: &BTreeSet<u16>) -> Vec<String> {
        let port = if self.port == 443 { String::new() } else { format!(":{}", self.port) };
        let url = |p: &u16| format!("https://{app}-{p}.{}{port}/", self.domain);
        ports.iter().take(PORTS_MAX).map(url).collect()
    }
}

/// Waits until the ingress has heard of an instance by its tunnel; whether it has.
///
/// # Errors
/// When the bus failed.
pub async fn wait_online(client: &Client, instance: &str, patience: Duration) -> Result<bool, Failure> {
    let proxy = client.proxy().await?;
    let deadline = Instant::now() + patience;
    loop {
        match proxy.get_instance(instance).await {
            Ok(row) if row.get("online").is_some_and(|v| matches!(**v, Variant::Bool(true))) => {
                return Ok(true);
            }
            Ok(_) | Err(Error::NoSuchInstance(_)) => {}
            Err(error) => return Err(error.into()),
        }
        if Instant::now() + PAUSE > deadline {
            return Ok(false);
        }
        sleep(PAUSE).await;
    }
}

/// The ports of an app that its clients are told of: those it lets them reach, else those it publishes, else 80.
#[must_use]
pub fn ports(app: &AppCompose) -> BTreeSet<u16> {
    let allowed = app.port_policy.as_ref().and_then(PortPolicy::allowed);
    let published = || app.docker_compose_file.as_deref().map(published).unwrap_or_default();
    let ports = allowed.map_or_else(published, BTreeSet::from_iter);
    if ports.is_empty() { BTreeSet::from([80]) } else { ports }
}

/// The TCP ports of the VM that a compose file publishes, as far as they are written as numbers.
#[must_use]
pub fn published(compose: &str) -> BTreeSet<u16> {
    let file: Option<Value> = serde_saphyr::from_str(compose).ok();
    let services = file.as_ref().and_then(|f| f.get("services")).and_then(Value::as_object);
    let ports = services.into_iter().flat_map(|s| s.values()).filter_map(|s| s.get("ports")?.as_array());
    ports.flatten().filter_map(port_of).collect()
}

/// `"[ADDRESS:]HOST:CONTAINER[/tcp]"`, or the long form's `published`.
fn port_of(entry: &Value) -> Option<u16> {
    if let Some(long) = entry.as_object() {
        let udp = long.get("protocol").is_some_and(|p| p == "udp");
        let published = long.get("published").filter(|_| !udp)?;
        let number = published.as_u64().and_then(|p| u16::try_from(p).ok());
        return number.or_else(|| published.as_str()?.parse().ok());
    }
    let text = entry.as_str()?;
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let (host, _container) = ports.rsplit_once(':')?;
    let host = host.rsplit_once(':').map_or(host, |(_, port)| port);
    host.parse().ok().filter(|_| protocol == "tcp")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn ports_of_a_compose_file() {
        let text = "services:\n  a:\n    ports: ['80:8080', '127.0.0.1:443:443/tcp', '53:53/udp', '9000', '[::1]:81:1']\n  \
                    b:\n    ports:\n    - {target: 1, published: 82}\n    - {target: 1, published: '83'}\n    \
                    - {target: 1, published: 84, protocol: udp}\n    - '90-92:90-92'\n  c: {image: x}\n";
        assert_eq!(published(text), BTreeSet::from([80, 81, 82, 83, 443]));
        for text in ["", "services: 1", "services: {a: {ports: 80}}", "services: {a: {ports: [80, null]}}"] {
            assert_eq!(published(text), BTreeSet::new(), "{text}");
        }
    }

    #[test]
    fn clients_are_told_of_ports_that_they_reach() {
        let app = |policy: &str, published: &str| {
            let text = format!(
                r#"{{"manifest_version":2,"name":"x","runner":"docker-compose","port_policy":{policy},
                "docker_compose_file":"services: {{a: {{image: x, ports: [{published}]}}}}"}}"#
            );
            ports(&AppCompose::parse(text.as_bytes()).unwrap())
        };
        assert_eq!(app("null", "'81:80', '82:80'"), BTreeSet::from([81, 82]));
        assert_eq!(app("null", ""), BTreeSet::from([80]));
        let open = r#"{"ports":[{"port":9,"pp":true}]}"#;
        assert_eq!(app(open, "'81:80'"), BTreeSet::from([81]));
        let closed = r#"{"ports":[{"port":82}],"restrict_mode":true}"#;
        assert_eq!(app(closed, "'81:80', '82:80'"), BTreeSet::from([82]));
    }

    #[test]
    fn addresses() {
        let app: AppId = "00112233445566778899aabbccddeeff00112233".parse().unwrap();
        let at = |port| Ingress { domain: "apps.test".into(), port };
        let urls = at(9443).urls(&app, &BTreeSet::from([80]));
        assert_eq!(urls, [format!("https://{app}-80.apps.test:9443/")]);
        assert_eq!(at(443).urls(&app, &BTreeSet::from([1, 80])).len(), 2);
        assert_eq!(at(443).urls(&app, &BTreeSet::from([1])), [format!("https://{app}-1.apps.test/")]);
        assert_eq!(at(443).urls(&app, &(1..100).collect()).len(), PORTS_MAX);
    }
}
