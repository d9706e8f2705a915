// SPDX-License-Identifier: Apache-2.0
//! Messages of `Worker` and of `Tappd.Info`, which tell what the guest is. Ids are texts here, which they no longer are
//! in [`crate::dstack::AppInfo`].

use crate::hexbytes;
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
    /// SHA-256 of the platform's id.
    #[prost(bytes = "vec", tag = "8")]
    #[serde(with = "hexbytes")]
    pub device_id: Vec<u8>,
    /// SHA-256 over all registers.
    #[prost(bytes = "vec", tag = "9")]
    #[serde(with = "hexbytes")]
    pub mr_aggregated: Vec<u8>,
    /// Hash of the image.
    #[prost(bytes = "vec", tag = "10")]
    #[serde(with = "hexbytes")]
    pub os_image_hash: Vec<u8>,
    /// Name and id of the key provider, JSON text.
    #[prost(string, tag = "12")]
    pub key_provider_info: String,
    /// SHA-256 of app-compose.json.
    #[prost(bytes = "vec", tag = "13")]
    #[serde(with = "hexbytes")]
    pub compose_hash: Vec<u8>,
    /// The VM's shape as the host claims it, JSON text.
    #[prost(string, tag = "14")]
    pub vm_config: String,
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
