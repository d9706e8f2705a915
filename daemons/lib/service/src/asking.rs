// SPDX-License-Identifier: Apache-2.0
//! Asking a daemon for a job and waiting for its end, which never comes when the daemon restarts in mid-job.
//!
//! The daemon is asked by its unique name, and an end counts only when it comes from there: numbers of jobs begin anew
//! with each process, so a path alone may mean somebody else's job.

use futures_util::{FutureExt, StreamExt};
use std::num::NonZeroUsize;
use std::time::Duration;
use tokio::time::timeout;
use zbus::fdo::{DBusProxy, NameOwnerChangedStream};
use zbus::names::{BusName, OwnedUniqueName, WellKnownName};
use zbus::{Connection, MatchRule, Message, MessageStream, OwnedObjectPath};

/// Time for a daemon that has ended in mid-job to be back; systemd starts it again after a second.
const RESTART: Duration = Duration::from_secs(30);
/// Signals that may queue up while the call is under way.
const QUEUE: Option<NonZeroUsize> = NonZeroUsize::new(256);

/// Why the end of a job is not known.
#[derive(Debug, thiserror::Error)]
pub enum AskError<E> {
    /// The daemon refuses to begin.
    #[error(transparent)]
    Refused(E),
    /// The bus.
    #[error("the bus: {0}")]
    Bus(#[from] zbus::Error),
    /// It ended and did not come back.
    #[error("{0} has ended in mid-job and is not back after {after} s; see: systemctl status {0}", after = .1.as_secs())]
    Away(String, Duration),
    /// It ended, was asked again, and ended again.
    #[error("{0} has ended twice in mid-job; see: journalctl -u {0}")]
    Twice(String),
}

/// Has `start` begin a job of the daemon with this bus name, and gives the word with which the job ended. `start` gets the
/// unique name to call and gives the job's path; it is called once more when the daemon restarts in mid-job, so what it
/// asks for must be right to ask for twice.
///
/// # Errors
/// [`AskError`].
pub async fn ask<E, F>(
    connection: &Connection,
    name: &'static str,
    start: impl Fn(OwnedUniqueName) -> F,
) -> Result<String, AskError<E>>
where
    F: Future<Output = Result<OwnedObjectPath, E>>,
{
    ask_within(connection, name, start, RESTART).await
}

async fn ask_within<E, F>(
    connection: &Connection,
    name: &'static str,
    start: impl Fn(OwnedUniqueName) -> F,
    patience: Duration,
) -> Result<String, AskError<E>>
where
    F: Future<Output = Result<OwnedObjectPath, E>>,
{
    let mut daemon = Daemon::find(connection, name).await?;
    if let Some(result) = daemon.job(&start).await? {
        return Ok(result);
    }
    let back = timeout(patience, daemon.come_back()).await;
    back.map_err(|_| AskError::Away(unit(name), patience))??;
    tracing::info!("{} has restarted in mid-job; it is asked again", unit(name));
    daemon.job(&start).await?.ok_or_else(|| AskError::Twice(unit(name)))
}

/// `org.dstack.certbot1` -> `dstack-certbot`
fn unit(name: &str) -> String {
    let last = name.rsplit('.').next().unwrap_or(name);
    match last.trim_end_matches(|c: char| c.is_ascii_digit()) {
        "ctmonitor" => "dstack-ct-monitor".to_owned(),
        other => format!("dstack-{other}"),
    }
}

/// One process that owns the name, and what the bus says of it.
struct Daemon {
    name: WellKnownName<'static>,
    bus: DBusProxy<'static>,
    owner: OwnedUniqueName,
    owners: NameOwnerChangedStream,
    ended: MessageStream,
}

impl Daemon {
    /// Listens first and looks then, so that nothing is missed. One that does not run is started by the bus.
    async fn find(connection: &Connection, name: &'static str) -> zbus::Result<Self> {
        let bus = DBusProxy::new(connection).await?;
        let owners = bus.receive_name_owner_changed_with_args(&[(0, name)]).await?;
        let rule = MatchRule::builder().msg_type(zbus::message::Type::Signal).member("JobRemoved");
        let rule = rule.interface(format!("{name}.Manager")).build()?;
        let ended = MessageStream::for_match_rule(rule, connection, QUEUE).await?;
        let name = WellKnownName::try_from(name)?;
        let owner = match bus.get_name_owner(BusName::from(name.clone())).await {
            Err(_) => {
                bus.start_service_by_name(name.clone(), 0).await?;
                bus.get_name_owner(BusName::from(name.clone())).await?
            }
            Ok(owner) => owner,
        };
        Ok(Self { name, bus, owner, owners, ended })
    }

    /// How a job ended; `None` when the process ended before it.
    async fn job<E, F>(
        &mut self,
        start: &impl Fn(OwnedUniqueName) -> F,
    ) -> Result<Option<String>, AskError<E>>
    where
        F: Future<Output = Result<OwnedObjectPath, E>>,
    {
        match start(self.owner.clone()).await {
            Ok(path) => Ok(self.end(&path).await?),
            Err(error) => match self.is_there().await? {
                true => Err(AskError::Refused(error)),
                false => Ok(None),
            },
        }
    }

    async fn is_there(&self) -> zbus::Result<bool> {
        Ok(self.bus.name_has_owner(BusName::from(self.owner.as_ref())).await?)
    }

    async fn end(&mut self, job: &OwnedObjectPath) -> zbus::Result<Option<String>> {
        loop {
            tokio::select! {
                biased;
                signal = self.ended.next() => {
                    if let Some(result) = self.result(&here(signal)??, job) {
                        return Ok(Some(result));
                    }
                }
                change = self.owners.next() => {
                    let change = here(change)?;
                    if change.args()?.old_owner().as_ref().is_some_and(|old| *old == self.owner) {
                        return Ok(self.last_word(job));
                    }
                }
            }
        }
    }

    /// What it said before it ended is in the queue.
    fn last_word(&mut self, job: &OwnedObjectPath) -> Option<String> {
        while let Some(Some(Ok(signal))) = self.ended.next().now_or_never() {
            if let Some(result) = self.result(&signal, job) {
                return Some(result);
            }
        }
        None
    }

    fn result(&self, signal: &Message, job: &OwnedObjectPath) -> Option<String> {
        let header = signal.header();
        if header.sender().is_none_or(|sender| *sender != self.owner) {
            return None;
        }
        let (_, ended, result): (u32, OwnedObjectPath, String) = signal.body().deserialize().ok()?;
        (ended == *job).then_some(result)
    }

    /// Waits for the next process. Nothing is started: whoever stopped the daemon may have meant it.
    async fn come_back(&mut self) -> zbus::Result<()> {
        loop {
            if let Ok(owner) = self.bus.get_name_owner(BusName::from(self.name.clone())).await
                && owner != self.owner
            {
                self.owner = owner;
                return Ok(());
            }
            here(self.owners.next().await)?;
        }
    }
}

fn here<T>(next: Option<T>) -> zbus::Result<T> {
    next.ok_or_else(|| zbus::Error::Failure("the bus has closed the connection".into()))
}

#[cfg(test)]
#[path = "asking_tests.rs"]
mod tests;
