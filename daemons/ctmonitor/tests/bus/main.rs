// SPDX-License-Identifier: Apache-2.0
//! The real daemon on a private bus, with polkit, certbot and crt.sh played by the test. No root, no systemd needed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

#[allow(dead_code, reason = "the other test uses the rest")]
#[path = "../common/certs.rs"]
mod certs;
#[allow(dead_code, reason = "the other test uses the rest")]
#[path = "../common/crtsh.rs"]
mod crtsh;
mod life;
#[path = "../common/server.rs"]
mod server;
mod world;
