// SPDX-License-Identifier: Apache-2.0
//! `limits`: what the cryptography alone costs, in memory and on one core.
//!
//! Handshakes and records between a rustls client and a rustls server without
//! any socket; only the server's share of the time is counted. No terminating
//! proxy on the same library can be cheaper than this plus its system calls.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, HandshakeKind, ServerConfig, ServerConnection};
use serde_json::{json, Value};

use crate::net::{ClientOpts, Pki, BASE_DOMAIN};

/// CPU time of this thread, which other programs on the core do not disturb.
struct Cpu(Duration);

impl Cpu {
    fn now() -> Cpu {
        let t = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        Cpu(Duration::new(t.tv_sec as u64, t.tv_nsec as u32))
    }

    fn elapsed(&self) -> Duration {
        Cpu::now().0 - self.0
    }
}

/// Complete one handshake; returns the time that the server's side took.
fn handshake(
    client: &Arc<ClientConfig>,
    server: &Arc<ServerConfig>,
) -> Result<(Duration, ClientConnection, ServerConnection)> {
    let name = ServerName::try_from(format!("a.{BASE_DOMAIN}"))?;
    let mut c = ClientConnection::new(client.clone(), name)?;
    let t = Cpu::now();
    let mut s = ServerConnection::new(server.clone())?;
    let mut spent = t.elapsed();
    let mut buf = Vec::new();
    for _ in 0..8 {
        buf.clear();
        while c.wants_write() {
            c.write_tls(&mut buf)?;
        }
        let t = Cpu::now();
        let mut rd = &buf[..];
        while !rd.is_empty() {
            s.read_tls(&mut rd)?;
            s.process_new_packets()?;
        }
        let mut out = Vec::new();
        while s.wants_write() {
            s.write_tls(&mut out)?;
        }
        spent += t.elapsed();
        let mut rd = &out[..];
        while !rd.is_empty() {
            c.read_tls(&mut rd)?;
            c.process_new_packets()?;
        }
        if !c.is_handshaking() && !s.is_handshaking() && !c.wants_write() {
            break;
        }
    }
    Ok((spent, c, s))
}

fn server_us(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>, n: u32) -> Result<Value> {
    let mut spent = Duration::ZERO;
    let mut resumed = 0;
    for _ in 0..n {
        let (t, c, _) = handshake(client, server)?;
        spent += t;
        resumed += (c.handshake_kind() == Some(HandshakeKind::Resumed)) as u32;
    }
    let us = spent.as_secs_f64() * 1e6 / n as f64;
    Ok(json!({"server_us": us, "per_s": 1e6 / us, "resumed": resumed as f64 / n as f64}))
}

pub fn run(dir: &std::path::Path) -> Result<()> {
    std::fs::create_dir_all(dir)?;
    let pki = Pki::create(dir)?;
    let plain = pki.server()?;
    let mut tickets = (*plain).clone();
    tickets.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new()?;
    let tickets = Arc::new(tickets);
    let full = pki.client(ClientOpts::default())?;
    let resume = pki.client(ClientOpts {
        resume: true,
        ..Default::default()
    })?;
    let tls12 = pki.client(ClientOpts {
        tls12: true,
        ..Default::default()
    })?;
    let print = |what: &str, mut v: Value| {
        v["limit"] = json!(what);
        println!("{v}");
    };
    print("TLS 1.3 handshake, P-256", server_us(&full, &plain, 3000)?);
    print(
        "TLS 1.3 handshake, P-256, stateless tickets",
        server_us(&full, &tickets, 3000)?,
    );
    print(
        "TLS 1.3 resumption, stateless tickets",
        server_us(&resume, &tickets, 3000)?,
    );
    print("TLS 1.2 handshake, P-256", server_us(&tls12, &plain, 3000)?);

    // records: what the server spends on sealing and on opening
    let (_, mut c, mut s) = handshake(&full, &plain)?;
    let data = vec![0x5au8; 64 << 10];
    let mut wire = Vec::with_capacity(80 << 10);
    let (mut seal, mut open, mut bytes) = (Duration::ZERO, Duration::ZERO, 0u64);
    let mut sink = vec![0u8; 64 << 10];
    while bytes < 2_000_000_000 {
        wire.clear();
        let t = Cpu::now();
        std::io::Write::write_all(&mut s.writer(), &data)?;
        while s.wants_write() {
            s.write_tls(&mut wire)?;
        }
        seal += t.elapsed();
        let t = Cpu::now();
        let mut rd = &wire[..];
        let mut left = data.len();
        while left > 0 {
            if !rd.is_empty() {
                c.read_tls(&mut rd)?;
                c.process_new_packets()?;
            }
            match std::io::Read::read(&mut c.reader(), &mut sink) {
                Ok(n) => left -= n,
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e.into()),
            }
        }
        open += t.elapsed();
        bytes += data.len() as u64;
    }
    let per_gb = |d: Duration| d.as_secs_f64() / (bytes as f64 / 1e9);
    print(
        "AES-128-GCM records sealed",
        json!({"cpu_s_per_gb": per_gb(seal), "gb_per_s": 1.0 / per_gb(seal)}),
    );
    print(
        "AES-128-GCM records opened",
        json!({"cpu_s_per_gb": per_gb(open), "gb_per_s": 1.0 / per_gb(open)}),
    );
    Ok(())
}
