// SPDX-License-Identifier: Apache-2.0
//! The engine: what the agent knows, for HTTP, the guest API and the bus alike.

use crate::app::App;
use crate::docker::{self, Docker, DockerError};
use crate::logs::{LogError, Logs, Query};
use crate::settings::Settings;
use crate::{network, sysinfo};
use dstack_rpc::guest::{Container, GuestInfo, NetworkInfo, SysInfo};
use dstack_rpc::worker::{VersionResponse, WorkerInfo};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::mpsc;

/// The agent's version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Everything behind the agent's doors.
#[derive(Debug)]
pub struct Agent {
    /// The app of this guest.
    pub app: App,
    logs: Logs,
    docker: Docker,
}

/// Nanoseconds since 1970.
#[must_use]
pub fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

impl Agent {
    /// An agent for this app.
    #[must_use]
    pub fn new(app: App, logs: Logs, settings: &Settings) -> Self {
        Self { app, logs, docker: Docker::new(settings.docker_socket.clone()) }
    }

    /// Opens the log of a container, of a compose service, or of a container id.
    ///
    /// # Errors
    /// [`LogError`].
    pub async fn open_log(&self, name: &str, query: Query) -> Result<mpsc::Receiver<Vec<u8>>, LogError> {
        self.logs.open(name, query, self.container_names()).await
    }

    /// Ends all following of logs, so that the daemon can stop.
    pub fn stop(&self) {
        self.logs.stop();
    }

    /// Names of the containers that Docker has now; none when it cannot be asked.
    async fn container_names(&self) -> Vec<String> {
        let containers = self.docker.containers().await.unwrap_or_default();
        containers.iter().map(|c| docker::display_name(c).to_owned()).collect()
    }

    /// All containers.
    ///
    /// # Errors
    /// [`DockerError`].
    pub async fn containers(&self) -> Result<Vec<Container>, DockerError> {
        self.docker.containers().await
    }

    /// Load, memory, disks.
    #[must_use]
    pub fn sysinfo(&self) -> SysInfo {
        sysinfo::collect()
    }

    /// Interfaces, routes, name servers.
    #[must_use]
    pub fn network(&self) -> NetworkInfo {
        network::collect()
    }

    /// Version of the agent.
    #[must_use]
    pub fn version(&self) -> VersionResponse {
        VersionResponse { version: VERSION.to_owned(), rev: String::new() }
    }

    /// The app, for anybody.
    #[must_use]
    pub fn worker_info(&self) -> WorkerInfo {
        WorkerInfo {
            app_id: self.app.app_id.clone(),
            instance_id: self.app.instance_id.clone(),
            app_name: self.app.name.clone(),
            public_logs: self.app.public_logs,
            public_sysinfo: self.app.public_sysinfo,
            ..WorkerInfo::default()
        }
    }

    /// The app, for the host.
    #[must_use]
    pub fn guest_info(&self) -> GuestInfo {
        GuestInfo {
            version: VERSION.to_owned(),
            app_id: self.app.app_id.clone(),
            instance_id: self.app.instance_id.clone(),
            ..GuestInfo::default()
        }
    }
}
