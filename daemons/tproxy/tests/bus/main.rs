// SPDX-License-Identifier: Apache-2.0
//! The real daemon on a private bus, with systemd, polkit and the key service played by the test. No root, no systemd
//! needed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod access;
mod certbot;
mod kms;
mod life;
mod systemd;
mod world;
