// SPDX-License-Identifier: Apache-2.0
//! dstack-tproxy-flow, driven from outside over loopback.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::expect_used)]

mod client;
mod ends;
mod hostile;
mod joined;
mod life;
mod storm;
mod times;
mod world;
