// SPDX-License-Identifier: Apache-2.0
//! TXT records by DNS, with a bounded cache that keeps to their time to live.

use crate::names::{BoxFuture, Lookup, Txt};
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::RData;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Answers that are kept.
const CACHE: u64 = 8192;
/// Shortest and longest time that an answer is kept.
const TTL: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(3600));
/// Longest time that a missing answer is kept.
const NEGATIVE_TTL: Duration = Duration::from_secs(60);
/// Time for one try.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Most records of an answer that are looked at.
const RECORDS_MAX: usize = 16;

/// Whoever answers for this server, or for those of the system. Without any, names are looked up in vain, and all else
/// works.
#[must_use]
pub fn lookup(server: Option<SocketAddr>) -> Arc<dyn Lookup> {
    match Dns::new(server) {
        Ok(dns) => Arc::new(dns),
        Err(reason) => {
            tracing::error!(
                "custom domains do not work, there is no DNS server; set proxy.resolver: {reason}"
            );
            Arc::new(Nobody(reason))
        }
    }
}

/// Nobody to ask.
#[derive(Debug)]
struct Nobody(String);

impl Lookup for Nobody {
    fn txt<'a>(&'a self, _name: &'a str) -> BoxFuture<'a, Result<Txt, String>> {
        Box::pin(async { Err(self.0.clone()) })
    }
}

/// The resolver.
#[derive(Clone)]
pub struct Dns(TokioResolver);

impl std::fmt::Debug for Dns {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Dns")
    }
}

impl Dns {
    /// Asks this server, or those of the system.
    ///
    /// # Errors
    /// A sentence, e.g. when there is no usable `/etc/resolv.conf`.
    pub fn new(server: Option<SocketAddr>) -> Result<Self, String> {
        let mut builder = match server {
            Some(address) => {
                TokioResolver::builder_with_config(only(address), TokioRuntimeProvider::default())
            }
            None => TokioResolver::builder_tokio().map_err(|e| format!("/etc/resolv.conf: {e}"))?,
        };
        let options = builder.options_mut();
        options.cache_size = CACHE;
        options.timeout = TIMEOUT;
        options.attempts = 2;
        (options.positive_min_ttl, options.positive_max_ttl) = (Some(TTL.0), Some(TTL.1));
        options.negative_max_ttl = Some(NEGATIVE_TTL);
        builder.build().map(Self).map_err(|e| e.to_string())
    }
}

fn only(address: SocketAddr) -> ResolverConfig {
    let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
        connection.port = address.port();
        connection
    });
    let mut server = NameServerConfig::udp_and_tcp(address.ip());
    server.connections = connections.to_vec();
    ResolverConfig::from_name_servers(vec![server])
}

impl Lookup for Dns {
    fn txt<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Txt, String>> {
        Box::pin(async move {
            // With a dot at the end no search domain is tried.
            let lookup = match self.0.txt_lookup(format!("{name}.")).await {
                Ok(lookup) => lookup,
                Err(e) if e.is_no_records_found() || e.is_nx_domain() => {
                    return Ok(Txt { values: Vec::new(), ttl: 0 });
                }
                Err(e) => return Err(e.to_string()),
            };
            let left = lookup.valid_until().saturating_duration_since(Instant::now());
            let first = |data: &RData| match data {
                RData::TXT(txt) => {
                    txt.txt_data.first().map(|text| String::from_utf8_lossy(text).into_owned())
                }
                _ => None,
            };
            let values = lookup.answers().iter().take(RECORDS_MAX).filter_map(|r| first(&r.data)).collect();
            Ok(Txt { values, ttl: u32::try_from(left.as_secs()).unwrap_or(u32::MAX) })
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::net::UdpSocket;

    /// A server that knows one name, `known.test`, and counts what it is asked.
    async fn server() -> (SocketAddr, Arc<AtomicUsize>) {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let (address, asked) = (socket.local_addr().unwrap(), Arc::<AtomicUsize>::default());
        let count = Arc::clone(&asked);
        tokio::spawn(async move {
            let mut query = [0; 512];
            while let Ok((length, from)) = socket.recv_from(&mut query).await {
                count.fetch_add(1, Ordering::Relaxed);
                socket.send_to(&answer(&query[..length]), from).await.unwrap();
            }
        });
        (address, asked)
    }

    /// A reply with two TXT records of 77 seconds, or NXDOMAIN.
    fn answer(query: &[u8]) -> Vec<u8> {
        let end = 12 + query[12..].iter().position(|b| *b == 0).unwrap() + 5;
        let question = &query[12..end];
        let known = question.to_ascii_lowercase().starts_with(b"\x05known\x04test\0");
        let mut reply = query[..2].to_vec();
        let (code, answers) = if known { (0x80, 2) } else { (0x83, 0) };
        reply.extend([0x81, code, 0, 1, 0, answers, 0, 0, 0, 0]);
        reply.extend(question);
        for text in [b"v=x".as_slice(), b"id:443"].into_iter().take(answers.into()) {
            let length = u8::try_from(text.len()).unwrap();
            reply.extend([0xc0, 12, 0, 16, 0, 1, 0, 0, 0, 77, 0, length + 1, length]);
            reply.extend(text);
        }
        reply
    }

    #[tokio::test]
    async fn records_come_with_their_time_to_live_and_are_cached() {
        let (address, asked) = server().await;
        let dns = Dns::new(Some(address)).unwrap();
        for _ in 0..3 {
            let found = dns.txt("known.test").await.unwrap();
            assert_eq!(found.values, ["v=x", "id:443"]);
            assert!((75..=77).contains(&found.ttl), "{}", found.ttl);
        }
        assert_eq!(asked.load(Ordering::Relaxed), 1);
        for _ in 0..3 {
            assert_eq!(dns.txt("unknown.test").await.unwrap().values.len(), 0);
        }
        assert!(dns.txt("a..b").await.is_err());
    }

    #[tokio::test]
    async fn without_a_server_lookups_fail() {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let closed = socket.local_addr().unwrap();
        drop(socket);
        assert!(Dns::new(Some(closed)).unwrap().txt("known.test").await.is_err());
        assert_eq!(Nobody("why".into()).txt("a.b").await, Err("why".to_owned()));
    }
}
