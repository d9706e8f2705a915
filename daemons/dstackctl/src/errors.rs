// SPDX-License-Identifier: Apache-2.0
//! What can go wrong, as an exit code, a sentence, and a hint.

use dstack_service::api::{certbot1, ctmonitor1, kms1, teepod1, tproxy1};
use std::fmt;
use zbus::DBusError;

/// Exit codes, as documented in dstackctl(1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Something failed.
    Failed = 1,
    /// The command line is wrong.
    Usage = 2,
    /// There is no such VM, image, container, upgrade or key service.
    NotFound = 3,
    /// The user may not do this.
    Denied = 4,
    /// It took too long.
    Timeout = 5,
    /// Evidence was judged, and refused.
    Refused = 6,
    /// Ctrl-C.
    Interrupted = 130,
    /// The reader of standard output has enough, such as `head`.
    Closed = 141,
}

/// Why a command did not succeed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The exit code.
    pub exit: Exit,
    /// One sentence.
    pub message: String,
    /// What to do next.
    pub hint: Option<String>,
}

impl Failure {
    /// A failure with exit code 1.
    pub fn new(message: impl Into<String>) -> Self {
        Self::with(Exit::Failed, message)
    }

    /// A wrong command line.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::with(Exit::Usage, message)
    }

    /// A failure with this exit code.
    pub fn with(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), hint: None }
    }

    /// The same with a hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The failure of a D-Bus error name and message, as replies and jobs carry them.
    #[must_use]
    pub fn of_name(name: &str, message: &str) -> Self {
        let message = if message.is_empty() { name } else { message };
        let failure = Self::with(exit_of(name), message);
        let daemon = Daemon::of(name, &failure.message);
        match hint_of(name, daemon) {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

impl From<zbus::Error> for Failure {
    fn from(error: zbus::Error) -> Self {
        match &error {
            zbus::Error::MethodError(name, message, _) => {
                Self::of_name(name.as_str(), message.as_deref().unwrap_or_default())
            }
            zbus::Error::FDO(error) => {
                Self::of_name(error.name().as_str(), error.description().unwrap_or_default())
            }
            zbus::Error::InputOutput(io) if io.kind() == std::io::ErrorKind::TimedOut => {
                Self::with(Exit::Timeout, "dstack-teepod does not answer")
                    .hint("see why: systemctl status dstack-teepod; journalctl -u dstack-teepod -n 50")
            }
            zbus::Error::InputOutput(io) => Self::new(format!("cannot reach the system bus: {io}"))
                .hint("check that D-Bus runs: systemctl status dbus.socket"),
            _ => Self::new(format!("D-Bus: {error}")),
        }
    }
}

impl From<kms1::Error> for Failure {
    fn from(error: kms1::Error) -> Self {
        match error {
            kms1::Error::Bus(zbus::Error::InputOutput(io)) if io.kind() == std::io::ErrorKind::TimedOut => {
                Self::with(Exit::Timeout, "dstack-kms does not answer").hint(Daemon::Kms.journal())
            }
            kms1::Error::Bus(error) => error.into(),
            error => Self::of_name(error.name().as_str(), &error.to_string()),
        }
    }
}

impl From<tproxy1::Error> for Failure {
    fn from(error: tproxy1::Error) -> Self {
        match error {
            tproxy1::Error::Bus(zbus::Error::InputOutput(io))
                if io.kind() == std::io::ErrorKind::TimedOut =>
            {
                Self::with(Exit::Timeout, "dstack-tproxy does not answer").hint(Daemon::Tproxy.journal())
            }
            tproxy1::Error::Bus(error) => error.into(),
            error => Self::of_name(error.name().as_str(), &error.to_string()),
        }
    }
}

impl From<ctmonitor1::Error> for Failure {
    fn from(error: ctmonitor1::Error) -> Self {
        match error {
            ctmonitor1::Error::Bus(zbus::Error::InputOutput(io))
                if io.kind() == std::io::ErrorKind::TimedOut =>
            {
                Self::with(Exit::Timeout, "dstack-ct-monitor does not answer")
                    .hint(Daemon::CtMonitor.journal())
            }
            ctmonitor1::Error::Bus(error) => error.into(),
            error => Self::of_name(error.name().as_str(), &error.to_string()),
        }
    }
}

impl From<certbot1::Error> for Failure {
    fn from(error: certbot1::Error) -> Self {
        match error {
            certbot1::Error::Bus(zbus::Error::InputOutput(io))
                if io.kind() == std::io::ErrorKind::TimedOut =>
            {
                Self::with(Exit::Timeout, "dstack-certbot does not answer").hint(Daemon::Certbot.journal())
            }
            certbot1::Error::Bus(error) => error.into(),
            error => Self::of_name(error.name().as_str(), &error.to_string()),
        }
    }
}

impl From<teepod1::Error> for Failure {
    fn from(error: teepod1::Error) -> Self {
        match error {
            teepod1::Error::Bus(error) => error.into(),
            error => Self::of_name(error.name().as_str(), &error.to_string()),
        }
    }
}

fn exit_of(name: &str) -> Exit {
    let last = name.rsplit('.').next().unwrap_or_default();
    match last {
        "NoSuchVm" | "NoSuchImage" | "NoSuchUpgrade" | "NoSuchInstance" | "NoSuchAlert"
        | "NoSuchCertificate" | "UnknownObject" => Exit::NotFound,
        "AccessDenied" | "InteractiveAuthorizationRequired" | "AuthFailed" => Exit::Denied,
        "Timeout" | "TimedOut" | "NoReply" => Exit::Timeout,
        _ => Exit::Failed,
    }
}

/// Which daemon an error is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Daemon {
    Teepod,
    Kms,
    Tproxy,
    CtMonitor,
    Certbot,
}

impl Daemon {
    /// The bus names the service that is away in its sentence.
    fn of(name: &str, message: &str) -> Self {
        let is_of = |daemon: &str| name.starts_with(daemon) || message.contains(daemon);
        match () {
            () if is_of(kms1::NAME) => Self::Kms,
            () if is_of(tproxy1::NAME) => Self::Tproxy,
            () if is_of(certbot1::NAME) => Self::Certbot,
            () if is_of(ctmonitor1::NAME) => Self::CtMonitor,
            () => Self::Teepod,
        }
    }

    const fn start(self) -> &'static str {
        match self {
            Self::Teepod => {
                "dstack-teepod does not run: systemctl start dstack-teepod.socket dstack-teepod.service \
                 (if there is no such unit: apt install dstack-teepod)"
            }
            Self::Kms => {
                "this host has no key service running: systemctl start dstack-kms.socket \
                 (if there is no such unit: apt install dstack-kms)"
            }
            Self::Tproxy => {
                "this host has no ingress running: systemctl start dstack-tproxy \
                 (if there is no such unit: apt install dstack-tproxy)"
            }
            Self::Certbot => {
                "this host has no certbot running: systemctl start dstack-certbot \
                 (if there is no such unit: apt install dstack-certbot)"
            }
            Self::CtMonitor => {
                "this host has no certificate monitor running: systemctl start dstack-ct-monitor \
                 (if there is no such unit: apt install dstack-ct-monitor)"
            }
        }
    }

    const fn journal(self) -> &'static str {
        match self {
            Self::Teepod => "see why: journalctl -u dstack-teepod -n 50",
            Self::Kms => "see why: systemctl status dstack-kms; journalctl -u dstack-kms -n 50",
            Self::Tproxy => "see why: systemctl status dstack-tproxy; journalctl -u dstack-tproxy -n 50",
            Self::Certbot => "see why: systemctl status dstack-certbot; journalctl -u dstack-certbot -n 50",
            Self::CtMonitor => {
                "see why: systemctl status dstack-ct-monitor; journalctl -u dstack-ct-monitor -n 50"
            }
        }
    }
}

