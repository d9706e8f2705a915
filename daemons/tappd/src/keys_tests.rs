// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use super::*;
use dstack_core::ids::AppId;
use dstack_keys::derive::Roots;
use dstack_keys::handover::VERSION;

fn app() -> AppId {
    "3327603e03f5bd1f830812ca4a789277fc31f577".parse().unwrap()
}

/// The app key of the published vectors, as a key service with their root would hand it over.
fn handed(provider: Provider) -> AppKeys {
    let roots = Roots { ca: Secret::from([0x11; 32]), k256: Secret::from([0x22; 32]) };
    let app_key = roots.app_key(&app()).unwrap();
    let message = sign::app_key_message(&app(), &sign::public_key(&app_key).unwrap());
    let kms = provider == Provider::Kms;
    AppKeys {
        version: VERSION,
        provider,
        provider_id: if kms { "3059".into() } else { String::new() },
        kms_urls: Vec::new(),
        ca_cert: String::new(),
        ca_key: (!kms).then(|| Secret::from([0x44; 32])),
        k256_signature: if kms {
            hex::encode(sign::sign(&roots.k256, &message).unwrap())
        } else {
            String::new()
        },
        k256_key: app_key,
        gateway_app_id: String::new(),
        os_image_hash: "05".repeat(32),
        vm_config: "{}".into(),
    }
}

fn keys() -> Keys {
    Keys::new(handed(Provider::Kms)).unwrap()
}

#[test]
fn published_vectors_of_get_key() {
    let key = keys().derive("wallet/eth", "mainnet", Curve::Secp256k1).unwrap();
    let secret = "160da35de75a7a847ba6102080b9a4fa70712bff16720d2a37ce80eb6dc5c3d2";
    assert_eq!(hex::encode(key.secret.expose()), secret);
    let public = "0230157a4fcc1af2c89f88fcf52d7728abf7323586f7b4e319534e6e6425801d58";
    assert_eq!(hex::encode(&key.public_key), public);
    let own = "6bed4825be4f7c629d32dcbb5a051ab6a4b7b4db992827905ca0329ce8b669d7\
               3da63dece11acfb2fe5a467bad12100e214a99d1ee404979be8134e82b84a0fb00";
    let service = "1d5d3b27e3eed0b0c24ad2b0a152506beea076f27e2f518cff19b740c374dcd7\
                   184745917abb05389ca8126e9ced4529c5dfc590a6ad24aaad30cbc394be04c301";
    assert_eq!(key.signature_chain.map(hex::encode), [own, service]);
}

/// Whom a chain leads to: the app key, and the root that signed it.
fn chain(purpose: &str, key: &Derived) -> (String, String) {
    let own = key.signature_chain[0].as_slice().try_into().unwrap();
    let app_key = sign::recover(&sign::purpose_message(purpose, &key.public_key), own).unwrap();
    let service = key.signature_chain[1].as_slice().try_into().unwrap();
    let root = sign::recover(&sign::app_key_message(&app(), &app_key), service).unwrap();
    (hex::encode(app_key), hex::encode(root))
}

#[test]
fn every_chain_leads_to_the_root() {
    let app_key = "03e0412ddaa22920ef7214f8faa1c01c9d3617cf7ab1875fc09b33c69eeeb4cad8";
    let root = "02466d7fcae563e5cb09a0d1870bb580344804617879a14949cf22285f1bae3f27";
    for curve in [Curve::Secp256k1, Curve::Ed25519] {
        for (path, purpose) in [("", ""), ("a", "b:c"), ("ü", "\u{0}")] {
            let key = keys().derive(path, purpose, curve).unwrap();
            assert_eq!(chain(purpose, &key), (app_key.into(), root.into()), "{curve:?} {path:?}");
            assert_eq!(key.public_key.len(), if curve == Curve::Ed25519 { 32 } else { 33 });
        }
    }
    for algorithm in ["ed25519", "secp256k1"] {
        let signed = keys().sign(algorithm, b"data").unwrap();
        assert_eq!(chain("signing", &signed.by), (app_key.into(), root.into()), "{algorithm}");
    }
}

#[test]
fn a_purpose_changes_the_signature_alone() {
    let (one, two) =
        (keys().derive("p", "a", Curve::Ed25519).unwrap(), keys().derive("p", "b", Curve::Ed25519).unwrap());
    assert_eq!(one.secret, two.secret);
    assert_ne!(one.signature_chain[0], two.signature_chain[0]);
}

#[test]
fn p13_the_two_curves_never_share_a_secret() {
    for path in ["", "wallet/eth", "ed25519", "vms"] {
        let secp = keys().derive(path, "", Curve::Secp256k1).unwrap();
        let edwards = keys().derive(path, "", Curve::Ed25519).unwrap();
        assert_ne!(secp.secret, edwards.secret, "{path:?}");
        assert_eq!(secp.secret, keys().p256(path).unwrap(), "{path:?}");
    }
}

