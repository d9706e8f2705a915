// SPDX-License-Identifier: Apache-2.0
//! Real interfaces in a network namespace of the test: by the kernel where it has WireGuard, else by wireguard-go, which
//! is started as `dstack-wireguard@.service` starts it: by the first connection to its socket.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use dstack_keys::Secret;
use dstack_keys::derive::x25519_public;
use dstack_wireguard::{
    Error, InterfaceConfig, InterfaceName, Net, Peer, PeerStatus, PrivateKey, PublicKey, System, Wireguard,
};
use std::process::{Child, Command};
use std::time::Duration;

const INSIDE: &str = "DSTACK_WIREGUARD_TEST";
/// Loopback up, and an empty /run with the directory of the daemons' sockets.
const SETUP: &str = "mount -t tmpfs tmpfs /run && mkdir -m 700 /run/wireguard && ip link set lo up && \
                     exec \"$0\" --exact \"$1\" --nocapture";

/// Whether this is the test inside its own namespaces; otherwise it is run there, or skipped aloud.
fn inside(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let unshare = |args: &[&str]| {
        Command::new("unshare").args(["--net", "--mount"]).args(args).env(INSIDE, "1").output()
    };
    if !unshare(&["true"]).is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: needs root and network namespaces");
        return false;
    }
    let program = std::env::current_exe().unwrap();
    let output = unshare(&["sh", "-c", SETUP, program.to_str().unwrap(), test]).unwrap();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    eprintln!("{text}");
    false
}

/// A user-space daemon; ends with the test.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Listens for the first connection and then becomes wireguard-go, as systemd would do it.
fn daemon(name: &InterfaceName) -> Daemon {
    let path = format!("/run/wireguard/{name}.sock");
    let mut command = Command::new("systemd-socket-activate");
    command.args(["--listen", &path, "--setenv=WG_UAPI_FD=3", "wireguard-go", "--foreground", name.as_str()]);
    let daemon = Daemon(command.spawn().unwrap());
    while !std::path::Path::new(&path).exists() {
        std::thread::sleep(Duration::from_millis(20));
    }
    daemon
}

fn installed(program: &str) -> bool {
    Command::new("sh")
        .args(["-c", &format!("command -v {program}")])
        .output()
        .is_ok_and(|o| o.status.success())
}

fn key(id: u8) -> (PrivateKey, PublicKey) {
    let secret = Secret::from([id; 32]);
    (PrivateKey::from([id; 32]), PublicKey::from(x25519_public(&secret).unwrap()))
}

fn config(name: &str, id: u8, port: u16, address: &str) -> InterfaceConfig {
    InterfaceConfig {
        name: name.parse().unwrap(),
        private_key: key(id).0,
        listen_port: Some(port),
        addresses: vec![address.parse().unwrap()],
        mtu: Some(1300),
        routes: Vec::new(),
    }
}

fn peer(public_key: PublicKey, net: &str) -> Peer {
    Peer { public_key, endpoint: None, allowed: vec![net.parse().unwrap()], keepalive: 0 }
}

