// SPDX-License-Identifier: Apache-2.0
//! dstack-teepod: VMs of this host as systemd units.
//!
//! - [`bus`], [`rpc`]: thin adapters; arguments in, permission, engine call, error out
//! - [`engine`]: async, owns the state, works through traits ([`units::Units`], [`host::Host`])
//! - [`vm`], [`leases`], [`settings`], [`launch`]: pure
//! - [`store`], [`images`]: files

pub mod bus;
pub mod console;
pub mod daemon;
pub mod engine;
pub mod host;
pub mod images;
pub mod launch;
pub mod leases;
pub mod rpc;
pub mod settings;
pub mod store;
pub mod systemd;
pub mod unit_jobs;
pub mod units;
pub mod vm;
