// SPDX-License-Identifier: Apache-2.0
//! The parts of a unified kernel image, as systemd-stub 257 finds and prepares them.

use super::MeasureError;
use super::pe::Pe;
use std::borrow::Cow;

/// Sections that the stub measures, in the order in which it does (`systemd-stub(7)`). `.pcrsig` is not measured: it
/// signs the result.
pub const MEASURED: [&str; 11] = [
    ".linux", ".osrel", ".cmdline", ".initrd", ".ucode", ".splash", ".dtb", ".uname", ".sbat", ".pcrpkey",
    ".hwids",
];
const UNMEASURED: &str = ".pcrsig";
/// Sections that make what is measured depend on the machine or on a choice at boot.
const VARIABLE: [&str; 2] = [".profile", ".dtbauto"];

/// Most zeros that a section may have in memory beyond the file.
const ZEROS_MAX: usize = 1024 * 1024;

/// A unified kernel image.
#[derive(Debug, Clone)]
pub struct Uki<'a> {
    /// The image itself.
    pub pe: Pe<'a>,
    /// Sections that the stub knows, by name.
    sections: Vec<(&'static str, Cow<'a, [u8]>)>,
}

impl<'a> Uki<'a> {
    /// Reads a UKI.
    ///
    /// # Errors
    /// [`MeasureError`] when it is none, or when what it measures cannot be told beforehand.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, MeasureError> {
        if bytes.len() > super::UKI_MAX {
            return Err(MeasureError::TooLarge("the unified kernel image"));
        }
        let pe = Pe::parse(bytes, "the unified kernel image")?;
        let mut sections: Vec<(&'static str, Cow<'a, [u8]>)> = Vec::new();
        for section in pe.sections() {
            let is = |name: &&str| name.as_bytes() == section.name.as_slice();
            if VARIABLE.iter().any(is) {
                return Err(MeasureError::Uki("it has profiles or device trees to choose from at boot"));
            }
            let Some(name) = MEASURED.into_iter().chain([UNMEASURED]).find(is) else { continue };
            if sections.iter().any(|(known, _)| *known == name) {
                return Err(MeasureError::Uki("it has a section twice"));
            }
            if section.virtual_size.saturating_sub(section.length) > ZEROS_MAX {
                return Err(MeasureError::Uki("a section is much longer in memory than in the file"));
            }
            // The stub takes an empty section for a missing one.
            if section.virtual_size > 0 {
                sections.push((name, pe.loaded(section)));
            }
        }
        let uki = Self { pe, sections };
        match uki.section(".linux") {
            Some(_) => Ok(uki),
            None => Err(MeasureError::Uki("it has no section .linux")),
        }
    }

    /// A section's bytes in memory.
    #[must_use]
    pub fn section(&self, name: &str) -> Option<&[u8]> {
        self.sections.iter().find(|(known, _)| *known == name).map(|(_, bytes)| bytes.as_ref())
    }

    /// The kernel's command line as the stub passes it on: up to the first zero byte, control characters as spaces,
    /// none at either end.
    ///
    /// # Errors
    /// [`MeasureError::Uki`] when it is not UTF-8.
    pub fn command_line(&self) -> Result<Option<String>, MeasureError> {
        let Some(bytes) = self.section(".cmdline") else { return Ok(None) };
        let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
        let text = std::str::from_utf8(bytes.get(..end).unwrap_or_default());
        let text = text.map_err(|_| MeasureError::Uki("its command line is not UTF-8"))?;
        let is_space = |c: char| c <= ' ' || c == '\u{7f}';
        let spaced: String =
            text.trim_matches(is_space).chars().map(|c| if is_space(c) { ' ' } else { c }).collect();
        Ok(Some(spaced).filter(|line| !line.is_empty()))
    }

    /// The initrd that the kernel gets: microcode, the initrd, and what the stub packs for the user space of the
    /// initrd, each padded to four bytes. A single part is passed on as it is.
    #[must_use]
    pub fn initrd(&self) -> Vec<Cow<'_, [u8]>> {
        let plain =
            [".ucode", ".initrd"].into_iter().filter_map(|name| self.section(name).map(Cow::Borrowed));
        let files = [
            (".pcrsig", "tpm2-pcr-signature.json"),
            (".pcrpkey", "tpm2-pcr-public-key.pem"),
            (".osrel", "os-release"),
        ];
        let packed =
            files.into_iter().filter_map(|(name, file)| Some(Cow::Owned(cpio(file, self.section(name)?))));
        let parts: Vec<Cow<'_, [u8]>> = plain.chain(packed).collect();
        if parts.len() < 2 {
            return parts;
        }
        let padded = parts.into_iter().flat_map(|part| {
            let padding = part.len().next_multiple_of(4) - part.len();
            [part, Cow::Owned(vec![0; padding])]
        });
        padded.collect()
    }
}

