// SPDX-License-Identifier: Apache-2.0
//! The TDX metadata in a firmware image.
//!
//! A table of GUIDs ends 32 bytes before the end of the image. Each entry is its data, the length of the whole entry
//! (2 bytes) and its GUID; the last entry covers the table. The one for TDX gives the distance from the end of the
//! image to the metadata (TDVF Design Guide, section 11): `TDVF`, length, version 1, number of sections, and for each
//! section offset and length in the image, address and length in memory, type and attributes.

use super::bytes::{at, size_at, u16_at, u32_at, u64_at};
use super::{FIRMWARE_MAX, MeasureError};

/// Bytes of a page.
pub const PAGE: u64 = 4096;
/// Most sections.
pub const SECTIONS_MAX: usize = 64;
const FOOTER: [u8; 16] =
    [0xde, 0x82, 0xb5, 0x96, 0xb2, 0x1f, 0xf7, 0x45, 0xba, 0xea, 0xa3, 0x66, 0xc5, 0x5a, 0x08, 0x2d];
const METADATA: [u8; 16] =
    [0x35, 0x65, 0x7a, 0xe4, 0x4a, 0x98, 0x98, 0x47, 0x86, 0x5e, 0x46, 0x85, 0xa7, 0xbf, 0x8e, 0xc2];
const AFTER_TABLE: usize = 32;
/// Length and GUID of an entry.
const TAIL: usize = 18;
const HEAD: usize = 16;
const SECTION: usize = 32;
const VERSION: u32 = 1;
const MR_EXTEND: u32 = 1;

/// What a section is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Boot firmware volume: code.
    Bfv,
    /// Configuration firmware volume: variables.
    Cfv,
    /// Where QEMU puts the memory map.
    Hob,
    /// Zeroed memory for the first steps.
    TempMem,
}

/// A section of the firmware.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Section {
    /// What it is.
    pub kind: Kind,
    /// Offset in the image; zero for memory without contents.
    pub offset: usize,
    /// Length in the image; zero for memory without contents.
    pub length: usize,
    /// Address in memory.
    pub address: u64,
    /// Length in memory, whole pages.
    pub size: u64,
    /// Whether its contents are measured into MRTD; its addresses always are.
    pub is_measured: bool,
}

/// A firmware image whose metadata was checked.
#[derive(Debug, Clone)]
pub struct Tdvf<'a> {
    image: &'a [u8],
    sections: Vec<Section>,
}

impl<'a> Tdvf<'a> {
    /// Reads the metadata by the rules of QEMU.
    ///
    /// # Errors
    /// [`MeasureError::NoMetadata`] for firmware that no TD starts with, [`MeasureError::Metadata`] when it is damaged.
    pub fn parse(image: &'a [u8]) -> Result<Self, MeasureError> {
        if image.len() > FIRMWARE_MAX {
            return Err(MeasureError::TooLarge("the firmware"));
        }
        let distance = find(image)?;
        let outside = MeasureError::Metadata("it lies outside of the image");
        let start = image.len().checked_sub(distance).ok_or_else(|| outside.clone())?;
        let head = at(image, start, HEAD).ok_or_else(|| outside.clone())?;
        if !head.starts_with(b"TDVF") || u32_at(head, 8) != Some(VERSION) {
            return Err(MeasureError::Metadata("its signature or version is unknown"));
        }
        let count = size_at(head, 12).unwrap_or(0);
        if !(2..=SECTIONS_MAX).contains(&count) || size_at(head, 4) != Some(HEAD + count * SECTION) {
            return Err(MeasureError::Metadata("its length is not that of its sections"));
        }
        let table = at(image, start + HEAD, count * SECTION).ok_or(outside)?;
        let sections: Result<Vec<Section>, _> =
            table.chunks_exact(SECTION).map(|entry| section(image, entry)).collect();
        let tdvf = Self { image, sections: sections? };
        if tdvf.of(Kind::Hob).count() != 1 {
            return Err(MeasureError::Metadata("it has not exactly one TD HOB"));
        }
        Ok(tdvf)
    }

    /// The sections, in their order.
    #[must_use]
    pub fn sections(&self) -> &[Section] {
        &self.sections
    }

    /// The sections of a kind.
    pub fn of(&self, kind: Kind) -> impl Iterator<Item = &Section> {
        self.sections.iter().filter(move |section| section.kind == kind)
    }

