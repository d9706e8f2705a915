// SPDX-License-Identifier: Apache-2.0
//! The guest agent: containers' logs, metrics, a dashboard, the guest API for the host, and `org.dstack.tappd1`.
//!
//! [`daemon`] starts [`http`], [`guest_api`], [`tappd_api`], [`dstack_api`] and [`bus`], which all ask one [`agent`]; the
//! agent reads [`logs`], [`docker`], [`sysinfo`] and [`network`]. What of it is public is what the measured [`app`]
//! description says.
//!
//! Keys, certificates and quotes come from the [`vault`]: [`keys`] derives, [`leaf`] makes certificates that [`kms`]
//! signs, and [`attest`] owns the TEE and the event log.

pub mod agent;
pub mod app;
pub mod attest;
pub mod attestation;
pub mod bus;
pub mod daemon;
pub mod dashboard;
pub mod docker;
pub mod dstack_api;
pub mod guest_api;
pub mod http;
pub mod info;
pub mod keys;
pub mod kms;
pub mod leaf;
pub mod logs;
pub mod metrics;
pub mod network;
pub mod quote;
pub mod report_data;
pub mod settings;
pub mod sysinfo;
pub mod tappd_api;
pub mod timing;
pub mod trust;
pub mod vault;
