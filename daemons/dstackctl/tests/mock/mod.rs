// SPDX-License-Identifier: Apache-2.0
//! A private bus with a small `org.dstack.teepod1` on it, and the real binary run against it.

pub mod bus;
pub mod certbot;
pub mod ctmonitor;
pub mod kms;
pub mod teepod;
pub mod tproxy;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::{Child, Command};

/// What a run of dstackctl left.
#[derive(Debug)]
pub struct Run {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Run {
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }
}

/// The user's own files, beside the bus, so that each test has its own.
pub fn home(address: &str) -> PathBuf {
    let path = address.strip_prefix("unix:path=").unwrap_or(address);
    let socket = path.split(',').next().unwrap_or(path);
    Path::new(socket).parent().unwrap_or(Path::new("/nonexistent")).join("home")
}

pub fn command(address: &str, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dstackctl"));
    command
        .args(args)
        .env("DBUS_SYSTEM_BUS_ADDRESS", address)
        .env("NO_COLOR", "1")
        .env("XDG_CONFIG_HOME", home(address).join("config"))
        .env("XDG_STATE_HOME", home(address).join("state"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// Runs to the end.
pub async fn run(address: &str, args: &[&str]) -> Run {
    let child = command(address, args).spawn().unwrap();
    finish(child).await
}

pub async fn finish(child: Child) -> Run {
    let limit = Duration::from_secs(60);
    let output = tokio::time::timeout(limit, child.wait_with_output()).await.expect("it hangs").unwrap();
    Run {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}
