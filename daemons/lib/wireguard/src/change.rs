// SPDX-License-Identifier: Apache-2.0
//! From the peers that are to those that shall be. Peers that need no change are not touched: they keep their sessions.

use crate::{Error, Net, Peer, PeerStatus, PublicKey};
use dstack_core::wireguard::{ALLOWED_MAX, PEERS_MAX};
use std::collections::{BTreeMap, BTreeSet};

/// What must be changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes<'a> {
    /// Peers to add, or to make what is given.
    pub upsert: Vec<&'a Peer>,
    /// Peers to remove.
    pub remove: Vec<PublicKey>,
}

/// Compares; of peers that are wanted twice the last one counts.
#[must_use]
pub fn changes<'a>(current: &[PeerStatus], wanted: &'a [Peer]) -> Changes<'a> {
    let wanted: BTreeMap<PublicKey, &Peer> = wanted.iter().map(|peer| (peer.public_key, peer)).collect();
    let known: BTreeMap<PublicKey, &PeerStatus> =
        current.iter().map(|peer| (peer.public_key, peer)).collect();
    let same = |peer: &Peer| known.get(&peer.public_key).is_some_and(|status| is(status, peer));
    Changes {
        upsert: wanted.values().filter(|peer| !same(peer)).copied().collect(),
        remove: known.keys().filter(|key| !wanted.contains_key(key)).copied().collect(),
    }
}

fn is(status: &PeerStatus, peer: &Peer) -> bool {
    let nets = |nets: &[Net]| nets.iter().map(Net::network).collect::<BTreeSet<Net>>();
    (peer.endpoint.is_none() || peer.endpoint == status.endpoint)
        && peer.keepalive == status.keepalive
        && nets(&peer.allowed) == nets(&status.allowed)
}

/// The limits of what is set.
///
/// # Errors
/// [`Error::TooMany`].
pub fn check(upsert: &[Peer], remove: &[PublicKey]) -> Result<(), Error> {
    let many = upsert.len() > PEERS_MAX || remove.len() > PEERS_MAX;
    let wide = upsert.iter().any(|peer| peer.allowed.len() > ALLOWED_MAX);
    if many || wide { Err(Error::TooMany) } else { Ok(()) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn peer(id: u8, net: &str) -> Peer {
        let allowed = vec![net.parse().unwrap()];
        Peer { public_key: PublicKey::from([id; 32]), endpoint: None, allowed, keepalive: 0 }
    }

    fn status(peer: &Peer) -> PeerStatus {
        let endpoint = Some("192.0.2.1:1".parse().unwrap());
        PeerStatus { allowed: peer.allowed.clone(), endpoint, ..PeerStatus::new(peer.public_key) }
    }

    #[test]
    fn peers_that_stay_are_not_touched() {
        let (one, two, three) = (peer(1, "10.0.0.1/32"), peer(2, "10.0.0.2/32"), peer(3, "10.0.0.3/32"));
        let current = [status(&one), status(&two)];
        assert_eq!(changes(&current, &[one.clone(), two.clone()]), Changes::default());
        let moved = peer(2, "10.0.0.9/32");
        let wanted = [moved.clone(), three.clone()];
        let found = changes(&current, &wanted);
        assert_eq!(found.upsert, [&moved, &three]);
        assert_eq!(found.remove, [one.public_key]);
        assert_eq!(changes(&current, &[]).remove.len(), 2);
    }

    #[test]
    fn an_endpoint_or_interval_that_is_given_is_compared() {
        let one = peer(1, "10.0.0.1/32");
        let current = [status(&one)];
        for (endpoint, keepalive, changed) in [
            (Some("192.0.2.1:1".parse().unwrap()), 0, 0),
            (Some("192.0.2.1:2".parse().unwrap()), 0, 1),
            (None, 25, 1),
        ] {
            let wanted = [Peer { endpoint, keepalive, ..one.clone() }];
            assert_eq!(changes(&current, &wanted).upsert.len(), changed, "{wanted:?}");
        }
    }

    #[test]
    fn limits_hold() {
        let mut wide = peer(1, "10.0.0.1/32");
        assert!(check(&[wide.clone()], &[]).is_ok());
        wide.allowed = vec!["10.0.0.1/32".parse().unwrap(); ALLOWED_MAX + 1];
        assert!(matches!(check(&[wide], &[]), Err(Error::TooMany)));
    }
}
