// SPDX-License-Identifier: Apache-2.0
//! VMs as units: what teepod asks of systemd.

use crate::vm::UnitState;
use dstack_core::ids::VmName;
use futures_util::future::BoxFuture;

/// A job of systemd that was accepted; resolves to its result (`done canceled timeout failed dependency skipped`).
pub type Pending = BoxFuture<'static, Result<String, UnitError>>;

/// Why systemd did not do it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// There is no such unit file.
    #[error("systemd does not know {0}; is package dstack-teepod installed completely?")]
    Unknown(String),
    /// polkit refused.
    #[error(
        "systemd refused {0}: polkit's rule for teepod is missing or broken; see /usr/share/polkit-1/rules.d"
    )]
    Denied(String),
    /// Anything else, in systemd's words.
    #[error("systemd failed on {unit}: {message}")]
    Failed {
        /// The unit.
        unit: String,
        /// systemd's words.
        message: String,
    },
}

/// Limits of a VM's unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most memory, bytes: the guest's and QEMU's own.
    pub memory: u64,
    /// Share of the processors when they are scarce, 1 to 10000.
    pub cpu_weight: u64,
    /// Most threads.
    pub tasks: u64,
}

/// What teepod asks of systemd; tests answer themselves.
pub trait Units: Send + Sync + 'static {
    /// Enqueues a start.
    fn start<'a>(&'a self, unit: &'a str) -> BoxFuture<'a, Result<Pending, UnitError>>;
    /// Enqueues a stop.
    fn stop<'a>(&'a self, unit: &'a str) -> BoxFuture<'a, Result<Pending, UnitError>>;
    /// Enqueues a stop and a start after it.
    fn restart<'a>(&'a self, unit: &'a str) -> BoxFuture<'a, Result<Pending, UnitError>>;
    /// Sends SIGKILL to all processes of a unit.
    fn kill<'a>(&'a self, unit: &'a str) -> BoxFuture<'a, Result<(), UnitError>>;
    /// Forgets a failure and the count of restarts.
    fn reset_failed<'a>(&'a self, unit: &'a str) -> BoxFuture<'a, Result<(), UnitError>>;
    /// Sets limits until the next reboot.
    fn limit<'a>(&'a self, unit: &'a str, limits: Limits) -> BoxFuture<'a, Result<(), UnitError>>;
    /// The state of one VM's unit.
    fn state<'a>(&'a self, vm: &'a VmName) -> BoxFuture<'a, Result<UnitState, UnitError>>;
    /// When one VM's unit last became active and inactive, microseconds since 1970; 0: never, or long forgotten.
    fn times<'a>(&'a self, vm: &'a VmName) -> BoxFuture<'a, Result<(u64, u64), UnitError>>;
    /// The states of all loaded units of VMs.
    fn states(&self) -> BoxFuture<'_, Result<Vec<(VmName, UnitState)>, UnitError>>;
    /// The VM whose unit a process belongs to.
    fn vm_of(&self, pid: u32) -> BoxFuture<'_, Result<Option<VmName>, UnitError>>;
}

/// The unit that removes a VM's own state.
#[must_use]
pub fn remove_unit(vm: &VmName) -> String {
    format!("dstack-vm-remove@{vm}.service")
}

/// The VM of a unit's name, e.g. `dstack-vm@hello.service`.
#[must_use]
pub fn vm_of_unit(unit: &str) -> Option<VmName> {
    unit.strip_prefix("dstack-vm@")?.strip_suffix(".service")?.parse().ok()
}

/// The VM of a unit's object path.
#[must_use]
pub fn vm_of_path(path: &str) -> Option<VmName> {
    vm_of_unit(&unescape(path.strip_prefix("/org/freedesktop/systemd1/unit/")?)?)
}

/// Undoes systemd's escaping of an element of an object path.
fn unescape(element: &str) -> Option<String> {
    let mut bytes = element.bytes();
    let mut text = Vec::with_capacity(element.len());
    while let Some(byte) = bytes.next() {
        text.push(match byte {
            b'_' => hex_digit(bytes.next()?)? << 4 | hex_digit(bytes.next()?)?,
            plain => plain,
        });
    }
    String::from_utf8(text).ok()
}

fn hex_digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|d| u8::try_from(d).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use dstack_service::bus::path_element;

    #[test]
    fn vms_are_found_by_unit_and_path() {
        for name in ["hello", "a-1", "0"] {
            let unit = format!("dstack-vm@{name}.service");
            let path = format!("/org/freedesktop/systemd1/unit/{}", path_element(&unit));
            assert_eq!(vm_of_unit(&unit).map(|v| v.to_string()).as_deref(), Some(name));
            assert_eq!(vm_of_path(&path).map(|v| v.to_string()).as_deref(), Some(name));
        }
        for bad in
            ["dstack-vm@.service", "dstack-vm@a.slice", "dstack-vm-net@a.service", "dstack-vm@A.service"]
        {
            assert_eq!(vm_of_unit(bad), None, "{bad}");
        }
        for bad in
            ["", "/x", "/org/freedesktop/systemd1/unit/dstack_2dvm_4", "/org/freedesktop/systemd1/unit/_zz"]
        {
            assert_eq!(vm_of_path(bad), None, "{bad}");
        }
    }
}
