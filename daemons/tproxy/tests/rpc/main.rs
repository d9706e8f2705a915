// SPDX-License-Identifier: Apache-2.0
//! The ingress over RA-TLS, with simulated quotes and a tunnel in memory, and its socket to data planes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod full_disk;
mod issuer;
mod planes;
mod reading;
mod registration;
mod world;
