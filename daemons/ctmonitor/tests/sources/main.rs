// SPDX-License-Identifier: Apache-2.0
//! The engine against real servers on this machine: one that answers as crt.sh does, a log of RFC 6962, a static log, an
//! ingress over RA-TLS.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

#[path = "../common/certs.rs"]
mod certs;
#[path = "../common/crtsh.rs"]
mod crtsh;
mod full_disk;
mod keys;
mod killing;
mod logs;
mod searching;
#[path = "../common/server.rs"]
mod server;
mod tree;
mod world;
