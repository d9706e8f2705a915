// SPDX-License-Identifier: Apache-2.0
//! The certificate monitor, where there is one.

use super::Check;
use crate::client::Client;
use crate::errors::{Failure, is_away};
use dstack_service::api::ctmonitor1::Error;
use std::time::Duration;
use zbus::DBusError;

const NAME: &str = "certificate monitor";
/// Time for an answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// What it says.
#[derive(Debug)]
struct Said {
    configured: bool,
    alerts: u32,
    error: String,
    status: String,
}

/// What the monitor of the ingress's certificates has found; nothing where it is not installed, or has no settings: to
/// watch is the operator's choice.
pub async fn check(client: &Client) -> Option<Check> {
    let remedy = "see why: dstackctl ct status; journalctl -u dstack-ct-monitor -n 50";
    match tokio::time::timeout(PATIENCE, ask(client)).await {
        Err(_) => Some(Check::bad(NAME, "dstack-ct-monitor does not answer", remedy)),
        Ok(Ok(said)) => said.configured.then(|| judge(said, remedy)),
        Ok(Err(error)) if is_not_installed(&error) => None,
        Ok(Err(error)) => {
            let failure = Failure::from(Error::from(error));
            Some(Check::bad(NAME, failure.message, failure.hint.unwrap_or_else(|| remedy.to_owned())))
        }
    }
}

async fn ask(client: &Client) -> zbus::Result<Said> {
    let builder = dstack_service::api::ctmonitor1::ManagerProxy::builder(&client.connection);
    let monitor = builder.cache_properties(zbus::proxy::CacheProperties::No).build().await?;
    Ok(Said {
        configured: monitor.configured().await?,
        alerts: monitor.alerts().await?,
        error: monitor.last_error().await?,
        status: monitor.status().await?,
    })
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
        for (alerts, error, expected) in
            [(1, "x", Status::Bad), (0, "x", Status::Warning), (0, "", Status::Good)]
        {
            let said = Said { configured: true, alerts, error: error.to_owned(), status: "s".to_owned() };
            let check = judge(said, "r");
            assert_eq!(check.status, expected, "{alerts} {error}");
            assert_eq!(check.remedy.is_some(), expected != Status::Good);
        }
    }
}
