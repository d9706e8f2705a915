// SPDX-License-Identifier: Apache-2.0
use super::*;
use serde_json::{Value, json};

/// What cryptsetup 2.7.5 wrote for the options of this guest: its JSON, the salts of both copies, and their checksums.
const JSON: &str = r#"{"keyslots":{"0":{"type":"luks2","key_size":64,"af":{"type":"luks1","stripes":4000,"hash":"sha256"},"area":{"type":"raw","offset":"32768","size":"258048","encryption":"aes-xts-plain64","key_size":64},"kdf":{"type":"pbkdf2","hash":"sha256","iterations":1000,"salt":"4y5EgArvD27yBSlsDhhIZIYU0FqSEj9BlH8dH9Jpoxc="}}},"tokens":{},"segments":{"0":{"type":"crypt","offset":"2097152","size":"dynamic","iv_tweak":"0","encryption":"aes-xts-plain64","sector_size":4096}},"digests":{"0":{"type":"pbkdf2","keyslots":["0"],"segments":["0"],"hash":"sha256","iterations":1000,"salt":"YqgMc+sGM4wgol087CfvTBe1hwPeZr7rqp1iLQNW+KA=","digest":"pnUn6VdE4Pqz8IRW1Fcvh8XtJAy6mos/wRSWwMtvOWU="}},"config":{"json_size":"12288","keyslots_size":"1048576"}}"#;
const LABEL: &str = "dstack-8a815c211dc64266d5379ebb2af38059d2ac6ba0";
const UUID: &str = "0b3bc67c-6dfa-460c-9fd2-fe580dc3d9ab";
const SALTS: [&str; 2] = [
    "143d04226b3b38f726c0a3426a5c04dd613f2da04c7d78d202d1bcccf611a2a90e286799f2be75526b3aebefdff813718bd7\
     cefdfbbb4eb54ec54ca50ad388b6",
    "d2d811a35e265fc8f3fd5e328b12f3dd952d3e37aad19635ba08593466d7efc35d40355bb3693e345fb71b63ea151f673e70\
     1fec3da76f79ca606fafd01c4960",
];
const CHECKSUMS: [&str; 2] = [
    "448addc7ad59c10b494e01dfbaeee7786f8fdf0a98c4dabecefa0a43d3046ce2",
    "464905a41b2f6de13f8567fd2474168527f9b92e2abc6bb173ebd55cd4524ac0",
];

/// One copy with a right checksum.
fn copy(second: bool, json: &[u8], change: impl Fn(&mut [u8])) -> Vec<u8> {
    let mut copy = vec![0; METADATA_SIZE];
    let mut put = |at: usize, bytes: &[u8]| copy[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, if second { b"SKUL\xba\xbe" } else { b"LUKS\xba\xbe" });
    put(6, &[0, 2]);
    put(8, &16_384_u64.to_be_bytes());
    put(16, &3_u64.to_be_bytes());
    put(24, LABEL.as_bytes());
    put(72, b"sha256");
    put(104, &hex::decode(SALTS[usize::from(second)]).unwrap());
    put(168, UUID.as_bytes());
    put(208, SUBSYSTEM.as_bytes());
    put(256, &(if second { 16_384_u64 } else { 0 }).to_be_bytes());
    put(4096, json);
    change(&mut copy);
    let sum = checksum(&copy);
    copy[CHECKSUM].copy_from_slice(&sum);
    copy
}

fn area(json: &[u8]) -> Vec<u8> {
    let mut area = [copy(false, json, |_| ()), copy(true, json, |_| ())].concat();
    area.resize(HEADER_SIZE, 0xa5);
    area
}

fn changed(change: impl FnOnce(&mut Value)) -> Result<Header, LuksError> {
    let mut json: Value = serde_json::from_str(JSON).unwrap();
    change(&mut json);
    parse(&area(json.to_string().as_bytes()))
}

#[test]
fn what_cryptsetup_makes_is_accepted() {
    let area = area(JSON.as_bytes());
    for (at, sum) in [0, METADATA_SIZE].into_iter().zip(CHECKSUMS) {
        assert_eq!(hex::encode(&area[at + 448..at + 480]), sum, "the vector's own checksum");
    }
    let expected = Header { label: LABEL.into(), uuid: UUID.into(), sequence: 3 };
    assert_eq!(parse(&area), Ok(expected.clone()));
    assert_eq!(changed(|_| ()), Ok(expected));
}

#[test]
fn p01_a_null_cipher_is_refused() {
    for cipher in ["cipher_null-ecb", "null", "aes-ecb", "aes-cbc-essiv:sha256", ""] {
        let data = changed(|j| j["segments"]["0"]["encryption"] = json!(cipher));
        assert_eq!(data, Err(LuksError::Value("cipher")), "{cipher}");
        let slot = changed(|j| j["keyslots"]["0"]["area"]["encryption"] = json!(cipher));
        assert_eq!(slot, Err(LuksError::Value("cipher of the key slot")), "{cipher}");
    }
    assert!(changed(|j| j["keyslots"]["0"]["area"]["key_size"] = json!(32)).is_err());
    assert!(changed(|j| j["keyslots"]["0"]["key_size"] = json!(1)).is_err());
    assert!(changed(|j| j["segments"]["0"]["integrity"] = json!({"type": "none"})).is_err());
}

