// SPDX-License-Identifier: Apache-2.0
//! Clients of TLS 1.3 that change keys.

use crate::client::client;
use crate::world::{BASE, World, echo, id};
use crate::{always, joined, pattern, support, well, with};
use dstack_core::flow::{Ktls, Timeouts};
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};

/// `openssl s_client` with commands in its input.
pub fn s_client(world: &World, port: u16, options: &[&str]) -> Child {
    let (to, name) = (world.ingress.to_string(), format!("{}-{port}.{BASE}", id(9)));
    Command::new("openssl")
        .args(["s_client", "-connect", &to, "-servername", &name])
        .args(options)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program openssl")
}

/// Lets so much go both ways that the kernel takes over; lines, none of which is a command.
pub fn bulk(input: &mut ChildStdin, lines: &mut impl Iterator<Item = String>) {
    for number in 0..600 {
        let line = format!("{number:0>1000}");
        input.write_all(format!("{line}\n").as_bytes()).unwrap();
        assert!(lines.any(|answer| answer == line), "the app has not answered");
    }
}

fn ping(input: &mut ChildStdin, lines: &mut impl Iterator<Item = String>, word: &str) {
    input.write_all(format!("{word}\n").as_bytes()).unwrap();
    assert!(lines.any(|line| line == word), "no {word}");
}

/// What `K` (we want new keys of both) and `k` (of ours alone) do to a session; how many the kernel has by then.
fn keys_change(world: &World, port: u16, taken: u64) {
    let mut openssl = s_client(world, port, &["-tls1_3"]);
    let mut input = openssl.stdin.take().unwrap();
    let output = BufReader::new(openssl.stdout.take().unwrap());
    let mut lines = output.lines().map_while(Result::ok);
    bulk(&mut input, &mut lines);
    if taken > 0 {
        world.counted(|s| s.counters.ktls == taken);
    }
    let mut remarks = BufReader::new(openssl.stderr.take().unwrap()).lines().map_while(Result::ok);
    for command in ["K", "k", "K", "K"] {
        input.write_all(format!("{command}\n").as_bytes()).unwrap();
        // What it reads together with a command is lost.
        assert!(remarks.any(|line| line.contains("KEYUPDATE")), "{command}");
        ping(&mut input, &mut lines, &format!("after {command}"));
        ping(&mut input, &mut lines, "and again");
    }
    drop(input);
    lines.for_each(drop);
    openssl.wait().unwrap();
}

#[test]
fn openssl_changes_keys() {
    let Some(support) = support() else { return };
    let port = echo("127.22.1.1");
    // A kernel that cannot change keys is not given such a session.
    let world = with("127.22.1.1", Ktls::Auto, Timeouts::default());
    let taken = u64::from(support.rekey);
    keys_change(&world, port, taken);
    well(&world, 1, taken);
}

#[test]
fn keys_change_in_the_midst_of_much() {
    let Some(support) = support() else { return };
    let port = echo("127.22.2.1");
    let world = with("127.22.2.1", Ktls::Auto, Timeouts::default());
    let mut tls = joined(&world, port, &client(false, &[]));
    for round in 0_usize..200 {
        let sent = pattern(30_000 + round);
        tls.write_all(&sent).unwrap();
        if round % 3 == 0 {
            tls.conn.refresh_traffic_keys().unwrap();
        }
        let mut back = vec![0; sent.len()];
        tls.read_exact(&mut back).unwrap();
        assert!(back == sent, "{round}");
    }
    tls.conn.send_close_notify();
    tls.flush().unwrap();
    assert_eq!(tls.read(&mut [0]).unwrap(), 0);
    well(&world, 1, u64::from(support.rekey));
}

#[test]
fn too_many_key_updates_end_it() {
    let Some(support) = support() else { return };
    if !support.rekey {
        println!("skipped: this kernel cannot change keys");
        return;
    }
    let port = echo("127.22.3.1");
    let world = with("127.22.3.1", Ktls::Auto, Timeouts::default());
    let mut tls = joined(&world, port, &client(false, &[]));
    let sent = pattern(crate::BULK);
    for part in sent.chunks(64 * 1024) {
        tls.write_all(part).unwrap();
        tls.read_exact(&mut vec![0; part.len()]).unwrap();
    }
    world.counted(|s| s.counters.ktls == 1);
    for _ in 0..40 {
        tls.conn.refresh_traffic_keys().unwrap();
    }
    let _ = tls.flush();
    assert!(tls.read(&mut [0]).is_err());
    world.counted(|s| (s.counters.tls_broken, s.counters.ktls_failed, s.counters.open) == (1, 0, 0));
}

/// What the setting `always` costs on such a kernel, and that it is counted.
#[test]
fn a_kernel_that_cannot_change_keys_loses_who_does() {
    let Some(support) = support() else { return };
    if support.rekey {
        println!("skipped: this kernel can change keys");
        return;
    }
    let port = echo("127.22.4.1");
    let world = always("127.22.4.1");
    let mut tls = joined(&world, port, &client(false, &[]));
    let sent = pattern(crate::BULK);
    for part in sent.chunks(64 * 1024) {
        tls.write_all(part).unwrap();
        tls.read_exact(&mut vec![0; part.len()]).unwrap();
    }
    world.counted(|s| s.counters.ktls == 1);
    tls.conn.refresh_traffic_keys().unwrap();
    let _ = tls.flush();
    assert!(tls.read(&mut [0]).is_err());
    world.counted(|s| (s.counters.ktls_failed, s.counters.reset, s.counters.open) == (1, 1, 0));
}
