// SPDX-License-Identifier: Apache-2.0
//! The registers of a VM of an image and a shape, on TDX and on the simulated TEE.
//!
//! The simulated TEE measures like a TD what is the same there, RTMR1 and RTMR2. The rest is by the formula
//! `simulated-v2`, with numbers big-endian:
//!
//! | register | is |
//! |---|---|
//! | MRTD | as on TDX when the firmware has TDX metadata, else `sha384("dstack-sim-v2:mrtd" ‖ sha384(firmware))` |
//! | RTMR0 | `sha384("dstack-sim-v2:rtmr0" ‖ vCPUs (4 bytes) ‖ memory in bytes (8 bytes))` |
//!
//! RTMR0 is thus never that of a real TD: no simulated VM passes for one, whatever else it boots.

use super::mrtd::{PageOrder, mrtd};
use super::rtmr0::{self, Acpi};
use super::tdvf::Tdvf;
use super::uki::Uki;
use super::{Entry, MeasureError, Register, replay, rtmr1, rtmr2, sha384};
use crate::event_log::Digest;
use serde::Serialize;

/// Which TEE a VM runs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Platform {
    /// Intel TDX.
    Tdx,
    /// The simulated TEE.
    Simulated,
}

/// Shape of a VM, as far as it is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Shape {
    /// vCPUs.
    pub vcpus: u32,
    /// Memory, bytes.
    pub memory: u64,
}

/// What is measured of firmware and UKI, whatever the shape: it takes a while, and can be kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Booted {
    /// MRTD.
    pub mrtd: Entry,
    /// Events of RTMR1 and RTMR2.
    pub entries: Vec<Entry>,
}

impl Booted {
    /// Measures firmware and UKI.
    ///
    /// # Errors
    /// [`MeasureError`]; firmware without TDX metadata is an error on TDX alone.
    pub fn of(
        firmware: &[u8],
        uki: &[u8],
        platform: Platform,
        order: PageOrder,
    ) -> Result<Self, MeasureError> {
        let uki = Uki::parse(uki)?;
        let mut entries = rtmr1::events(&uki)?;
        entries.extend(rtmr2::events(&uki)?);
        Ok(Self { mrtd: firmware_entry(firmware, platform, order)?, entries })
    }

    fn register(&self, register: Register) -> Digest {
        replay(&self.entries, register)
    }

    /// The registers of the simulated TEE: MRTD, RTMR0 to RTMR2.
    #[must_use]
    pub fn simulated(&self, shape: Shape) -> [Digest; 4] {
        let rtmr0 = simulated_rtmr0(shape).digest;
        [self.mrtd.digest, rtmr0, self.register(Register::Rtmr1), self.register(Register::Rtmr2)]
    }
}

fn firmware_entry(firmware: &[u8], platform: Platform, order: PageOrder) -> Result<Entry, MeasureError> {
    let entry = |digest, source: &str| Entry::digest(Register::Mrtd, 0, "firmware", digest, source);
    match (Tdvf::parse(firmware), platform) {
        (Ok(tdvf), _) => Ok(entry(mrtd(&tdvf, order), "pages of the firmware's sections")),
        (Err(MeasureError::NoMetadata), Platform::Simulated) => {
            let digest = sha384(&[&b"dstack-sim-v2:mrtd"[..], &sha384(firmware)].concat());
            Ok(entry(digest, "simulated-v2: hash of firmware without TDX metadata"))
        }
        (Err(error), _) => Err(error),
    }
}

fn simulated_rtmr0(shape: Shape) -> Entry {
    let (vcpus, memory) = (shape.vcpus.to_be_bytes(), shape.memory.to_be_bytes());
    let data = [&b"dstack-sim-v2:rtmr0"[..], &vcpus, &memory].concat();
    let source = format!("simulated-v2: {} vCPUs and {} MiB", shape.vcpus, shape.memory >> 20);
    Entry::digest(Register::Rtmr0, 0, "shape", sha384(&data), source)
}

/// What a VM boots, and how.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// The firmware image.
    pub firmware: &'a [u8],
    /// The unified kernel image.
    pub uki: &'a [u8],
    /// The shape.
    pub shape: Shape,
    /// QEMU's ACPI for this shape, when it is known.
    pub acpi: Option<&'a Acpi>,
    /// How the host builds the TD.
    pub order: PageOrder,
}

/// The predicted registers, and the events behind them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prediction {
    /// Where.
    pub platform: Platform,
    /// MRTD.
    pub mrtd: Digest,
    /// RTMR0; `None` on TDX without ACPI, when only some of its events are known.
    pub rtmr0: Option<Digest>,
    /// RTMR1.
    pub rtmr1: Digest,
    /// RTMR2.
    pub rtmr2: Digest,
    /// Every event that is known, in the order of the registers.
    pub entries: Vec<Entry>,
}

impl Prediction {
    /// Predicts the registers.
    ///
    /// # Errors
    /// [`MeasureError`].
    pub fn of(platform: Platform, inputs: &Inputs<'_>) -> Result<Self, MeasureError> {
        let booted = Booted::of(inputs.firmware, inputs.uki, platform, inputs.order)?;
        let (mut config, rtmr0) = match platform {
            Platform::Tdx => {
                let tdvf = Tdvf::parse(inputs.firmware)?;
                let config = rtmr0::events(&tdvf, inputs.shape.memory, inputs.acpi)?;
                let value = replay(&config, Register::Rtmr0);
                (config, inputs.acpi.map(|_| value))
            }
            Platform::Simulated => {
                let entry = simulated_rtmr0(inputs.shape);
                let value = entry.digest;
                (vec![entry], Some(value))
            }
        };
        let mut entries = vec![booted.mrtd.clone()];
        entries.append(&mut config);
        let (rtmr1, rtmr2) = (booted.register(Register::Rtmr1), booted.register(Register::Rtmr2));
        entries.extend(booted.entries);
        Ok(Self { platform, mrtd: booted.mrtd.digest, rtmr0, rtmr1, rtmr2, entries })
    }

    /// The value of a register; `None` when it cannot be predicted.
    #[must_use]
    pub const fn register(&self, register: Register) -> Option<Digest> {
        match register {
            Register::Mrtd => Some(self.mrtd),
            Register::Rtmr0 => self.rtmr0,
            Register::Rtmr1 => Some(self.rtmr1),
            Register::Rtmr2 => Some(self.rtmr2),
        }
    }
}

#[cfg(test)]
#[path = "predict_tests.rs"]
mod tests;
