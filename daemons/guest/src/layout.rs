// SPDX-License-Identifier: Apache-2.0
//! Where things are. Tests move the whole tree.

use std::path::{Path, PathBuf};

/// The config disk, by its virtio serial.
pub const CONFIG_DISK: &str = "/dev/disk/by-id/virtio-dstack-config";
/// The data disk, by its virtio serial.
pub const DATA_DISK: &str = "/dev/disk/by-id/virtio-dstack-data";
/// Name of the opened data disk below `/dev/mapper`.
pub const DATA_MAPPER: &str = "dstack_data_disk";

/// Directories of the boot agent.
#[derive(Debug, Clone)]
pub struct Layout {
    run: PathBuf,
    data: PathBuf,
}

impl Default for Layout {
    fn default() -> Self {
        Self { run: "/run/dstack".into(), data: "/data/dstack".into() }
    }
}

impl Layout {
    /// The same tree below other directories.
    #[must_use]
    pub fn at(run: &Path, data: &Path) -> Self {
        Self { run: run.into(), data: data.into() }
    }

    /// What the units hand to each other, 0755.
    #[must_use]
    pub fn run(&self) -> &Path {
        &self.run
    }

    /// Secrets, 0700 with files of 0600.
    #[must_use]
    pub fn private(&self) -> PathBuf {
        self.run.join("private")
    }

    /// The compose project: its name is the default project name, and relative volumes land here, on the data disk.
    #[must_use]
    pub fn project(&self) -> &Path {
        &self.data
    }

    /// Lines of [`dstack_core::boot`], one append each, 0644.
    #[must_use]
    pub fn status(&self) -> PathBuf {
        self.run.join("boot-status")
    }

    /// Appears when the host has been sent an `ERROR` line.
    #[must_use]
    pub fn delivered(&self) -> PathBuf {
        self.run.join("status").join("delivered")
    }

    /// The exact bytes of the measured description.
    #[must_use]
    pub fn app_compose(&self) -> PathBuf {
        self.run.join("app-compose.json")
    }

    /// The compose file.
    #[must_use]
    pub fn compose_file(&self) -> PathBuf {
        self.run.join("docker-compose.yaml")
    }

    /// Whom dstack-network asks, if the app is to be reached from outside.
    #[must_use]
    pub fn network(&self) -> PathBuf {
        self.run.join("network.json")
    }

    /// The keys that the guest agent gets ([`dstack_keys::handover`]).
    #[must_use]
    pub fn app_keys(&self) -> PathBuf {
        self.private().join("app-keys.json")
    }

    /// All keys of this boot, until the boot agent is done.
    #[must_use]
    pub fn boot_keys(&self) -> PathBuf {
        self.private().join("boot-keys.json")
    }

    /// Appears when the boot agent is done: a later run in the same boot has nothing to do.
    #[must_use]
    pub fn prepared(&self) -> PathBuf {
        self.private().join("prepared")
    }

    /// Why the data disk is not the last one; there only when the boot goes on with an older one (T13).
    #[must_use]
    pub fn older_disk(&self) -> PathBuf {
        self.private().join("data-disk.older")
    }

    /// The time that is known to be past, decimal seconds since 1970; there only when the clock is behind it.
    #[must_use]
    pub fn clock_floor(&self) -> PathBuf {
        self.run.join("clock-floor")
    }

    /// Decrypted environment as a JSON object of texts.
    #[must_use]
    pub fn env(&self) -> PathBuf {
        self.private().join("env.json")
    }

    /// The same as compose reads it.
    #[must_use]
    pub fn compose_env(&self) -> PathBuf {
        self.private().join("compose.env")
    }

    /// The environment that the pre-launch script left.
    #[must_use]
    pub fn exports(&self) -> PathBuf {
        self.private().join("exports")
    }

    /// Docker's client settings with the registry login.
    #[must_use]
    pub fn docker_config(&self) -> PathBuf {
        self.private().join("docker")
    }
}
