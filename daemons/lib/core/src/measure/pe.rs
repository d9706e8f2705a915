// SPDX-License-Identifier: Apache-2.0
//! PE images as UEFI sees them: sections, and the Authenticode digest.
//!
//! The digest leaves out the checksum, the entry of the certificate table, and the table itself: signing an image does
//! not change it (Microsoft PE and COFF Specification, appendix A). It covers the headers, then the sections in the order
//! in which they stand in the file, then whatever follows them.

use super::MeasureError;
use super::bytes::{at, size_at, u16_at, u32_at};
use sha2::Digest;
use std::borrow::Cow;

/// Most sections; the firmware takes no more either.
pub const SECTIONS_MAX: usize = 96;
const SECTION: usize = 40;
const COFF: usize = 20;
const PE32: u16 = 0x10b;
const PE32_PLUS: u16 = 0x20b;
/// Index of the certificate table among the data directories.
const CERTIFICATES: usize = 4;

/// A section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    /// Name without the zeros at its end.
    pub name: Vec<u8>,
    /// Length in memory.
    pub virtual_size: usize,
    /// Offset in the file.
    pub offset: usize,
    /// Length in the file.
    pub length: usize,
}

/// A PE image whose headers were checked.
#[derive(Debug, Clone)]
pub struct Pe<'a> {
    bytes: &'a [u8],
    file: &'static str,
    sections: Vec<Section>,
    headers: usize,
    checksum: usize,
    /// Offset of the certificate table's entry; `None` when the image has none.
    certificates: Option<usize>,
}

impl<'a> Pe<'a> {
    /// Reads the headers; `file` names the image in errors.
    ///
    /// # Errors
    /// [`MeasureError::Pe`] names what is out of form.
    pub fn parse(bytes: &'a [u8], file: &'static str) -> Result<Self, MeasureError> {
        parse(bytes, file).map_err(|reason| MeasureError::Pe { file, reason })
    }

    /// The sections, in their order.
    #[must_use]
    pub fn sections(&self) -> &[Section] {
        &self.sections
    }

    /// A section as it is in memory: cut to its length there, or filled with zeros, which the caller has bounded.
    #[must_use]
    pub fn loaded(&self, section: &Section) -> Cow<'a, [u8]> {
        let held = section.length.min(section.virtual_size);
        let raw = at(self.bytes, section.offset, held).unwrap_or_default();
        if held == section.virtual_size {
            return Cow::Borrowed(raw);
        }
        let mut filled = raw.to_vec();
        filled.resize(section.virtual_size, 0);
        Cow::Owned(filled)
    }

    /// The Authenticode digest by this hash.
    ///
    /// # Errors
    /// [`MeasureError::Pe`] when headers, sections or certificates lie outside of the file.
    pub fn authenticode<D: Digest>(&self) -> Result<Vec<u8>, MeasureError> {
        let mut hash = D::new();
        let done = self.hash(&mut hash);
        done.map_err(|reason| MeasureError::Pe { file: self.file, reason })?;
        Ok(hash.finalize().to_vec())
    }

    fn hash<D: Digest>(&self, hash: &mut D) -> Result<(), &'static str> {
        const OUTSIDE: &str = "headers or sections lie outside of the file";
        let mut part = |from: usize, to: usize| {
            hash.update(self.bytes.get(from..to).ok_or(OUTSIDE)?);
            Ok::<_, &'static str>(())
        };
        part(0, self.checksum)?;
        match self.certificates {
            Some(entry) => {
                part(self.checksum + 4, entry)?;
                part(entry + 8, self.headers)?;
            }
            None => part(self.checksum + 4, self.headers)?,
        }
        let mut sections: Vec<&Section> = self.sections.iter().filter(|s| s.length != 0).collect();
        sections.sort_by_key(|section| section.offset);
        let mut hashed = self.headers;
        for section in sections {
            part(section.offset, section.offset.checked_add(section.length).ok_or(OUTSIDE)?)?;
            hashed = hashed.checked_add(section.length).ok_or(OUTSIDE)?;
        }
        // The rest is counted, not located: that is how the firmware does it.
        let end = self.bytes.len().checked_sub(self.certificates_length()).ok_or(OUTSIDE)?;
        if end > hashed { part(hashed, end) } else { Ok(()) }
    }

    fn certificates_length(&self) -> usize {
        self.certificates.and_then(|entry| size_at(self.bytes, entry + 4)).unwrap_or(0)
    }
}

