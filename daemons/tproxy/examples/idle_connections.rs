// SPDX-License-Identifier: Apache-2.0
//! Many idle connections through the ingress, for tests: the clients that hold them, and the app that answers each once.
//!
//! - `idle_connections serve ADDRESS:PORT…` answers the first bytes of each connection with one byte, and keeps it
//! - `idle_connections open INGRESS COUNT NAME…` sends the ClientHello of a name, takes turns among the names, and waits for
//!   that byte; READY when all are there, with what it took as status
//! - `idle_connections stall INGRESS COUNT` sends the first byte of a ClientHello and no more; READY when all are there,
//!   and waits until the ingress has ended them all
//!
//! There are few ports for connections to one address: each 20,000 go to the next address of the loopback network that the
//! ingress listens on, and an ingress wants another port of the app (another name). No client takes its port by bind(2):
//! such a port is free for no other connection, not even the ingress's own to the app.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use dstack_ra_rpc::tls::unauthenticated_config;
use dstack_service::lifecycle;
use rustls::ClientConnection;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::Instant;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// Connections that are being opened at a time.
const UNDER_WAY: usize = 64;
/// Connections to one address.
const PER_ADDRESS: usize = 20_000;

async fn serve(addresses: &[String]) {
    let mut accepting = JoinSet::new();
    for address in addresses {
        let listener = TcpListener::bind(address).await.unwrap();
        accepting.spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(answer(stream));
            }
        });
    }
    lifecycle::ready("Serving");
    accepting.join_next().await;
}

async fn answer(mut stream: TcpStream) -> io::Result<()> {
    if stream.read(&mut [0; 2048]).await? > 0 {
        stream.write_all(b"!").await?;
    }
    // Until the client is gone.
    while stream.read(&mut [0; 64]).await? > 0 {}
    Ok(())
}

fn hello(name: &str) -> Arc<[u8]> {
    let config = Arc::new(unauthenticated_config().unwrap());
    let mut client = ClientConnection::new(config, name.to_owned().try_into().unwrap()).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes.into()
}

async fn open(ingress: SocketAddrV4, hello: Arc<[u8]>) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(ingress).await?;
    stream.write_all(&hello).await?;
    stream.read_exact(&mut [0]).await?;
    Ok(stream)
}

/// The address that connection number `n` goes to.
fn address(ingress: SocketAddrV4, n: usize) -> SocketAddrV4 {
    let further = u32::try_from(n / PER_ADDRESS).expect("a number of addresses");
    SocketAddrV4::new(Ipv4Addr::from(u32::from(*ingress.ip()) + further), ingress.port())
}

async fn open_all(ingress: SocketAddrV4, count: usize, names: &[String]) {
    let hellos: Vec<_> = names.iter().map(|name| hello(name)).collect();
    let (began, mut held) = (Instant::now(), Vec::with_capacity(count));
    let mut opening = JoinSet::<io::Result<TcpStream>>::new();
    for n in 0..count {
        if opening.len() >= UNDER_WAY {
            held.push(opening.join_next().await.unwrap().unwrap().expect("every connection is taken"));
        }
        opening.spawn(open(address(ingress, n), Arc::clone(&hellos[n % hellos.len()])));
    }
    while let Some(opened) = opening.join_next().await {
        held.push(opened.unwrap().expect("every connection is taken"));
    }
    lifecycle::ready(&format!(
        "{} connections, opened in {:.1} s",
        held.len(),
        began.elapsed().as_secs_f64()
    ));
    // One that ends is an error: idle is no reason to.
    let mut ends = JoinSet::new();
    for mut stream in held {
        ends.spawn(async move { stream.read(&mut [0]).await });
    }
    let first = ends.join_next().await;
    panic!("a connection ended: {first:?}");
}

/// The first byte of a handshake record.
const HANDSHAKE: u8 = 22;

async fn stall_one(ingress: SocketAddrV4) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(ingress).await?;
    stream.write_all(&[HANDSHAKE]).await?;
    Ok(stream)
}

async fn stall(ingress: SocketAddrV4, count: usize) {
    let (began, mut held) = (Instant::now(), Vec::with_capacity(count));
    for n in 0..count {
        held.push(stall_one(address(ingress, n)).await.expect("every connection is taken"));
    }
    lifecycle::ready(&format!(
        "{} half-open connections in {:.1} s",
        held.len(),
        began.elapsed().as_secs_f64()
    ));
    let mut ends = JoinSet::new();
    for mut stream in held {
        // Whether by an end or by a reset is the ingress's to choose.
        ends.spawn(async move { stream.read(&mut [0; 64]).await });
    }
    ends.join_all().await;
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.as_slice() {
        [word, addresses @ ..] if word == "serve" && !addresses.is_empty() => serve(addresses).await,
        [word, ingress, count, names @ ..] if word == "open" && !names.is_empty() => {
            let (ingress, count) = (ingress.parse().expect("ADDRESS:PORT"), count.parse().expect("a number"));
            open_all(ingress, count, names).await;
        }
        [word, ingress, count] if word == "stall" => {
            stall(ingress.parse().expect("ADDRESS:PORT"), count.parse().expect("a number")).await;
        }
        _ => panic!("usage: serve ADDRESS:PORT… | open INGRESS COUNT NAME… | stall INGRESS COUNT"),
    }
}
