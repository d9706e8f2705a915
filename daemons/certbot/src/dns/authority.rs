// SPDX-License-Identifier: Apache-2.0
//! The servers of a zone, and whether all of them show a record.

use super::wire::{self, Told};
use super::{Data, DnsError, Kind};
use crate::acme::BoxFuture;
use crate::limits::{POLL_FIRST, POLL_LAST, SERVERS_MAX};
use crate::names::DnsName;
use crate::propagation::{self, Said, Verdict};
use futures_util::future::join_all;
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{RData, RecordType};
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Who asks the servers of zones.
pub trait Servers: Send + Sync + std::fmt::Debug {
    /// Waits until every server of the zone shows the records, or time is over.
    fn wait<'a>(
        &'a self,
        name: &'a DnsName,
        data: &'a [Data],
        patience: Duration,
    ) -> BoxFuture<'a, Result<(), DnsError>>;
    /// Records of a kind as the first server that answers has them.
    fn look<'a>(&'a self, name: &'a DnsName, kind: Kind) -> BoxFuture<'a, Result<Vec<Data>, DnsError>>;
}

/// Servers found by DNS, or given by the configuration.
#[derive(Clone)]
pub struct Authorities {
    given: Vec<SocketAddr>,
    resolver: Option<TokioResolver>,
}

impl std::fmt::Debug for Authorities {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authorities").field("given", &self.given).finish_non_exhaustive()
    }
}

impl Authorities {
    /// These servers, or, when there are none, what `resolver` or the system's resolver knows.
    ///
    /// # Errors
    /// A sentence, e.g. when there is no usable `/etc/resolv.conf`.
    pub fn new(given: Vec<SocketAddr>, resolver: Option<SocketAddr>) -> Result<Self, String> {
        if !given.is_empty() {
            return Ok(Self { given, resolver: None });
        }
        let mut builder = match resolver {
            Some(address) => {
                TokioResolver::builder_with_config(only(address), TokioRuntimeProvider::default())
            }
            None => TokioResolver::builder_tokio().map_err(|e| format!("/etc/resolv.conf: {e}"))?,
        };
        // What was changed a moment ago is asked for: nothing is kept.
        builder.options_mut().cache_size = 0;
        builder.options_mut().timeout = crate::limits::QUESTION;
        let resolver = builder.build().map_err(|e| e.to_string())?;
        Ok(Self { given, resolver: Some(resolver) })
    }

    /// Addresses of the servers of the zone that has the name.
    ///
    /// # Errors
    /// [`DnsError::NoZone`].
    pub async fn servers(&self, name: &DnsName) -> Result<Vec<SocketAddr>, DnsError> {
        let Some(resolver) = &self.resolver else { return Ok(self.given.clone()) };
        let mut candidate = Some(name.clone());
        let mut reason = String::from("no name above it has NS records");
        while let Some(zone) = candidate {
            match resolver.lookup(wire::wire_name(&zone)?, RecordType::NS).await {
                Ok(found) => {
                    let names: Vec<String> =
                        found.answers().iter().filter_map(server_name).take(SERVERS_MAX).collect();
                    if !names.is_empty() {
                        return addresses(resolver, name, names).await;
                    }
                }
                Err(error) if error.is_no_records_found() || error.is_nx_domain() => {}
                Err(error) => reason = error.to_string(),
            }
            candidate = zone.parent();
        }
        Err(DnsError::NoZone(name.clone(), reason))
    }

    async fn said(
        &self,
        name: &DnsName,
        kind: Kind,
        servers: &[SocketAddr],
    ) -> Result<Vec<(SocketAddr, Told)>, DnsError> {
        let question = wire::question(name, wire::record_type(kind))?;
        let wire_name = wire::wire_name(name)?;
        let each = servers.iter().map(|server| {
            let (question, wire_name) = (&question, &wire_name);
            async move {
                let told = match wire::ask(*server, question).await {
                    Ok(answer) => wire::read(wire_name, kind, &answer),
                    Err(DnsError::Server { reason, .. }) => Told::Nothing(reason),
                    Err(error) => Told::Nothing(error.to_string()),
                };
                (*server, told)
            }
        });
        Ok(join_all(each).await)
    }

    async fn verdict(&self, name: &DnsName, data: &[Data]) -> Result<Verdict, DnsError> {
        let Some(kind) = data.first().map(Data::kind) else { return Ok(Verdict::Everywhere) };
        let servers = self.servers(name).await?;
        let said = self.said(name, kind, &servers).await?;
        let said: Vec<(SocketAddr, Said)> =
            said.into_iter().map(|(server, told)| (server, values(told))).collect();
        let expected: Vec<String> = data.iter().map(ToString::to_string).collect();
        Ok(propagation::judge(&expected.iter().map(String::as_str).collect::<Vec<_>>(), &said))
    }