fn parse<'a>(bytes: &'a [u8], file: &'static str) -> Result<Pe<'a>, &'static str> {
    let coff = size_at(bytes, 0x3c).filter(|_| bytes.starts_with(b"MZ")).ok_or("it has no MZ header")?;
    let coff = coff.checked_add(4).filter(|end| at(bytes, end - 4, 4) == Some(b"PE\0\0"));
    let coff = coff.ok_or("it has no PE header")?;
    let count = u16_at(bytes, coff + 2).map(usize::from).ok_or("it is cut off")?;
    let optional_length = u16_at(bytes, coff + 16).map(usize::from).ok_or("it is cut off")?;
    if count > SECTIONS_MAX {
        return Err("it has too many sections");
    }
    let optional = coff + COFF;
    let directories = match u16_at(bytes, optional) {
        Some(PE32) => optional + 96,
        Some(PE32_PLUS) => optional + 112,
        _ => return Err("its optional header is unknown"),
    };
    let table = optional + optional_length;
    if directories > table {
        return Err("its optional header is too short");
    }
    let headers =
        size_at(bytes, optional + 60).filter(|h| *h >= table + count * SECTION && *h <= bytes.len());
    let headers = headers.ok_or("its headers have a wrong size")?;
    let entries = size_at(bytes, directories - 4).unwrap_or(0);
    let entry = directories + 8 * CERTIFICATES;
    let certificates = (entries > CERTIFICATES).then_some(entry);
    if certificates.is_some_and(|entry| entry + 8 > table) {
        return Err("its optional header is too short");
    }
    let section = |index: usize| section(bytes, table + index * SECTION);
    let sections: Option<Vec<Section>> = (0..count).map(section).collect();
    let sections = sections.ok_or("a section lies outside of the file")?;
    Ok(Pe { bytes, file, sections, headers, checksum: optional + 64, certificates })
}

