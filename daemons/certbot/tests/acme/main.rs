// SPDX-License-Identifier: Apache-2.0
//! Certificates by a real authority (Pebble, with validation and rejected nonces) and a real DNS server (Knot), which
//! takes updates and is what the authority asks. Needs pebble, knotd and kdig: apt install pebble knot knot-dnsutils.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod caa;
mod cloudflare;
mod counting;
mod faults;
mod issue;
mod kills;
mod many;
mod proxy;
mod servers;
mod troubles;
mod world;