    /// A section's bytes in the image, without the zeros that fill its memory.
    #[must_use]
    pub fn contents(&self, section: &Section) -> &'a [u8] {
        at(self.image, section.offset, section.length).unwrap_or_default()
    }
}

/// Distance of the metadata from the end of the image.
fn find(image: &[u8]) -> Result<usize, MeasureError> {
    let end = image.len().checked_sub(AFTER_TABLE).ok_or(MeasureError::NoMetadata)?;
    let footer = end.checked_sub(TAIL).ok_or(MeasureError::NoMetadata)?;
    if at(image, footer + 2, 16) != Some(&FOOTER) {
        return Err(MeasureError::NoMetadata);
    }
    let table = usize::from(u16_at(image, footer).unwrap_or(0));
    let start = end.checked_sub(table).filter(|_| table >= TAIL);
    let start = start.ok_or(MeasureError::Metadata("the table of GUIDs is too long or too short"))?;
    let mut entry_end = footer;
    while let Some(tail) = entry_end.checked_sub(TAIL).filter(|tail| *tail >= start) {
        let length = usize::from(u16_at(image, tail).unwrap_or(0));
        if length < TAIL || length > entry_end - start {
            return Err(MeasureError::Metadata("an entry of the table of GUIDs is too long or too short"));
        }
        if at(image, tail + 2, 16) == Some(&METADATA) {
            return size_at(image, entry_end - length)
                .filter(|_| length == TAIL + 4)
                .ok_or(MeasureError::Metadata("its entry has not four bytes"));
        }
        entry_end -= length;
    }
    Err(MeasureError::NoMetadata)
}

fn section(image: &[u8], entry: &[u8]) -> Result<Section, MeasureError> {
    let short = MeasureError::Metadata("a section is cut off");
    let kind = match u32_at(entry, 24) {
        Some(0) => Kind::Bfv,
        Some(1) => Kind::Cfv,
        Some(2) => Kind::Hob,
        Some(3) => Kind::TempMem,
        _ => return Err(MeasureError::Metadata("it has a section of a type that QEMU refuses")),
    };
    let section = Section {
        kind,
        offset: size_at(entry, 0).ok_or_else(|| short.clone())?,
        length: size_at(entry, 4).ok_or_else(|| short.clone())?,
        address: u64_at(entry, 8).ok_or_else(|| short.clone())?,
        size: u64_at(entry, 16).ok_or_else(|| short.clone())?,
        is_measured: u32_at(entry, 28).ok_or(short)? & MR_EXTEND != 0,
    };
    check(image, &section).map(|()| section)
}