fn section(bytes: &[u8], header: usize) -> Option<Section> {
    let name = at(bytes, header, 8)?;
    let end = name.iter().position(|b| *b == 0).unwrap_or(name.len());
    let section = Section {
        name: name.get(..end)?.to_vec(),
        virtual_size: size_at(bytes, header + 8)?,
        length: size_at(bytes, header + 16)?,
        offset: u32_at(bytes, header + 20).and_then(|n| usize::try_from(n).ok())?,
    };
    let is_inside = section.length == 0 || at(bytes, section.offset, section.length).is_some();
    is_inside.then_some(section)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
pub(super) mod tests {
    use super::*;
    use sha2::{Sha256, Sha384};

    /// A PE32+ image of these sections (name, contents, length in memory), with `tail` behind them as certificates.
    pub(in super::super) fn image(sections: &[(&str, &[u8], usize)], tail: &[u8]) -> Vec<u8> {
        let number = |n: usize| u32::try_from(n).unwrap().to_le_bytes();
        let table = 64 + 24 + 112 + 16 * 8;
        let headers = (table + sections.len() * SECTION).next_multiple_of(512);
        let mut bytes = vec![0; headers];
        bytes[..2].copy_from_slice(b"MZ");
        bytes[0x3c] = 64;
        bytes[64..68].copy_from_slice(b"PE\0\0");
        bytes[70] = u8::try_from(sections.len()).unwrap();
        bytes[84] = 240;
        let optional = 88;
        bytes[optional..optional + 2].copy_from_slice(&PE32_PLUS.to_le_bytes());
        bytes[optional + 60..optional + 64].copy_from_slice(&number(headers));
        bytes[optional + 64..optional + 68].copy_from_slice(b"csum");
        bytes[optional + 108] = 16;
        for (index, (name, contents, virtual_size)) in sections.iter().enumerate() {
            let header = table + index * SECTION;
            let offset = bytes.len();
            bytes[header..header + name.len()].copy_from_slice(name.as_bytes());
            bytes[header + 8..header + 12].copy_from_slice(&number(*virtual_size));
            bytes.extend_from_slice(contents);
            bytes.resize(bytes.len().next_multiple_of(512), 0);
            let length = bytes.len() - offset;
            bytes[header + 16..header + 20].copy_from_slice(&number(length));
            bytes[header + 20..header + 24].copy_from_slice(&number(offset));
        }
        let entry = optional + 112 + 8 * CERTIFICATES;
        if !tail.is_empty() {
            let end = bytes.len();
            bytes[entry..entry + 4].copy_from_slice(&number(end));
            bytes[entry + 4..entry + 8].copy_from_slice(&number(tail.len()));
            bytes.extend_from_slice(tail);
        }
        bytes
    }

    fn digest(bytes: &[u8]) -> Vec<u8> {
        Pe::parse(bytes, "it").unwrap().authenticode::<Sha384>().unwrap()
    }

    #[test]
    fn the_digest_leaves_out_what_signing_changes() {
        let plain = image(&[(".text", b"code", 4), (".data", b"data", 4)], &[]);
        let signed = image(&[(".text", b"code", 4), (".data", b"data", 4)], &[9; 64]);
        assert_eq!(digest(&plain), digest(&signed));
        let entry = 88 + 112 + 32;
        let parts = [&plain[..152], &plain[156..entry], &plain[entry + 8..]].concat();
        assert_eq!(digest(&plain), Sha384::digest(&parts).to_vec());
        let short = Pe::parse(&plain, "it").unwrap().authenticode::<Sha256>().unwrap();
        assert_eq!(short, Sha256::digest(&parts).to_vec());
    }

    #[test]
    fn every_other_byte_counts() {
        let bytes = image(&[(".text", b"code", 4)], &[9; 8]);
        let base = digest(&bytes);
        for at in [0x30, 600, bytes.len() - 9] {
            let mut other = bytes.clone();
            other[at] ^= 1;
            assert_ne!(digest(&other), base, "{at}");
        }
        for at in [152, 155, bytes.len() - 1] {
            let mut other = bytes.clone();
            other[at] ^= 1;
            assert_eq!(digest(&other), base, "{at}");
        }
    }

    #[test]
    fn sections_are_as_long_as_in_memory() {
        let bytes = image(&[(".short", b"abcdef", 3), (".long", b"ab", 700)], &[]);
        let pe = Pe::parse(&bytes, "it").unwrap();
        let loaded: Vec<_> = pe.sections().iter().map(|s| pe.loaded(s)).collect();
        assert_eq!(loaded[0].as_ref(), b"abc");
        assert_eq!((loaded[1].len(), &loaded[1][..3]), (700, &b"ab\0"[..]));
    }

    #[test]
    fn p15_headers_have_limits() {
        let bytes = image(&[(".text", b"code", 4)], &[]);
        for end in [0, 1, 63, 64, 67, 90, 200, 360, 511] {
            assert!(Pe::parse(&bytes[..end], "it").is_err(), "{end}");
        }
        let with = |at: usize, value: &[u8]| {
            let mut other = bytes.clone();
            other[at..at + value.len()].copy_from_slice(value);
            Pe::parse(&other, "it").and_then(|pe| pe.authenticode::<Sha384>())
        };
        let section = 64 + 24 + 112 + 16 * 8;
        let bad: [(usize, &[u8]); 8] = [
            (0, b"XX"),
            (0x3c, &[0xff; 4]),
            (70, &[97, 0]),
            (84, &[10, 0]),
            (88, &[0, 0]),
            (88 + 60, &[0xff; 4]),
            (section + 20, &[0xff; 4]),
            (88 + 112 + 36, &[0xff; 4]),
        ];
        for (at, value) in bad {
            assert!(with(at, value).is_err(), "{at}");
        }
    }
}
