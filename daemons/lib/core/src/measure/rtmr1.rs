// SPDX-License-Identifier: Apache-2.0
//! RTMR1: the programs that the firmware loads, with the words that UEFI prescribes around them.
//!
//! QEMU gives the UKI to the firmware, which measures its Authenticode digest. systemd-stub 257 has the firmware load the
//! inner kernel too, so that is measured as well; later stubs start it themselves.

use super::event_type::{ACTION, BOOT_SERVICES_APPLICATION, SEPARATOR};
use super::pe::Pe;
use super::uki::Uki;
use super::{Entry, MeasureError, Register};
use sha2::Sha384;

/// The events of RTMR1.
///
/// # Errors
/// [`MeasureError::Pe`] when the UKI or the kernel inside is not as the firmware loads it.
pub fn events(uki: &Uki<'_>) -> Result<Vec<Entry>, MeasureError> {
    let kernel =
        Pe::parse(uki.section(".linux").unwrap_or_default(), "the kernel in the unified kernel image")?;
    let words = |text: &str| Entry::of(Register::Rtmr1, ACTION, text, text.as_bytes(), "fixed words of UEFI");
    Ok(vec![
        program("uki", &uki.pe, "Authenticode digest of the unified kernel image")?,
        words("Calling EFI Application from Boot Option"),
        Entry::of(Register::Rtmr1, SEPARATOR, "separator", &[0; 4], "four zero bytes"),
        program("kernel", &kernel, "Authenticode digest of section .linux")?,
        words("Exit Boot Services Invocation"),
        words("Exit Boot Services Returned with Success"),
    ])
}

fn program(name: &str, pe: &Pe<'_>, source: &str) -> Result<Entry, MeasureError> {
    let digest = pe.authenticode::<Sha384>()?;
    let digest = digest.try_into().unwrap_or([0; 48]);
    Ok(Entry::digest(Register::Rtmr1, BOOT_SERVICES_APPLICATION, name, digest, source))
}
