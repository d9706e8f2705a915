// SPDX-License-Identifier: Apache-2.0
//! Targets for the files that `dstack_core::measure` reads.

use dstack_core::measure::mrtd::{PageOrder, mrtd};
use dstack_core::measure::tdvf::{Kind, Tdvf};
use dstack_core::measure::uki::Uki;
use dstack_core::measure::{hob, rtmr1, rtmr2};

/// Firmware that parses has its contents inside, is measured the same each time, and gives a memory map of all memory.
pub fn tdvf(bytes: &[u8]) {
    let Ok(tdvf) = Tdvf::parse(bytes) else { return };
    let size: u64 = tdvf.sections().iter().map(|s| s.size).sum();
    for section in tdvf.sections() {
        assert_eq!(tdvf.contents(section).len(), section.length, "contents are in the image");
    }
    assert_eq!(tdvf.of(Kind::Hob).count(), 1, "one place for the memory map");
    if size < 64 * 1024 {
        assert_eq!(mrtd(&tdvf, PageOrder::OnePass), mrtd(&tdvf, PageOrder::OnePass), "one value");
    }
    if let Ok(map) = hob::hob(&tdvf, 4 << 30) {
        let length = |r: &[u8]| r.get(40..48).and_then(|n| n.try_into().ok()).map_or(0, u64::from_le_bytes);
        let total: u64 = map.get(56..).unwrap_or_default().chunks(48).map(length).sum();
        assert_eq!(total, 4 << 30, "every byte of memory is in the map once");
    }
}

/// A table of GUIDs and metadata around these sections, without contents but one page.
pub(crate) fn tdvf_samples() -> Vec<Vec<u8>> {
    let mut image = vec![5; 4096];
    image.extend(b"TDVF");
    let sections: [[u32; 8]; 3] = [
        [0, 4096, 0xffff_f000, 0, 4096, 0, 0, 1],
        [0, 0, 0x80_9000, 0, 0x2000, 0, 2, 0],
        [0, 0, 0x81_0000, 0, 0x1000, 0, 3, 0],
    ];
    let head = [16 + 32 * 3, 1, 3_u32];
    image.extend(head.iter().chain(sections.as_flattened()).flat_map(|n| n.to_le_bytes()));
    let distance = 16 + 32 * 3 + 22 + 18 + 32_u32;
    image.extend(distance.to_le_bytes());
    image.extend([22, 0, 0x35, 0x65, 0x7a, 0xe4, 0x4a, 0x98, 0x98, 0x47, 0x86, 0x5e, 0x46, 0x85, 0xa7, 0xbf]);
    image.extend([0x8e, 0xc2, 40, 0, 0xde, 0x82, 0xb5, 0x96, 0xb2, 0x1f, 0xf7, 0x45, 0xba, 0xea, 0xa3, 0x66]);
    image.extend([0xc5, 0x5a, 0x08, 0x2d]);
    image.extend([0; 32]);
    vec![image]
}

/// A unified kernel image that parses is measured, or refused, and has no section twice.
pub fn uki(bytes: &[u8]) {
    let Ok(uki) = Uki::parse(bytes) else { return };
    assert!(uki.section(".linux").is_some(), "a kernel");
    drop(rtmr1::events(&uki));
    if let Ok(events) = rtmr2::events(&uki) {
        assert!(events.len() >= 2, "the kernel's section is measured");
    }
}

/// A PE image of these sections, each in one block of 64 bytes.
fn pe(sections: &[(&str, &[u8])]) -> Vec<u8> {
    let number = |n: usize| u32::try_from(n).unwrap_or(0).to_le_bytes();
    let headers = 64 + 24 + 240 + 40 * sections.len();
    let mut bytes = vec![0; 64 + 24];
    let mut put = |at: usize, value: &[u8]| {
        bytes.iter_mut().skip(at).zip(value).for_each(|(to, from)| *to = *from);
    };
    put(0, b"MZ");
    put(0x3c, &[64]);
    put(64, b"PE\0\0");
    put(70, &[u8::try_from(sections.len()).unwrap_or(0)]);
    put(84, &[240]);
    let mut optional = vec![0; 240];
    let fields = [(0, [0x0b, 2, 0, 0]), (60, number(headers)), (108, number(16))];
    for (at, value) in fields {
        optional.iter_mut().skip(at).zip(value).for_each(|(to, from)| *to = from);
    }
    bytes.extend(optional);
    let mut offset = headers;
    for (name, contents) in sections {
        let mut header = name.as_bytes().to_vec();
        header.resize(8, 0);
        let length = contents.len().next_multiple_of(64);
        header.extend([number(contents.len()), [0; 4], number(length), number(offset)].concat());
        header.resize(40, 0);
        bytes.extend(header);
        offset += length;
    }
    for (_, contents) in sections {
        bytes.extend_from_slice(contents);
        bytes.resize(bytes.len() + contents.len().next_multiple_of(64) - contents.len(), 0);
    }
    bytes
}

pub(crate) fn uki_samples() -> Vec<Vec<u8>> {
    let kernel = pe(&[(".text", b"kernel")]);
    let parts: [(&str, &[u8]); 4] = [
        (".osrel", b"ID=dstack\n"),
        (".cmdline", b"quiet ro\n"),
        (".initrd", b"070701"),
        (".linux", &kernel),
    ];
    vec![pe(&parts), kernel]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_parse() {
        assert!(tdvf_samples().iter().all(|image| Tdvf::parse(image).is_ok()));
        assert!(uki_samples().first().is_some_and(|image| Uki::parse(image).is_ok()));
        assert!(
            uki_samples().first().is_some_and(|i| Uki::parse(i).is_ok_and(|u| rtmr1::events(&u).is_ok()))
        );
    }
}
