// SPDX-License-Identifier: Apache-2.0
//! The real daemon on a private bus, with systemd and polkit played by the test. No root, no systemd needed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod access;
mod faults;
mod home;
mod images;
mod lifecycle;
mod scale;
mod systemd;
mod web;
mod world;
