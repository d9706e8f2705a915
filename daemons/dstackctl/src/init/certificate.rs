// SPDX-License-Identifier: Apache-2.0
//! The certificate that dstack-certbot orders.

use crate::client::Client;
use crate::doctor::Check;
use crate::errors::{Exit, Failure};
use crate::events::{error as job_error, number, text};
use crate::progress::Progress;
use dstack_service::api::certbot1::{CertificateRow, Error, ManagerProxy, NAME, Options, PATH};
use futures_util::StreamExt;
use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::time::Duration;
use zbus::proxy::CacheProperties;
use zbus::{DBusError, MatchRule, Message, MessageStream, OwnedObjectPath, OwnedVariant, Variant};

/// DNS, the authority and its queue together; certbot's own limits are shorter.
const PATIENCE: Duration = Duration::from_secs(900);
/// Time for an answer about what is there.
const ANSWER: Duration = Duration::from_secs(30);
/// Signals that may queue up while the call is under way.
const QUEUE: Option<NonZeroUsize> = NonZeroUsize::new(256);

/// What certbot says of a certificate.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// `valid expired renewal-failed missing unreadable`.
    pub state: String,
    /// The last failure, in a sentence.
    pub error: String,
    /// Whether the last try failed.
    pub failed: bool,
}

impl Seen {
    /// Whether there is one, and nothing to do.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        self.state == "valid"
    }

    fn of(row: &CertificateRow) -> Self {
        let text = |name: &str| text(row, name).unwrap_or_default().to_owned();
        let failures = row.get("failures").and_then(|v| match &**v {
            Variant::U32(count) => Some(*count),
            _ => None,
        });
        Self { state: text("state"), error: text("error"), failed: failures.unwrap_or(1) > 0 }
    }
}

async fn manager(client: &Client) -> Result<ManagerProxy<'static>, Failure> {
    Ok(ManagerProxy::builder(&client.connection).cache_properties(CacheProperties::No).build().await?)
}

fn failure(error: Error) -> Failure {
    match error {
        Error::Bus(error) => error.into(),
        error => Failure::of_name(error.name().as_str(), &error.to_string()),
    }
}

/// What certbot says of the certificate for `*.DOMAIN`; `None`: it knows of none, such as before it has settings.
///
/// # Errors
/// When it does not answer.
pub async fn look(client: &Client, name: &str) -> Result<Option<Seen>, Failure> {
    let domain = name.trim_start_matches("*.");
    let proxy = manager(client).await?;
    let late = || Failure::with(Exit::Timeout, "dstack-certbot does not answer");
    match tokio::time::timeout(ANSWER, proxy.list_certificates()).await.map_err(|_| late())? {
        Ok(rows) => Ok(rows.iter().find(|row| text(row, "domain") == Some(domain)).map(Seen::of)),
        Err(Error::NotConfigured(_)) => Ok(None),
        Err(error) => Err(failure(error)),
    }
}

/// What doctor says of it, with this remedy.
pub async fn check(client: &Client, name: &str, remedy: &str) -> Check {
    match look(client, name).await {
        Ok(seen) => judge(name, seen, remedy),
        Err(failure) => Check::bad(CHECK, failure.message, remedy),
    }
}

/// The name of its check.
pub const CHECK: &str = "certificate";

fn judge(name: &str, seen: Option<Seen>, remedy: &str) -> Check {
    match seen {
        Some(seen) if seen.is_valid() => Check::good(CHECK, format!("certbot has one for {name}")),
        Some(seen) if seen.state == "expired" && seen.error.is_empty() => {
            Check::bad(CHECK, format!("the certificate for {name} has expired"), remedy)
        }
        Some(seen) if !seen.error.is_empty() => Check::bad(CHECK, format!("{name}: {}", seen.error), remedy),
        _ => Check::bad(CHECK, format!("certbot has none for {name} yet"), remedy),
    }
}

