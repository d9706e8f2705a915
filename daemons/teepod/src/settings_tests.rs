// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used)]
use super::*;

fn parse(text: &str) -> Result<Settings, String> {
    let input: Input = toml::from_str(text).map_err(|e| e.to_string())?;
    Settings::from_input(input).map_err(|e| e.to_string())
}

#[test]
fn an_empty_file_is_enough() {
    let settings = parse("").unwrap();
    assert_eq!(settings.cids, 1000..2000);
    assert!(settings.auth && settings.ports.enabled && settings.ports.address.is_loopback());
    assert_eq!(settings.max_disk, 100 * GIB);
}

#[test]
fn what_init_writes_is_understood() {
    let written = include_str!("../../dstackctl/testdata/init/rfc2136/teepod.toml");
    let settings = parse(written).unwrap();
    assert_eq!(settings.cids, 20000..20500);
    assert_eq!(settings.kms_urls, ["https://host.example.com:19043"]);
    assert_eq!(settings.tproxy_urls, ["https://host.example.com:19070"]);
    assert_eq!((settings.gateway.base_domain.as_str(), settings.gateway.port), ("apps.example.com", 443));
    assert!(parse(include_str!("../../dstackctl/testdata/init/cloudflare/teepod.toml")).is_ok());
}

#[test]
fn the_shipped_file_says_what_the_defaults_are() {
    let shipped = include_str!("../../../units/host/teepod.toml");
    assert_eq!(parse(shipped).unwrap(), parse("").unwrap());
    // Every example line of it is valid too.
    let example = |line: &str| match line.strip_prefix('#') {
        Some(rest) if !rest.starts_with(' ') => format!("{rest}\n"),
        Some(_) => String::new(),
        None => format!("{line}\n"),
    };
    let uncommented: String = shipped.lines().map(example).collect();
    assert_eq!(parse(&uncommented).unwrap(), parse("").unwrap());
}

#[test]
fn wrong_values_are_named_with_what_is_allowed() {
    for (text, key) in [
        ("[cvm]\ncid_start = 2", "cvm.cid_start"),
        ("[cvm]\ncid_pool_size = 0", "cvm.cid_pool_size"),
        ("[cvm]\ncid_start = 4294967295", "cvm.cid_pool_size"),
        ("[cvm]\nplatform = \"sev\"", "cvm.platform"),
        ("[cvm]\nvsock = \"no\"", "cvm.vsock"),
        ("[cvm]\nkms_url = \"http://kms\"", "cvm.kms_urls"),
        ("[cvm]\nboot_timeout = 0", "cvm.boot_timeout"),
        ("[cvm]\nmax_disk_size = 18446744073", "cvm.max_disk_size"),
        ("[cvm]\ndefault_image = \"../x\"", "cvm.default_image"),
        ("[cvm]\nqemu_path = \"qemu\"", "cvm.qemu_path"),
        ("[networking]\nmode = \"tap\"", "networking.mode"),
        ("[cvm.port_mapping]\nrange = [{protocol=\"tcp\", from=9, to=8}]", "cvm.port_mapping.range"),
        ("[cvm]\ncid_stort = 1", "cid_stort"),
        ("[auth]\ntokens = [\"x\"]", "tokens"),
    ] {
        let error = parse(text).unwrap_err();
        assert!(error.contains(key), "{key} in {error}");
    }
}

#[test]
fn single_and_many_urls() {
    let settings = parse("[cvm]\nkms_url=\"https://a\"\nkms_urls=[\"https://b\"]").unwrap();
    assert_eq!(settings.kms_urls, ["https://a", "https://b"]);
}