fn ip(args: &[&str]) -> String {
    let output = Command::new("ip").args(args).output().unwrap();
    assert!(output.status.success(), "{args:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Makes the interface, starting a daemon for it where the kernel has no WireGuard. `Err`: why it cannot be had here.
async fn make(system: &System, config: &InterfaceConfig) -> Result<Option<Daemon>, &'static str> {
    match system.ensure(config).await {
        Ok(()) => return Ok(None),
        Err(Error::Missing { error, .. }) => assert_eq!(error.kind(), std::io::ErrorKind::NotFound),
        Err(error) => panic!("{error}"),
    }
    if !["systemd-socket-activate", "wireguard-go"].iter().all(|program| installed(program)) {
        return Err("no WireGuard in the kernel, and no wireguard-go with systemd-socket-activate");
    }
    let daemon = daemon(&config.name);
    system.ensure(config).await.unwrap();
    Ok(Some(daemon))
}

/// The only peer once it has shaken hands.
async fn shaken(system: &System, name: &InterfaceName) -> PeerStatus {
    for _ in 0..300 {
        let status = system.dump(name).await.unwrap();
        if let [peer] = status.peers.as_slice()
            && peer.last_handshake.is_some()
        {
            return peer.clone();
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("no handshake");
}

#[tokio::test]
async fn two_interfaces_shake_hands() {
    if !inside("two_interfaces_shake_hands") {
        return;
    }
    let system = System::open().unwrap();
    let (a, b) = (config("wga", 0x41, 51820, "10.44.0.1/24"), config("wgb", 0x42, 51821, "10.45.0.1/24"));
    let first = make(&system, &a).await;
    let Ok(_first) = first.inspect_err(|why| eprintln!("skipped: {why}")) else { return };
    let _second = make(&system, &b).await.unwrap();
    let (key_a, key_b) = (key(0x41).1, key(0x42).1);
    system.set_peers(&a.name, &[peer(key_b, "10.45.0.1/32")]).await.unwrap();
    let endpoint = Some("127.0.0.1:51820".parse().unwrap());
    let to_a = [Peer { endpoint, keepalive: 25, ..peer(key_a, "10.44.0.1/32") }];
    system.set_peers(&b.name, &to_a).await.unwrap();
    let (at_a, at_b) = (shaken(&system, &a.name).await, shaken(&system, &b.name).await);
    assert_eq!((at_a.public_key, at_b.public_key), (key_b, key_a));
    assert_eq!(at_a.endpoint, Some("127.0.0.1:51821".parse().unwrap()), "learned from its packets");
    assert_eq!((at_b.endpoint, at_b.keepalive), (endpoint, 25));
    assert!(at_a.rx_bytes > 0 && at_b.tx_bytes > 0, "{at_a:?} {at_b:?}");
    assert_eq!(at_a.allowed, ["10.45.0.1/32".parse::<Net>().unwrap()]);

    // The same again changes nothing, so the session stays; other addresses and routes take the place of the old ones.
    system.set_peers(&b.name, &to_a).await.unwrap();
    let moved = InterfaceConfig {
        addresses: vec!["10.46.0.1/32".parse().unwrap(), "fd00:46::1/64".parse().unwrap()],
        routes: vec!["10.47.0.0/24".parse().unwrap(), "10.48.0.1/32".parse().unwrap()],
        ..b.clone()
    };
    for _ in 0..2 {
        system.ensure(&moved).await.unwrap();
    }
    assert_eq!(shaken(&system, &b.name).await.last_handshake, at_b.last_handshake);
    let shown = ip(&["-o", "address", "show", "dev", "wgb"]);
    assert!(shown.contains("10.46.0.1/32") && !shown.contains("10.45.0.1"), "{shown}");
    assert!(ip(&["link", "show", "dev", "wgb"]).contains("mtu 1300"));
    assert!(ip(&["route", "show", "dev", "wgb"]).contains("10.47.0.0/24"));
    let fewer = InterfaceConfig { routes: vec!["10.48.0.1/32".parse().unwrap()], ..moved };
    system.ensure(&fewer).await.unwrap();
    let shown = ip(&["route", "show", "dev", "wgb"]);
    assert!(shown.contains("10.48.0.1") && !shown.contains("10.47.0.0"), "{shown}");

    many_peers(&system, &a.name, key_b).await;
    for name in [&a.name, &b.name] {
        system.delete(name).await.unwrap();
        assert!(matches!(system.dump(name).await, Err(Error::NoInterface(_))));
        system.delete(name).await.unwrap();
    }
}

/// More peers than one message takes: added, moved, removed, also those that are not there.
async fn many_peers(system: &System, name: &InterfaceName, kept: PublicKey) {
    let id = |n: u16| {
        let mut bytes = [0x77; 32];
        bytes.iter_mut().zip(n.to_be_bytes()).for_each(|(to, from)| *to = from);
        PublicKey::from(bytes)
    };
    let net = |n: u16| format!("10.50.{}.{}/32", n / 256, n % 256);
    let peers: Vec<Peer> = (0..1000).map(|n| peer(id(n), &net(n))).collect();
    system.update_peers(name, &peers, &[]).await.unwrap();
    assert_eq!(system.dump(name).await.unwrap().peers.len(), 1001);
    // A network belongs to one peer: whoever gets it last.
    system.update_peers(name, &[peer(id(5), &net(6))], &[id(7), id(2000)]).await.unwrap();
    let status = system.dump(name).await.unwrap();
    let allowed =
        |n: u16| status.peers.iter().find(|peer| peer.public_key == id(n)).map(|peer| peer.allowed.len());
    assert_eq!((allowed(5), allowed(6), allowed(7)), (Some(1), Some(0), None));
    system.set_peers(name, &[peer(kept, "10.45.0.1/32")]).await.unwrap();
    let status = system.dump(name).await.unwrap();
    assert_eq!(status.peers.iter().map(|peer| peer.public_key).collect::<Vec<_>>(), [kept]);
    assert!(status.peers[0].last_handshake.is_some(), "its session was not touched");
}

#[tokio::test]
async fn an_interface_of_another_kind_is_not_touched() {
    if !inside("an_interface_of_another_kind_is_not_touched") {
        return;
    }
    let system = System::open().unwrap();
    let lo = config("lo", 0x41, 51820, "10.44.0.1/24");
    assert!(matches!(system.ensure(&lo).await, Err(Error::Foreign(_))));
    assert!(matches!(system.delete(&lo.name).await, Err(Error::Foreign(_))));
    assert!(matches!(system.set_peers(&lo.name, &[]).await, Err(Error::Foreign(_))));
    assert!(!ip(&["address", "show", "dev", "lo"]).contains("10.44.0.1"));
    assert!(matches!(system.dump(&"wgx".parse().unwrap()).await, Err(Error::NoInterface(_))));
}
