// SPDX-License-Identifier: Apache-2.0
//! The key service over RA-TLS, with simulated quotes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod certificates;
mod disks;
mod forecast;
mod founding;
mod keys;
mod peers;
mod upgrades;
mod webhook;
mod world;
