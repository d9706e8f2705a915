// SPDX-License-Identifier: Apache-2.0
//! The few members of `org.freedesktop.systemd1` that dstack uses.

use zbus::{OwnedObjectPath, proxy};

/// A property to set on a unit: name and value.
pub type Property<'a> = (&'a str, zbus::Variant<'a>);

/// Client side of `org.freedesktop.systemd1.Manager`.
#[proxy(
    interface = "org.freedesktop.systemd1.Manager",
    default_service = "org.freedesktop.systemd1",
    default_path = "/org/freedesktop/systemd1"
)]
pub trait Manager {
    /// Starts a unit; the reply is the job's path.
    fn start_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;
    /// Stops a unit; the reply is the job's path.
    fn stop_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;
    /// Restarts a unit; the reply is the job's path.
    fn restart_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;
    /// Sends a signal to `main`, `control` or `all` processes of a unit.
    fn kill_unit(&self, name: &str, whom: &str, signal: i32) -> zbus::Result<()>;
    /// Forgets a unit's failure and start counter.
    fn reset_failed_unit(&self, name: &str) -> zbus::Result<()>;
    /// Sets resource limits and the like, until the next reboot when `runtime`.
    fn set_unit_properties(&self, name: &str, runtime: bool, properties: &[Property<'_>])
    -> zbus::Result<()>;
    /// The object of a unit, loading it if needed.
    fn load_unit(&self, name: &str) -> zbus::Result<OwnedObjectPath>;
    /// The unit of a process.
    #[zbus(name = "GetUnitByPID")]
    fn get_unit_by_pid(&self, pid: u32) -> zbus::Result<OwnedObjectPath>;
    /// Asks for signals.
    fn subscribe(&self) -> zbus::Result<()>;
    /// A job has ended: id, path, unit, result (`done canceled timeout failed dependency skipped`).
    #[zbus(signal)]
    fn job_removed(&self, id: u32, job: OwnedObjectPath, unit: String, result: String) -> zbus::Result<()>;
}

/// Client side of `org.freedesktop.systemd1.Unit`.
#[proxy(interface = "org.freedesktop.systemd1.Unit", default_service = "org.freedesktop.systemd1")]
pub trait Unit {
    /// The unit's name.
    #[zbus(property)]
    fn id(&self) -> zbus::Result<String>;
    /// `active reloading inactive failed activating deactivating`.
    #[zbus(property)]
    fn active_state(&self) -> zbus::Result<String>;
    /// The finer state, e.g. `running` or `auto-restart`.
    #[zbus(property)]
    fn sub_state(&self) -> zbus::Result<String>;
}

/// Client side of `org.freedesktop.systemd1.Service`.
#[proxy(interface = "org.freedesktop.systemd1.Service", default_service = "org.freedesktop.systemd1")]
pub trait Service {
    /// Main process, 0 when there is none.
    #[zbus(property, name = "MainPID")]
    fn main_pid(&self) -> zbus::Result<u32>;
    /// How it ended: `success exit-code signal timeout …`.
    #[zbus(property)]
    fn result(&self) -> zbus::Result<String>;
    /// What it last said by `STATUS=`.
    #[zbus(property)]
    fn status_text(&self) -> zbus::Result<String>;
}
