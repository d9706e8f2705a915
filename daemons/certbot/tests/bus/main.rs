// SPDX-License-Identifier: Apache-2.0
//! The real daemon on a private bus, with a polkit played by the test, a real authority and a real DNS server.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod access;
mod life;
#[path = "../acme/servers.rs"]
mod servers;
mod world;
