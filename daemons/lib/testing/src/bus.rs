// SPDX-License-Identifier: Apache-2.0
//! A message bus of the test's own, and daemons that come and go on it.

use crate::process::Process;
use futures_util::StreamExt;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use zbus::fdo::{DBusProxy, NameOwnerChangedStream};
use zbus::names::BusName;
use zbus::{Connection, conn};

/// A system bus on which everybody may do everything. It ends when it is dropped.
#[derive(Debug)]
pub struct PrivateBus {
    /// Where it listens; a daemon takes it from `DBUS_SYSTEM_BUS_ADDRESS`.
    pub address: String,
    _daemon: Process,
}

impl PrivateBus {
    /// Starts `dbus-daemon` with its socket in this directory, which is opened to other users.
    ///
    /// # Panics
    /// When there is no `dbus-daemon`, or it does not start.
    #[must_use]
    pub fn start(directory: &Path) -> Self {
        std::fs::set_permissions(directory, PermissionsExt::from_mode(0o755)).unwrap();
        let config = directory.join("bus.conf");
        std::fs::write(&config, configuration(directory)).unwrap();
        let mut child = Command::new("dbus-daemon")
            .arg(format!("--config-file={}", config.display()))
            .args(["--nofork", "--print-address"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("dbus-daemon is needed: apt install dbus-daemon");
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Self { address: line.trim().to_owned(), _daemon: Process(child) }
    }

    /// A builder of one more connection to it.
    pub fn builder(&self) -> conn::Builder<'_> {
        conn::Builder::address(self.address.as_str())
    }

    /// One more connection to it.
    ///
    /// # Panics
    /// When the bus is gone.
    pub async fn connect(&self) -> Connection {
        self.builder().build().await.unwrap()
    }
}

fn configuration(directory: &Path) -> String {
    let allowed = [
        "user=\"*\"",
        "own=\"*\"",
        "send_type=\"method_call\"",
        "send_type=\"signal\"",
        "send_requested_reply=\"true\"",
        "receive_type=\"method_call\"",
        "receive_type=\"signal\"",
        "receive_requested_reply=\"true\"",
    ];
    let rules: String = allowed.iter().map(|what| format!("<allow {what}/>")).collect();
    format!(
        "<busconfig><type>system</type><listen>unix:path={}/bus</listen><auth>EXTERNAL</auth>\
         <policy context=\"default\">{rules}</policy></busconfig>",
        directory.display()
    )
}

async fn owners(bus: &DBusProxy<'_>, name: &'static str) -> NameOwnerChangedStream {
    bus.receive_name_owner_changed_with_args(&[(0, name)]).await.unwrap()
}

/// Starts a daemon as systemd does with `Type=dbus`: waits until it has its name.
///
/// # Panics
/// When it has not taken the name after `patience`.
pub async fn start(
    connection: &Connection,
    name: &'static str,
    patience: Duration,
    spawn: impl FnOnce() -> Child,
) -> Process {
    let bus = DBusProxy::new(connection).await.unwrap();
    let mut owners = owners(&bus, name).await;
    let process = Process(spawn());
    let named = async { while owners.next().await.unwrap().args().unwrap().new_owner().is_none() {} };
    tokio::time::timeout(patience, named)
        .await
        .unwrap_or_else(|_| panic!("nobody has taken the name {name}"));
    process
}

/// SIGKILL, as the kernel or an operator would, and wait until the bus knows.
///
/// # Panics
/// When the bus is gone.
pub async fn kill(connection: &Connection, name: &'static str, process: Option<Process>) {
    let bus = DBusProxy::new(connection).await.unwrap();
    let mut owners = owners(&bus, name).await;
    drop(process);
    if bus.name_has_owner(BusName::try_from(name).unwrap()).await.unwrap() {
        owners.next().await.unwrap();
    }
}
