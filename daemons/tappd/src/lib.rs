// SPDX-License-Identifier: Apache-2.0
//! The guest agent: containers' logs, metrics, a dashboard, the guest API for the host, and `org.dstack.tappd1`.
//!
//! [`daemon`] starts [`http`], [`guest_api`] and [`bus`], which all ask one [`agent`]; the agent reads [`logs`],
//! [`docker`], [`sysinfo`] and [`network`]. What of it is public is what the measured [`app`] description says.

pub mod agent;
pub mod app;
pub mod bus;
pub mod daemon;
pub mod dashboard;
pub mod docker;
pub mod guest_api;
pub mod http;
pub mod logs;
pub mod metrics;
pub mod network;
pub mod settings;
pub mod sysinfo;
