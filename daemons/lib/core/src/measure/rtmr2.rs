// SPDX-License-Identifier: Apache-2.0
//! RTMR2: what systemd-stub and Linux' EFI stub measure.
//!
//! systemd-stub measures each section that it knows: its name with a zero byte, then its bytes in memory (PCR 11 of a
//! machine with a TPM). The kernel measures its command line in UTF-16 with a zero at the end, then the whole initrd
//! (PCR 9). Nothing is appended to the command line and no add-on is on a disk that the firmware reads, so PCR 12 and 13
//! get nothing.

use super::event_type::{IPL, TAG};
use super::uki::{MEASURED, Uki};
use super::{Entry, MeasureError, Register};
use sha2::{Digest as _, Sha384};

/// The events of RTMR2.
///
/// # Errors
/// [`MeasureError::Uki`] when the command line is not text.
pub fn events(uki: &Uki<'_>) -> Result<Vec<Entry>, MeasureError> {
    let mut entries = Vec::new();
    for name in MEASURED {
        let Some(bytes) = uki.section(name) else { continue };
        let text = [name.as_bytes(), &[0]].concat();
        entries.push(ipl(&format!("{name} name"), &text, "systemd-stub: name of the section"));
        entries.push(ipl(name, bytes, &format!("systemd-stub: section of {} bytes", bytes.len())));
    }
    if let Some(line) = uki.command_line()? {
        let wide: Vec<u8> = line.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect();
        entries.push(Entry::of(Register::Rtmr2, TAG, "command-line", &wide, format!("Linux: {line}")));
    }
    let initrd = uki.initrd();
    let length: usize = initrd.iter().map(|part| part.len()).sum();
    if length > 0 {
        let mut hash = Sha384::new();
        initrd.iter().for_each(|part| hash.update(part));
        let digest = hash.finalize().into();
        let source = format!("Linux: initrd of {length} bytes");
        entries.push(Entry::digest(Register::Rtmr2, TAG, "initrd", digest, source));
    }
    Ok(entries)
}

fn ipl(name: &str, data: &[u8], source: &str) -> Entry {
    Entry::of(Register::Rtmr2, IPL, name, data, source)
}
