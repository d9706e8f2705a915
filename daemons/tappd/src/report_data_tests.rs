// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used)]

use super::*;

fn of(algorithm: &str, prefix: &str, data: &[u8]) -> String {
    hex::encode(hashed(algorithm, prefix, data).unwrap().0)
}

#[test]
fn published_vectors_of_the_default_hash() {
    let text = "7ea0b744ed5e9c0c83ff9f575668e1697652cd349f2027cdf26f918d4c53e8cd\
                50b5ea9b449b4c3d50e20ae00ec29688d5a214e8daff8a10041f5d624dae8a01";
    let bytes = "47e7f84b16a9336b087cdadacf435c98dde1487bc159282d52382107e36ff3f0\
                 dce0b68905375d1a20fafee58ed745bb2f2f7f304a4590f16d59327889873972";
    for algorithm in ["", "sha512"] {
        assert_eq!(of(algorithm, "", b"test content"), text);
        assert_eq!(of(algorithm, "app-data", b"test content"), text);
        assert_eq!(of(algorithm, "", &[0x12, 0x34, 0xde, 0xad, 0xbe, 0xef]), bytes);
    }
}

/// `app-data:x` by other implementations: Python's hashlib, and Keccak written down from its definition.
#[test]
fn every_algorithm_hashes_prefix_colon_data_and_pads_on_the_right() {
    let vectors = [
        ("sha256", "6be42b68badc63316490edf14a52c886c539967797a87f8daf1ea881d3b685d2"),
        (
            "sha384",
            "db3c6526c8345e2f813a355899d16e8f1de427efd3d7932f353af490be657e24\
          ddea326d25e364ced079fbcf0a2e691f",
        ),
        ("sha3-256", "288febb582caef7cc157ee31aa578459e8be7502510271a2fda978d9cd8c77ca"),
        (
            "sha3-384",
            "7a4baec7731c98fbe8747eabdd0fa4110e464f516cbf076e135a3025897065ae\
          268815ef3ecfd2f347edf621f42098d9",
        ),
        (
            "sha3-512",
            "6f9214fedfbfb3621b727787e0105db391d4788f46f862ebe41dd8972979b9da\
          e8a9cc3c0814427bf888a626ec0245a6456008ec0e5070aa612c629065449be6",
        ),
        ("keccak256", "20048a3089bb6c5f0f3505b9ea8139f1c53ef7a58c26cdde3cbf79843e833334"),
        (
            "keccak384",
            "5e18fd8b972488e94caa0b5d8ccfcc2048a900aa916ecf3959a11cb7ab42d84b\
          f5d8de2091825c3bcfb15f3916af501c",
        ),
        (
            "keccak512",
            "416dbac8025dfe5c8eaa0a8278411a4a6c4ebbd9f31fff268ed38417b58587e2\
          d78a347a9833644dde07add8585fb0781f66ba8b53c4456a6a5f966d6e6dec65",
        ),
    ];
    for (algorithm, expected) in vectors {
        let (data, name) = hashed(algorithm, "", b"x").unwrap();
        assert_eq!(name, algorithm);
        assert_eq!(hex::encode(data), format!("{expected:0<128}"), "{algorithm}");
    }
}

#[test]
fn a_prefix_gets_its_colon_here() {
    assert_eq!(of("sha256", "a", b"b:c"), of("sha256", "a:b", b"c"));
    assert_ne!(of("sha256", "a", b"bc"), of("sha256", "ab", b"c"));
    assert_eq!(of("", "", b""), of("", "app-data", b""));
}

#[test]
fn raw_is_exactly_64_bytes_and_the_newer_service_pads() {
    assert_eq!(hashed("raw", "ignored", &[7; 64]).unwrap(), ([7; 64], "raw"));
    for length in [0, 1, 63, 65] {
        assert_eq!(hashed("raw", "", &vec![7; length]), Err(ReportDataError::Raw(length)));
    }
    let padded_to = [&[7; 3][..], &[0; 61]].concat();
    assert_eq!(padded(&[7; 3]).unwrap().as_slice(), padded_to);
    assert_eq!(padded(&[]).unwrap(), [0; 64]);
    assert_eq!(padded(&[1; 65]), Err(ReportDataError::TooLong(65)));
}

#[test]
fn p11_odd_requests_are_refused_by_name() {
    for odd in ["SHA256", "md5", "sha-256", " raw", "\u{0}", "sha512 "] {
        assert!(matches!(hashed(odd, "", &[0; 64]), Err(ReportDataError::Algorithm(_))), "{odd:?}");
    }
    assert_eq!(hashed("", &"p".repeat(PREFIX_MAX + 1), b""), Err(ReportDataError::Prefix));
    let long = hashed(&"x".repeat(100_000), "", b"").unwrap_err().to_string();
    assert!(long.len() < 300, "{long}");
}