#[test]
fn p14_keys_come_from_the_apps_scalar_and_never_from_its_encoding() {
    let keys = keys();
    let app_key = &keys.handed().k256_key;
    let expected = derive::hkdf(app_key, &[b"my/path"]).unwrap();
    assert_eq!(keys.p256("my/path").unwrap(), expected);
    assert_eq!(keys.derive("my/path", "", Curve::Secp256k1).unwrap().secret, expected);
    let encoded: [u8; 32] = Sha256::digest(derive::pkcs8(app_key).unwrap().as_slice()).into();
    assert_ne!(derive::hkdf(&Secret::from(encoded), &[b"my/path"]).unwrap(), expected);
}

#[test]
fn t24_keys_without_a_key_service_are_marked() {
    let keys = Keys::new(handed(Provider::None)).unwrap();
    let key = keys.derive("a", "b", Curve::Secp256k1).unwrap();
    assert_eq!((key.signature_chain[0].len(), key.signature_chain[1].len()), (65, 0));
}

#[test]
fn parts_that_do_not_belong_together_are_refused() {
    let changes: [fn(&mut AppKeys); 6] = [
        |keys| keys.provider = Provider::None,
        |keys| keys.provider_id = String::new(),
        |keys| keys.ca_key = Some(Secret::from([1; 32])),
        |keys| keys.k256_signature = "zz".into(),
        |keys| keys.k256_signature.truncate(64),
        |keys| keys.k256_key = Secret::from([0; 32]),
    ];
    for (at, change) in changes.into_iter().enumerate() {
        let mut handed = handed(Provider::Kms);
        change(&mut handed);
        assert!(Keys::new(handed).is_err(), "{at}");
    }
    assert!(Keys::parse(b"none\n").unwrap().is_none());
    for bad in [&b""[..], b"{}", b"nonesuch", b"\xff"] {
        assert!(Keys::parse(bad).is_err(), "{bad:?}");
    }
    assert!(Keys::parse(&handed(Provider::Kms).to_json().unwrap()).unwrap().is_some());
}

#[test]
fn what_is_signed_verifies_and_nothing_else_does() {
    let keys = keys();
    let other = keys.derive("other", "", Curve::Secp256k1).unwrap().public_key;
    for (algorithm, data, length) in [
        ("ed25519", &b""[..], 64),
        ("secp256k1", b"data", 65),
        ("k256", b"", 65),
        ("secp256k1_prehashed", &[7; 32], 65),
    ] {
        let signed = keys.sign(algorithm, data).unwrap();
        let (signature, key) = (&signed.signature, &signed.by.public_key);
        assert_eq!(signature.len(), length, "{algorithm}");
        assert!(verify(algorithm, data, signature, key).unwrap(), "{algorithm}");
        assert!(verify(algorithm, data, &signature[..64], key).unwrap(), "{algorithm}");
        let mut forged = signature.clone();
        forged[5] ^= 1;
        assert!(!verify(algorithm, data, &forged, key).unwrap());
        assert!(!verify(algorithm, data, &[], key).unwrap());
        assert!(!verify(algorithm, &[8; 32], signature, key).unwrap());
        assert!(verify(algorithm, data, signature, &[]).is_err());
        if algorithm != "ed25519" {
            assert!(!verify(algorithm, data, signature, &other).unwrap());
        }
    }
    let digest: [u8; 32] = Sha256::digest(b"data").into();
    let signed = keys.sign("secp256k1", b"data").unwrap();
    assert_eq!(signed.signature, keys.sign("secp256k1_prehashed", &digest).unwrap().signature);
}

#[test]
fn odd_arguments_are_refused_by_name() {
    let keys = keys();
    for odd in ["rsa", "ED25519", "secp256k1 ", "\u{0}"] {
        assert!(Curve::of(odd).unwrap_err().to_string().contains("is not known"), "{odd:?}");
        assert!(keys.sign(odd, b"").is_err() && verify(odd, b"", b"", b"").is_err(), "{odd:?}");
    }
    assert!(keys.sign("", b"").is_err(), "Sign has no default");
    for length in [0, 31, 33] {
        let error = keys.sign("secp256k1_prehashed", &vec![0; length]).unwrap_err();
        assert!(error.to_string().contains("32"), "{error}");
    }
    let long = "x".repeat(TEXT_MAX + 1);
    assert!(keys.derive(&long, "", Curve::Secp256k1).is_err() && keys.p256(&long).is_err());
    assert!(keys.derive("", &long, Curve::Secp256k1).is_err());
    assert!(keys.derive(&long[1..], &long[1..], Curve::Secp256k1).is_ok());
    assert!(Curve::of("x".repeat(100_000).as_str()).unwrap_err().to_string().len() < 200);
}
