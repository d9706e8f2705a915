// SPDX-License-Identifier: Apache-2.0
//! Boot agent of the guest: from the host's config disk to a running app.
//!
//! Four programs share this library. `dstack-prepare` runs once before Docker, `dstack-app` is the app's unit,
//! `dstack-status` tells the host how far the boot has come, and `dstack-network` keeps the tunnels to the ingress up.
//!
//! - [`layout`]: the files they hand to each other
//! - [`inputs`]: what the host gave, checked; pure
//! - [`tee`]: the TEE of this machine
//! - [`measure`]: what of the boot goes into RTMR3
//! - [`keys`], [`kms`]: the keys of a boot, and where they come from
//! - [`env`]: the deployer's environment, opened
//! - [`clock`]: time with a floor
//! - [`outputs`]: the files the rest of the guest reads; pure, then one writer
//! - [`disk`], [`rollback`]: the encrypted data disk, and whether it is the last one
//! - [`prepare`]: the order of all that
//! - [`app`]: login, scripts, docker compose
//! - [`dotenv`]: values for compose files, without loss; pure
//! - [`command`]: programs with a clean environment
//! - [`timing`]: how long each step took
//! - [`network`]: tunnels to the ingress
//! - [`status`], [`follow`]: the boot's status lines, written and streamed

pub mod app;
pub mod clock;
pub mod command;
pub mod disk;
pub mod dotenv;
pub mod env;
pub mod follow;
pub mod inputs;
pub mod keys;
pub mod kms;
pub mod layout;
pub mod measure;
pub mod network;
pub mod outputs;
pub mod prepare;
#[cfg(test)]
mod real_kms_tests;
pub mod rollback;
#[cfg(test)]
mod rollback_tests;
pub mod status;
pub mod tee;
#[cfg(test)]
mod testing;
pub mod timing;
