// SPDX-License-Identifier: Apache-2.0
//! Which sessions the kernel takes over.

use crate::client::client;
use crate::world::{echo, serve_port};
use crate::{BULK, always, joined, pattern, support, well, with};
use dstack_core::flow::{Ktls, Timeouts};
use std::io::{Read, Write};

fn talk(world: &crate::World, port: u16, tls12: bool, size: usize) {
    let mut tls = joined(world, port, &client(tls12, &[]));
    let sent = pattern(size);
    for part in sent.chunks(32 * 1024) {
        tls.write_all(part).unwrap();
        let mut back = vec![0; part.len()];
        tls.read_exact(&mut back).unwrap();
        assert!(back == part);
    }
    tls.conn.send_close_notify();
    tls.flush().unwrap();
    assert_eq!(tls.read(&mut [0]).unwrap(), 0);
}

/// Runs on every kernel: where there is no kTLS, nothing is taken over and all goes on.
#[test]
fn the_setting_and_the_kernel_decide() {
    let port = echo("127.23.1.1");
    let (any, rekey) = support().map_or((false, false), |support| (true, support.rekey));
    for (setting, wanted) in
        [(Ktls::Off, [false, false]), (Ktls::Auto, [rekey, any]), (Ktls::Always, [any, any])]
    {
        let world = with("127.23.1.1", setting, Timeouts::default());
        talk(&world, port, false, BULK);
        world.counted(|s| s.counters.ktls_offered == u64::from(any));
        talk(&world, port, true, BULK);
        well(&world, 2, wanted.into_iter().map(u64::from).sum());
    }
}

#[test]
fn small_answers_stay_where_they_are() {
    let Some(_) = support() else { return };
    let port = echo("127.23.2.1");
    let world = always("127.23.2.1");
    talk(&world, port, false, 100_000);
    talk(&world, port, true, 100_000);
    well(&world, 2, 0);
}

#[test]
fn what_is_passed_through_is_not_touched() {
    let Some(_) = support() else { return };
    let port = serve_port("127.23.3.1", |mut stream| {
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        stream.write_all(&all).unwrap();
    });
    let world = always("127.23.3.1");
    let name = format!("{}-{port}s.{}", crate::world::id(9), crate::world::BASE);
    let mut bytes = crate::client::hello(&name, None, 0);
    bytes.extend_from_slice(&pattern(BULK));
    let mut stream = crate::world::connect(world.ingress);
    stream.write_all(&bytes).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut back = Vec::new();
    stream.read_to_end(&mut back).unwrap();
    assert!(back == bytes);
    world.counted(|s| s.counters.passed_through == 1 && s.counters.ktls == 0 && s.counters.open == 0);
}