/// Has the certificate ordered, unless it is there and right, and waits for it.
///
/// # Errors
/// certbot's own sentence, with this remedy.
pub async fn order(
    client: &Client,
    name: &str,
    remedy: &str,
    progress: &mut Progress,
) -> Result<(), Failure> {
    let domain = name.trim_start_matches("*.");
    let because = |failure| because(domain, failure, remedy);
    let rule = MatchRule::builder().msg_type(zbus::message::Type::Signal).sender(NAME).path_namespace(PATH);
    let rule = rule.build()?;
    let mut signals = MessageStream::for_match_rule(rule, &client.connection, QUEUE).await?;
    // After a failure certbot waits before it tries again; who runs init has just mended something.
    let failed = look(client, name).await.map_err(because)?.is_some_and(|seen| seen.failed);
    let options: Options<'_> = HashMap::from([("force", Variant::from(failed))]);
    let job = manager(client).await?.renew(domain, options).await.map_err(|e| because(failure(e)))?;
    let ended = tokio::time::timeout(PATIENCE, follow(&mut signals, &job, progress)).await;
    let late =
        || Failure::with(Exit::Timeout, format!("it takes longer than {} minutes", PATIENCE.as_secs() / 60));
    ended.unwrap_or_else(|_| Err(late())).map_err(because)
}

fn because(domain: &str, failure: Failure, remedy: &str) -> Failure {
    let message = format!("no certificate for *.{domain}: {}", failure.message);
    Failure { message, hint: Some(remedy.to_owned()), ..failure }
}

async fn follow(
    signals: &mut MessageStream,
    job: &OwnedObjectPath,
    progress: &mut Progress,
) -> Result<(), Failure> {
    let mut error = None;
    while let Some(message) = signals.next().await {
        let message = message?;
        match ended(&message, job) {
            Some(result) if result == "done" => return Ok(()),
            Some(result) => {
                let (name, sentence): (String, String) = error.unwrap_or_default();
                let sentence =
                    if sentence.is_empty() { format!("the job ended as {result}") } else { sentence };
                return Err(Failure::of_name(&name, &sentence));
            }
            None => {}
        }
        if let Some(values) = changed(&message, job) {
            error = job_error(&values).or(error);
            progress.stage(text(&values, "Stage").unwrap_or_default(), number(&values, "Progress"));
        }
    }
    Err(Failure::new("the bus has closed the connection"))
}

/// How the job ended, when a signal says so.
fn ended(message: &Message, job: &OwnedObjectPath) -> Option<String> {
    let header = message.header();
    if header.member()?.as_str() != "JobRemoved" {
        return None;
    }
    let (_, ended, result): (u32, OwnedObjectPath, String) = message.body().deserialize().ok()?;
    (ended == *job).then_some(result)
}

fn changed(message: &Message, job: &OwnedObjectPath) -> Option<HashMap<String, OwnedVariant>> {
    let header = message.header();
    if header.member()?.as_str() != "PropertiesChanged" || header.path()?.as_str() != job.as_str() {
        return None;
    }
    let (_, values, _): (String, HashMap<String, OwnedVariant>, Vec<String>) =
        message.body().deserialize().ok()?;
    Some(values)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn row(pairs: [(&str, Variant<'static>); 4]) -> CertificateRow {
        pairs.into_iter().map(|(k, v)| (k.to_owned(), OwnedVariant::try_from(v).unwrap())).collect()
    }

    #[test]
    fn what_certbot_says_is_read_and_judged() {
        for (state, failures, error, good) in [
            ("valid", 0_u32, "", true),
            ("expired", 0, "", false),
            ("expired", 2, "the token is refused", false),
            ("missing", 0, "", false),
            ("renewal-failed", 2, "the token is refused", false),
            ("unreadable", 0, "live/cert.pem is damaged", false),
        ] {
            let pairs = [
                ("domain", Variant::from("a.b")),
                ("state", Variant::from(state)),
                ("error", Variant::from(error)),
                ("failures", Variant::from(failures)),
            ];
            let seen = Seen::of(&row(pairs));
            assert_eq!((seen.is_valid(), seen.failed), (good, failures > 0), "{state}");
            let check = judge("*.a.b", Some(seen), "mend it");
            assert!(check.remedy.is_some() != good && check.message.contains(error), "{check:?}");
        }
        let expired = Seen { state: "expired".into(), ..Seen::default() };
        assert!(judge("*.a.b", Some(expired), "mend it").message.contains("has expired"));
        assert!(judge("*.a.b", None, "mend it").remedy.is_some());
    }
}
