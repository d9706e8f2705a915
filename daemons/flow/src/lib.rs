// SPDX-License-Identifier: Apache-2.0
//! dstack-tproxy-flow, the data plane of the ingress: accepts clients, reads where they want to go, and joins them to
//! an instance. It holds no privilege and decides nothing about trust: addresses, ports, names and certificates are
//! what the control plane says ([`dstack_core::flow`]), and no other address is ever dialled.
//!
//! - [`run`]: sockets, signals, generations; [`control`] the link to the control plane, [`shared`] what it publishes
//! - [`worker`]: one event loop per core, with all that happens to a connection
//! - [`session`], [`tls`]: TLS without I/O, and its certificates; [`kernel`]: TLS that the kernel has taken over
//! - [`table`], [`names`], [`wheel`], [`slab`]: pure parts
//!
//! **Shape.** A worker never blocks and shares nothing that it must wait for: the routing table is immutable and
//! swapped, custom names are a small cache behind a lock. Every worker waits on the same listening sockets. Idle
//! connections hold no buffer and no pipe; all sockets are edge-triggered, and what is known of their readiness is kept,
//! so that few system calls are made in vain. TLS handshakes are the only long work: they stand in line, and between two
//! of them everybody else has a turn.

pub mod conn;
pub mod control;
pub mod io;
pub mod kernel;
pub mod names;
pub mod options;
pub mod run;
pub mod session;
pub mod shared;
pub mod slab;
pub mod table;
pub mod tls;
pub mod wheel;
pub mod worker;
