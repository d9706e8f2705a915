// SPDX-License-Identifier: Apache-2.0
//! `tappd.toml`: where things are. The image ships none; tests move them.

use serde::Deserialize;
use std::path::PathBuf;

/// The agent's settings; each key has a default.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Directory with `app-compose.json` and `instance.json`, which dstack-prepare wrote, and with the event log in
    /// `private`.
    pub run_directory: PathBuf,
    /// Directory in which dstack-network says where it has registered.
    pub network_directory: PathBuf,
    /// Unix socket of the simulated TEE, instead of vsock; without effect in a TD.
    pub simulated_socket: Option<PathBuf>,
    /// Directory with journal files; absent: this machine's journal.
    pub journal_directory: Option<PathBuf>,
    /// Socket of Docker's API.
    pub docker_socket: PathBuf,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            run_directory: "/run/dstack".into(),
            network_directory: "/run/dstack-network".into(),
            simulated_socket: None,
            journal_directory: None,
            docker_socket: "/run/docker.sock".into(),
        }
    }
}