fn check(image: &[u8], section: &Section) -> Result<(), MeasureError> {
    let length = u64::try_from(section.length).unwrap_or(u64::MAX);
    let has_contents = matches!(section.kind, Kind::Bfv | Kind::Cfv);
    let wrong = match () {
        () if !section.address.is_multiple_of(PAGE) || !section.size.is_multiple_of(PAGE) => {
            "a section is not made of whole pages"
        }
        () if section.size < length || section.size > FIRMWARE_MAX as u64 => "a section has a wrong size",
        () if section.address.checked_add(section.size).is_none() => "a section is beyond all memory",
        () if has_contents != (section.length != 0) => "a section has contents that its type has not",
        () if has_contents && at(image, section.offset, section.length).is_none() => {
            "a section lies outside of the image"
        }
        // What follows a section in the image would be measured in place of zeros.
        () if has_contents && section.size != length => "a section is longer in memory than in the image",
        () => return Ok(()),
    };
    Err(MeasureError::Metadata(wrong))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
pub(super) mod tests {
    use super::*;

    /// A firmware of these sections: (type, length in the image, address, size, attributes).
    pub(in super::super) fn firmware(sections: &[(u32, usize, u64, u64, u32)]) -> Vec<u8> {
        let mut image = Vec::new();
        let mut table = Vec::new();
        for (index, (kind, length, address, size, attributes)) in sections.iter().enumerate() {
            let offset = if *length == 0 { 0 } else { image.len() };
            image.extend(std::iter::repeat_n(u8::try_from(index + 1).unwrap(), *length));
            table.extend(u32::try_from(offset).unwrap().to_le_bytes());
            table.extend(u32::try_from(*length).unwrap().to_le_bytes());
            table.extend(address.to_le_bytes());
            table.extend(size.to_le_bytes());
            table.extend(kind.to_le_bytes());
            table.extend(attributes.to_le_bytes());
        }
        let metadata = image.len();
        image.extend(b"TDVF");
        image.extend(u32::try_from(HEAD + table.len()).unwrap().to_le_bytes());
        image.extend(1_u32.to_le_bytes());
        image.extend(u32::try_from(sections.len()).unwrap().to_le_bytes());
        image.extend(table);
        let end = image.len() + 2 * TAIL + 4 + 8 + TAIL + AFTER_TABLE;
        image.extend([7; 8]);
        image.extend(26_u16.to_le_bytes());
        image.extend([9; 16]);
        image.extend(u32::try_from(end - metadata).unwrap().to_le_bytes());
        image.extend(22_u16.to_le_bytes());
        image.extend(METADATA);
        image.extend(u16::try_from(26 + 22 + 18).unwrap().to_le_bytes());
        image.extend(FOOTER);
        image.extend([0; AFTER_TABLE]);
        assert_eq!(image.len(), end);
        image
    }

    /// The layout of OVMF, as Debian's `ovmf` has it, with small volumes.
    pub(in super::super) fn ovmf() -> Vec<u8> {
        firmware(&[
            (0, 8192, 0xffff_e000, 8192, 1),
            (1, 4096, 0xffff_d000, 4096, 0),
            (3, 0, 0x81_0000, 0x1_0000, 0),
            (3, 0, 0x80_b000, 0x2000, 0),
            (2, 0, 0x80_9000, 0x2000, 0),
            (3, 0, 0x80_0000, 0x6000, 0),
        ])
    }

    #[test]
    fn sections_are_read_as_they_stand() {
        let image = ovmf();
        let tdvf = Tdvf::parse(&image).unwrap();
        assert_eq!(tdvf.sections().len(), 6);
        let cfv = tdvf.of(Kind::Cfv).next().unwrap();
        assert_eq!((cfv.address, cfv.is_measured), (0xffff_d000, false));
        assert_eq!(tdvf.contents(cfv), [2; 4096]);
        assert_eq!(tdvf.of(Kind::Hob).next().unwrap().address, 0x80_9000);
        assert_eq!(tdvf.contents(tdvf.of(Kind::Hob).next().unwrap()), [0_u8; 0]);
    }

    #[test]
    fn firmware_without_metadata_is_told_apart_from_a_damaged_one() {
        let image = ovmf();
        for other in [&[][..], &[0; 40], &[0xff; 4096], &image[..image.len() - 1]] {
            assert_eq!(Tdvf::parse(other).unwrap_err(), MeasureError::NoMetadata);
        }
        let no_guid = image.windows(16).position(|w| w == METADATA).unwrap();
        let mut other = image.clone();
        other[no_guid] ^= 1;
        assert_eq!(Tdvf::parse(&other).unwrap_err(), MeasureError::NoMetadata);
        let mut other = image.clone();
        other[no_guid - 2] = 0;
        assert!(matches!(Tdvf::parse(&other), Err(MeasureError::Metadata(_))));
    }

    #[test]
    fn p15_what_qemu_refuses_is_refused() {
        let hob = (2, 0, 0x80_9000, 0x2000, 0);
        let bad = [
            (0, 4096, 0xffff_e001, 4096, 1),
            (0, 4096, 0xffff_e000, 4095, 1),
            (0, 4096, 0xffff_e000, 0, 1),
            (0, 4096, 0xffff_e000, 8192, 1),
            (0, 0, 0xffff_e000, 4096, 1),
            (3, 4096, 0x81_0000, 4096, 0),
            (4, 0, 0x81_0000, 4096, 0),
            (3, 0, u64::MAX - 4095, 4096, 0),
            (3, 0, 0, 1 << 40, 0),
        ];
        for section in bad {
            assert!(Tdvf::parse(&firmware(&[hob, section])).is_err(), "{section:?}");
        }
        assert!(Tdvf::parse(&firmware(&[hob])).is_err(), "one section");
        assert!(Tdvf::parse(&firmware(&[hob, hob])).is_err(), "two HOBs");
        assert!(Tdvf::parse(&firmware(&vec![hob; SECTIONS_MAX + 1])).is_err());
        assert!(Tdvf::parse(&vec![0; FIRMWARE_MAX + 1]).is_err());
    }
}
