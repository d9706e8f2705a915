// SPDX-License-Identifier: Apache-2.0
//! The data planes as units: `dstack-tproxy-flow@N.service`, one generation each.

use dstack_ra_rpc::peer::BoxFuture;
use dstack_service::api::systemd1::ManagerProxy;
use futures_util::StreamExt;
use std::time::Duration;
use tokio::time::timeout;
use zbus::{Connection, OwnedObjectPath};

const PREFIX: &str = "dstack-tproxy-flow@";
const SUFFIX: &str = ".service";
/// Time for a data plane to be ready.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// Starts and stops data planes.
pub trait Units: Send + Sync + std::fmt::Debug {
    /// Generations that run or start, in their order. The error is a sentence.
    fn running(&self) -> BoxFuture<'_, Result<Vec<u64>, String>>;
    /// Starts a generation and waits until it is ready. The error is a sentence.
    fn start(&self, generation: u64) -> BoxFuture<'_, Result<(), String>>;
    /// Tells a generation to take no more connections and to end with its last; does not wait. The error is a sentence.
    fn drain(&self, generation: u64) -> BoxFuture<'_, Result<(), String>>;
}

/// A generation's unit.
#[must_use]
pub fn unit(generation: u64) -> String {
    format!("{PREFIX}{generation}{SUFFIX}")
}

/// The generation of a unit.
#[must_use]
pub fn generation(unit: &str) -> Option<u64> {
    let digits = unit.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?;
    digits.parse().ok().filter(|number: &u64| *number > 0 && number.to_string() == digits)
}

/// A row of ListUnitsByPatterns.
type Row = (String, String, String, String, String, String, OwnedObjectPath, u32, String, OwnedObjectPath);

#[zbus::proxy(
    interface = "org.freedesktop.systemd1.Manager",
    default_service = "org.freedesktop.systemd1",
    default_path = "/org/freedesktop/systemd1"
)]
trait Lister {
    /// Units whose state and name match.
    fn list_units_by_patterns(&self, states: &[&str], patterns: &[&str]) -> zbus::Result<Vec<Row>>;
}

/// systemd of this host.
#[derive(Debug, Clone)]
pub struct Systemd {
    connection: Connection,
}

impl Systemd {
    /// systemd on this bus.
    #[must_use]
    pub const fn new(connection: Connection) -> Self {
        Self { connection }
    }

    async fn list(&self) -> zbus::Result<Vec<u64>> {
        let lister = ListerProxy::new(&self.connection).await?;
        let states = ["active", "activating", "reloading"];
        let rows = lister.list_units_by_patterns(&states, &[&format!("{PREFIX}*{SUFFIX}")]).await?;
        let mut found: Vec<u64> = rows.iter().filter_map(|row| generation(&row.0)).collect();
        found.sort_unstable();
        Ok(found)
    }

    /// Starts a unit; gives the result of its job.
    async fn begin(&self, unit: &str) -> zbus::Result<String> {
        let manager = ManagerProxy::new(&self.connection).await?;
        subscribe(&manager).await?;
        let mut ended = manager.receive_job_removed().await?;
        let job = manager.start_unit(unit, "replace").await?;
        while let Some(signal) = ended.next().await {
            let args = signal.args()?;
            if args.job == job {
                return Ok(args.result.clone());
            }
        }
        Err(zbus::Error::Failure("the bus was lost".to_owned()))
    }
}

/// systemd's word for a client that has asked for signals before.
const ALREADY_SUBSCRIBED: &str = "org.freedesktop.systemd1.AlreadySubscribed";

/// systemd sends no signals to a client that never asked for them, and refuses one that asks twice.
async fn subscribe(manager: &ManagerProxy<'_>) -> zbus::Result<()> {
    match manager.subscribe().await {
        Err(zbus::Error::MethodError(name, ..)) if name.as_str() == ALREADY_SUBSCRIBED => Ok(()),
        other => other,
    }
}

