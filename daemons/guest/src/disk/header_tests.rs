// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]
use super::*;
use dstack_core::luks::{HEADER_SIZE, KEYSLOTS_SIZE, METADATA_SIZE, marker};
use sha2::{Digest, Sha256};

pub const LABEL: &str = "dstack-8a815c211dc64266d5379ebb2af38059d2ac6ba0";

/// A header as cryptsetup makes it.
pub fn header(label: &str) -> Vec<u8> {
    let salt = "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";
    let stretched = serde_json::json!({"type": "pbkdf2", "hash": "sha256", "iterations": 1000, "salt": salt});
    let mut digest = stretched.clone();
    (digest["keyslots"], digest["segments"]) = (serde_json::json!(["0"]), serde_json::json!(["0"]));
    digest["digest"] = salt.into();
    let json = serde_json::json!({
        "keyslots": {"0": {"type": "luks2", "key_size": 64, "kdf": stretched,
            "af": {"type": "luks1", "stripes": 4000, "hash": "sha256"},
            "area": {"type": "raw", "offset": "32768", "size": "258048",
                "encryption": "aes-xts-plain64", "key_size": 64}}},
        "tokens": {},
        "segments": {"0": {"type": "crypt", "offset": "2097152", "size": "dynamic", "iv_tweak": "0",
            "encryption": "aes-xts-plain64", "sector_size": 4096}},
        "digests": {"0": digest},
        "config": {"json_size": "12288", "keyslots_size": "1048576"},
    });
    let json = json.to_string();
    let mut all = Vec::new();
    for (magic, offset) in [(b"LUKS\xba\xbe", 0), (b"SKUL\xba\xbe", METADATA_SIZE)] {
        let mut copy = vec![0; METADATA_SIZE];
        let mut put = |at: usize, bytes: &[u8]| copy[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, magic);
        put(6, &[0, 2]);
        put(8, &(METADATA_SIZE as u64).to_be_bytes());
        put(16, &3_u64.to_be_bytes());
        put(24, label.as_bytes());
        put(72, b"sha256");
        put(168, b"0b3bc67c-6dfa-460c-9fd2-fe580dc3d9ab");
        put(208, luks::SUBSYSTEM.as_bytes());
        put(256, &(offset as u64).to_be_bytes());
        put(4096, json.as_bytes());
        let sum: [u8; 32] = Sha256::digest(&copy).into();
        copy[448..480].copy_from_slice(&sum);
        all.extend(copy);
    }
    all.extend(vec![0x5a; KEYSLOTS_SIZE]);
    all
}

fn area(start: &[u8]) -> Vec<u8> {
    let mut area = start.to_vec();
    area.resize(DATA_OFFSET, 0);
    area
}

/// A disk that loses its power after so many sectors.
struct Failing {
    area: Vec<u8>,
    sectors: usize,
}

impl Disk for Failing {
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut at = usize::try_from(offset).unwrap();
        for sector in bytes.chunks(SECTOR) {
            if self.sectors == 0 {
                return Err(io::ErrorKind::Interrupted.into());
            }
            self.sectors -= 1;
            self.area[at..at + sector.len()].copy_from_slice(sector);
            at += sector.len();
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.sectors == 0 { Err(io::ErrorKind::Interrupted.into()) } else { Ok(()) }
    }
}

#[test]
fn t13_p05_a_kill_at_any_sector_leaves_a_disk_that_is_made_anew_or_used() {
    let (header, marker) = (header(LABEL), marker(LABEL, &[7; 32]));
    let whole = header.len() / SECTOR + 1;
    for earlier in [Vec::new(), area(&marker), area(&[&marker[..], &header[SECTOR..]].concat())] {
        let before = area(&earlier);
        // Every cut of the ends, and some between.
        for sectors in (0..40).chain((40..whole).step_by(97)).chain(whole - 3..=whole + 1) {
            let mut disk = Failing { area: before.clone(), sectors };
            let done = publish(&mut disk, &header, &marker);
            let found = judge(&disk.area, LABEL, &marker).unwrap();
            match sectors {
                0 if earlier.is_empty() => assert_eq!(found, Found::Empty),
                n if n <= whole => {
                    assert_eq!(found, if n == whole { Found::Ours } else { Found::Unfinished })
                }
                _ => assert_eq!((found, done.is_ok()), (Found::Ours, true)),
            }
        }
    }
}

#[test]
fn t13_only_zeros_and_ones_own_marker_are_formatted() {
    let ours = marker(LABEL, &[7; 32]);
    let find = |start: &[u8]| judge(&area(start), LABEL, &ours);
    assert_eq!(find(&[]), Ok(Found::Empty));
    assert_eq!(find(&ours), Ok(Found::Unfinished));
    assert_eq!(find(&header(LABEL)), Ok(Found::Ours));
    // Whatever else is there stays as it is.
    let other = "dstack-0000000000000000000000000000000000000000";
    assert_eq!(find(&header(other)), Err(Foreign::Instance(other.into())));
    for bad in
        [&marker(LABEL, &[8; 32])[..], &marker(other, &[7; 32]), b"x", &[0, 0, 1], &header(LABEL)[512..]]
    {
        assert!(matches!(find(bad), Err(Foreign::Header(_))));
    }
    // One byte at the very end of the area.
    let mut last = area(&[]);
    *last.last_mut().unwrap() = 1;
    assert!(judge(&last, LABEL, &ours).is_err());
    let mut zeroed = header(LABEL);
    zeroed[..SECTOR].fill(0);
    assert!(find(&zeroed).is_err(), "a header whose first sector the host has cleared");
}

#[test]
fn the_area_is_read_whole() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(DATA_OFFSET as u64 - 1).unwrap();
    assert!(read(&file).is_err());
    file.set_len(DATA_OFFSET as u64 + 1).unwrap();
    assert_eq!(read(&file).unwrap().len(), DATA_OFFSET);
    let mut file = file;
    publish(&mut file, &header(LABEL), &marker(LABEL, &[7; 32])).unwrap();
    let area = read(&file).unwrap();
    assert_eq!(judge(&area, LABEL, &marker(LABEL, &[7; 32])), Ok(Found::Ours));
    assert_eq!(area[..HEADER_SIZE], header(LABEL));
}