/// Whether an error says that a daemon is not installed or not to be started.
#[must_use]
pub fn is_away(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or_default();
    matches!(last, "ServiceUnknown" | "NameHasNoOwner" | "NoSuchUnit" | "UnitMasked")
}

/// Hints that only the command line can give: the daemon's own sentences say what to do about the rest.
fn hint_of(name: &str, daemon: Daemon) -> Option<&'static str> {
    let last = name.rsplit('.').next().unwrap_or_default();
    match last {
        _ if is_away(name) || name.starts_with("org.freedesktop.DBus.Error.Spawn.") => Some(daemon.start()),
        "NoReply" | "Disconnected" => Some(daemon.journal()),
        "AccessDenied" | "AuthFailed" | "InteractiveAuthorizationRequired" => {
            Some("use sudo, or become a member of the group: adduser $USER dstack-admin")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes() {
        for (name, exit) in [
            ("org.dstack.teepod1.NoSuchVm", Exit::NotFound),
            ("org.dstack.teepod1.NoSuchImage", Exit::NotFound),
            ("org.freedesktop.DBus.Error.AccessDenied", Exit::Denied),
            ("org.freedesktop.DBus.Error.InteractiveAuthorizationRequired", Exit::Denied),
            ("org.freedesktop.DBus.Error.NoReply", Exit::Timeout),
            ("org.dstack.teepod1.BootFailed", Exit::Failed),
            ("", Exit::Failed),
        ] {
            assert_eq!(Failure::of_name(name, "x").exit, exit, "{name}");
        }
    }

    #[test]
    fn a_daemon_that_is_away_is_named() {
        for name in
            ["org.freedesktop.DBus.Error.ServiceUnknown", "org.freedesktop.DBus.Error.Spawn.ChildExited"]
        {
            let hint = Failure::of_name(name, "").hint.unwrap_or_default();
            assert!(hint.contains("systemctl start dstack-teepod.socket"), "{hint}");
        }
    }

    #[test]
    fn the_key_service_is_told_from_teepod() {
        let away = "The name org.dstack.kms1 was not provided by any .service files";
        let failure = Failure::of_name("org.freedesktop.DBus.Error.ServiceUnknown", away);
        assert!(failure.hint.unwrap_or_default().contains("apt install dstack-kms"));
        let error = kms1::Error::NoSuchUpgrade("not allowed".into());
        assert_eq!(Failure::from(error).exit, Exit::NotFound);
    }

    #[test]
    fn replies_of_the_daemon_keep_their_code() {
        let error = teepod1::Error::NoSuchVm("no VM \"x\"".into());
        assert_eq!(Failure::from(error).exit, Exit::NotFound);
    }
}
