// SPDX-License-Identifier: Apache-2.0
//! What a run begins with: the credential `launch`, and the directories that systemd has made.

use crate::disk::DiskError;
use crate::end::{EXIT_CONFIG, EXIT_FAILURE};
use dstack_core::ids::VmName;
use dstack_core::qemu::QemuError;
use dstack_core::spec::{LAUNCH_VERSION, LaunchSpec};
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Largest `launch` credential, bytes.
const LAUNCH_MAX: u64 = 64 * 1024;

/// Why a VM cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// Not run by its unit.
    #[error("${0} is not set: start the VM by its unit, dstack-vm@<name>.service")]
    Environment(&'static str),
    /// The credential is missing or too large.
    #[error("credential launch: {0}; it is written by dstack-teepod when it starts a VM")]
    Launch(io::Error),
    /// The credential is not valid.
    #[error("credential launch is not valid: {0}")]
    Json(#[from] serde_json::Error),
    /// The credential has a value that cannot be.
    #[error("credential launch is not valid: {0}")]
    Value(String),
    /// The data disk cannot be used.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The spec has no command line.
    #[error(transparent)]
    Qemu(#[from] QemuError),
    /// A program does not start.
    #[error("{0}: {1}")]
    Program(PathBuf, io::Error),
    /// A program that serves the VM does not come up.
    #[error("{0} does not come up: {1}")]
    Helper(PathBuf, String),
    /// QEMU cannot be used.
    #[error("{0} is not a QEMU of version 7.2 or later; it says {1:?}")]
    Version(PathBuf, String),
    /// passt is not there.
    #[error(
        "the VM's network is not there; `journalctl -u dstack-vm-net@{0}` says why, such as a host port in use"
    )]
    Network(VmName),
    /// The tap device cannot be used.
    #[error("tap device {0}: {1}; it must exist and belong to the VM's user")]
    Tap(String, io::Error),
    /// A system call failed.
    #[error("{0}: {1}")]
    System(&'static str, io::Error),
}

impl SetupError {
    /// The exit status: another one for what another attempt cannot change.
    #[must_use]
    pub const fn status(&self) -> u8 {
        match self {
            Self::Environment(_) | Self::Json(_) | Self::Value(_) | Self::Qemu(_) | Self::Version(..) => {
                EXIT_CONFIG
            }
            Self::Disk(DiskError::Foreign(..)) => EXIT_CONFIG,
            _ => EXIT_FAILURE,
        }
    }
}

/// The directories of this run.
#[derive(Debug, Clone)]
pub struct Place {
    /// `$CREDENTIALS_DIRECTORY`.
    pub credentials: PathBuf,
    /// `$STATE_DIRECTORY`: disks.
    pub state: PathBuf,
    /// `$RUNTIME_DIRECTORY`: sockets.
    pub runtime: PathBuf,
    /// passt's socket.
    pub net: PathBuf,
}

impl Place {
    /// Reads the environment; `net` is passt's socket.
    ///
    /// # Errors
    /// [`SetupError::Environment`] names the missing variable.
    pub fn from_env(net: PathBuf) -> Result<Self, SetupError> {
        let dir = |name: &'static str| {
            std::env::var_os(name).map(PathBuf::from).ok_or(SetupError::Environment(name))
        };
        Ok(Self {
            credentials: dir("CREDENTIALS_DIRECTORY")?,
            state: dir("STATE_DIRECTORY")?,
            runtime: dir("RUNTIME_DIRECTORY")?,
            net,
        })
    }
}

/// Reads the credential `launch` in `dir`.
///
/// # Errors
/// [`SetupError`] when it is missing, malformed, of another version or out of range.
pub fn launch(dir: &Path) -> Result<LaunchSpec, SetupError> {
    let path = dir.join("launch");
    let size = std::fs::metadata(&path).map_err(SetupError::Launch)?.len();
    if size > LAUNCH_MAX {
        return Err(SetupError::Value(format!("{size} bytes are more than {LAUNCH_MAX}")));
    }
    parse(&std::fs::read(&path).map_err(SetupError::Launch)?)
}

fn parse(bytes: &[u8]) -> Result<LaunchSpec, SetupError> {
    let launch: LaunchSpec = serde_json::from_slice(bytes)?;
    if launch.version != LAUNCH_VERSION {
        let text = format!("version {} is not {LAUNCH_VERSION}; restart dstack-teepod", launch.version);
        return Err(SetupError::Value(text));
    }
    launch.vm.check().map_err(|e| SetupError::Value(e.to_string()))?;
    Ok(launch)
}

/// Deletes everything in `$STATE_DIRECTORY`, for `dstack-vm-remove@.service`, which runs as the VM's own user.
#[must_use]
pub fn remove() -> ExitCode {
    let removed = std::env::var_os("STATE_DIRECTORY")
        .ok_or(SetupError::Environment("STATE_DIRECTORY"))
        .and_then(|dir| empty(Path::new(&dir)).map_err(|e| SetupError::Program(PathBuf::from(dir), e)));
    match removed {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("Cannot remove the VM's state: {e}");
            ExitCode::FAILURE
        }
    }
}

fn empty(dir: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let remove = if entry.file_type()?.is_dir() { std::fs::remove_dir_all } else { std::fs::remove_file };
        remove(entry.path())?;
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_emptied_and_links_are_not_followed() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::create_dir(dir.path().join("d")).unwrap();
        std::fs::write(dir.path().join("d/f"), "x").unwrap();
        std::fs::write(other.path().join("keep"), "x").unwrap();
        std::os::unix::fs::symlink(other.path(), dir.path().join("link")).unwrap();
        empty(dir.path()).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(other.path().join("keep").exists());
    }

    #[test]
    fn bad_credentials_are_named() {
        let dir = Path::new("/nonexistent");
        assert!(matches!(launch(dir), Err(SetupError::Launch(_))));
        for bad in ["", "{}", "[1]", r#"{"version":1}"#] {
            assert!(matches!(parse(bad.as_bytes()), Err(SetupError::Json(_))), "{bad}");
        }
    }
}
