// SPDX-License-Identifier: Apache-2.0
//! Certificates of the ingress: ordered by ACME and proved by DNS, with CAA records that let this account alone order.
//!
//! - pure: [`names`], [`caa`], [`renewal`], [`propagation`], [`acme::directory`]
//! - files: [`account`], [`workdir`], [`certificate`]

pub mod account;
pub mod acme;
pub mod assemble;
pub mod caa;
pub mod certificate;
pub mod dns;
pub mod engine;
pub mod files;
pub mod http;
pub mod limits;
pub mod names;
pub mod propagation;
pub mod renewal;
pub mod settings;
pub mod workdir;
