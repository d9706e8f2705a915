// SPDX-License-Identifier: Apache-2.0
//! What VMs run on: found out by a probe that boots something, once per boot of the host.

use super::{Engine, Event};
use crate::launch::Ground;
use dstack_core::qemu_probe::Report;
use dstack_core::spec::{Platform, Vsock};
use dstack_service::api::teepod1::Error;
use dstack_service::logging::message_id;
use dstack_service::state;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::process::Command;

/// The program that probes: `dstack-vm probe`.
pub const PROGRAM: &str = "/usr/libexec/dstack/dstack-vm";
const TIMEOUT: Duration = Duration::from_secs(60);
const VERSION: u32 = 1;

/// The probe's result and the boot it is of.
#[derive(Debug, Serialize, Deserialize)]
struct Cached {
    boot_id: String,
    build: String,
    probe: Report,
}

impl Engine {
    /// Finds out what VMs run on; [`Engine::ground`] waits for it.
    pub async fn probe(&self, program: &Path) {
        let settings = &self.inner.settings;
        let probe = match (settings.platform, settings.vsock) {
            (Some(_), Some(_)) => Report::default(),
            _ => self.cached_probe(program).await,
        };
        let ground = decide(settings.platform, settings.vsock, &probe);
        tracing::info!(
            MESSAGE_ID = message_id::PLATFORM,
            "VMs run on {}, vsock by {:?}: {}",
            ground.platform,
            ground.vsock,
            ground.reason
        );
        self.inner.ground.send_replace(Some(ground));
        self.tell(Event::Ground);
    }

    async fn cached_probe(&self, program: &Path) -> Report {
        let path = self.inner.state.join("probe.json");
        let boot_id = self.inner.host.boot_id().unwrap_or_default();
        let build = env!("CARGO_PKG_VERSION").to_owned();
        match state::load::<Cached>(&path, VERSION) {
            Ok(Some(cached)) if cached.boot_id == boot_id && cached.build == build => return cached.probe,
            Ok(_) => {}
            // A cache may be made again.
            Err(error) => tracing::warn!("{error}"),
        }
        match run(program).await {
            Ok(probe) => {
                let cached = Cached { boot_id, build, probe: probe.clone() };
                if let Err(error) = state::store(&path, VERSION, &cached) {
                    tracing::warn!("the probe's result cannot be kept: {error}");
                }
                probe
            }
            Err(reason) => Report { reason, ..Report::default() },
        }
    }

    /// What VMs run on, waiting for the probe.
    ///
    /// # Errors
    /// When the daemon is ending.
    pub async fn ground(&self) -> Result<Ground, Error> {
        let mut receiver = self.inner.ground.subscribe();
        let ground = receiver.wait_for(Option::is_some).await.map_err(|e| super::errors::internal(&e))?;
        ground.clone().ok_or_else(|| super::errors::internal(&"no platform"))
    }

    /// What VMs run on, if it is known already.
    #[must_use]
    pub fn ground_now(&self) -> Option<Ground> {
        self.inner.ground.borrow().clone()
    }
}

/// Runs the probe; an error says why VMs will be emulated.
async fn run(program: &Path) -> Result<Report, String> {
    let name = program.display();
    let output = Command::new(program).arg("probe").kill_on_drop(true).output();
    let output = tokio::time::timeout(TIMEOUT, output)
        .await
        .map_err(|_| format!("{name} probe took longer than {} s", TIMEOUT.as_secs()))?
        .map_err(|e| format!("{name} cannot be run: {e}"))?;
    let last = String::from_utf8_lossy(&output.stdout).trim().lines().last().unwrap_or_default().to_owned();
    serde_json::from_str(&last).map_err(|e| format!("{name} probe ended with {}: {e}", output.status))
}

/// The operator's word wins; then the best that worked.
fn decide(platform: Option<Platform>, vsock: Option<Vsock>, probe: &Report) -> Ground {
    let found = match probe {
        Report { tdx: true, .. } => Platform::Tdx,
        Report { kvm: true, .. } => Platform::Kvm,
        _ => Platform::Tcg,
    };
    let mut reason = probe.reason.clone();
    if platform.is_some() {
        let forced = "set by cvm.platform in teepod.toml";
        reason = if reason.is_empty() { forced.to_owned() } else { format!("{forced}; {reason}") };
    }
    Ground {
        platform: platform.unwrap_or(found),
        vsock: vsock.unwrap_or(if probe.vhost_vsock { Vsock::Kernel } else { Vsock::User }),
        reason,
    }
}

/// Where the probe is, from the environment of tests or its installed place.
#[must_use]
pub fn program() -> PathBuf {
    Path::new(PROGRAM).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_that_worked_unless_forced() {
        let probe =
            |kvm, tdx, vhost_vsock| Report { kvm, tdx, vhost_vsock, reason: "r".into(), ..Report::default() };
        for (forced, probe, platform, vsock) in [
            (None, probe(true, true, true), Platform::Tdx, Vsock::Kernel),
            (None, probe(true, false, true), Platform::Kvm, Vsock::Kernel),
            (None, probe(false, false, false), Platform::Tcg, Vsock::User),
            (Some(Platform::Tcg), probe(true, true, true), Platform::Tcg, Vsock::Kernel),
        ] {
            let ground = decide(forced, None, &probe);
            assert_eq!((ground.platform, ground.vsock), (platform, vsock));
            assert_eq!(ground.reason.contains("teepod.toml"), forced.is_some());
        }
        assert_eq!(decide(None, Some(Vsock::User), &probe(true, false, true)).vsock, Vsock::User);
    }

    #[tokio::test]
    async fn a_missing_probe_is_a_reason_and_not_a_failure() {
        assert!(run(Path::new("/nonexistent/probe")).await.is_err());
        let error = run(Path::new("/bin/true")).await.err().unwrap_or_default();
        assert!(error.contains("/bin/true"), "{error}");
    }
}
