// SPDX-License-Identifier: Apache-2.0
//! The ingress, where there is one.

use super::Check;
use crate::client::Client;
use crate::errors::{Failure, is_away};
use dstack_service::api::tproxy1::Error;
use std::time::Duration;
use zbus::DBusError;

const NAME: &str = "ingress";
/// How the status of a daemon begins that has settings which it cannot use.
pub(super) const MISCONFIGURED: &str = "Misconfigured: ";
/// Time for an answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Whether the ingress is set up and works; nothing where it is not installed.
pub async fn check(client: &Client) -> Option<Check> {
    let asked = tokio::time::timeout(PATIENCE, ask(client)).await;
    let remedy = "see why: systemctl status dstack-tproxy; journalctl -u dstack-tproxy -n 50";
    match asked {
        Err(_) => Some(Check::bad(NAME, "dstack-tproxy does not answer", remedy)),
        Ok(Ok((configured, status))) => Some(judge(configured, status, remedy)),
        Ok(Err(error)) if is_not_installed(&error) => None,
        Ok(Err(error)) => {
            let failure = Failure::from(Error::from(error));
            Some(Check::bad(NAME, failure.message, failure.hint.unwrap_or_else(|| remedy.to_owned())))
        }
    }
}

async fn ask(client: &Client) -> zbus::Result<(bool, String)> {
    let builder = dstack_service::api::tproxy1::ManagerProxy::builder(&client.connection);
    let proxy = builder.cache_properties(zbus::proxy::CacheProperties::No).build().await?;
    Ok((proxy.configured().await?, proxy.status().await?))
}

fn is_not_installed(error: &zbus::Error) -> bool {
    match error {
        zbus::Error::MethodError(name, ..) => is_away(name.as_str()),
        zbus::Error::FDO(error) => is_away(error.name().as_str()),
        _ => false,
    }
}

/// The status has one part for each thing that is missing.
fn judge(configured: bool, status: String, remedy: &str) -> Check {
    match () {
        () if status.starts_with(MISCONFIGURED) => Check::bad(NAME, status, remedy),
        () if !configured => Check::warning(
            NAME,
            "it has no settings yet, so apps have no names outside",
            "sudo dstackctl init; or set proxy.base_domain and wg.endpoint in /etc/dstack/tproxy.toml, then: systemctl restart dstack-tproxy",
        ),
        () if status.contains("; ") => Check::warning(NAME, status, remedy),
        () => Check::good(NAME, status),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;

    #[test]
    fn what_is_missing_is_a_warning_and_what_cannot_be_used_is_broken() {
        for (configured, status, expected) in [
            (false, "Misconfigured: tproxy.toml: x", Status::Bad),
            (false, "Not configured: x", Status::Warning),
            (true, "Serving a.b: 1 instances, 1 online", Status::Good),
            (true, "Serving a.b: 0 instances, 0 online; no tunnel: x", Status::Warning),
        ] {
            let check = judge(configured, status.to_owned(), "r");
            assert_eq!(check.status, expected, "{status}");
            assert_eq!(check.remedy.is_some(), expected != Status::Good);
        }
    }
}
