// SPDX-License-Identifier: Apache-2.0
//! Certificates of the ingress: ordered by ACME and proved by DNS, with CAA records that let this account alone order.
//!
//! - pure: [`names`], [`caa`], [`renewal`], [`propagation`], [`acme::directory`]
//! - files: [`account`], [`workdir`], [`certificate`]
//! - [`engine`] does the work over [`acme`] and [`dns`]; [`assemble`] makes it of settings and credentials
//! - [`daemon`] and [`bus`] serve it as org.dstack.certbot1, [`cli`] uses it without a daemon, [`request`] asks the daemon

pub mod account;
pub mod acme;
pub mod assemble;
pub mod bus;
pub mod caa;
pub mod certificate;
pub mod cli;
pub mod control;
pub mod daemon;
pub mod dns;
pub mod engine;
pub mod files;
pub mod http;
pub mod limits;
pub mod names;
pub mod propagation;
pub mod renewal;
pub mod request;
pub mod settings;
pub mod workdir;
