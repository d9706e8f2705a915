// SPDX-License-Identifier: Apache-2.0
//! `org.dstack.ctmonitor1`: watches Certificate Transparency.

use std::collections::HashMap;
use zbus::{OwnedObjectPath, OwnedVariant, proxy};

/// Well-known bus name.
pub const NAME: &str = "org.dstack.ctmonitor1";
/// Path of the manager object.
pub const PATH: &str = "/org/dstack/ctmonitor1";

/// An alert: `id s`, `kind s` (`unknown-key unreadable log-lies blind`), `text s`, `place s`, `names as`, `issuer s`,
/// `serial s`, `not_before t`, `not_after t`, `public_key s` (hex), `first_seen t`, `acknowledged t`, `settled t` (Unix
/// seconds, 0: not).
pub type AlertRow = HashMap<String, OwnedVariant>;

/// A source: `name s`, `last_success t`, `retry_at t`, `failures u`, `pending t`, `position t` (entries of a log, or checked
/// entries of a search), `error s`.
pub type SourceRow = HashMap<String, OwnedVariant>;

crate::bus_errors! {
    /// What the monitor refuses, and what to do about it.
    pub enum Error in "org.dstack.ctmonitor1" {
        /// The configuration names no domain yet.
        NotConfigured,
        /// There is no such alert.
        NoSuchAlert,
        /// Nobody has told a key of ours yet.
        NoKeys,
        /// The state cannot be read or written.
        StateUnwritable,
        /// Too many alerts wait for somebody to look at them.
        TooManyAlerts,
    }
}

/// Client side of `org.dstack.ctmonitor1.Manager`.
#[proxy(
    interface = "org.dstack.ctmonitor1.Manager",
    default_service = "org.dstack.ctmonitor1",
    default_path = "/org/dstack/ctmonitor1"
)]
pub trait Manager {
    /// Checks all sources now; gives the job, or the one that runs already.
    fn check(&self) -> Result<OwnedObjectPath, Error>;
    /// All alerts, the newest first.
    fn list_alerts(&self) -> Result<Vec<AlertRow>, Error>;
    /// All sources.
    fn list_sources(&self) -> Result<Vec<SourceRow>, Error>;
    /// Remembers that somebody has looked at an alert.
    fn acknowledge(&self, id: &str) -> Result<(), Error>;

    /// Whether it works: domains are set.
    #[zbus(property)]
    fn configured(&self) -> zbus::Result<bool>;
    /// What is watched.
    #[zbus(property)]
    fn domains(&self) -> zbus::Result<Vec<String>>;
    /// What it does, in words, as `systemctl status` shows it.
    #[zbus(property(emits_changed_signal = "false"))]
    fn status(&self) -> zbus::Result<String>;
    /// Alerts that nobody has acknowledged.
    #[zbus(property)]
    fn alerts(&self) -> zbus::Result<u32>;
    /// Keys of ours.
    #[zbus(property)]
    fn known_keys(&self) -> zbus::Result<u32>;
    /// When the last check ended, Unix seconds, 0: never.
    #[zbus(property)]
    fn last_check(&self) -> zbus::Result<u64>;
    /// When a check last ended without trouble, Unix seconds, 0: never.
    #[zbus(property)]
    fn last_success(&self) -> zbus::Result<u64>;
    /// What went wrong in the last check, empty when nothing did.
    #[zbus(property)]
    fn last_error(&self) -> zbus::Result<String>;
    /// Version of the daemon.
    #[zbus(property(emits_changed_signal = "const"))]
    fn version(&self) -> zbus::Result<String>;

    /// A certificate was issued for a key that nobody of ours has.
    #[zbus(signal)]
    fn unknown_key(&self, id: String, names: Vec<String>, issuer: String, place: String) -> zbus::Result<()>;
    /// Any other alert.
    #[zbus(signal)]
    fn alert(&self, id: String, kind: String, text: String) -> zbus::Result<()>;
    /// A job begins.
    #[zbus(signal)]
    fn job_new(&self, id: u32, job: OwnedObjectPath) -> zbus::Result<()>;
    /// A job has ended: done, canceled, failed, timeout.
    #[zbus(signal)]
    fn job_removed(&self, id: u32, job: OwnedObjectPath, result: String) -> zbus::Result<()>;
}
