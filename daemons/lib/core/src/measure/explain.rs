// SPDX-License-Identifier: Apache-2.0
//! Where a quote differs from a prediction, and what may be the cause.

use super::predict::{Platform, Prediction};
use super::{Entry, Register};
use crate::event_log::{Digest, Event};

/// The first difference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// In which register.
    pub register: Register,
    /// The first event that differs, when the quote's log has this register's events; else the whole register.
    pub event: Option<String>,
    /// What most likely is the cause.
    pub cause: &'static str,
}

/// Compares the registers of a quote (MRTD, RTMR0 to RTMR2) with a prediction. The log must have been replayed to the
/// quote. A register that cannot be predicted is compared by the events that can.
#[must_use]
pub fn explain(predicted: &Prediction, measured: [Digest; 4], log: &[Event]) -> Option<Difference> {
    let registers = [Register::Mrtd, Register::Rtmr0, Register::Rtmr1, Register::Rtmr2];
    registers.into_iter().zip(measured).find_map(|(register, value)| {
        let expected = predicted.register(register);
        if expected == Some(value) {
            return None;
        }
        let own = |e: &&Entry| e.register == register;
        let logged: Vec<&Event> = log.iter().filter(|e| Register::rtmr(e.imr) == Some(register)).collect();
        let entries: Vec<&Entry> = predicted.entries.iter().filter(own).collect();
        let event =
            if expected.is_some() { first(&entries, &logged) } else { first_known(&entries, &logged) };
        if expected.is_none() && event.is_none() {
            return None;
        }
        let cause = cause(predicted.platform, register, event.as_deref());
        Some(Difference { register, event, cause })
    })
}

/// Name of the first event that differs; `None` without events to compare.
fn first(entries: &[&Entry], logged: &[&Event]) -> Option<String> {
    if logged.is_empty() {
        return None;
    }
    let differs = entries.iter().zip(logged).find(|(entry, event)| entry.digest != event.digest);
    match differs {
        Some((entry, _)) => Some(entry.name.clone()),
        None if entries.len() > logged.len() => entries.get(logged.len()).map(|entry| entry.name.clone()),
        None if logged.len() > entries.len() => Some("an event more than expected".to_owned()),
        None => None,
    }
}

/// The same for a register of which only some events are known: each must be in the log.
fn first_known(entries: &[&Entry], logged: &[&Event]) -> Option<String> {
    if logged.is_empty() {
        return None;
    }
    let missing = entries.iter().find(|entry| !logged.iter().any(|event| event.digest == entry.digest));
    missing.map(|entry| entry.name.clone())
}

const fn cause(platform: Platform, register: Register, event: Option<&str>) -> &'static str {
    match (platform, register, event) {
        (Platform::Simulated, Register::Mrtd, _) => {
            "another firmware file on the host, or an image that brings its own"
        }
        (Platform::Tdx, Register::Mrtd, _) => {
            "another firmware file, or a host that adds pages in the other order (--page-order)"
        }
        (Platform::Simulated, Register::Rtmr0, _) => "another number of vCPUs, or another size of memory",
        (_, Register::Rtmr0, Some(name)) => rtmr0_cause(name.as_bytes()),
        (_, Register::Rtmr0, None) => {
            "another memory size, number of vCPUs, set of devices, version of QEMU, or firmware"
        }
        (_, Register::Rtmr1, _) => "another unified kernel image, or another version of systemd-stub in it",
        (_, Register::Rtmr2, Some(b)) if matches!(b.as_bytes(), b"command-line" | b".cmdline") => {
            "another kernel command line, or something appended to it"
        }
        (_, Register::Rtmr2, _) => "another command line, initrd or kernel, or something appended at boot",
    }
}

/// By the first letters, which tell the events of RTMR0 apart.
const fn rtmr0_cause(name: &[u8]) -> &'static str {
    match name {
        [b't', b'd', ..] => "another memory size, or firmware with other sections",
        [b'a', b'c', ..] => "another number of vCPUs, memory size, set of devices, or version of QEMU",
        [b'c', b'f', ..] => "another firmware file, or variables written into it",
        [b'B', b'o', ..] => "firmware with other boot options: another version of OVMF",
        _ => "firmware with Secure Boot, or another version of OVMF",
    }
}
