// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used)]
use super::*;

const NOW: u64 = 1_800_000_000;

fn resolved(id: u8, ip: &str, endpoint: &str) -> Resolved {
    let public_key = PublicKey::from([id; 32]).to_string();
    Resolved { public_key, ip: ip.into(), endpoint: endpoint.parse().unwrap() }
}

fn tunnel(client: &str, servers: &[Resolved]) -> Result<Tunnel, AnswerError> {
    let address = Address::parse("https://tproxy.example").unwrap();
    let agent = AgentConfig { external_port: 443, domain: "app.example".into(), ..Default::default() };
    Tunnel::new(&address, client, servers, &agent, NOW)
}

#[test]
fn p27_an_answer_is_keys_and_addresses_and_nothing_else() {
    let good = resolved(1, "10.4.0.1", "192.0.2.1:51820");
    assert!(tunnel("10.4.0.7", std::slice::from_ref(&good)).is_ok());
    let key = |key: &str| Resolved { public_key: key.into(), ..good.clone() };
    let lines = format!("{}\nEndpoint = 192.0.2.9:1", good.public_key);
    for bad in [
        key(""),
        key(&lines),
        key("00"),
        resolved(1, "10.4.0.1/0", "192.0.2.1:51820"),
        resolved(1, "10.4.0.1\nAllowedIPs = 0.0.0.0/0", "192.0.2.1:51820"),
        resolved(1, "10.4.0.7", "192.0.2.1:51820"),
        resolved(1, "fd00::1", "192.0.2.1:51820"),
        resolved(1, "10.4.0.1", "192.0.2.1:0"),
        resolved(1, "10.4.0.1", "127.0.0.1:51820"),
        resolved(1, "10.4.0.1", "[::]:51820"),
    ] {
        assert!(tunnel("10.4.0.7", std::slice::from_ref(&bad)).is_err(), "{bad:?}");
    }
    assert_eq!(tunnel("10.4.0.7", &[]), Err(AnswerError("list of servers")));
}

#[test]
fn no_answer_leads_public_traffic_into_the_tunnel() {
    let server = resolved(1, "10.4.0.1", "192.0.2.1:51820");
    for bad in [
        "",
        "8.8.8.8",
        "127.0.0.1",
        "0.0.0.0",
        "169.254.0.1",
        "224.0.0.1",
        "100.128.0.1",
        "172.17.0.2",
        "192.168.1.1",
        "2001:db8::1",
        "fe80::1",
    ] {
        assert_eq!(tunnel(bad, std::slice::from_ref(&server)), Err(AnswerError("client_ip")), "{bad}");
        let server = resolved(1, bad, "192.0.2.1:51820");
        assert_eq!(tunnel("10.4.0.7", &[server]), Err(AnswerError("server address")), "{bad}");
    }
    for good in ["10.0.0.1", "10.255.0.1", "100.64.0.1"] {
        assert!(tunnel(good, std::slice::from_ref(&server)).is_ok(), "{good}");
    }
}

#[test]
fn t19_a_server_gets_its_one_address_and_no_more() {
    let key = PrivateKey::from([9; 32]);
    let one =
        tunnel("10.4.0.7", &[resolved(1, "10.4.0.1", "192.0.2.1:1"), resolved(2, "10.4.0.2", "192.0.2.2:1")]);
    let two = tunnel("10.5.0.9", &[resolved(3, "10.5.0.1", "192.0.2.3:1")]);
    let plan = plan(&key, &[one.unwrap(), two.unwrap()]);
    let text = |nets: &[Net]| nets.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(text(&plan.interface.addresses), ["10.4.0.7/32", "10.5.0.9/32"]);
    assert_eq!(text(&plan.interface.routes), ["10.4.0.1/32", "10.4.0.2/32", "10.5.0.1/32"]);
    assert_eq!(plan.interface.name.as_str(), "dstack-wg0");
    assert!(plan.left_out.is_empty() && plan.peers.len() == 3);
    for peer in &plan.peers {
        assert_eq!((peer.allowed.len(), peer.keepalive), (1, 25));
        assert_eq!(peer.allowed[0].prefix(), 32);
    }
}

#[test]
fn others_in_the_guest_read_where_the_app_is_served() {
    let mut state = crate::network::state::State::default();
    state.put(tunnel("10.4.0.7", &[resolved(1, "10.4.0.1", "192.0.2.1:51820")]).unwrap());
    let read = dstack_core::registrations::parse(&serde_json::to_vec(&state).unwrap());
    let app = "00112233445566778899aabbccddeeff00112233".parse().unwrap();
    let urls: Vec<String> = read.iter().map(|one| one.url(&app)).collect();
    assert_eq!(urls, [format!("https://{app}.app.example/")]);
}

#[test]
fn p28_an_address_that_two_tproxies_give_is_the_first_ones() {
    let key = PrivateKey::from([9; 32]);
    let one = tunnel("10.4.0.7", &[resolved(1, "10.4.0.1", "192.0.2.1:1")]).unwrap();
    // The same address by another key, and our own address at the other tproxy.
    let servers = [resolved(2, "10.4.0.1", "192.0.2.2:1"), resolved(3, "10.4.0.7", "192.0.2.3:1")];
    let two = tunnel("10.4.0.9", &servers).unwrap();
    let plan = super::plan(&key, &[one.clone(), two]);
    assert_eq!(plan.peers.iter().map(|p| p.public_key).collect::<Vec<_>>(), [one.servers[0].public_key]);
    assert_eq!(plan.left_out.len(), 2);
    // One server behind two names is one peer.
    let again = super::plan(&key, &[one.clone(), Tunnel { tproxy: "other:1".into(), ..one }]);
    assert_eq!((again.peers.len(), again.left_out.len(), again.interface.addresses.len()), (1, 0, 1));
}

#[test]
fn a_tunnel_is_stale_without_handshakes() {
    let tunnel = tunnel("10.4.0.7", &[resolved(1, "10.4.0.1", "192.0.2.1:1")]).unwrap();
    for (newest, later, stale) in [
        (None, 0, false),
        (None, STALE - 1, false),
        (None, STALE, true),
        (Some(NOW + 100), STALE, false),
        (Some(NOW + 100), 100 + STALE, true),
        (Some(NOW - 500), 10, false),
        (Some(NOW + REFRESH), REFRESH, true),
    ] {
        assert_eq!(tunnel.is_stale(newest, NOW + later), stale, "{newest:?} {later}");
    }
    assert!(tunnel.is_stale(None, NOW - 1), "the clock was set back");
}
