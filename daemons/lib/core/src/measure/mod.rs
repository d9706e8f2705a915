// SPDX-License-Identifier: Apache-2.0
//! What a TD measures before its kernel runs, computed from the files it boots.
//!
//! The machine is the one of [`crate::qemu`]: q35, TDVF by `-bios`, a unified kernel image (UKI) by `-kernel`, no vTPM.
//!
//! | register | filled by | with |
//! |---|---|---|
//! | MRTD | the TDX module | the firmware's sections, page by page |
//! | RTMR0 | the firmware | TD HOB, configuration volume, Secure Boot variables, ACPI, boot variables |
//! | RTMR1 | the firmware | UKI, inner kernel, and fixed words of UEFI |
//! | RTMR2 | systemd-stub 257, Linux' EFI stub | sections of the UKI, command line, initrd |
//!
//! - [`tdvf`]: the metadata in the firmware
//! - [`mrtd`]: the TDX module's hash over the firmware
//! - [`hob`]: QEMU's TD HOB
//! - [`rtmr0`], [`rtmr1`], [`rtmr2`]: events of the run-time registers
//! - [`pe`]: PE images, their sections and their Authenticode digest
//! - [`uki`]: the sections that systemd-stub knows
//! - [`predict`]: all of it for an image and a shape
//! - [`explain`]: where a quote differs from it, and why that may be

mod bytes;
pub mod explain;
pub mod hob;
pub mod mrtd;
pub mod pe;
pub mod predict;
pub mod rtmr0;
pub mod rtmr1;
pub mod rtmr2;
pub mod tdvf;
pub mod uki;

pub use explain::{Difference, explain};
pub use predict::{Booted, Inputs, Platform, Prediction, Shape};

use crate::event_log::{Digest, extend};
use serde::Serialize;
use sha2::{Digest as _, Sha384};
use std::fmt;

/// Largest firmware image, bytes.
pub const FIRMWARE_MAX: usize = 64 * 1024 * 1024;
/// Largest unified kernel image, bytes.
pub const UKI_MAX: usize = 1024 * 1024 * 1024;

/// A register that is filled before the kernel runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Register {
    /// Initial contents of the TD.
    Mrtd,
    /// Firmware's configuration.
    Rtmr0,
    /// Programs that the firmware started.
    Rtmr1,
    /// What the boot loader gave to the kernel.
    Rtmr2,
}

impl Register {
    /// The run-time register with this index; RTMR3 is not filled before the kernel runs.
    #[must_use]
    pub const fn rtmr(index: u32) -> Option<Self> {
        match index {
            0 => Some(Self::Rtmr0),
            1 => Some(Self::Rtmr1),
            2 => Some(Self::Rtmr2),
            _ => None,
        }
    }
}

impl fmt::Display for Register {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mrtd => "MRTD",
            Self::Rtmr0 => "RTMR0",
            Self::Rtmr1 => "RTMR1",
            Self::Rtmr2 => "RTMR2",
        })
    }
}

/// Types of events (TCG PC Client Platform Firmware Profile, section 10.4.1).
pub mod event_type {
    /// A separator between phases.
    pub const SEPARATOR: u32 = 4;
    /// A tagged event, as Linux' EFI stub makes.
    pub const TAG: u32 = 6;
    /// Data of the platform's configuration, such as ACPI tables.
    pub const PLATFORM_CONFIG: u32 = 0x0a;
    /// Events of a boot loader, as systemd-stub makes.
    pub const IPL: u32 = 0x0d;
    /// A variable that configures drivers, such as those of Secure Boot.
    pub const VARIABLE_DRIVER_CONFIG: u32 = 0x8000_0001;
    /// A variable that configures the boot.
    pub const VARIABLE_BOOT: u32 = 0x8000_0002;
    /// A program of boot services.
    pub const BOOT_SERVICES_APPLICATION: u32 = 0x8000_0003;
    /// A fixed sentence.
    pub const ACTION: u32 = 0x8000_0007;
    /// A volume of the firmware.
    pub const FIRMWARE_BLOB2: u32 = 0x8000_000a;
    /// A table that was handed over.
    pub const HANDOFF_TABLES2: u32 = 0x8000_000b;
}

/// One measured event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// Where it goes.
    pub register: Register,
    /// Its type, see [`event_type`].
    pub event_type: u32,
    /// A short name of ours: events of firmware have none.
    pub name: String,
    /// What is extended.
    #[serde(with = "hex::serde")]
    pub digest: Digest,
    /// What the digest is made from, for people.
    pub source: String,
}

impl Entry {
    fn of(register: Register, event_type: u32, name: &str, data: &[u8], source: impl Into<String>) -> Self {
        Self::digest(register, event_type, name, sha384(data), source)
    }

    fn digest(
        register: Register,
        event_type: u32,
        name: &str,
        digest: Digest,
        source: impl Into<String>,
    ) -> Self {
        Self { register, event_type, name: name.to_owned(), digest, source: source.into() }
    }
}

/// The value of a run-time register after these events; those of other registers are left out.
#[must_use]
pub fn replay(entries: &[Entry], register: Register) -> Digest {
    let own = entries.iter().filter(|entry| entry.register == register);
    own.fold([0; 48], |value, entry| extend(&value, &entry.digest))
}

/// Why something cannot be measured.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MeasureError {
    /// Over [`FIRMWARE_MAX`] or [`UKI_MAX`].
    #[error("{0} is over its limit")]
    TooLarge(&'static str),
    /// The firmware has no TDX metadata: a TD cannot start with it.
    #[error("the firmware has no TDX metadata: it is no TDVF; use an OVMF that is built for TDX")]
    NoMetadata,
    /// The firmware's TDX metadata is out of form.
    #[error("the firmware's TDX metadata is damaged: {0}")]
    Metadata(&'static str),
    /// The firmware's sections do not fit the memory of the VM.
    #[error("the firmware's section at {0:#x} does not fit the memory of the VM")]
    Memory(u64),
    /// Not a PE image, or one that is out of form.
    #[error("{file} is not a PE image as UEFI loads it: {reason}")]
    Pe {
        /// Which file or part.
        file: &'static str,
        /// What is wrong.
        reason: &'static str,
    },
    /// A PE image that is not a UKI, or one whose measurement is not known.
    #[error("the unified kernel image cannot be measured: {0}")]
    Uki(&'static str),
}

fn sha384(data: &[u8]) -> Digest {
    Sha384::digest(data).into()
}

#[cfg(test)]
#[path = "vectors.rs"]
mod vectors;