    async fn wait_for(&self, name: &DnsName, data: &[Data], patience: Duration) -> Result<(), DnsError> {
        let (begin, mut pause) = (Instant::now(), POLL_FIRST);
        loop {
            let verdict = match self.verdict(name, data).await {
                // Servers of a new zone are unknown for a while, too.
                Err(error) if begin.elapsed() + pause >= patience => return Err(error),
                Err(error) => Err(error),
                Ok(Verdict::Everywhere) => return Ok(()),
                Ok(verdict) => Ok(verdict),
            };
            if begin.elapsed() + pause >= patience {
                let who = verdict.map(|v| v.to_string()).unwrap_or_default();
                let what = format!("the {} record of {name}", data.first().map_or("", |d| d.kind().word()));
                return Err(DnsError::NotThere { what, seconds: begin.elapsed().as_secs(), who });
            }
            // DNS tells nobody when it has changed.
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(POLL_LAST);
        }
    }
}

fn values(told: Told) -> Said {
    match told {
        Told::Records(records) => Said::Values(records.iter().map(ToString::to_string).collect()),
        Told::Alias => Said::Nothing("the name is a CNAME".into()),
        Told::Nothing(reason) => Said::Nothing(reason),
    }
}

fn server_name(record: &hickory_proto::rr::Record) -> Option<String> {
    match &record.data {
        RData::NS(ns) => Some(ns.0.to_string()),
        _ => None,
    }
}

async fn addresses(
    resolver: &TokioResolver,
    name: &DnsName,
    servers: Vec<String>,
) -> Result<Vec<SocketAddr>, DnsError> {
    let looked = servers.iter().map(|server| resolver.lookup_ip(server.as_str()));
    let mut found: Vec<SocketAddr> = Vec::new();
    let mut reason = String::from("its servers have no address");
    for answer in join_all(looked).await {
        match answer {
            Ok(answer) => found.extend(answer.iter().map(|ip| SocketAddr::new(ip, 53))),
            Err(error) => reason = error.to_string(),
        }
    }
    // A machine without IPv6 cannot ask there; the same server has an IPv4 address, too.
    if found.iter().any(SocketAddr::is_ipv4) {
        found.retain(SocketAddr::is_ipv4);
    }
    found.truncate(SERVERS_MAX);
    if found.is_empty() { Err(DnsError::NoZone(name.clone(), reason)) } else { Ok(found) }
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

impl Servers for Authorities {
    fn wait<'a>(
        &'a self,
        name: &'a DnsName,
        data: &'a [Data],
        patience: Duration,
    ) -> BoxFuture<'a, Result<(), DnsError>> {
        Box::pin(self.wait_for(name, data, patience))
    }

    fn look<'a>(&'a self, name: &'a DnsName, kind: Kind) -> BoxFuture<'a, Result<Vec<Data>, DnsError>> {
        Box::pin(async move {
            let servers = self.servers(name).await?;
            let mut reason = String::from("no server was asked");
            for (server, told) in self.said(name, kind, &servers).await? {
                match told {
                    Told::Records(records) => return Ok(records),
                    Told::Alias => return Err(DnsError::Alias(name.clone(), kind.word())),
                    Told::Nothing(why) => reason = format!("{server}: {why}"),
                }
            }
            Err(DnsError::Server { server: format!("of {name}"), reason })
        })
    }
}

/// The zone of a name by asking one server for SOA records, from the name upwards.
///
/// # Errors
/// [`DnsError::NoZone`], or the server's.
pub async fn zone_at(server: SocketAddr, name: &DnsName) -> Result<DnsName, DnsError> {
    let mut candidate = Some(name.clone());
    while let Some(zone) = candidate {
        let question = wire::question(&zone, RecordType::SOA)?;
        let answer = wire::ask(server, &question).await?;
        let is_zone = answer.metadata.response_code == ResponseCode::NoError
            && answer.metadata.authoritative
            && answer.answers.iter().any(|r| {
                matches!(r.data, RData::SOA(_)) && Some(&r.name) == wire::wire_name(&zone).ok().as_ref()
            });
        if is_zone {
            return Ok(zone);
        }
        candidate = zone.parent();
    }
    Err(DnsError::NoZone(
        name.clone(),
        format!("{server} has none; set zone in [dns.rfc2136] of certbot.toml"),
    ))
}
