// SPDX-License-Identifier: Apache-2.0
//! The program itself: activated by its sockets, on a private bus.
#![allow(clippy::unwrap_used, dead_code, missing_docs, missing_debug_implementations, unreachable_pub)]

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use zbus::Connection;

const BUS: &str = r#"<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>system</type><listen>unix:dir=DIR</listen><auth>EXTERNAL</auth>
<policy context="default"><allow user="*"/><allow own="*"/><allow send_destination="*"/><allow receive_sender="*"/></policy>
</busconfig>"#;

pub struct Bus {
    pub address: String,
    daemon: Child,
}

impl Bus {
    pub fn start(directory: &Path) -> Option<Self> {
        let config = directory.join("bus.conf");
        std::fs::write(&config, BUS.replace("DIR", directory.to_str().unwrap())).unwrap();
        let spawned = Command::new("dbus-daemon")
            .arg(format!("--config-file={}", config.display()))
            .args(["--nofork", "--nopidfile", "--print-address=1"])
            .stdout(Stdio::piped())
            .spawn();
        let Ok(mut daemon) = spawned else {
            eprintln!("SKIP: dbus-daemon is missing (package dbus-daemon)");
            return None;
        };
        let mut address = String::new();
        BufReader::new(daemon.stdout.take().unwrap()).read_line(&mut address).unwrap();
        Some(Self { address: address.trim().to_owned(), daemon })
    }

    pub async fn connect(&self) -> Connection {
        zbus::connection::Builder::address(self.address.as_str()).build().await.unwrap()
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

/// Ends with its test, however that ends.
pub struct Tappd {
    pub child: Child,
    /// Of the door for everybody.
    pub address: SocketAddr,
    pub tappd: PathBuf,
    pub dstack: PathBuf,
}

impl Drop for Tappd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Passes three sockets as the program's standard streams, which the shell moves to where systemd passes them.
const SCRIPT: &str = "LISTEN_PID=$$ LISTEN_FDS=3 LISTEN_FDNAMES=external:tappd:dstack \
                      exec \"$0\" 3<&0 4<&1 5<&2 </dev/null >\"$LOG\" 2>&1";

/// Starts the program with `tappd.toml` and the directory `credentials` below `directory`.
pub fn activate(program: &Path, directory: &Path, settings: &str, bus: &Bus) -> Tappd {
    std::fs::write(directory.join("tappd.toml"), settings).unwrap();
    let external = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = external.local_addr().unwrap();
    let (tappd, dstack) = (directory.join("tappd.sock"), directory.join("dstack.sock"));
    let passed = |path: &Path| Stdio::from(OwnedFd::from(UnixListener::bind(path).unwrap()));
    let child = Command::new("sh")
        .args(["-c", SCRIPT])
        .arg(program)
        .env("DBUS_SYSTEM_BUS_ADDRESS", &bus.address)
        .env("CONFIGURATION_DIRECTORY", directory)
        .env("CREDENTIALS_DIRECTORY", directory.join("credentials"))
        .env("LOG", directory.join("log"))
        .stdin(Stdio::from(OwnedFd::from(external)))
        .stdout(passed(&tappd))
        .stderr(passed(&dstack))
        .spawn()
        .unwrap();
    Tappd { child, address, tappd, dstack }
}
