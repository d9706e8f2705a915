// SPDX-License-Identifier: Apache-2.0
//! The certificates that dstack-certbot keeps, where there is one, or where the ingress waits for one.

use super::Check;
use super::ingress::MISCONFIGURED;
use crate::cert::{self, Row};
use crate::client::Client;
use crate::errors::{Failure, is_away};
use dstack_service::api::certbot1::Error;
use dstack_service::config::{self, Directories};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use toml::Table;

const NAME: &str = "certificate";
/// Time for an answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// A certificate is renewed when a third of its life is left; at this part of it that has not worked for long.
const LAST_PART: u64 = 6;
const WHY: &str = "see why: systemctl status dstack-certbot; journalctl -u dstack-certbot -n 50";

/// One line for each certificate, or one that says why there is none although the ingress waits for it.
pub async fn check(client: &Client, directories: &Directories) -> Vec<Check> {
    let expected = expected(directories);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let asked = async {
        let certbot = client.certbot().await?;
        let rows = certbot.list_certificates().await.map_err(Asked::from)?;
        // One that knows certificates of before may be unable to renew any.
        let status = certbot.status().await.map_err(Failure::from)?;
        Result::<_, Asked>::Ok((rows, status))
    };
    match tokio::time::timeout(PATIENCE, asked).await {
        Err(_) => vec![Check::bad(NAME, "dstack-certbot does not answer", WHY)],
        Ok(Ok((rows, status))) => {
            let misconfigured = status.starts_with(MISCONFIGURED).then(|| Check::bad(NAME, status, WHY));
            let rows: Vec<Row> = rows.into_iter().map(cert::object).collect();
            let missing =
                expected.filter(|domain| rows.iter().all(|row| cert::text(row, "domain") != *domain));
            let missing = missing.map(|domain| waits(&domain, "dstack-certbot has no such certificate"));
            rows.iter().map(|row| judge(row, now)).chain(missing).chain(misconfigured).collect()
        }
        Ok(Err(Asked::Away)) => {
            let remedy = "apt install dstack-certbot, then: sudo dstackctl init";
            let absent = |domain: String| Check {
                remedy: Some(remedy.to_owned()),
                ..waits(&domain, "dstack-certbot is not installed")
            };
            expected.map(absent).into_iter().collect()
        }
        Ok(Err(Asked::NotConfigured)) => {
            expected.map(|domain| waits(&domain, "dstack-certbot has no settings")).into_iter().collect()
        }
        Ok(Err(Asked::Failed(failure))) => {
            let remedy = failure.hint.unwrap_or_else(|| WHY.to_owned());
            vec![Check::bad(NAME, format!("dstack-certbot: {}", failure.message), remedy)]
        }
    }
}

/// Why there are no rows.
enum Asked {
    Away,
    NotConfigured,
    Failed(Failure),
}

impl From<Failure> for Asked {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<Error> for Asked {
    fn from(error: Error) -> Self {
        match error {
            Error::NotConfigured(_) => Self::NotConfigured,
            Error::Bus(zbus::Error::MethodError(name, ..)) if is_away(name.as_str()) => Self::Away,
            Error::Bus(zbus::Error::FDO(error)) if is_away(zbus::DBusError::name(&*error).as_str()) => {
                Self::Away
            }
            error => Self::Failed(error.into()),
        }
    }
}

/// The certificate of certbot that the ingress shows; files that cannot be read have a line of their own.
fn expected(directories: &Directories) -> Option<String> {
    let table = config::load::<Table>(directories, "tproxy").ok()?;
    let domain = table.get("certbot")?.get("domain")?.as_str()?;
    (!domain.is_empty()).then(|| domain.trim_start_matches("*.").to_owned())
}

fn waits(domain: &str, why: &str) -> Check {
    let message = format!("the ingress waits for the one of {domain}, and {why}");
    Check::bad(
        NAME,
        message,
        "sudo dstackctl init; or see certbot.toml(5), and certbot.domain in tproxy.toml(5)",
    )
}

fn judge(row: &Row, now: u64) -> Check {
    let (domain, state, error) =
        (cert::text(row, "domain"), cert::text(row, "state"), cert::text(row, "error"));
    let (since, until) = (cert::number(row, "not_before"), cert::number(row, "not_after"));
    let remedy = "dstackctl cert status says why; mend it, then: dstackctl cert renew --force";
    let end = cert::time(until, "-");
    let because = if error.is_empty() { String::new() } else { format!(": {error}") };
    match state.as_str() {
        "valid" if until <= now => Check::bad(NAME, format!("{domain} has expired, {end}{because}"), remedy),
        "valid" if until - now < until.saturating_sub(since) / LAST_PART => {
            Check::warning(NAME, format!("{domain} expires soon, {end}{because}"), remedy)
        }
        "valid" => Check::good(NAME, format!("{domain} is valid until {end}")),
        "expired" => Check::bad(NAME, format!("{domain} has expired, {end}{because}"), remedy),
        "missing" => Check::bad(NAME, format!("there is none for {domain} yet{because}"), remedy),
        "renewal-failed" => {
            let next = cert::time(cert::number(row, "retry"), "at the next hourly look");
            let message =
                format!("{domain} cannot be renewed{because}; valid until {end}, the next try is {next}");
            Check::bad(NAME, message, remedy)
        }
        other => Check::bad(NAME, format!("{domain} is {other}{because}"), remedy),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::Status;
    use super::*;
    use serde_json::json;

    #[test]
    fn each_state_has_its_line() {
        const DAY: u64 = 86_400;
        let (since, now) = (1_700_000_000, 1_700_000_000 + 60 * DAY);
        for (state, until, error, status, part) in [
            ("valid", now + 30 * DAY, "", Status::Good, "is valid until 2024"),
            ("valid", now + 9 * DAY, "the token is refused", Status::Warning, "expires soon"),
            ("valid", now, "", Status::Bad, "has expired"),
            ("expired", now - DAY, "no zone has it", Status::Bad, "no zone has it"),
            (
                "renewal-failed",
                now + 30 * DAY,
                "no zone has it",
                Status::Bad,
                "cannot be renewed: no zone has it",
            ),
            ("missing", 0, "", Status::Bad, "none for a.b yet"),
            ("unreadable", 0, "live/cert.pem is damaged", Status::Bad, "live/cert.pem is damaged"),
        ] {
            let row = json!({"domain": "a.b", "state": state, "error": error, "not_before": since, "not_after": until});
            let check = judge(row.as_object().unwrap(), now);
            assert!(check.status == status && check.message.contains(part), "{state} {check:?}");
            assert_eq!(check.remedy.is_some(), status != Status::Good);
        }
    }

    #[test]
    fn the_ingress_says_whether_it_waits_for_certbot() {
        let directory = tempfile::tempdir().unwrap();
        let directories =
            Directories { vendor: directory.path().join("vendor"), operator: directory.path().to_owned() };
        assert_eq!(expected(&directories), None);
        std::fs::write(directory.path().join("tproxy.toml"), "[certbot]\ndomain='a.b'\n").unwrap();
        assert_eq!(expected(&directories).unwrap(), "a.b");
    }
}
