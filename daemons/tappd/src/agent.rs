// SPDX-License-Identifier: Apache-2.0
//! The engine: what the agent knows, for HTTP, the guest API and the bus alike.

use crate::app::App;
use crate::docker::{self, Docker, DockerError};
use crate::info::{self, Measured};
use crate::logs::{LogError, Logs, Query};
use crate::settings::Settings;
use crate::trust::TrustError;
use crate::vault::Vault;
use crate::{network, sysinfo};
use dstack_core::registrations;
use dstack_rpc::dstack::AppInfo;
use dstack_rpc::guest::{Container, GuestInfo, NetworkInfo, SysInfo};
use dstack_rpc::worker::{VersionResponse, WorkerInfo};
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::mpsc;

/// The agent's version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Everything behind the agent's doors.
#[derive(Debug)]
pub struct Agent {
    /// The app of this guest.
    pub app: App,
    /// Its keys, certificates and quotes.
    pub vault: Vault,
    logs: Logs,
    docker: Docker,
    registrations: PathBuf,
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
    pub fn new(app: App, vault: Vault, logs: Logs, settings: &Settings) -> Self {
        let registrations = settings.network_directory.join(registrations::FILE);
        Self { app, vault, logs, docker: Docker::new(settings.docker_socket.clone()), registrations }
    }

    /// The app's addresses at the ingress; none before it is registered, or where there is no ingress.
    pub async fn addresses(&self) -> Vec<String> {
        let Ok(app) = self.app.app_id.parse() else { return Vec::new() };
        let bytes = match tokio::fs::metadata(&self.registrations).await {
            Ok(file) if file.len() <= registrations::SIZE_MAX as u64 => {
                tokio::fs::read(&self.registrations).await
            }
            _ => return Vec::new(),
        };
        registrations::parse(&bytes.unwrap_or_default()).iter().map(|one| one.url(&app)).collect()
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

    /// What is measured; nothing where nothing attests this guest.
    ///
    /// # Errors
    /// [`TrustError`].
    pub async fn measured(&self) -> Result<Measured, TrustError> {
        let snapshot = self.vault.measured().await?;
        Ok(snapshot.map_or_else(Measured::default, |snapshot| Measured::of(&self.app, &snapshot)))
    }

    /// The same for doors that lead out of this guest: nothing unless the app makes it public, or while there is none.
    pub async fn public_measured(&self) -> Option<Measured> {
        if !self.app.public_tcbinfo {
            return None;
        }
        // The vault has logged why.
        self.measured().await.ok().filter(|measured| !measured.tcb_info.is_empty())
    }

    /// The app, for its containers.
    ///
    /// # Errors
    /// [`TrustError`].
    pub async fn app_info(&self) -> Result<AppInfo, TrustError> {
        Ok(info::app_info(&self.app, &self.vault, self.measured().await?))
    }

    /// The same in the shape of the older service.
    ///
    /// # Errors
    /// [`TrustError`].
    pub async fn tappd_info(&self) -> Result<WorkerInfo, TrustError> {
        Ok(info::worker_info(&self.app, &self.vault, self.measured().await?))
    }

    /// The app, for anybody.
    pub async fn worker_info(&self) -> WorkerInfo {
        match self.public_measured().await {
            Some(measured) => info::worker_info(&self.app, &self.vault, measured),
            // The certificate carries quote and log, so it is not shown either.
            None => WorkerInfo {
                app_id: self.app.app_id.clone(),
                instance_id: self.app.instance_id.clone(),
                app_name: self.app.name.clone(),
                public_logs: self.app.public_logs,
                public_sysinfo: self.app.public_sysinfo,
                ..WorkerInfo::default()
            },
        }
    }

    /// The app, for the host.
    pub async fn guest_info(&self) -> GuestInfo {
        let WorkerInfo { app_id, instance_id, app_cert, tcb_info, .. } = self.worker_info().await;
        GuestInfo { version: VERSION.to_owned(), app_id, instance_id, app_cert, tcb_info }
    }
}
