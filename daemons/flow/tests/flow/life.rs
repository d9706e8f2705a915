// SPDX-License-Identifier: Apache-2.0
//! Changes while it runs, and its end.

use crate::client::{Tls, client, hello, open};
use crate::world::{BASE, Script, World, certificate, config, connect, echo, id, instance};
use dstack_core::flow::{FromFlow, ToFlow};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

fn script(address: &str) -> Script {
    let certificates = vec![certificate(false)];
    Script { config: config(), certificates, instances: vec![instance(1, 9, address)], ..Script::default() }
}

fn ping(tls: &mut Tls) {
    tls.write_all(b"ping").unwrap();
    let mut back = [0; 4];
    tls.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"ping");
}

fn leaf(tls: &Tls) -> Vec<u8> {
    tls.conn.peer_certificates().unwrap()[0].to_vec()
}

#[test]
fn certificates_change_under_open_connections() {
    let port = echo("127.7.1.1");
    let world = World::new(script("127.7.1.1"));
    let name = format!("{}-{port}.{BASE}", id(9));
    let mut old = open(world.ingress, &name, &client(false, &[]));
    ping(&mut old);
    let next = vec![certificate(true)];
    world.say(|script| script.certificates.clone_from(&next), &ToFlow::Certificates(next.clone()));
    loop {
        let mut new = open(world.ingress, &name, &client(false, &[]));
        ping(&mut new);
        if leaf(&new) != leaf(&old) {
            break;
        }
    }
    ping(&mut old);
    // What cannot be used is not used, and what is there goes on.
    let mut broken = certificate(false);
    broken.chain = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".into();
    world.say(|_| {}, &ToFlow::Certificates(vec![broken, next[0].clone()]));
    ping(&mut open(world.ingress, &name, &client(false, &[])));
}

#[test]
fn control_may_go_and_come_back() {
    let port = echo("127.7.2.1");
    let world = World::new(script("127.7.2.1"));
    let name = format!("{}-{port}.{BASE}", id(9));
    let mut before = open(world.ingress, &name, &client(false, &[]));
    ping(&mut before);
    world.restart_control();
    ping(&mut before);
    ping(&mut open(world.ingress, &name, &client(false, &[])));
    world.say(|_| {}, &ToFlow::Drain { instance: [1; 20].into() });
    let mut alert = Vec::new();
    while alert != [21, 3, 3, 0, 2, 2, 80] {
        let mut stream = connect(world.ingress);
        stream.write_all(&hello(&name, None, 0)).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        alert.clear();
        stream.read_to_end(&mut alert).unwrap();
    }
    ping(&mut before);
}

#[test]
fn told_to_stop_it_ends_with_its_last_connection() {
    let port = echo("127.7.3.1");
    let mut world = World::new(script("127.7.3.1"));
    let name = format!("{}-{port}.{BASE}", id(9));
    let mut open = open(world.ingress, &name, &client(false, &[]));
    ping(&mut open);
    world.terminate();
    // It closes its listening socket: the address is free again for the next.
    while TcpStream::connect(world.ingress).is_ok() {}
    ping(&mut open);
    assert!(world.child.try_wait().unwrap().is_none());
    drop(open);
    world.expect(|message| matches!(message, FromFlow::Stats(stats) if stats.counters.open == 0));
    world.expect(|message| matches!(message, FromFlow::Drained {}));
    assert!(world.child.wait().unwrap().success());
    TcpListener::bind(world.ingress).map(drop).unwrap_or(());
}