/// An archive with one file in `/.extra`, as the stub writes it: format `newc`, without owners and times.
fn cpio(name: &str, contents: &[u8]) -> Vec<u8> {
    const DIRECTORY: u32 = 0o40_555;
    const FILE: u32 = 0o100_444;
    let mut archive = Vec::new();
    header(&mut archive, 1, DIRECTORY, 0, ".extra");
    header(&mut archive, 2, FILE, contents.len(), &format!(".extra/{name}"));
    archive.extend_from_slice(contents);
    pad(&mut archive);
    // The trailer's only count is that of its links; its name's length is written in capitals.
    archive.extend_from_slice(b"070701");
    archive.extend_from_slice("00000000".repeat(4).as_bytes());
    archive.extend_from_slice(b"00000001");
    archive.extend_from_slice("00000000".repeat(6).as_bytes());
    archive.extend_from_slice(b"0000000B00000000TRAILER!!!\0\0\0\0");
    archive
}

fn header(archive: &mut Vec<u8>, inode: u32, mode: u32, size: usize, name: &str) {
    let fields = [inode, mode, 0, 0, 1, 0].map(|n| format!("{n:08x}")).concat();
    let rest = format!("{size:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}", 0, 0, 0, 0, name.len() + 1, 0);
    archive.extend_from_slice(format!("070701{fields}{rest}{name}\0").as_bytes());
    pad(archive);
}

fn pad(archive: &mut Vec<u8>) {
    archive.resize(archive.len().next_multiple_of(4), 0);
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
pub(super) mod tests {
    use super::super::pe::tests::image;
    use super::*;

    /// A UKI with an inner kernel that is a PE image itself.
    pub(in super::super) fn uki(cmdline: &[u8], initrd: &[u8]) -> Vec<u8> {
        let kernel = image(&[(".text", b"kernel", 6)], &[]);
        image(
            &[
                (".text", b"stub", 4),
                (".sbat", b"sbat,1", 6),
                (".osrel", b"ID=dstack\n", 10),
                (".cmdline", cmdline, cmdline.len()),
                (".initrd", initrd, initrd.len()),
                (".linux", &kernel, kernel.len()),
            ],
            &[],
        )
    }

    #[test]
    fn the_command_line_is_cleaned_as_the_stub_does() {
        let line = |text: &[u8]| Uki::parse(&uki(text, b"initrd")).unwrap().command_line();
        assert_eq!(line(b" quiet\tro  a=b\n\0junk").unwrap().unwrap(), "quiet ro  a=b");
        assert_eq!(line(b"\n").unwrap(), None);
        assert_eq!(line(b"\0").unwrap(), None);
        assert!(line(b"\xff").is_err());
    }

    #[test]
    fn what_cannot_be_told_beforehand_is_refused() {
        let kernel = image(&[(".text", b"kernel", 6)], &[]);
        let linux = (".linux", kernel.as_slice(), kernel.len());
        for extra in [(".profile", &b"ID=a"[..], 4), (".dtbauto", b"dtb", 3), linux] {
            assert!(matches!(Uki::parse(&image(&[linux, extra], &[])), Err(MeasureError::Uki(_))));
        }
        assert!(matches!(Uki::parse(&image(&[(".text", b"", 0)], &[])), Err(MeasureError::Uki(_))));
        assert!(matches!(Uki::parse(b"x"), Err(MeasureError::Pe { .. })));
        let long = image(&[(".linux", b"k", 2 * ZEROS_MAX)], &[]);
        assert!(matches!(Uki::parse(&long), Err(MeasureError::Uki(_))));
    }

    #[test]
    fn the_initrd_is_followed_by_an_archive() {
        let bytes = uki(b"quiet", b"initrd");
        let uki = Uki::parse(&bytes).unwrap();
        let initrd = uki.initrd().concat();
        assert_eq!(&initrd[..8], b"initrd\0\0");
        let archive = &initrd[8..];
        assert!(archive.starts_with(b"07070100000001000041"));
        assert_eq!(archive.len() % 4, 0);
        let text = String::from_utf8_lossy(archive);
        assert!(text.contains(".extra/os-release\0") && text.contains("ID=dstack\n"));
        assert!(text.ends_with("TRAILER!!!\0\0\0\0"));
        assert_eq!(archive.len(), 120 + (110 + 18) + 12 + 124);
        assert_eq!(
            Uki::parse(&image(&[(".linux", b"k", 1), (".initrd", b"odd", 3)], &[])).unwrap().initrd(),
            [&b"odd"[..]]
        );
    }
}
