// SPDX-License-Identifier: Apache-2.0
//! The guest's way out: interfaces with hardware or WireGuard behind them, default routes, name servers.

use dstack_rpc::guest::{Gateway, Interface, IpAddress, NetworkInfo};
use nix::ifaddrs::{InterfaceAddress, getifaddrs};
use nix::sys::socket::SockaddrStorage;
use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

/// Reads everything; what cannot be read stays empty.
#[must_use]
pub fn collect() -> NetworkInfo {
    let text = |path: &str| fs::read_to_string(path).ok();
    let resolv = text("/run/systemd/resolve/resolv.conf").or_else(|| text("/etc/resolv.conf"));
    let mut gateways = gateways_v4(&text("/proc/self/net/route").unwrap_or_default());
    gateways.extend(gateways_v6(&text("/proc/self/net/ipv6_route").unwrap_or_default()));
    NetworkInfo {
        dns_servers: name_servers(&resolv.unwrap_or_default()),
        gateways: gateways.into_iter().map(|a| Gateway { address: a.to_string() }).collect(),
        interfaces: interfaces(Path::new("/sys/class/net")),
    }
}

fn name_servers(resolv: &str) -> Vec<String> {
    let server = |line: &str| line.strip_prefix("nameserver").map(|s| s.trim().to_owned());
    resolv.lines().filter_map(server).filter(|s| !s.is_empty()).collect()
}

/// Default routes of `/proc/net/route`: `iface destination gateway flags …`, addresses as host-order hex.
fn gateways_v4(table: &str) -> Vec<IpAddr> {
    let gateway = |line: &str| {
        let mut words = line.split_whitespace().skip(1);
        let (destination, gateway) = (words.next()?, words.next()?);
        let address = u32::from_str_radix(gateway, 16).ok()?;
        let wanted = destination == "00000000" && address != 0;
        wanted.then(|| IpAddr::V4(Ipv4Addr::from(address.to_ne_bytes())))
    };
    table.lines().filter_map(gateway).collect()
}

/// Default routes of `/proc/net/ipv6_route`: `destination length source length next-hop …`.
fn gateways_v6(table: &str) -> Vec<IpAddr> {
    let gateway = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().take(5).collect();
        let [destination, "00", _, _, hop] = words.as_slice() else { return None };
        let address = Ipv6Addr::from(u128::from_str_radix(hop, 16).ok()?);
        let default = destination.bytes().all(|b| b == b'0');
        (default && !address.is_unspecified()).then_some(IpAddr::V6(address))
    };
    table.lines().filter_map(gateway).collect()
}

fn interfaces(sysfs: &Path) -> Vec<Interface> {
    let mut addresses: BTreeMap<String, Vec<IpAddress>> = BTreeMap::new();
    for entry in getifaddrs().into_iter().flatten() {
        let known = addresses.entry(entry.interface_name.clone()).or_default();
        known.extend(ip_address(&entry));
    }
    let out = |(name, addresses): (String, Vec<IpAddress>)| {
        let directory = sysfs.join(&name);
        leads_out(&name, &directory).then(|| interface(name, addresses, &directory.join("statistics")))
    };
    addresses.into_iter().filter_map(out).collect()
}

/// Bridges and the containers' ends of them do not lead out of the guest.
fn leads_out(name: &str, directory: &Path) -> bool {
    name.starts_with("wg") || name.starts_with("dstack-wg") || directory.join("device").exists()
}

fn interface(name: String, addresses: Vec<IpAddress>, statistics: &Path) -> Interface {
    let count = |file: &str| {
        let text = fs::read_to_string(statistics.join(file)).unwrap_or_default();
        text.trim().parse().unwrap_or_default()
    };
    Interface {
        name,
        addresses,
        rx_bytes: count("rx_bytes"),
        tx_bytes: count("tx_bytes"),
        rx_errors: count("rx_errors"),
        tx_errors: count("tx_errors"),
    }
}

fn ip_address(entry: &InterfaceAddress) -> Option<IpAddress> {
    let address = ip(entry.address.as_ref()?)?;
    let prefix = match ip(entry.netmask.as_ref()?)? {
        IpAddr::V4(mask) => mask.to_bits().count_ones(),
        IpAddr::V6(mask) => mask.to_bits().count_ones(),
    };
    Some(IpAddress { address: address.to_string(), prefix })
}

fn ip(address: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_and_name_servers() {
        let v4 = "Iface\tDestination\tGateway\tFlags\nenp0s2\t00000000\t0202000A\t0003\n\
                  enp0s2\t0002000A\t00000000\t0001\n";
        assert_eq!(gateways_v4(v4), [IpAddr::V4(Ipv4Addr::new(10, 0, 2, 2))]);
        let zero = "0".repeat(32);
        let v6 = format!(
            "{zero} 00 {zero} 00 fe800000000000000000000000000001 00000400 1 0 3 enp0s2\n{zero} 00 {zero} 00 {zero} ffffffff 1 0 200200 lo\n"
        );
        assert_eq!(gateways_v6(&v6).iter().map(ToString::to_string).collect::<Vec<_>>(), ["fe80::1"]);
        assert_eq!(name_servers("# x\nnameserver 10.0.2.3\nsearch a\nnameserver\n"), ["10.0.2.3"]);
    }

    #[test]
    fn this_machine_has_no_loopback_in_the_list() {
        assert!(collect().interfaces.iter().all(|i| i.name != "lo"));
    }
}
