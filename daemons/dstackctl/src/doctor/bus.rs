// SPDX-License-Identifier: Apache-2.0
//! What runs: units, polkit, the clock, and teepod itself.

use super::{Check, Config};
use crate::client::Client;
use crate::errors::Failure;
use dstack_core::spec::Platform;
use dstack_service::api::systemd1;
use std::collections::BTreeSet;
use std::time::Duration;
use zbus::fdo::DBusProxy;

/// A peer that does not answer within this time is taken for broken.
const PATIENCE: Duration = Duration::from_secs(30);

/// The bus itself cannot be reached.
#[must_use]
pub fn unreachable(failure: &Failure) -> Check {
    Check::bad("D-Bus", failure.message.clone(), "start it: systemctl start dbus.socket")
}

/// Units, polkit and the clock.
pub async fn units(client: &Client) -> Vec<Check> {
    vec![
        unit(client, "dstack-teepod.socket", true).await,
        unit(client, "dstack-teepod.service", false).await,
        polkit(client).await,
        clock(client).await,
    ]
}

/// Whether a service of another package runs, under the name of what it is for.
pub async fn unit_named(client: &Client, what: &'static str, name: &str, package: &str) -> Check {
    match unit_state(client, name).await {
        Err(error) => {
            Check::bad(what, format!("{name}: systemd does not answer: {error}"), "is systemd running?")
        }
        Ok((load, _)) if load != "loaded" => {
            Check::bad(what, format!("{name} is {load}"), format!("apt install {package}"))
        }
        Ok((_, active)) if active == "active" => Check::good(what, format!("{name} is active")),
        Ok((_, active)) => {
            Check::bad(what, format!("{name} is {active}"), format!("systemctl enable --now {name}"))
        }
    }
}

async fn unit(client: &Client, name: &'static str, must_run: bool) -> Check {
    let start = format!("systemctl enable --now {name}");
    match unit_state(client, name).await {
        Err(error) => {
            Check::bad("unit", format!("{name}: systemd does not answer: {error}"), "is systemd running?")
        }
        Ok((load, _)) if load != "loaded" => {
            Check::bad("unit", format!("{name} is {load}"), "apt install dstack-teepod")
        }
        Ok((_, active)) if active == "active" => Check::good("unit", format!("{name} is active")),
        Ok((_, active)) if active == "failed" => Check::bad(
            "unit",
            format!("{name} has failed"),
            format!("see why: journalctl -u {name} -n 50; then: systemctl reset-failed {name}"),
        ),
        Ok((_, active)) if must_run => Check::bad("unit", format!("{name} is {active}"), start),
        Ok((_, active)) => Check::good("unit", format!("{name} is {active}; it starts when it is called")),
    }
}

/// `LoadState` and `ActiveState`.
async fn unit_state(client: &Client, name: &str) -> zbus::Result<(String, String)> {
    let manager = systemd1::ManagerProxy::new(&client.connection).await?;
    let path = manager.load_unit(name).await?;
    let unit = systemd1::UnitProxy::builder(&client.connection)
        .path(path)
        .cache_properties(zbus::proxy::CacheProperties::No)
        .build()
        .await?;
    let load: String = unit.inner().get_property("LoadState").await?;
    Ok((load, unit.active_state().await?))
}

async fn polkit(client: &Client) -> Check {
    const NAME: &str = "org.freedesktop.PolicyKit1";
    let names = async {
        let bus = DBusProxy::new(&client.connection).await?;
        let (running, startable) = (bus.list_names().await?, bus.list_activatable_names().await?);
        zbus::Result::Ok(running.into_iter().chain(startable).any(|n| n.as_str() == NAME))
    };
    match names.await {
        Ok(true) => Check::good("polkit", "is there, so that users can be allowed to manage VMs"),
        Ok(false) => Check::bad("polkit", "is missing, so only root may do anything", "apt install polkitd"),
        Err(error) => {
            Check::bad("polkit", format!("the bus does not answer: {error}"), "systemctl status dbus")
        }
    }
}

async fn clock(client: &Client) -> Check {
    let synced = async {
        let path = ("org.freedesktop.timedate1", "/org/freedesktop/timedate1");
        let proxy = zbus::Proxy::new(&client.connection, path.0, path.1, "org.freedesktop.timedate1").await?;
        proxy.get_property::<bool>("NTPSynchronized").await
    };
    let remedy = "timedatectl set-ntp true (a wrong clock breaks certificates and quotes)";
    match tokio::time::timeout(PATIENCE, synced).await {
        Ok(Ok(true)) => Check::good("clock", "is synchronized"),
        Ok(Ok(false)) => Check::warning("clock", "is not synchronized", remedy),
        _ => Check::warning("clock", "nobody can tell whether it is synchronized", remedy),
    }
}

