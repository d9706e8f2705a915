// SPDX-License-Identifier: Apache-2.0
//! `org.freedesktop.LogControl1`: `systemctl service-log-level dstack-teepod debug` works.

use crate::logging::LevelHandle;
use zbus::{fdo, interface};

/// The object at `/org/freedesktop/LogControl1`.
#[derive(Debug)]
pub struct LogControl {
    identifier: &'static str,
    level: LevelHandle,
}

impl LogControl {
    /// Controls this level.
    #[must_use]
    pub const fn new(identifier: &'static str, level: LevelHandle) -> Self {
        Self { identifier, level }
    }
}

#[interface(name = "org.freedesktop.LogControl1")]
impl LogControl {
    /// syslog's name of the level in force.
    #[zbus(property(emits_changed_signal = "false"))]
    fn log_level(&self) -> String {
        self.level.name().to_owned()
    }

    /// Sets the level; the bus policy lets only root do so.
    #[zbus(property)]
    fn set_log_level(&self, level: String) -> fdo::Result<()> {
        if self.level.set(&level) {
            Ok(())
        } else {
            Err(fdo::Error::InvalidArgs(format!(
                "log level {level:?} is not known: use emerg, alert, crit, err, warning, notice, info or debug"
            )))
        }
    }

    /// Where logs go.
    #[zbus(property(emits_changed_signal = "false"))]
    fn log_target(&self) -> String {
        if std::env::var_os("JOURNAL_STREAM").is_some() { "journal".into() } else { "console".into() }
    }

    /// Logs go to the journal under systemd and to standard error elsewhere; this cannot be changed.
    #[zbus(property)]
    fn set_log_target(&self, target: String) -> fdo::Result<()> {
        if target == self.log_target() {
            return Ok(());
        }
        Err(fdo::Error::NotSupported("the log target is fixed when the daemon starts".into()))
    }

    /// Identifier of the daemon's records.
    #[zbus(property(emits_changed_signal = "const"))]
    fn syslog_identifier(&self) -> String {
        self.identifier.to_owned()
    }
}
