// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used)]

use super::*;

const SHIPPED: &str = include_str!("../../../../units/host/tproxy.toml");
const MINIMAL: &str = "[proxy]\nbase_domain='Apps.Example.com.'\n[wg]\nendpoint='192.0.2.1:51820'\n";

fn settings(text: &str) -> Result<Option<Settings>, String> {
    let input = toml::from_str(text).map_err(|e| e.to_string())?;
    Settings::from_input(input).map_err(|e| e.to_string())
}

#[test]
fn what_init_writes_is_understood() {
    let files = include_str!("../../../dstackctl/testdata/init/files/tproxy.toml");
    let files = settings(files).unwrap().unwrap();
    assert_eq!(files.proxy.cert_chain.to_str(), Some("/etc/dstack/certs/cert.pem"));
    assert_eq!((files.tunnel.listen_port, files.proxy.listen_port), (51820, 9443));
    let other = include_str!("../../../dstackctl/testdata/init/rfc2136/tproxy.toml");
    let other = settings(other).unwrap().unwrap();
    assert_eq!((other.tunnel.endpoint.as_str(), other.proxy.listen_port), ("host.example.com:9182", 443));
    assert_eq!(other.tunnel.ip.to_string(), "10.3.0.9");
    assert!(
        settings(include_str!("../../../dstackctl/testdata/init/cloudflare/tproxy.toml")).unwrap().is_some()
    );
}

#[test]
fn the_shipped_file_is_the_default_and_not_configured() {
    let printed = |text: &str| format!("{:?}", toml::from_str::<Input>(text).unwrap());
    assert_eq!(printed(SHIPPED), printed(""));
    assert!(settings(SHIPPED).unwrap().is_none());
    // Every key in it is a known one, and its default is the real one.
    let active: Vec<&str> = SHIPPED
        .lines()
        .map(|line| line.strip_prefix('#').unwrap_or(line))
        .filter(|line| line.contains(" = ") || line.starts_with('['))
        .collect();
    assert!(active.len() > 25, "{active:?}");
    assert_eq!(printed(&active.join("\n")), printed(""));
}

#[test]
fn two_keys_are_enough() {
    let settings = settings(MINIMAL).unwrap().unwrap();
    assert_eq!(settings.proxy.base_domain, "apps.example.com");
    assert_eq!(settings.tunnel.address().unwrap().to_string(), "10.0.0.1/16");
    assert_eq!(settings.tunnel.pool().unwrap().lease().unwrap().to_string(), "10.0.0.2");
    assert_eq!(settings.proxy.timeouts.total, Some(Duration::from_secs(5 * 3600)));
    assert_eq!(settings.recycle.unwrap().timeout, Duration::from_secs(36_000));
    assert_eq!(crate::session::config(&settings.proxy).ktls, Ktls::Auto);
    let off = MINIMAL.replace("[wg]", "ktls='off'\n[wg]");
    let off = self::settings(&off).unwrap().unwrap();
    assert_eq!(crate::session::config(&off.proxy).ktls, Ktls::Off);
}

#[test]
fn wrong_keys_are_named() {
    for (text, key) in [
        ("[wg]\nendpoint='x'", "wg.endpoint"),
        ("[wg]\nendpoint='a:0'", "wg.endpoint"),
        ("[wg]\nendpoint='a b:1'", "wg.endpoint"),
        ("[wg]\nendpoint='a:1'", "proxy.base_domain"),
        ("[proxy]\nbase_domain='a..b'", "wg.endpoint"),
        ("[wg]\nip='10.1.0.1'", "wg.client_ip_range"),
        ("[wg]\nip='::1'", "wg.ip"),
        ("[wg]\nclient_ip_range='10.0.0.1/16'", "wg.client_ip_range"),
        ("[wg]\nclient_ip_range='10.0.0.0/31'", "wg.client_ip_range"),
        ("[wg]\nclient_ip_range='fd00::/64'", "wg.client_ip_range"),
        ("[wg]\nreserved_net=['10.0.0.7/24']", "wg.reserved_net"),
        ("[wg]\ninterface='a b'", "wg.interface"),
        ("[wg]\nmtu=100", "mtu"),
        ("[wg]\nprivate_key='x'", "private_key"),
        ("[proxy]\nconnect_top_n=0", "connect_top_n"),
        ("[proxy]\nktls='never'", "ktls"),
        ("[proxy]\nresolver='dns'", "proxy.resolver"),
        ("[proxy]\napp_address_ns_prefix='a b'", "proxy.app_address_ns_prefix"),
        ("[proxy.timeouts]\nconnect='never'", "proxy.timeouts.connect"),
        ("[proxy.timeouts]\nidle='10'", "proxy.timeouts.idle"),
        ("[proxy.timeouts]\nidle='-1s'", "proxy.timeouts.idle"),
        ("[proxy.timeouts]\nidle='0s'", "proxy.timeouts.idle"),
        ("[proxy.timeouts]\nidle='99999999999999999999d'", "proxy.timeouts.idle"),
        ("[recycle]\ntimeout='1m'", "recycle.timeout"),
        ("[kms]\npublic_key='zz'", "kms.public_key"),
        ("[collateral]\npccs_url='x'", "pccs_url"),
        ("port = 1", "port"),
    ] {
        let error = settings(text).unwrap_err();
        assert!(error.contains(key), "{text}: {error}");
    }
    assert!(settings(&format!("{MINIMAL}[wg.x]\n")).is_err());
}

#[test]
fn timeouts_can_be_switched_off() {
    let off = format!("{MINIMAL}[proxy.timeouts]\ndata_timeout_enabled=false\ntotal='never'\n");
    let timeouts = settings(&off).unwrap().unwrap().proxy.timeouts;
    assert_eq!((timeouts.idle, timeouts.write, timeouts.total), (None, None, None));
    let never = format!("{MINIMAL}[recycle]\ntimeout='never'\n");
    assert!(settings(&never).unwrap().unwrap().recycle.is_none());
    let with = |text: &str| settings(&text.replace("[wg]", "resolver='192.0.2.53'\n[wg]")).unwrap().unwrap();
    assert_eq!(with(MINIMAL).proxy.resolver.unwrap().to_string(), "192.0.2.53:53");
}
