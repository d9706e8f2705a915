// SPDX-License-Identifier: Apache-2.0
//! The DNS server's writer, counted.

use crate::cloudflare::writer;
use dstack_certbot::acme::BoxFuture;
use dstack_certbot::dns::rfc2136::Rfc2136;
use dstack_certbot::dns::{Data, DnsError, Kind, Provider};
use dstack_certbot::names::DnsName;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Counts changes.
#[derive(Debug)]
pub struct Counting {
    provider: Rfc2136,
    pub changes: AtomicUsize,
}

impl Counting {
    pub fn new(dns: u16) -> Self {
        Self { provider: writer(dns), changes: AtomicUsize::default() }
    }
}

impl Provider for Counting {
    fn list<'a>(&'a self, name: &'a DnsName, kind: Kind) -> BoxFuture<'a, Result<Vec<Data>, DnsError>> {
        self.provider.list(name, kind)
    }

    fn add<'a>(&'a self, name: &'a DnsName, data: &'a Data) -> BoxFuture<'a, Result<(), DnsError>> {
        self.changes.fetch_add(1, Ordering::SeqCst);
        self.provider.add(name, data)
    }

    fn remove<'a>(&'a self, name: &'a DnsName, data: &'a Data) -> BoxFuture<'a, Result<(), DnsError>> {
        self.changes.fetch_add(1, Ordering::SeqCst);
        self.provider.remove(name, data)
    }
}