impl Units for Systemd {
    fn running(&self) -> BoxFuture<'_, Result<Vec<u64>, String>> {
        Box::pin(async { self.list().await.map_err(|e| format!("data planes cannot be listed: {e}")) })
    }

    fn start(&self, generation: u64) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async move {
            let unit = unit(generation);
            let ended = timeout(START_TIMEOUT, self.begin(&unit)).await;
            let ended = ended.map_err(|_| format!("{unit} was not ready in time"))?;
            match ended.map_err(|e| format!("{unit} cannot be started: {e}"))?.as_str() {
                "done" => Ok(()),
                other => Err(format!("{unit} could not be started ({other}); see journalctl -u {unit}")),
            }
        })
    }

    fn drain(&self, generation: u64) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async move {
            let unit = unit(generation);
            let manager = ManagerProxy::new(&self.connection).await.map_err(|e| e.to_string())?;
            let stopped = manager.stop_unit(&unit, "replace").await;
            stopped.map(drop).map_err(|e| format!("{unit} cannot be told to drain: {e}"))
        })
    }
}

/// Makes sure that a data plane runs; gives its generation.
///
/// # Errors
/// A sentence.
pub async fn ensure(units: &dyn Units) -> Result<u64, String> {
    match units.running().await?.last() {
        Some(generation) => Ok(*generation),
        None => units.start(1).await.map(|()| 1),
    }
}

/// Starts the next generation, and lets all before it drain once it is ready; gives its number. When it does not start,
/// those before it go on.
///
/// # Errors
/// A sentence.
pub async fn replace(units: &dyn Units) -> Result<u64, String> {
    let running = units.running().await?;
    let next = running.last().map_or(1, |last| last + 1);
    units.start(next).await?;
    for old in running {
        units.drain(old).await?;
    }
    Ok(next)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[derive(Debug, Default)]
    struct Fake {
        running: Mutex<Vec<u64>>,
        said: Mutex<Vec<String>>,
        broken: bool,
    }

    impl Units for Fake {
        fn running(&self) -> BoxFuture<'_, Result<Vec<u64>, String>> {
            Box::pin(async { Ok(self.running.lock().unwrap().clone()) })
        }

        fn start(&self, generation: u64) -> BoxFuture<'_, Result<(), String>> {
            Box::pin(async move {
                self.said.lock().unwrap().push(format!("start {generation}"));
                if self.broken { Err("broken".to_owned()) } else { Ok(()) }
            })
        }

        fn drain(&self, generation: u64) -> BoxFuture<'_, Result<(), String>> {
            self.said.lock().unwrap().push(format!("drain {generation}"));
            Box::pin(async { Ok(()) })
        }
    }

    fn fake(running: &[u64], broken: bool) -> Fake {
        Fake { running: Mutex::new(running.to_vec()), broken, ..Fake::default() }
    }

    #[tokio::test]
    async fn the_old_drains_only_once_the_new_is_ready() {
        let fake = fake(&[3, 4], false);
        assert_eq!(replace(&fake).await, Ok(5));
        assert_eq!(*fake.said.lock().unwrap(), ["start 5", "drain 3", "drain 4"]);
    }

    #[tokio::test]
    async fn a_data_plane_that_does_not_start_changes_nothing() {
        let fake = fake(&[3], true);
        assert!(replace(&fake).await.is_err());
        assert_eq!(*fake.said.lock().unwrap(), ["start 4"]);
    }

    #[tokio::test]
    async fn a_running_data_plane_is_kept() {
        let running = fake(&[7], false);
        assert_eq!(ensure(&running).await, Ok(7));
        assert!(running.said.lock().unwrap().is_empty());
        assert_eq!(ensure(&fake(&[], false)).await, Ok(1));
    }

    #[test]
    fn generations_have_one_name() {
        assert_eq!(generation(&unit(12)), Some(12));
        for bad in [
            "dstack-tproxy-flow@.service",
            "dstack-tproxy-flow@01.service",
            "dstack-tproxy-flow@0.service",
            "x@1.service",
        ] {
            assert_eq!(generation(bad), None, "{bad}");
        }
    }
}
