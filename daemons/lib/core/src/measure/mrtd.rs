// SPDX-License-Identifier: Apache-2.0
//! MRTD: a SHA-384 over what the TDX module was told while the TD was built.
//!
//! Adding a page counts as 128 bytes: `MEM.PAGE.ADD`, zeros to byte 16, the page's address as 8 little-endian bytes,
//! zeros. Measuring 256 bytes of a page counts as `MR.EXTEND` with their address in the same way, and the bytes
//! themselves (TDX Module Base Architecture Specification, section on measurement). Linux adds and measures each page
//! at once; kernels before TDX was in mainline went over each section twice, and gave another MRTD.

use super::tdvf::{PAGE, Section, Tdvf};
use crate::event_log::Digest;
use sha2::{Digest as _, Sha384};

const CHUNK: usize = 256;

/// In which order a host builds a TD.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PageOrder {
    /// Each page is added, then measured: Linux 6.16 and later.
    #[default]
    OnePass,
    /// All pages of a section are added, then all are measured: vendor kernels before.
    TwoPass,
}

/// MRTD of a TD that starts with this firmware.
#[must_use]
pub fn mrtd(tdvf: &Tdvf<'_>, order: PageOrder) -> Digest {
    let mut hash = Sha384::new();
    for section in tdvf.sections() {
        let contents = if section.is_measured { tdvf.contents(section) } else { &[] };
        match order {
            PageOrder::OnePass => one_pass(&mut hash, section, contents),
            PageOrder::TwoPass => {
                (0..section.size / PAGE).for_each(|page| add(&mut hash, section.address + page * PAGE));
                measure(&mut hash, section.address, contents);
            }
        }
    }
    hash.finalize().into()
}

fn one_pass(hash: &mut Sha384, section: &Section, contents: &[u8]) {
    let mut pages = contents.chunks(4096);
    for page in 0..section.size / PAGE {
        let address = section.address + page * PAGE;
        add(hash, address);
        measure(hash, address, pages.next().unwrap_or_default());
    }
}

fn add(hash: &mut Sha384, address: u64) {
    record(hash, b"MEM.PAGE.ADD\0\0\0\0", address);
}

fn measure(hash: &mut Sha384, address: u64, contents: &[u8]) {
    let addresses = (address..).step_by(CHUNK);
    for (chunk, address) in contents.chunks(CHUNK).zip(addresses) {
        record(hash, b"MR.EXTEND\0\0\0\0\0\0\0", address);
        hash.update(chunk);
    }
}

fn record(hash: &mut Sha384, name: &[u8; 16], address: u64) {
    hash.update(name);
    hash.update(address.to_le_bytes());
    hash.update([0; 104]);
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::tdvf::tests::{firmware, ovmf};
    use super::*;

    /// The bytes that the specification says are hashed, for one measured page and one that is only added.
    #[test]
    fn pages_count_as_the_specification_says() {
        let image = firmware(&[(0, 4096, 0xffff_f000, 4096, 1), (2, 0, 0x80_9000, 4096, 0)]);
        let mut expected = Vec::new();
        let mut record = |name: &[u8], address: u64, data: &[u8]| {
            let mut head = [0; 128];
            head.get_mut(..name.len()).unwrap().copy_from_slice(name);
            head.get_mut(16..24).unwrap().copy_from_slice(&address.to_le_bytes());
            expected.extend_from_slice(&head);
            expected.extend_from_slice(data);
        };
        record(b"MEM.PAGE.ADD", 0xffff_f000, &[]);
        (0..16).for_each(|i| record(b"MR.EXTEND", 0xffff_f000 + i * 256, &[1; 256]));
        record(b"MEM.PAGE.ADD", 0x80_9000, &[]);
        let tdvf = Tdvf::parse(&image).unwrap();
        let expected: Digest = Sha384::digest(&expected).into();
        assert_eq!(mrtd(&tdvf, PageOrder::OnePass), expected);
        assert_eq!(mrtd(&tdvf, PageOrder::TwoPass), expected, "one page is the same either way");
    }

    #[test]
    fn order_code_and_addresses_count_and_unmeasured_contents_do_not() {
        let image = ovmf();
        let of = |image: &[u8], order| mrtd(&Tdvf::parse(image).unwrap(), order);
        let base = of(&image, PageOrder::OnePass);
        assert_ne!(base, of(&image, PageOrder::TwoPass));
        for (at, changes) in [(0, true), (8191, true), (8192, false), (12287, false)] {
            let mut other = image.clone();
            *other.get_mut(at).unwrap() ^= 1;
            assert_eq!(of(&other, PageOrder::OnePass) != base, changes, "byte {at}");
        }
    }
}
