// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]
use super::*;
use proptest::prelude::*;

fn sample() -> Files {
    [(File::AppCompose, b"{}".to_vec()), (File::EncryptedEnv, vec![]), (File::UserConfig, vec![7; 513])]
        .into()
}

/// The sample with one header edited and its checksum mended.
fn edited(edit: impl Fn(&mut [u8])) -> Result<Files, ConfigDiskError> {
    let mut disk = write(&sample()).unwrap();
    edit(&mut disk[..BLOCK]);
    disk[148..156].copy_from_slice(b"        ");
    let sum: u32 = disk[..BLOCK].iter().map(|b| u32::from(*b)).sum();
    disk[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    parse(&disk)
}

fn name(new: &[u8]) -> impl Fn(&mut [u8]) {
    let new = new.to_vec();
    move |header| {
        header[..100].fill(0);
        header[..new.len()].copy_from_slice(&new);
    }
}

#[test]
fn survives() {
    let disk = write(&sample()).unwrap();
    assert_eq!(parse(&disk).unwrap(), sample());
    let padded = [disk, vec![0; 4096]].concat();
    assert_eq!(parse(&padded).unwrap(), sample());
    assert_eq!(parse(&[0; 1024]).unwrap(), Files::new());
}

#[test]
fn t06_only_the_known_files_and_one_encoding_are_accepted() {
    let unknown = |n: &str| Err(ConfigDiskError::UnknownFile(n.into()));
    assert_eq!(edited(name(b"../app-compose.json")), unknown("../app-compose.json"));
    assert_eq!(edited(name(b"/etc/passwd")), unknown("/etc/passwd"));
    assert_eq!(edited(name(b"./app-compose.json")), unknown("./app-compose.json"));
    assert_eq!(edited(name(&[b'x'; 100])), unknown(&"x".repeat(100)));
    for kind in [b'1', b'2', b'3', b'5', b'x', b'g', b'L', b'S', 0] {
        let result = edited(|h| h[156] = kind);
        assert!(matches!(result, Err(ConfigDiskError::NotAFile { .. })), "{kind}");
    }
    assert_eq!(edited(|h| h[345] = b'p'), Err(ConfigDiskError::Header(0)));
    assert_eq!(edited(|h| h[106] = b'7'), Err(ConfigDiskError::Header(0)));
    assert_eq!(edited(|h| h[263] = b' '), Err(ConfigDiskError::Header(0)));
    assert_eq!(edited(|h| h[124] = 0x80), Err(ConfigDiskError::Header(0)));
}

#[test]
fn caps_hold_both_ways() {
    let big = [(File::SysConfig, vec![0; File::SysConfig.cap() + 1])].into();
    assert!(matches!(write(&big), Err(ConfigDiskError::FileTooLarge { .. })));
    let result = edited(|h| h[124..136].copy_from_slice(b"00077777777\0"));
    assert!(matches!(result, Err(ConfigDiskError::FileTooLarge { name: "app-compose.json", .. })));
    assert!(matches!(parse(&vec![0; CONFIG_DISK_MAX + 1]), Err(ConfigDiskError::DiskTooLarge(_))));
}

#[test]
fn t09_the_signature_of_the_environment_is_beside_it() {
    let files = [
        (File::AppCompose, b"{}".to_vec()),
        (File::EncryptedEnv, b"sealed".to_vec()),
        (File::EncryptedEnvSig, vec![b's'; ENCRYPTED_ENV_SIG_MAX]),
        (File::InstanceInfo, b"{}".to_vec()),
    ];
    assert_eq!(parse(&write(&files.clone().into()).unwrap()).unwrap(), files.into());
    let big = [(File::EncryptedEnvSig, vec![0; ENCRYPTED_ENV_SIG_MAX + 1])].into();
    assert!(matches!(write(&big), Err(ConfigDiskError::FileTooLarge { name: "encrypted-env.sig", .. })));
}

#[test]
fn order_and_repetition_are_refused() {
    let one = write(&[(File::AppCompose, vec![1])].into()).unwrap();
    let two = write(&[(File::UserConfig, vec![1])].into()).unwrap();
    for (first, second) in [(&one, &one), (&two, &one), (&two, &two)] {
        let disk = [&first[..1024], second].concat();
        assert!(matches!(parse(&disk), Err(ConfigDiskError::Order(_))));
    }
}

#[test]
fn every_truncation_and_every_flipped_bit_is_noticed() {
    let disk = write(&sample()).unwrap();
    for end in 0..disk.len() {
        assert!(parse(&disk[..end]).is_err(), "{end}");
    }
    for bit in 0..disk.len() * 8 {
        let mut other = disk.clone();
        other[bit / 8] ^= 1 << (bit % 8);
        assert_ne!(parse(&other).ok(), Some(sample()), "bit {bit}");
    }
}

proptest! {
    #[test]
    fn whatever_parses_is_what_write_makes(bytes in proptest::collection::vec(any::<u8>(), 0..4096)) {
        if let Ok(files) = parse(&bytes) {
            let canonical = write(&files).unwrap();
            prop_assert_eq!(&bytes[..canonical.len()], &canonical[..]);
        }
    }
}

#[test]
fn t06_the_digest_covers_every_file_and_its_place() {
    // Computed apart from the description of the format.
    let small = [(File::AppCompose, b"{}".to_vec()), (File::UserConfig, b"hi".to_vec())].into();
    let expected = "26a014780cdecc68a0e827f0f0101640a2c0c07a4584c07917fea5a7afd2a5ba";
    assert_eq!(hex::encode(digest(&small)), expected);
    let other: [Files; 5] = [
        [(File::AppCompose, b"{}".to_vec())].into(),
        [(File::AppCompose, b"{} ".to_vec()), (File::UserConfig, b"hi".to_vec())].into(),
        [(File::AppCompose, b"hi".to_vec()), (File::UserConfig, b"{}".to_vec())].into(),
        [(File::AppCompose, b"{}".to_vec()), (File::EncryptedEnv, b"hi".to_vec())].into(),
        [(File::AppCompose, b"{}".to_vec()), (File::UserConfig, Vec::new())].into(),
    ];
    for files in other {
        assert_ne!(digest(&files), digest(&small), "{files:?}");
    }
}
