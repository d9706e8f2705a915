// SPDX-License-Identifier: Apache-2.0
//! The programs that make, open and check a disk. No key is in an argument (P02).

use crate::command::{Program, arg};
use crate::layout::{DATA_DISK, DATA_MAPPER};
use dstack_core::luks::{DATA_OFFSET, ITERATIONS, SUBSYSTEM};
use std::path::{Path, PathBuf};

/// The opened disk.
pub fn mapper() -> PathBuf {
    Path::new("/dev/mapper").join(DATA_MAPPER)
}

/// What every header of ours has. One key slot needs 252 KiB; below some multiple of it cryptsetup warns.
const FORMAT: [&str; 17] = [
    "luksFormat",
    "--batch-mode",
    "--type",
    "luks2",
    "--cipher",
    "aes-xts-plain64",
    "--key-size",
    "512",
    "--sector-size",
    "4096",
    "--pbkdf",
    "pbkdf2",
    "--luks2-metadata-size",
    "16k",
    "--luks2-keyslots-size",
    "1m",
    "--key-file=-",
];

/// Makes a header in a file, for a disk whose data begins at once.
pub fn format_ephemeral(header: &Path, passphrase: &str) -> Program {
    with_header(&FORMAT, &[iterations()], header, passphrase, &[DATA_DISK])
}

/// Makes a header in a file, for a disk that will carry it. Nothing is written to the disk.
pub fn format_persistent(header: &Path, passphrase: &str, label: &str) -> Program {
    let more = [
        iterations(),
        format!("--offset={}", DATA_OFFSET / 512),
        format!("--label={label}"),
        format!("--subsystem={SUBSYSTEM}"),
    ];
    with_header(&FORMAT, &more, header, passphrase, &[DATA_DISK])
}

/// The passphrase is random, so stretching it adds nothing: these are the least rounds that cryptsetup takes.
fn iterations() -> String {
    format!("--pbkdf-force-iterations={ITERATIONS}")
}

/// Opens by the header in memory. No discards: they would show the host which blocks are free.
pub fn open(header: &Path, passphrase: &str) -> Program {
    let options = ["open", "--type", "luks2", "--key-file=-"];
    with_header(&options, &[], header, passphrase, &[DATA_DISK, DATA_MAPPER])
}

fn with_header(options: &[&str], more: &[String], header: &Path, passphrase: &str, last: &[&str]) -> Program {
    let mut program = Program::new("cryptsetup", options).input(passphrase);
    program.args.extend_from_slice(more);
    program.args.extend(["--header".to_owned(), arg(header)]);
    program.args.extend(last.iter().map(|a| (*a).to_owned()));
    program
}

pub fn close() -> Program {
    Program::new("cryptsetup", &["close", DATA_MAPPER])
}

/// Tables are written when they are first used. No journal for a disk that is made anew after a crash. A journal is not
/// zeroed: under the fresh key of this disk nothing on it reads as an old one.
pub fn make_file_system(journal: bool) -> Program {
    let journal = if journal { "has_journal" } else { "^has_journal" };
    let extended = "nodiscard,lazy_itable_init=1,lazy_journal_init=1";
    let options = ["-q", "-F", "-L", "dstack-data", "-m", "0", "-O", journal, "-E", extended];
    on_mapper("mkfs.ext4", &options)
}

/// Replays the journal and repairs what needs no decision; `force` also when the file system says that it is clean.
pub fn check_file_system(force: bool) -> Program {
    on_mapper("e2fsck", if force { &["-f", "-p"] } else { &["-p"] })
}

/// Lets the file system fill the disk.
pub fn grow_file_system() -> Program {
    on_mapper("resize2fs", &[])
}

fn on_mapper(name: &'static str, options: &[&str]) -> Program {
    let mut program = Program::new(name, options);
    program.args.push(arg(&mapper()));
    program
}

#[cfg(test)]
#[allow(clippy::indexing_slicing)]
mod tests {
    use super::*;

    #[test]
    fn p02_the_key_is_in_no_argument() {
        let (key, header) = ("5e".repeat(32), Path::new("/h"));
        for program in [
            format_ephemeral(header, &key),
            format_persistent(header, &key, "dstack-00"),
            open(header, &key),
            make_file_system(true),
            check_file_system(true),
            grow_file_system(),
            close(),
        ] {
            assert!(program.args.iter().all(|a| !a.contains(&key)), "{program:?}");
            assert!(program.env.is_empty());
        }
        assert_eq!(open(header, &key).input, Some(key.as_str().into()));
    }

    #[test]
    fn t13_p01_cryptsetup_reads_no_header_from_the_disk() {
        let header = Path::new("/h");
        for program in
            [format_ephemeral(header, "k"), format_persistent(header, "k", "dstack-00"), open(header, "k")]
        {
            let at = program.args.iter().position(|a| a == "--header").unwrap_or_default();
            assert_eq!(program.args.get(at + 1..at + 3), Some(&["/h".to_owned(), DATA_DISK.to_owned()][..]));
        }
    }
}
