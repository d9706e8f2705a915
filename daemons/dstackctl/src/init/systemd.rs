// SPDX-License-Identifier: Apache-2.0
//! Units over systemd's own interface.

use super::units::State;
use crate::errors::{Exit, Failure};
use dstack_service::api::systemd1::{ManagerProxy, UnitProxy};
use futures_util::StreamExt;
use std::time::Duration;
use zbus::proxy::CacheProperties;
use zbus::{Connection, OwnedObjectPath};

/// The longest job of a unit of ours takes two minutes to start; then systemd itself gives up.
const PATIENCE: Duration = Duration::from_secs(180);

/// What the shared interface lacks.
#[zbus::proxy(
    interface = "org.freedesktop.systemd1.Manager",
    default_service = "org.freedesktop.systemd1",
    default_path = "/org/freedesktop/systemd1"
)]
trait More {
    /// Reads all units again.
    fn reload(&self) -> zbus::Result<()>;
    /// Makes links; whether there were install sections, and what was changed.
    #[allow(clippy::type_complexity)]
    fn enable_unit_files(
        &self,
        files: &[&str],
        runtime: bool,
        force: bool,
    ) -> zbus::Result<(bool, Vec<(String, String, String)>)>;
    /// `enabled disabled static …`.
    fn get_unit_file_state(&self, file: &str) -> zbus::Result<String>;
    /// Restarts a unit that runs.
    fn try_restart_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;
    /// Has a unit read its files again.
    fn reload_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;
    /// Name, description, load, active and sub state, followed unit, path, job id, type and path.
    #[allow(clippy::type_complexity)]
    fn list_units_by_patterns(
        &self,
        states: &[&str],
        patterns: &[&str],
    ) -> zbus::Result<
        Vec<(String, String, String, String, String, String, OwnedObjectPath, u32, String, OwnedObjectPath)>,
    >;
}

/// What is done to a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Starts it.
    Start,
    /// Stops it.
    Stop,
    /// Restarts it, or starts it.
    Restart,
    /// Restarts it if it runs.
    TryRestart,
    /// Has it read its files again.
    Reload,
}

/// systemd.
#[derive(Debug)]
pub struct Systemd {
    connection: Connection,
    manager: ManagerProxy<'static>,
    more: MoreProxy<'static>,
}

fn failed(what: &str, error: zbus::Error) -> Failure {
    let failure = Failure::from(error);
    Failure { message: format!("{what}: {}", failure.message), ..failure }
}

impl Systemd {
    /// On this bus.
    ///
    /// # Errors
    /// When systemd is not there.
    pub async fn new(connection: &Connection) -> Result<Self, Failure> {
        let manager = ManagerProxy::builder(connection).cache_properties(CacheProperties::No).build().await?;
        let more = MoreProxy::builder(connection).cache_properties(CacheProperties::No).build().await?;
        manager.subscribe().await.map_err(|e| failed("systemd does not answer", e))?;
        Ok(Self { connection: connection.clone(), manager, more })
    }

    /// The state of a unit.
    ///
    /// # Errors
    /// When systemd does not answer.
    pub async fn state(&self, unit: &str) -> Result<State, Failure> {
        let asked = async {
            let path = self.manager.load_unit(unit).await?;
            let proxy = UnitProxy::builder(&self.connection).path(path).cache_properties(CacheProperties::No);
            let proxy = proxy.build().await?;
            let load: String = proxy.inner().get_property("LoadState").await?;
            zbus::Result::Ok((load, proxy.active_state().await?))
        };
        let (load, active) = asked.await.map_err(|e| failed(unit, e))?;
        if load != "loaded" {
            return Ok(State::default());
        }
        let file = self.more.get_unit_file_state(unit).await.map_err(|e| failed(unit, e))?;
        // A unit without install section needs no link.
        let enabled =
            matches!(file.as_str(), "enabled" | "enabled-runtime" | "static" | "alias" | "indirect");
        Ok(State { loaded: true, active: matches!(active.as_str(), "active" | "reloading"), enabled })
    }

    /// Reads all units again.
    ///
    /// # Errors
    /// systemd's.
    pub async fn reload(&self) -> Result<(), Failure> {
        self.more.reload().await.map_err(|e| failed("systemctl daemon-reload", e))
    }

    /// Has units started at boot.
    ///
    /// # Errors
    /// systemd's.
    pub async fn enable(&self, units: &[&str]) -> Result<(), Failure> {
        let enabled = self.more.enable_unit_files(units, false, false).await;
        enabled.map_err(|e| failed("systemctl enable", e))?;
        self.reload().await
    }

    /// Stops units one after the other; a pattern stands for all that it fits.
    ///
    /// # Errors
    /// systemd's.
    pub async fn stop(&self, units: &[&str]) -> Result<(), Failure> {
        for unit in units {
            let listed =
                self.more.list_units_by_patterns(&["active", "activating", "deactivating"], &[unit]).await;
            for (name, ..) in listed.map_err(|e| failed(unit, e))? {
                self.change(Verb::Stop, &name).await?;
            }
        }
        Ok(())
    }

    /// Names of failed units that fit a pattern.
    ///
    /// # Errors
    /// systemd's.
    pub async fn failed(&self, pattern: &str) -> Result<Vec<String>, Failure> {
        let listed = self.more.list_units_by_patterns(&["failed"], &[pattern]).await;
        Ok(listed.map_err(|e| failed(pattern, e))?.into_iter().map(|(name, ..)| name).collect())
    }

    /// Does something to a unit, and waits until it is done.
    ///
    /// # Errors
    /// The job's, with where to see why.
    pub async fn change(&self, verb: Verb, unit: &str) -> Result<(), Failure> {
        // A unit that failed too often would not be started; of others there is nothing to forget.
        let _ = self.manager.reset_failed_unit(unit).await;
        let mut ended = self.manager.receive_job_removed().await?;
        let job = match verb {
            Verb::Start => self.manager.start_unit(unit, "replace").await,
            Verb::Stop => self.manager.stop_unit(unit, "replace").await,
            Verb::Restart => self.manager.restart_unit(unit, "replace").await,
            Verb::Reload => self.more.reload_unit(unit, "replace").await,
            Verb::TryRestart => self.more.try_restart_unit(unit, "replace").await,
        };
        let job = job.map_err(|e| failed(unit, e))?;
        let wait = async {
            while let Some(signal) = ended.next().await {
                let args = signal.args()?;
                if args.job == job {
                    return Ok(args.result.clone());
                }
            }
            Err(zbus::Error::InputOutput(std::sync::Arc::new(std::io::ErrorKind::ConnectionAborted.into())))
        };
        match tokio::time::timeout(PATIENCE, wait).await {
            Err(_) => Err(Failure::with(Exit::Timeout, format!("{unit} takes longer than {PATIENCE:?}"))
                .hint(why(unit))),
            Ok(Err(error)) => Err(failed(unit, error)),
            Ok(Ok(result)) if result == "done" => Ok(()),
            Ok(Ok(result)) => {
                let word = match verb {
                    Verb::Start => "started",
                    Verb::Stop => "stopped",
                    Verb::Restart | Verb::TryRestart => "restarted",
                    Verb::Reload => "reloaded",
                };
                Err(Failure::new(format!("{unit} could not be {word}: {result}")).hint(why(unit)))
            }
        }
    }
}

fn why(unit: &str) -> String {
    format!("see why: systemctl status {unit}; journalctl -u {unit} -n 50; then run `dstackctl init` again")
}
