// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used)]
use super::*;

#[test]
fn p27_keys_are_32_bytes_and_nothing_else() {
    let key = PublicKey::from([7; 32]);
    assert_eq!(key.to_string().parse(), Ok(key));
    assert_eq!(serde_json::from_str::<PublicKey>(&serde_json::to_string(&key).unwrap()).unwrap(), key);
    let good = key.to_string();
    for bad in [
        String::new(),
        good.trim_end_matches('=').to_owned(),
        format!("{good}\n"),
        format!("{good}\nEndpoint = 192.0.2.1:1"),
        good.replace("c=", "d="),
        STANDARD.encode([7; 31]),
        STANDARD.encode([7; 33]),
        good.to_lowercase().replace('b', "-"),
    ] {
        assert_eq!(bad.parse::<PublicKey>(), Err(WireguardError::Key), "{bad:?}");
    }
}

#[test]
fn p02_private_keys_are_wiped_and_never_printed() {
    const fn wiped<T: ZeroizeOnDrop>(_: &T) {}
    let key = PrivateKey::from([0xab; 32]);
    wiped(&key);
    assert_eq!(format!("{key:?}"), "PrivateKey(secret)");
}

#[test]
fn nets() {
    for (text, network) in [
        ("10.4.0.1/16", "10.4.0.0/16"),
        ("10.4.0.7/32", "10.4.0.7/32"),
        ("1.2.3.4/0", "0.0.0.0/0"),
        ("fd00::7/64", "fd00::/64"),
        ("fd00::7/128", "fd00::7/128"),
        ("fd00::7/0", "::/0"),
    ] {
        let net: Net = text.parse().unwrap();
        assert_eq!((net.to_string().as_str(), net.network().to_string().as_str()), (text, network));
        assert!(net.contains(net.address()));
    }
    for bad in
        ["", "10.0.0.1", "10.0.0.1/", "10.0.0.1/33", "10.0.0.1/+1", "fd00::1/129", "a/8", "10.0.0.1/8/8"]
    {
        assert_eq!(bad.parse::<Net>(), Err(WireguardError::Net), "{bad}");
    }
    let net: Net = "10.4.0.1/16".parse().unwrap();
    assert!(net.contains([10, 4, 255, 1].into()) && !net.contains([10, 5, 0, 1].into()));
    let mapped: IpAddr = "::ffff:10.4.0.1".parse().unwrap();
    assert!(!net.contains(mapped) && !"0.0.0.0/0".parse::<Net>().unwrap().contains(mapped));
}

#[test]
fn p27_names_of_interfaces_are_file_names() {
    for good in ["wg0", "dstack-wg0", "a.b_c", "fifteen-bytes-x"] {
        assert_eq!(good.parse::<InterfaceName>().unwrap().as_str(), good);
    }
    for bad in ["", ".", "..", "0wg", "-wg", "a/b", "a b", "a\n", "sixteen-bytes-xx", "wg%d"] {
        assert_eq!(bad.parse::<InterfaceName>(), Err(WireguardError::Interface), "{bad:?}");
    }
}
