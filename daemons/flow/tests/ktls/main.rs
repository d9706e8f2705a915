// SPDX-License-Identifier: Apache-2.0
//! dstack-tproxy-flow on a kernel that takes TLS over. Each test says so and passes over what the kernel cannot do.
//!
//! To run it in another machine, build it with `cargo test -p dstack-flow --test ktls --no-run`, copy it and the program,
//! load the module `tls` there, and name the program in the environment variable `DSTACK_TPROXY_FLOW`.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::expect_used, dead_code)]

#[path = "../flow/client.rs"]
mod client;
mod ends;
mod moves;
mod rekey;
mod setting;
#[path = "../flow/world.rs"]
mod world;

use client::{Tls, open};
use dstack_core::flow::{Config, Ktls, Stats, Timeouts};
use dstack_sys::ktls::{self, Cipher, Support, Version};
use rustls::ClientConfig;
use std::sync::Arc;
use world::{BASE, Script, World, certificate, config, id, instance};

/// More than a session carries before the kernel takes it over.
const BULK: usize = 512 * 1024;
const LARGE: usize = 4 * 1024 * 1024;

/// What the kernel can do; says so when that is nothing.
fn support() -> Option<Support> {
    match ktls::probe() {
        Ok(support) if support.any() => Some(support),
        other => {
            println!("skipped: this kernel takes over no TLS: {other:?}");
            None
        }
    }
}

fn pattern(size: usize) -> Vec<u8> {
    (0..size).map(|at| (at * 29 + at / 8179).to_le_bytes()[0]).collect()
}

fn with(address: &str, ktls: Ktls, timeouts: Timeouts) -> World {
    let config = Config { ktls, timeouts, ..config() };
    let instances = vec![instance(1, 9, address)];
    World::new(Script { config, certificates: vec![certificate(false)], instances, ..Script::default() })
}

/// A data plane that hands over whatever the kernel carries.
fn always(address: &str) -> World {
    with(address, Ktls::Always, Timeouts::default())
}

fn joined(world: &World, port: u16, config: &Arc<ClientConfig>) -> Tls {
    open(world.ingress, &format!("{}-{port}.{BASE}", id(9)), config)
}

/// Clients of one suite each, all that the kernel carries: whether by TLS 1.2, and what it is called.
fn clients(support: Support) -> Vec<(bool, String, Arc<ClientConfig>)> {
    let mut all = Vec::new();
    for suite in rustls::crypto::aws_lc_rs::ALL_CIPHER_SUITES {
        let name = format!("{:?}", suite.suite());
        let cipher = match &name {
            name if name.contains("AES_128") => Cipher::Aes128Gcm,
            name if name.contains("AES_256") => Cipher::Aes256Gcm,
            _ => Cipher::ChaCha20Poly1305,
        };
        let tls12 = !name.starts_with("TLS13");
        let version = if tls12 { Version::Tls12 } else { Version::Tls13 };
        if name.contains("RSA") && !name.contains("ECDSA") {
            continue; // the certificate is another
        }
        if support.carries(version, cipher) {
            all.push((tls12, name, client::with_suites(tls12, &[], vec![*suite])));
        } else {
            println!("skipped: this kernel does not carry {name}");
        }
    }
    all
}

/// Waits until all is over, and nothing was wrong.
fn well(world: &World, ended: u64, taken: u64) {
    world.counted(|Stats { counters: c, .. }| {
        assert_eq!((c.panics, c.ktls_failed, c.tls_broken), (0, 0, 0), "{c:?}");
        c.open == 0 && c.terminated == ended && c.ktls == taken && c.reset == 0
    });
}
