// SPDX-License-Identifier: Apache-2.0
//! Which TEE this machine is (trust rule T4).
//!
//! The kernel shows the processor flag `tdx_guest` when CPUID leaf 0x21 says `IntelTDX`, whether or not a driver is
//! there; inside a TD the TDX module answers that leaf, so a host cannot hide it. Where TDX is, nothing else will do: a
//! missing driver is a failure. Settings and environment variables are not asked.

use crate::platform::{AttestError, Platform};
use crate::simulated::{Simulated, Unix, Vsock};
use crate::tdx::{Paths, Tdx};
use std::fs;
use std::path::Path;

/// What a machine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A TD.
    Tdx,
    /// No TEE: the simulated one of the host is the only choice, and its root says so in every verdict.
    Simulated,
}

/// What the machine under this root directory is, `/` in production.
#[must_use]
pub fn kind(root: &Path) -> Kind {
    let flags = fs::read_to_string(root.join("proc/cpuinfo")).unwrap_or_default();
    let flag = flags
        .lines()
        .filter_map(|line| line.strip_prefix("flags"))
        .any(|flags| flags.split_ascii_whitespace().any(|flag| flag == "tdx_guest"));
    // Either sign is enough: it is safer to fail on a half-equipped TD than to take it for a plain machine.
    if flag || root.join("dev/tdx_guest").exists() { Kind::Tdx } else { Kind::Simulated }
}

/// The TEE of this machine.
///
/// # Errors
/// [`AttestError::NoDriver`] in a TD whose kernel has no driver.
pub fn detect() -> Result<Box<dyn Platform>, AttestError> {
    detect_under(Path::new("/"))
}

/// [`detect`], with the simulated TEE at a Unix socket where there is one. In a TD it changes nothing.
///
/// # Errors
/// As [`detect`].
pub fn detect_with(simulated: Option<&Path>) -> Result<Box<dyn Platform>, AttestError> {
    match (kind(Path::new("/")), simulated) {
        (Kind::Simulated, Some(socket)) => Ok(Box::new(Simulated::new(Unix(socket.to_owned())))),
        _ => detect(),
    }
}

/// [`detect`] under another root directory.
///
/// # Errors
/// As [`detect`].
pub fn detect_under(root: &Path) -> Result<Box<dyn Platform>, AttestError> {
    match kind(root) {
        Kind::Tdx => Ok(Box::new(Tdx::open(Paths::under(root))?)),
        Kind::Simulated => Ok(Box::new(Simulated::new(Vsock))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(cpuinfo: &str, files: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("proc")).unwrap();
        fs::write(root.path().join("proc/cpuinfo"), cpuinfo).unwrap();
        for file in files {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        root
    }

    const TD: &str = "processor : 0\nmodel name : tdx_guest\nflags\t\t: fpu hypervisor tdx_guest amx\n";
    const PLAIN: &str = "processor : 0\nmodel name : tdx_guest\nflags\t\t: fpu hypervisor\n";

    #[test]
    fn t04_a_td_without_driver_fails_and_never_becomes_a_simulated_one() {
        let root = machine(TD, &["dev/vsock"]);
        assert_eq!(kind(root.path()), Kind::Tdx);
        assert!(matches!(detect_under(root.path()), Err(AttestError::NoDriver(_))));
        let root = machine(PLAIN, &["dev/tdx_guest"]);
        assert!(matches!(detect_under(root.path()), Err(AttestError::NoDriver(_))));
    }

    #[test]
    fn p17_the_machine_decides() {
        let measured = "sys/devices/virtual/misc/tdx_guest/measurements/rtmr3:sha384";
        let root = machine(TD, &["dev/tdx_guest", measured, "sys/kernel/config/tsm/report/x"]);
        assert_eq!(detect_under(root.path()).unwrap().label(), "tdx");
        assert_eq!(detect_under(machine(PLAIN, &[]).path()).unwrap().label(), "simulated");
    }
}