/// teepod: whether it answers, and what it says VMs run on.
pub async fn teepod(client: &Client) -> (Vec<Check>, Option<Platform>) {
    let manager = &client.manager;
    let asked = async {
        let version = manager.version().await?;
        zbus::Result::Ok((version, manager.platform().await?, manager.vsock().await?))
    };
    let see = "see why: systemctl status dstack-teepod; journalctl -u dstack-teepod -n 50";
    match tokio::time::timeout(PATIENCE, asked).await {
        Ok(Ok((version, platform, vsock))) => {
            let ground = if platform.is_empty() {
                String::new()
            } else {
                format!("; VMs run on {platform}, vsock by {vsock}")
            };
            let message = format!("version {version} answers{ground}");
            let parsed = serde_json::from_value(serde_json::Value::String(platform)).ok();
            (vec![Check::good("teepod", message)], parsed)
        }
        Ok(Err(error)) => {
            let failure = Failure::from(error);
            let remedy = failure.hint.unwrap_or_else(|| see.to_owned());
            (vec![Check::bad("teepod", format!("does not answer: {}", failure.message), remedy)], None)
        }
        Err(_) => (vec![Check::bad("teepod", "does not answer", see)], None),
    }
}

/// Context ids and host ports that are left.
pub async fn capacity(client: &Client, config: &Config) -> Vec<Check> {
    let Ok(rows) = client.manager.list_vms().await else { return Vec::new() };
    let mut checks = vec![pool(rows.len(), config.cvm.cid_start, config.cvm.cid_pool_size)];
    if let Ok((address, first, last)) = client.manager.port_range().await {
        let tables =
            ["/proc/net/tcp", "/proc/net/tcp6"].map(|p| std::fs::read_to_string(p).unwrap_or_default());
        let taken = tables.iter().flat_map(|t| listening(t)).collect();
        checks.push(ports(&address, first, last, &taken));
    }
    checks
}

fn pool(vms: usize, start: u32, size: u32) -> Check {
    let last = start.saturating_add(size).saturating_sub(1);
    let message = format!("{vms} VMs; context ids {start} to {last}");
    let remedy = "choose another range with cvm.cid_start and cvm.cid_pool_size in teepod.toml";
    if start < 3 {
        return Check::bad("context ids", format!("{message}: ids below 3 are reserved"), remedy);
    }
    if vms as u64 >= u64::from(size) {
        Check::warning("context ids", message, remedy)
    } else {
        Check::good("context ids", message)
    }
}

fn ports(address: &str, first: u16, last: u16, taken: &BTreeSet<u16>) -> Check {
    let all = usize::from(last.saturating_sub(first)) + 1;
    let used = taken.iter().filter(|p| (first..=last).contains(*p)).count();
    let message =
        format!("{} of {all} are free for mappings: {first} to {last} on {address}", all - used.min(all));
    let remedy = "widen cvm.port_mapping.range in teepod.toml";
    if used >= all { Check::warning("ports", message, remedy) } else { Check::good("ports", message) }
}

/// Local ports that listen, of a table such as `/proc/net/tcp`.
fn listening(table: &str) -> Vec<u16> {
    let port = |line: &str| {
        let mut fields = line.split_whitespace().skip(1);
        let (local, state) = (fields.next()?, fields.nth(1)?);
        let (_, port) = local.rsplit_once(':')?;
        (state == "0A").then(|| u16::from_str_radix(port, 16).ok()).flatten()
    };
    table.lines().skip(1).filter_map(port).collect()
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;

    #[test]
    fn ports_that_listen() {
        let table = "  sl  local_address rem_address   st tx_queue\n\
            \x20  0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000\n\
            \x20  1: 0100007F:1F91 0100007F:9999 01 00000000:00000000 00:00000000\n\
            garbage\n";
        assert_eq!(listening(table), [8080]);
        let taken = BTreeSet::from([8080, 9]);
        let check = ports("127.0.0.1", 8080, 8081, &taken);
        assert!(check.status == Status::Good && check.message.starts_with("1 of 2"), "{check:?}");
        assert_eq!(ports("127.0.0.1", 8080, 8080, &taken).status, Status::Warning);
    }

    #[test]
    fn context_ids() {
        assert_eq!(pool(0, 1000, 1000).status, Status::Good);
        assert_eq!(pool(10, 1000, 10).status, Status::Warning);
        assert_eq!(pool(0, 2, 10).status, Status::Bad);
    }
}
