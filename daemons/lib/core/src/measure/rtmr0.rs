// SPDX-License-Identifier: Apache-2.0
//! RTMR0: the configuration that the firmware found.
//!
//! The order is that of OVMF without Secure Boot, edk2 before `stable202505`, started by QEMU with `-kernel`: Debian
//! 12's and 13's `ovmf`. Later firmware adds QEMU's boot menu and boot order.

use super::event_type::{
    FIRMWARE_BLOB2, HANDOFF_TABLES2, PLATFORM_CONFIG, SEPARATOR, VARIABLE_BOOT, VARIABLE_DRIVER_CONFIG,
};
use super::tdvf::{Kind, Tdvf};
use super::{Entry, MeasureError, Register, hob};
use crate::event_log::{Digest, Event};

/// GUID of the variables that UEFI itself defines.
const GLOBAL: [u8; 16] =
    [0x61, 0xdf, 0xe4, 0x8b, 0xca, 0x93, 0xd2, 0x11, 0xaa, 0x0d, 0x00, 0xe0, 0x98, 0x03, 0x2b, 0x8c];
/// GUID of the signature databases.
const DATABASES: [u8; 16] =
    [0xcb, 0xb2, 0x19, 0xd7, 0x3a, 0x3d, 0x96, 0x45, 0xa3, 0xbc, 0xda, 0xd0, 0x0e, 0x67, 0x65, 0x6f];
const SECURE_BOOT: [(&str, [u8; 16]); 5] =
    [("SecureBoot", GLOBAL), ("PK", GLOBAL), ("KEK", GLOBAL), ("db", DATABASES), ("dbx", DATABASES)];
/// OVMF's volume of drivers, and its menu inside.
const VOLUME: [u8; 16] =
    [0xc9, 0xbd, 0xb8, 0x7c, 0xeb, 0xf8, 0x34, 0x4f, 0xaa, 0xea, 0x3e, 0xe4, 0xaf, 0x65, 0x16, 0xa1];
const MENU: [u8; 16] =
    [0x21, 0xaa, 0x2c, 0x46, 0x14, 0x76, 0x03, 0x45, 0x83, 0x6e, 0x8a, 0xb6, 0xf4, 0x66, 0x23, 0x31];

/// Digests of what QEMU tells the firmware by ACPI: they depend on QEMU's version, vCPUs, memory and devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Acpi {
    /// `etc/table-loader`.
    pub loader: Digest,
    /// `etc/acpi/rsdp`.
    pub rsdp: Digest,
    /// `etc/acpi/tables`.
    pub tables: Digest,
}

impl Acpi {
    /// Of the three files of QEMU's fw_cfg.
    #[must_use]
    pub fn of_files(loader: &[u8], rsdp: &[u8], tables: &[u8]) -> Self {
        Self { loader: super::sha384(loader), rsdp: super::sha384(rsdp), tables: super::sha384(tables) }
    }

    /// From the event log of a TD that booted on the same QEMU with the same shape; `None` when it has not exactly
    /// three such events.
    #[must_use]
    pub fn of_log(events: &[Event]) -> Option<Self> {
        let own = events.iter().filter(|e| e.imr == 0 && e.event_type == PLATFORM_CONFIG);
        let digests: Vec<Digest> = own.map(|e| e.digest).collect();
        let [loader, rsdp, tables] = digests.try_into().ok()?;
        Some(Self { loader, rsdp, tables })
    }
}

/// The events of RTMR0 for a VM with this much memory, bytes. Those of ACPI are left out when they are not known.
///
/// # Errors
/// [`MeasureError`] when firmware and memory do not fit, or the firmware has not exactly one configuration volume.
pub fn events(tdvf: &Tdvf<'_>, memory: u64, acpi: Option<&Acpi>) -> Result<Vec<Entry>, MeasureError> {
    let mut volumes = tdvf.of(Kind::Cfv);
    let (Some(cfv), None) = (volumes.next(), volumes.next()) else {
        return Err(MeasureError::Metadata("it has not exactly one configuration volume"));
    };
    let entry =
        |kind, name: &str, data: &[u8], source: String| Entry::of(Register::Rtmr0, kind, name, data, source);
    let map = hob::hob(tdvf, memory)?;
    let mut entries = vec![
        entry(HANDOFF_TABLES2, "td-hob", &map, format!("memory map of {} MiB", memory >> 20)),
        entry(FIRMWARE_BLOB2, "cfv", tdvf.contents(cfv), "configuration volume of the firmware".into()),
    ];
    entries.extend(SECURE_BOOT.map(|(name, guid)| {
        entry(VARIABLE_DRIVER_CONFIG, name, &variable(&guid, name), "variable that is not set".into())
    }));
    entries.push(entry(SEPARATOR, "separator", &[0; 4], "four zero bytes".into()));
    if let Some(acpi) = acpi {
        let parts = [("acpi-loader", acpi.loader), ("acpi-rsdp", acpi.rsdp), ("acpi-tables", acpi.tables)];
        entries.extend(parts.map(|(name, digest)| {
            Entry::digest(Register::Rtmr0, PLATFORM_CONFIG, name, digest, "QEMU's ACPI, as given")
        }));
    }
    entries.push(entry(VARIABLE_BOOT, "BootOrder", &[0, 0], "Boot0000 alone".into()));
    entries.push(entry(VARIABLE_BOOT, "Boot0000", &menu(), "OVMF's own menu".into()));
    Ok(entries)
}

/// A variable as it is measured when it is not set: GUID, lengths of name and data, name in UTF-16.
fn variable(guid: &[u8; 16], name: &str) -> Vec<u8> {
    let text: Vec<u8> = name.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let length = u64::try_from(text.len() / 2).unwrap_or(0);
    [&guid[..], &length.to_le_bytes(), &[0; 8], &text].concat()
}

/// The boot option of OVMF's menu: active, hidden, an application; its description; its place in the firmware.
fn menu() -> Vec<u8> {
    const ATTRIBUTES: u32 = 0x109;
    const PATH_LENGTH: u16 = 44;
    let title: Vec<u8> = "UiApp\0".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let node = |kind: u8| [4, kind, 20, 0];
    let path = [&node(7)[..], &VOLUME, &node(6), &MENU, &[0x7f, 0xff, 4, 0]].concat();
    [&ATTRIBUTES.to_le_bytes()[..], &PATH_LENGTH.to_le_bytes(), &title, &path].concat()
}
