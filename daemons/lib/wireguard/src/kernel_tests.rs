// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used)]
use super::*;
use dstack_core::wireguard::ALLOWED_MAX;
use netlink_packet_wireguard::WireguardTimeSpec;
use rtnetlink::packet_core::{Emitable, ParseableParametrized};

fn sample(id: u16, nets: usize) -> Peer {
    let mut key = [0; 32];
    key.iter_mut().zip(id.to_be_bytes()).for_each(|(to, from)| *to = from);
    Peer {
        public_key: PublicKey::from(key),
        endpoint: Some("[2001:db8::1]:51820".parse().unwrap()),
        allowed: vec!["fd00::7/128".parse().unwrap(); nets],
        keepalive: 25,
    }
}

fn bytes(peers: Vec<WireguardPeer>) -> Vec<u8> {
    let message =
        WireguardMessage { cmd: WireguardCmd::SetDevice, attributes: vec![WireguardAttribute::Peers(peers)] };
    let mut buffer = vec![0; message.buffer_len()];
    message.emit(&mut buffer);
    buffer
}

#[test]
fn no_message_is_larger_than_an_attribute_may_be() {
    for nets in [0, 1, ALLOWED_MAX] {
        let peers: Vec<Peer> = (0..2000).map(|id| sample(id, nets)).collect();
        let batches = batches(peers.iter().map(peer).collect());
        assert_eq!(batches.iter().map(Vec::len).sum::<usize>(), peers.len());
        for batch in batches {
            assert!(bytes(batch).len() <= usize::from(u16::MAX), "{nets} networks");
        }
    }
    assert!(batches(Vec::new()).is_empty());
}

#[test]
fn what_is_sent_is_read_back() {
    let wanted = sample(7, 3);
    let sent = bytes(vec![peer(&wanted)]);
    let header = netlink_packet_generic::GenlHeader { cmd: 1, version: 1 };
    let message = WireguardMessage::parse_with_param(&sent, header).unwrap();
    let mut status = InterfaceStatus::default();
    merge(&mut status, message.attributes);
    let expected = PeerStatus {
        endpoint: wanted.endpoint,
        allowed: wanted.allowed,
        keepalive: 25,
        ..PeerStatus::new(wanted.public_key)
    };
    assert_eq!(status.peers, [expected]);
}

#[test]
fn a_peer_goes_on_in_the_next_message() {
    let part = |time: i64, net: &str| {
        let mut part = vec![
            WireguardPeerAttribute::PublicKey([7; 32]),
            WireguardPeerAttribute::AllowedIps(vec![allowed(&net.parse().unwrap())]),
        ];
        let time = WireguardTimeSpec { seconds: time, nano_seconds: 0 };
        part.push(WireguardPeerAttribute::LastHandshake(time));
        vec![WireguardAttribute::Peers(vec![WireguardPeer(part)])]
    };
    let mut status = InterfaceStatus::default();
    merge(&mut status, part(5, "10.0.0.1/32"));
    merge(&mut status, part(0, "10.0.0.2/32"));
    assert_eq!((status.peers.len(), status.peers[0].allowed.len()), (1, 2));
    assert_eq!(status.peers[0].last_handshake, Some(5));
}
