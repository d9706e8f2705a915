// SPDX-License-Identifier: Apache-2.0
//! The TD HOB: the memory map that QEMU hands to the firmware, and the first thing that goes into RTMR0.
//!
//! A header of 56 bytes, then 48 bytes for each range of RAM, in the order of their addresses: what QEMU has added to
//! the TD for the firmware's sections, and in between what the firmware still has to accept. q35 puts all RAM below
//! 4 GiB when it is less than 2.75 GiB, and otherwise 2 GiB of it, the rest from 4 GiB on. The end mark is not measured.

use super::MeasureError;
use super::tdvf::{Kind, Tdvf};

/// From this much memory on, q35 leaves room for devices from 2 GiB on.
pub const SPLIT_FROM: u64 = 0xb000_0000;
const LOW: u64 = 0x8000_0000;
const HIGH: u64 = 0x1_0000_0000;
const HEADER: u64 = 56;
const RESOURCE: u64 = 48;
const END_MARK: u64 = 8;
const SYSTEM_MEMORY: u32 = 0;
const UNACCEPTED: u32 = 7;
/// Present, initialized, tested.
const ATTRIBUTES: u32 = 7;

/// A range of RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    start: u64,
    end: u64,
    is_added: bool,
}

/// The measured bytes of the HOB for a VM with this much memory, bytes.
///
/// # Errors
/// [`MeasureError::Memory`] when a section of the firmware is not within one range of RAM.
pub fn hob(tdvf: &Tdvf<'_>, memory: u64) -> Result<Vec<u8>, MeasureError> {
    let mut ranges = ram(memory);
    let added = tdvf.sections().iter().filter(|s| matches!(s.kind, Kind::Hob | Kind::TempMem));
    for section in added {
        accept(&mut ranges, section.address, section.address.saturating_add(section.size))?;
    }
    ranges.sort_unstable_by_key(|range| range.start);
    let base = tdvf.of(Kind::Hob).next().map_or(0, |section| section.address);
    let length = HEADER + RESOURCE * u64::try_from(ranges.len()).unwrap_or(0);
    let mut bytes = [head(1, 56), 9_u64.to_le_bytes()].concat();
    bytes.extend([0; 32]);
    bytes.extend((base + length + END_MARK).to_le_bytes());
    ranges.iter().for_each(|range| resource(&mut bytes, range));
    Ok(bytes)
}

fn ram(memory: u64) -> Vec<Range> {
    let low = if memory < SPLIT_FROM { memory } else { LOW };
    let mut ranges = vec![Range { start: 0, end: low, is_added: false }];
    if memory > low {
        ranges.push(Range { start: HIGH, end: HIGH.saturating_add(memory - low), is_added: false });
    }
    ranges
}

/// Cuts a range that was added out of the one around it.
fn accept(ranges: &mut Vec<Range>, start: u64, end: u64) -> Result<(), MeasureError> {
    let around = ranges.iter_mut().find(|r| r.start <= start && end <= r.end);
    let around = around.ok_or(MeasureError::Memory(start))?;
    if around.is_added {
        return Ok(());
    }
    let before = Range { end: start, ..*around };
    let after = Range { start: end, ..*around };
    *around = Range { start, end, is_added: true };
    ranges.extend([before, after].into_iter().filter(|r| r.start < r.end));
    Ok(())
}

/// Type and length of a HOB, and four zeros.
fn head(kind: u16, length: u16) -> [u8; 8] {
    (u64::from(kind) | u64::from(length) << 16).to_le_bytes()
}

fn resource(bytes: &mut Vec<u8>, range: &Range) {
    bytes.extend(head(3, 48));
    bytes.extend([0; 16]);
    bytes.extend((if range.is_added { SYSTEM_MEMORY } else { UNACCEPTED }).to_le_bytes());
    bytes.extend(ATTRIBUTES.to_le_bytes());
    bytes.extend(range.start.to_le_bytes());
    bytes.extend((range.end - range.start).to_le_bytes());
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::tdvf::tests::{firmware, ovmf};
    use super::*;

    /// (start, length, type) of each range in a HOB.
    fn ranges(hob: &[u8]) -> Vec<(u64, u64, u32)> {
        let number = |bytes: &[u8], at| super::super::bytes::u64_at(bytes, at).unwrap();
        let range = |r: &[u8]| (number(r, 32), number(r, 40), super::super::bytes::u32_at(r, 24).unwrap());
        hob.get(56..).unwrap().chunks_exact(48).map(range).collect()
    }

    #[test]
    fn q35_splits_its_memory() {
        let image = ovmf();
        let tdvf = Tdvf::parse(&image).unwrap();
        let last = |memory| *ranges(&hob(&tdvf, memory).unwrap()).last().unwrap();
        assert_eq!(last(2 << 30), (0x82_0000, (2 << 30) - 0x82_0000, 7));
        assert_eq!(last(SPLIT_FROM - (1 << 20)).1, SPLIT_FROM - (1 << 20) - 0x82_0000);
        assert_eq!(last(SPLIT_FROM), (HIGH, SPLIT_FROM - LOW, 7));
        assert_eq!(last(8 << 30), (HIGH, 6 << 30, 7));
        let all = ranges(&hob(&tdvf, 2 << 30).unwrap());
        let starts: Vec<u64> = all.iter().map(|r| r.0).collect();
        assert_eq!(starts, [0, 0x80_0000, 0x80_6000, 0x80_9000, 0x80_b000, 0x80_d000, 0x81_0000, 0x82_0000]);
        assert_eq!(all.iter().map(|r| r.1).sum::<u64>(), 2 << 30);
    }

    #[test]
    fn sections_must_be_in_memory_and_may_be_adjacent() {
        let tdvf = |address| firmware(&[(2, 0, address, 0x2000, 0), (3, 0, 0x1000, 0x1000, 0)]);
        let image = tdvf(0x4000_0000);
        assert_eq!(hob(&Tdvf::parse(&image).unwrap(), 512 << 20), Err(MeasureError::Memory(0x4000_0000)));
        let image = tdvf(0x2000);
        let all = ranges(&hob(&Tdvf::parse(&image).unwrap(), 1 << 30).unwrap());
        assert_eq!(all.iter().map(|r| r.2).collect::<Vec<_>>(), [7, 0, 0, 7]);
    }
}
