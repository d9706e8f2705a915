// SPDX-License-Identifier: Apache-2.0
//! The addresses of the tunnel: each is leased to at most one instance. Pure.

use dstack_core::wireguard::Net;
use std::collections::{BTreeSet, HashSet};
use std::net::{IpAddr, Ipv4Addr};

/// A network of IPv4 addresses, by its first and last address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    first: u32,
    last: u32,
}

impl Range {
    /// `None` for a network of IPv6.
    #[must_use]
    pub fn of(net: &Net) -> Option<Self> {
        let IpAddr::V4(address) = net.network().address() else { return None };
        let first = u32::from(address);
        let hosts = u32::MAX.checked_shr(net.prefix().into()).unwrap_or(0);
        Some(Self { first, last: first | hosts })
    }

    /// Whether an address is inside.
    #[must_use]
    pub fn contains(self, address: Ipv4Addr) -> bool {
        (self.first..=self.last).contains(&address.into())
    }
}

/// The client range, without its first and last address, our own, and reserved nets.
#[derive(Debug, Clone)]
pub struct Pool {
    range: Range,
    own: u32,
    reserved: Vec<Range>,
    /// Addresses below it are leased, given back, or never leased.
    next: u32,
    given_back: BTreeSet<u32>,
    leased: HashSet<u32>,
}

impl Pool {
    /// A pool in which nothing is leased.
    #[must_use]
    pub fn new(range: Range, own: Ipv4Addr, reserved: Vec<Range>) -> Self {
        let next = range.first.saturating_add(1);
        Self { range, own: own.into(), reserved, next, given_back: BTreeSet::new(), leased: HashSet::new() }
    }

    /// Whether an address may be leased at all.
    #[must_use]
    pub fn has(&self, address: Ipv4Addr) -> bool {
        let number = u32::from(address);
        let inside = number > self.range.first && number < self.range.last;
        inside && number != self.own && !self.reserved.iter().any(|range| range.contains(address))
    }

    /// Leases the lowest free address; `None` when all are leased.
    pub fn lease(&mut self) -> Option<Ipv4Addr> {
        if let Some(number) = self.given_back.pop_first() {
            self.leased.insert(number);
            return Some(number.into());
        }
        while self.next < self.range.last {
            let number = self.next;
            self.next += 1;
            if self.has(number.into()) && self.leased.insert(number) {
                return Some(number.into());
            }
        }
        None
    }

    /// Leases this very address, as an earlier run did; `false` when it is leased or not ours to lease.
    pub fn claim(&mut self, address: Ipv4Addr) -> bool {
        let number = u32::from(address);
        let free = self.has(address) && self.leased.insert(number);
        if free {
            self.given_back.remove(&number);
        }
        free
    }

    /// Ends a lease.
    pub fn give_back(&mut self, address: Ipv4Addr) {
        let number = u32::from(address);
        if self.leased.remove(&number) && number < self.next {
            self.given_back.insert(number);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pool(net: &str, own: &str, reserved: &[&str]) -> Pool {
        let range = |text: &str| Range::of(&text.parse().unwrap()).unwrap();
        Pool::new(range(net), own.parse().unwrap(), reserved.iter().map(|n| range(n)).collect())
    }

    #[test]
    fn own_edge_and_reserved_addresses_are_skipped() {
        let mut pool = pool("10.0.0.0/28", "10.0.0.1", &["10.0.0.4/30"]);
        let all: Vec<String> = std::iter::from_fn(|| pool.lease()).map(|a| a.to_string()).collect();
        let expected = [2, 3, 8, 9, 10, 11, 12, 13, 14].map(|n| format!("10.0.0.{n}"));
        assert_eq!(all, expected);
        pool.give_back("10.0.0.9".parse().unwrap());
        pool.give_back("10.0.0.9".parse().unwrap());
        assert_eq!(pool.lease().unwrap().to_string(), "10.0.0.9");
        assert_eq!(pool.lease(), None);
    }

    #[test]
    fn p28_leases_of_an_earlier_run_are_kept_and_never_given_twice() {
        let mut pool = pool("10.0.0.0/29", "10.0.0.1", &[]);
        assert!(pool.claim("10.0.0.3".parse().unwrap()));
        for bad in ["10.0.0.3", "10.0.0.1", "10.0.0.0", "10.0.0.7", "10.0.1.2"] {
            assert!(!pool.claim(bad.parse().unwrap()), "{bad}");
        }
        let rest: Vec<String> = std::iter::from_fn(|| pool.lease()).map(|a| a.to_string()).collect();
        assert_eq!(rest, ["10.0.0.2", "10.0.0.4", "10.0.0.5", "10.0.0.6"]);
    }

    #[test]
    fn the_smallest_and_the_last_net_have_no_overflow() {
        for net in ["10.0.0.0/32", "10.0.0.0/31", "255.255.255.255/32"] {
            assert_eq!(pool(net, "10.0.0.1", &[]).lease(), None, "{net}");
        }
        let mut top = pool("255.255.255.252/30", "255.255.255.253", &[]);
        assert_eq!(top.lease().unwrap().to_string(), "255.255.255.254");
        assert_eq!(top.lease(), None);
    }

    proptest! {
        #[test]
        fn p28_no_address_is_leased_twice(steps in prop::collection::vec((0_u8..3, 0_u8..16), 0..200)) {
            let mut pool = pool("10.0.0.0/28", "10.0.0.1", &["10.0.0.8/31"]);
            let mut held = HashSet::new();
            for (what, number) in steps {
                let address = Ipv4Addr::new(10, 0, 0, number);
                match what {
                    0 => if let Some(address) = pool.lease() { prop_assert!(held.insert(address)) },
                    1 => if pool.claim(address) { prop_assert!(held.insert(address)) },
                    _ => { pool.give_back(address); held.remove(&address); }
                }
            }
            while let Some(address) = pool.lease() { prop_assert!(held.insert(address)); }
            prop_assert_eq!(held.len(), 11);
        }
    }
}
