// SPDX-License-Identifier: Apache-2.0
//! passt's command line: the VM's network in user space (`dstack-vm-net@.service`).
//!
//! Trust rule T19: a guest reaches nothing on the host's loopback. passt maps its gateway's address to the host's
//! loopback unless told not to; and the guest has an address of its own, so that the host's stay the host's. The one
//! exception is a resolver on the host's loopback: queries (and nothing else) to [`RESOLVER`] are handed to it.

use dstack_core::qemu::NET_SOCKET;
use dstack_core::spec::{LaunchSpec, PortMapping, Protocol};
use std::net::{IpAddr, Ipv4Addr};

/// The guest's address.
pub const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
/// The guest's gateway.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// The guest's resolver, when the host's own is on its loopback.
pub const RESOLVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
/// Length of the guest's prefix.
pub const PREFIX: u8 = 24;
/// Most resolvers that a guest is told.
const RESOLVERS_MAX: usize = 3;

/// The IPv4 resolvers of a `resolv.conf`, in order.
#[must_use]
pub fn resolvers(conf: &str) -> Vec<Ipv4Addr> {
    let address = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        (words.next()? == "nameserver").then(|| words.next()?.parse::<Ipv4Addr>().ok())?
    };
    conf.lines().filter_map(address).collect()
}

/// passt's arguments: foreground never, so that its start is over when it serves.
#[must_use]
pub fn arguments(launch: &LaunchSpec, resolvers: &[Ipv4Addr]) -> Vec<String> {
    let mut args: Vec<String> = ["--quiet", "--socket", NET_SOCKET, "--no-map-gw"].map(str::to_owned).into();
    let pairs = [("-a", GUEST.to_string()), ("-n", PREFIX.to_string()), ("-g", GATEWAY.to_string())];
    args.extend(pairs.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]));
    if !launch.vm.ports.iter().any(|port| port.host_address.is_ipv6()) {
        args.push("--ipv4-only".to_owned());
    }
    args.extend(resolver_arguments(resolvers));
    for (flag, protocol) in [("-t", Protocol::Tcp), ("-u", Protocol::Udp)] {
        args.extend(port_arguments(flag, protocol, &launch.vm.ports));
    }
    args
}

fn resolver_arguments(resolvers: &[Ipv4Addr]) -> Vec<String> {
    let told = |address: Ipv4Addr| ["-D".to_owned(), address.to_string()];
    match resolvers.first() {
        // An empty -D: the guest is told no resolver.
        None => vec!["-D".to_owned(), String::new()],
        Some(first) if first.is_loopback() => {
            let forward = ["--dns-forward".to_owned(), RESOLVER.to_string()];
            let host = ["--dns-host".to_owned(), first.to_string()];
            told(RESOLVER).into_iter().chain(forward).chain(host).collect()
        }
        Some(_) => {
            let reachable = resolvers.iter().filter(|a| !a.is_loopback()).take(RESOLVERS_MAX);
            reachable.flat_map(|address| told(*address)).collect()
        }
    }
}

fn port_arguments(flag: &str, protocol: Protocol, ports: &[PortMapping]) -> Vec<String> {
    let of_protocol = ports.iter().filter(|port| port.protocol == protocol);
    let mut args: Vec<String> = of_protocol.flat_map(|port| [flag.to_owned(), forward(port)]).collect();
    if args.is_empty() {
        args = vec![flag.to_owned(), "none".to_owned()];
    }
    args
}

/// `ADDRESS/HOSTPORT:VMPORT`.
fn forward(port: &PortMapping) -> String {
    let (address, host, vm): (IpAddr, u16, u16) = (port.host_address, port.host_port, port.vm_port);
    format!("{address}/{host}:{vm}")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const LAUNCH: &str = include_str!("../tests/launch.json");

    fn arguments_of(ports: &[(Protocol, &str, u16, u16)], resolvers: &[Ipv4Addr]) -> String {
        let mut launch: LaunchSpec = serde_json::from_str(LAUNCH).unwrap();
        launch.vm.ports = ports
            .iter()
            .map(|(protocol, address, host_port, vm_port)| PortMapping {
                protocol: *protocol,
                host_address: address.parse().unwrap(),
                host_port: *host_port,
                vm_port: *vm_port,
            })
            .collect();
        arguments(&launch, resolvers).join(" ")
    }

    const BASE: &str = "--quiet --socket /tmp/passt.sock --no-map-gw -a 10.0.2.15 -n 24 -g 10.0.2.2";

    #[test]
    fn t19_no_gateway_mapping_and_an_address_of_its_own() {
        let dns = [Ipv4Addr::new(192, 0, 2, 1)];
        assert_eq!(arguments_of(&[], &dns), format!("{BASE} --ipv4-only -D 192.0.2.1 -t none -u none"));
        let ports = [(Protocol::Tcp, "127.0.0.1", 8080, 80), (Protocol::Udp, "0.0.0.0", 53, 53)];
        let text = arguments_of(&ports, &dns);
        assert_eq!(text, format!("{BASE} --ipv4-only -D 192.0.2.1 -t 127.0.0.1/8080:80 -u 0.0.0.0/53:53"));
        assert!(!arguments_of(&[(Protocol::Tcp, "::1", 8080, 80)], &dns).contains("--ipv4-only"));
    }

    #[test]
    fn t19_a_resolver_on_the_loopback_is_reached_by_queries_only() {
        let stub = Ipv4Addr::new(127, 0, 0, 53);
        let other = Ipv4Addr::new(192, 0, 2, 1);
        let text = arguments_of(&[], &[stub, other]);
        assert!(text.contains("-D 10.0.2.3 --dns-forward 10.0.2.3 --dns-host 127.0.0.53 -t"), "{text}");
        assert!(arguments_of(&[], &[other, stub]).contains("-D 192.0.2.1 -t"));
        assert!(arguments_of(&[], &[]).contains("-D  -t"));
    }

    #[test]
    fn resolv_conf() {
        let conf = "# x\nnameserver 127.0.0.53\nnameserver 2001:db8::1\n nameserver\t192.0.2.1 \noptions edns0\nnameserver x\n";
        assert_eq!(resolvers(conf), [Ipv4Addr::new(127, 0, 0, 53), Ipv4Addr::new(192, 0, 2, 1)]);
        assert!(resolvers("").is_empty());
    }
}
