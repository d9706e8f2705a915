// SPDX-License-Identifier: Apache-2.0
//! What `dstack-prepare` does, in order. Each step is repeatable; nothing is written before all inputs are checked.

use crate::disk::{self, DiskError};
use crate::inputs::{self, InputError, Inputs, Seed};
use crate::keys::Keys;
use crate::layout::{CONFIG_DISK, Layout};
use crate::outputs::{self, Output};
use crate::status::Status;
use dstack_core::boot::{Failure, Stage};
use dstack_core::limits::CONFIG_DISK_MAX;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

/// Why the boot cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// The config disk.
    #[error("cannot read the config disk: {0}")]
    Config(io::Error),
    /// What is on it.
    #[error(transparent)]
    Inputs(#[from] InputError),
    /// No keys.
    #[error("{}", .0.sentence())]
    Keys(Failure),
    /// No data disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The files for the other units.
    #[error("cannot write below /run/dstack: {0}")]
    Outputs(io::Error),
    /// The kernel gives no random bytes.
    #[error("no random bytes from the kernel")]
    Random,
}

impl PrepareError {
    /// What the host is told.
    #[must_use]
    pub const fn failure(&self) -> Failure {
        match self {
            Self::Config(_) => Failure::ConfigMissing,
            Self::Inputs(error) => error.failure(),
            Self::Keys(failure) => *failure,
            Self::Disk(_) => Failure::DiskFailed,
            Self::Outputs(_) | Self::Random => Failure::Internal,
        }
    }
}

/// Runs all steps. The status file has the `ERROR` line when it fails.
///
/// # Errors
/// [`PrepareError`], for the journal.
pub fn run(layout: &Layout) -> Result<(), PrepareError> {
    let status = Status::new(&layout.status());
    steps(layout, &status).inspect_err(|error| status.error(error.failure()))
}

fn steps(layout: &Layout, status: &Status) -> Result<(), PrepareError> {
    status.stage(Stage::Config);
    let (inputs, keys) = read_inputs(Path::new(CONFIG_DISK), seed(layout)?)?;
    if let Some(id) = inputs.instance_id {
        status.instance(id);
    }
    println!("app {} with compose {}", inputs.app_id, inputs.compose_hash);
    status.stage(Stage::Disk);
    outputs::write_all(layout, &outputs::render(layout, &inputs, keys.provider()))
        .map_err(PrepareError::Outputs)?;
    let key = keys.disk().map_err(PrepareError::Keys)?;
    disk::prepare(layout, &key)?;
    status.stage(Stage::Docker);
    Ok(())
}

/// T6: the device is read once; everything after works on that buffer.
fn read_inputs(device: &Path, seed: Seed) -> Result<(Inputs, Box<dyn Keys>), PrepareError> {
    let mut disk = Vec::new();
    let limit = u64::try_from(CONFIG_DISK_MAX).unwrap_or(u64::MAX).saturating_add(1);
    File::open(device).and_then(|f| f.take(limit).read_to_end(&mut disk)).map_err(PrepareError::Config)?;
    Ok(inputs::parse(&disk, seed)?)
}

/// What stands in for a seed that the host does not keep: random, the same for all runs in one boot.
fn seed(layout: &Layout) -> Result<Seed, PrepareError> {
    let path = layout.private().join("instance-seed");
    if let Some(seed) = fs::read(&path).ok().and_then(|bytes| bytes.try_into().ok()) {
        return Ok(seed);
    }
    let mut seed = Seed::default();
    getrandom::fill(&mut seed).map_err(|_| PrepareError::Random)?;
    let output = Output { path, mode: 0o600, bytes: seed.to_vec() };
    outputs::write_all(layout, &[output]).map_err(PrepareError::Outputs)?;
    Ok(seed)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn t06_the_device_is_read_up_to_its_cap() {
        let mut device = tempfile::NamedTempFile::new().unwrap();
        device.write_all(&vec![0; CONFIG_DISK_MAX + 4096]).unwrap();
        let error = read_inputs(device.path(), [0; 20]).err().unwrap();
        assert_eq!(error.failure(), Failure::ConfigInvalid);
        assert!(error.to_string().contains("larger"), "{error}");
    }

    #[test]
    fn a_second_run_has_the_same_seed() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::at(dir.path(), dir.path());
        assert_eq!(seed(&layout).unwrap(), seed(&layout).unwrap());
        assert_ne!(seed(&layout).unwrap(), Seed::default());
    }

    #[test]
    fn a_missing_disk_is_told_apart_from_a_bad_one() {
        let error = read_inputs(Path::new("/nonexistent"), [0; 20]).err().unwrap();
        assert_eq!(error.failure(), Failure::ConfigMissing);
    }
}
