// SPDX-License-Identifier: Apache-2.0
//! Messages of `Worker` and of `Tappd.Info`, which tell what the guest is.

use prost::Message;
use serde::{Deserialize, Serialize};

/// Answer of Info.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct WorkerInfo {
    /// App id, 40 hex.
    #[prost(string, tag = "1")]
    pub app_id: String,
    /// Instance id, 40 hex.
    #[prost(string, tag = "2")]
    pub instance_id: String,
    /// Certificate chain of the app, PEM; empty without keys.
    #[prost(string, tag = "3")]
    pub app_cert: String,
    /// Measurements, JSON text; empty unless `public_tcbinfo`.
    #[prost(string, tag = "4")]
    pub tcb_info: String,
    /// The app's name.
    #[prost(string, tag = "5")]
    pub app_name: String,
    /// Whether logs are public.
    #[prost(bool, tag = "6")]
    pub public_logs: bool,
    /// Whether load and containers are public.
    #[prost(bool, tag = "7")]
    pub public_sysinfo: bool,
}

/// Version of the program.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct VersionResponse {
    /// Version, e.g. `0.1.0`.
    #[prost(string, tag = "1")]
    pub version: String,
    /// Source revision, e.g. `git:0123abcd`; called `commit` by clients before 0.3.4.
    #[prost(string, tag = "2")]
    #[serde(alias = "commit")]
    pub rev: String,
}