#[test]
fn p01_a_moved_or_shortened_segment_is_refused() {
    for offset in ["0", "4096", "2097151", "2097664", "18446744073709551615", "02097152", "-1"] {
        assert!(changed(|j| j["segments"]["0"]["offset"] = json!(offset)).is_err(), "{offset}");
    }
    for (key, value) in [
        ("size", json!("4096")),
        ("iv_tweak", json!("8")),
        ("sector_size", json!(512)),
        ("type", json!("linear")),
        ("flags", json!(["backup-final"])),
    ] {
        assert!(changed(|j| j["segments"]["0"][key] = value).is_err(), "{key}");
    }
    assert!(changed(|j| j["segments"]["1"] = j["segments"]["0"].clone()).is_err());
    assert!(changed(|j| j["segments"] = json!({})).is_err());
}

#[test]
fn p01_an_extra_or_moved_key_slot_is_refused() {
    assert!(changed(|j| j["keyslots"]["1"] = j["keyslots"]["0"].clone()).is_err());
    assert!(changed(|j| j["keyslots"] = json!({"1": j["keyslots"]["0"]})).is_err());
    assert!(changed(|j| j["keyslots"]["0"]["priority"] = json!(2)).is_err());
    for (key, value) in [("offset", "0"), ("offset", "1048576"), ("size", "258049"), ("size", "4096")] {
        assert!(changed(|j| j["keyslots"]["0"]["area"][key] = json!(value)).is_err(), "{key} {value}");
    }
    assert!(changed(|j| j["keyslots"]["0"]["type"] = json!("reencrypt")).is_err());
    // Two slots of one name: another reader may take the other one.
    let slot = serde_json::from_str::<Value>(JSON).unwrap()["keyslots"]["0"].to_string();
    let twice = JSON.replacen(r#""keyslots":{"#, &format!(r#""keyslots":{{"0":{slot},"#), 1);
    assert!(matches!(parse(&area(twice.as_bytes())), Err(LuksError::Json(_))));
}

#[test]
fn p01_tokens_requirements_and_flags_are_refused() {
    assert!(changed(|j| j["tokens"]["0"] = json!({"type": "systemd-tpm2", "keyslots": ["0"]})).is_err());
    assert!(changed(|j| j["config"]["requirements"] = json!({"mandatory": ["offline-reencrypt"]})).is_err());
    assert!(changed(|j| j["config"]["flags"] = json!(["allow-discards"])).is_err());
    assert!(changed(|j| j["reencrypt"] = json!({})).is_err());
}

#[test]
fn p01_a_resized_area_is_refused() {
    assert!(changed(|j| j["config"]["json_size"] = json!("16384")).is_err());
    assert!(changed(|j| j["config"]["keyslots_size"] = json!("16744448")).is_err());
}

#[test]
fn p01_a_weak_or_endless_derivation_is_refused() {
    for (key, value) in [
        ("type", json!("argon2id")),
        ("hash", json!("sha1")),
        ("iterations", json!(1)),
        ("iterations", json!(u32::MAX)),
        ("salt", json!("AA==")),
    ] {
        assert!(changed(|j| j["keyslots"]["0"]["kdf"][key] = value.clone()).is_err(), "{key} {value}");
        assert!(changed(|j| j["digests"]["0"][key] = value.clone()).is_err(), "{key} {value}");
    }
    assert!(changed(|j| j["digests"]["0"]["keyslots"] = json!([])).is_err());
    assert!(changed(|j| j["digests"]["0"]["segments"] = json!(["0", "0"])).is_err());
    assert!(changed(|j| j["keyslots"]["0"]["af"]["stripes"] = json!(2)).is_err());
}

#[test]
fn t13_both_copies_must_be_whole_and_alike() {
    let good = area(JSON.as_bytes());
    // Every byte that matters, of the binary headers and of the JSON.
    for at in [0, 5, 7, 15, 23, 24, 72, 104, 168, 208, 263, 300, 448, 479, 480, 500, 4096, 4500, 16_383] {
        for at in [at, at + METADATA_SIZE] {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert!(parse(&bad).is_err(), "byte {at}");
        }
    }
    let pair = |first: Vec<u8>, second: Vec<u8>| {
        let mut area = [first, second].concat();
        area.resize(HEADER_SIZE, 0);
        parse(&area)
    };
    let plain = |second| copy(second, JSON.as_bytes(), |_| ());
    let newer = copy(true, JSON.as_bytes(), |c| c[23] = 4);
    assert_eq!(pair(plain(false), newer), Err(LuksError::Copies));
    assert!(matches!(pair(plain(true), plain(false)), Err(LuksError::Binary("first", "magic"))));
    let spaced = copy(true, format!("{JSON} ").as_bytes(), |_| ());
    assert_eq!(pair(plain(false), spaced), Err(LuksError::Copies));
    let moved = copy(true, JSON.as_bytes(), |c| c[262] = 0x80);
    assert_eq!(pair(plain(false), moved), Err(LuksError::Binary("second", "size or place")));
    for end in [0, 1, METADATA_SIZE, 2 * METADATA_SIZE, HEADER_SIZE - 1] {
        assert_eq!(parse(&good[..end]), Err(LuksError::Truncated), "{end}");
    }
}

#[test]
fn t13_a_marker_is_one_sector_of_one_key_and_label() {
    let one = marker(LABEL, &[1; 32]);
    assert_eq!(one, marker(LABEL, &[1; 32]));
    assert_ne!(one, marker(LABEL, &[2; 32]));
    assert_ne!(one, marker("dstack-other", &[1; 32]));
    assert!(parse(&[&one[..], &vec![0; HEADER_SIZE]].concat()).is_err());
}
