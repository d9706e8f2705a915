// SPDX-License-Identifier: Apache-2.0
//! The certificate monitor, where there is one.

use super::Check;
use crate::client::Client;
use crate::errors::{Failure, is_away};
use dstack_service::api::ctmonitor1::Error;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use zbus::DBusError;

const NAME: &str = "certificate monitor";
/// Time for an answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// The timer checks every few minutes, and a check may take an hour.
const AGE_MAX: u64 = 6 * 3600;

/// What it says.
#[derive(Debug)]
struct Said {
    /// Age of the last check, seconds; `None`: there was none.
    age: Option<u64>,
    alerts: u32,
    error: String,
    status: String,
}

/// What the monitor of the ingress's certificates has found; nothing where it is not installed.
pub async fn check(client: &Client) -> Option<Check> {
    let remedy = "see why: dstackctl ct status; journalctl -u dstack-ct-monitor -n 50";
    match tokio::time::timeout(PATIENCE, ask(client)).await {
        Err(_) => Some(Check::bad(NAME, "dstack-ct-monitor does not answer", remedy)),
        Ok(Ok(None)) => Some(Check::warning(
            NAME,
            "has no settings, so nobody watches for certificates of unknown keys",
            "sudo dstackctl init; or see ct-monitor.toml(5)",
        )),
        Ok(Ok(Some(said))) => Some(judge(said, remedy)),
        Ok(Err(error)) if is_not_installed(&error) => None,
        Ok(Err(error)) => {
            let failure = Failure::from(Error::from(error));
            Some(Check::bad(NAME, failure.message, failure.hint.unwrap_or_else(|| remedy.to_owned())))
        }
    }
}

/// `None`: it has no settings.
async fn ask(client: &Client) -> zbus::Result<Option<Said>> {
    let builder = dstack_service::api::ctmonitor1::ManagerProxy::builder(&client.connection);
    let monitor = builder.cache_properties(zbus::proxy::CacheProperties::No).build().await?;
    if !monitor.configured().await? {
        return Ok(None);
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let last = Some(monitor.last_check().await?).filter(|last| *last > 0);
    Ok(Some(Said {
        age: last.map(|last| now.saturating_sub(last)),
        alerts: monitor.alerts().await?,
        error: monitor.last_error().await?,
        status: monitor.status().await?,
    }))
}

fn is_not_installed(error: &zbus::Error) -> bool {
    match error {
        zbus::Error::MethodError(name, ..) => is_away(name.as_str()),
        zbus::Error::FDO(error) => is_away(error.name().as_str()),
        _ => false,
    }
}

fn judge(said: Said, remedy: &str) -> Check {
    match () {
        () if said.alerts > 0 => Check::bad(
            NAME,
            format!("{} alerts wait for somebody to look", said.alerts),
            "dstackctl ct alerts",
        ),
        () if said.age.is_some_and(|age| age > AGE_MAX) => Check::bad(
            NAME,
            format!("the last check was {} hours ago", said.age.unwrap_or_default() / 3600),
            "systemctl enable --now dstack-ct-monitor.timer; see why: systemctl status dstack-ct-monitor-check",
        ),
        () if !said.error.is_empty() => Check::warning(NAME, said.status, remedy),
        () => Check::good(NAME, said.status),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;

    #[test]
    fn alerts_are_bad_and_trouble_is_a_warning() {
        for (alerts, error, age, expected) in [
            (1, "x", Some(9), Status::Bad),
            (0, "x", Some(9), Status::Warning),
            (0, "", Some(9), Status::Good),
            (0, "", None, Status::Good),
            (0, "", Some(AGE_MAX + 1), Status::Bad),
        ] {
            let said = Said { age, alerts, error: error.to_owned(), status: "s".to_owned() };
            let check = judge(said, "r");
            assert_eq!(check.status, expected, "{alerts} {error}");
            assert_eq!(check.remedy.is_some(), expected != Status::Good);
        }
    }
}
