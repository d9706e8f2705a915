// SPDX-License-Identifier: Apache-2.0
//! Who has which context id and which host port. Leases live in the VMs' records; these are the rules, without I/O.

use crate::settings::PortPolicy;
use dstack_core::spec::PortMapping;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::ops::Range;

/// The first id of the pool that no VM has leased and nobody else on the host uses.
#[must_use]
pub fn free_cid(pool: Range<u32>, leased: &BTreeSet<u32>, in_use: impl Fn(u32) -> bool) -> Option<u32> {
    pool.into_iter().find(|cid| !leased.contains(cid) && !in_use(*cid))
}

/// Why a mapping is outside the policy, as the end of a sentence; `None` when it is inside.
#[must_use]
pub fn not_allowed(policy: &PortPolicy, port: &PortMapping) -> Option<String> {
    if !policy.enabled {
        return Some("port mapping is off (cvm.port_mapping.enabled)".to_owned());
    }
    if !address_allowed(policy.address, port.host_address) {
        return Some(format!(
            "the host address must be {} or a loopback address (cvm.port_mapping.address)",
            policy.address
        ));
    }
    let mut ranges = policy.ranges.iter().filter(|r| r.protocol == port.protocol);
    if ranges.any(|r| (r.from..=r.to).contains(&port.host_port)) {
        return None;
    }
    Some(format!("allowed are {} (cvm.port_mapping.range)", describe_ranges(policy)))
}

fn describe_ranges(policy: &PortPolicy) -> String {
    let ranges: Vec<String> =
        policy.ranges.iter().map(|r| format!("{} {} to {}", r.protocol, r.from, r.to)).collect();
    if ranges.is_empty() { "none".to_owned() } else { ranges.join(", ") }
}

/// A loopback address is never wider than what the operator allows.
fn address_allowed(widest: IpAddr, asked: IpAddr) -> bool {
    asked == widest || widest.is_unspecified() || asked.is_loopback()
}

/// Whether two mappings cannot both listen.
#[must_use]
pub fn conflict(a: &PortMapping, b: &PortMapping) -> bool {
    let address = |x: IpAddr, y: IpAddr| x == y || x.is_unspecified() || y.is_unspecified();
    a.protocol == b.protocol && a.host_port == b.host_port && address(a.host_address, b.host_address)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::settings::Settings;
    use dstack_core::spec::Protocol;

    fn port(protocol: Protocol, address: &str, host_port: u16) -> PortMapping {
        PortMapping { protocol, host_address: address.parse().unwrap(), host_port, vm_port: 80 }
    }

    #[test]
    fn cids_are_leased_in_order_and_foreign_ones_skipped() {
        let leased = BTreeSet::from([10, 12]);
        assert_eq!(free_cid(10..14, &leased, |_| false), Some(11));
        assert_eq!(free_cid(10..14, &leased, |cid| cid == 11), Some(13));
        assert_eq!(free_cid(10..13, &leased, |cid| cid == 11), None);
        assert_eq!(free_cid(10..10, &leased, |_| false), None);
    }

    #[test]
    fn the_policy_bounds_address_protocol_and_port() {
        let mut policy = Settings::default().ports;
        for (mapping, part) in [
            (port(Protocol::Tcp, "127.0.0.1", 1024), None),
            (port(Protocol::Udp, "127.0.0.1", 32767), None),
            (port(Protocol::Tcp, "::1", 8080), None),
            (port(Protocol::Tcp, "127.0.0.1", 1023), Some("tcp 1024 to 32767")),
            (port(Protocol::Tcp, "0.0.0.0", 8080), Some("127.0.0.1")),
        ] {
            let reason = not_allowed(&policy, &mapping);
            assert_eq!(reason.is_some(), part.is_some(), "{mapping}");
            assert!(reason.unwrap_or_default().contains(part.unwrap_or_default()), "{mapping}");
        }
        policy.address = [0, 0, 0, 0].into();
        assert_eq!(not_allowed(&policy, &port(Protocol::Tcp, "192.0.2.1", 8080)), None);
        policy.enabled = false;
        assert!(not_allowed(&policy, &port(Protocol::Tcp, "127.0.0.1", 8080)).unwrap().contains("off"));
    }

    #[test]
    fn ports_conflict_only_on_the_same_protocol_and_address() {
        let a = port(Protocol::Tcp, "127.0.0.1", 80);
        for (other, expected) in [
            (port(Protocol::Tcp, "127.0.0.1", 80), true),
            (port(Protocol::Tcp, "0.0.0.0", 80), true),
            (port(Protocol::Tcp, "127.0.0.2", 80), false),
            (port(Protocol::Udp, "127.0.0.1", 80), false),
            (port(Protocol::Tcp, "127.0.0.1", 81), false),
        ] {
            assert_eq!(conflict(&a, &other), expected, "{other}");
        }
    }
}
