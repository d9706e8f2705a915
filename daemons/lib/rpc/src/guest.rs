// SPDX-License-Identifier: Apache-2.0
//! Messages of the guest API, which tappd serves to the host.

use prost::Message;
use serde::{Deserialize, Serialize};

/// Answer of Info.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct GuestInfo {
    /// The agent's version.
    #[prost(string, tag = "1")]
    pub version: String,
    /// App id, 40 hex.
    #[prost(string, tag = "2")]
    pub app_id: String,
    /// Instance id, 40 hex.
    #[prost(string, tag = "3")]
    pub instance_id: String,
    /// Certificate chain of the app, PEM; empty without keys.
    #[prost(string, tag = "4")]
    pub app_cert: String,
    /// Measurements, JSON text; empty without attestation.
    #[prost(string, tag = "5")]
    pub tcb_info: String,
}

/// One mounted file system.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct DiskInfo {
    /// Device.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Where it is mounted.
    #[prost(string, tag = "2")]
    pub mount_point: String,
    /// Size, bytes.
    #[prost(uint64, tag = "3")]
    pub total_size: u64,
    /// Free, bytes.
    #[prost(uint64, tag = "5")]
    pub free_size: u64,
}

/// Answer of SysInfo.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct SysInfo {
    /// `NAME` of os-release.
    #[prost(string, tag = "1")]
    pub os_name: String,
    /// `VERSION_ID` of os-release.
    #[prost(string, tag = "2")]
    pub os_version: String,
    /// Kernel release.
    #[prost(string, tag = "3")]
    pub kernel_version: String,
    /// Processor.
    #[prost(string, tag = "4")]
    pub cpu_model: String,
    /// Processors.
    #[prost(uint32, tag = "5")]
    pub num_cpus: u32,
    /// Memory, bytes.
    #[prost(uint64, tag = "6")]
    pub total_memory: u64,
    /// Memory that can be used without swapping, bytes.
    #[prost(uint64, tag = "7")]
    pub available_memory: u64,
    /// Memory in use, bytes.
    #[prost(uint64, tag = "8")]
    pub used_memory: u64,
    /// Memory used for nothing, bytes.
    #[prost(uint64, tag = "9")]
    pub free_memory: u64,
    /// Swap, bytes.
    #[prost(uint64, tag = "10")]
    pub total_swap: u64,
    /// Swap in use, bytes.
    #[prost(uint64, tag = "11")]
    pub used_swap: u64,
    /// Free swap, bytes.
    #[prost(uint64, tag = "12")]
    pub free_swap: u64,
    /// Seconds since boot.
    #[prost(uint64, tag = "13")]
    pub uptime: u64,
    /// Load of one minute, hundredths.
    #[prost(uint32, tag = "14")]
    pub loadavg_one: u32,
    /// Load of five minutes, hundredths.
    #[prost(uint32, tag = "15")]
    pub loadavg_five: u32,
    /// Load of fifteen minutes, hundredths.
    #[prost(uint32, tag = "16")]
    pub loadavg_fifteen: u32,
    /// File systems.
    #[prost(message, repeated, tag = "17")]
    pub disks: Vec<DiskInfo>,
}

/// A default route.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct Gateway {
    /// Its next hop.
    #[prost(string, tag = "1")]
    pub address: String,
}

/// An address of an interface.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct IpAddress {
    /// The address.
    #[prost(string, tag = "1")]
    pub address: String,
    /// Length of its prefix, bits.
    #[prost(uint32, tag = "2")]
    pub prefix: u32,
}

/// A network interface.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct Interface {
    /// Name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Addresses.
    #[prost(message, repeated, tag = "2")]
    pub addresses: Vec<IpAddress>,
    /// Bytes received.
    #[prost(uint64, tag = "3")]
    pub rx_bytes: u64,
    /// Bytes sent.
    #[prost(uint64, tag = "4")]
    pub tx_bytes: u64,
    /// Errors while receiving.
    #[prost(uint64, tag = "5")]
    pub rx_errors: u64,
    /// Errors while sending.
    #[prost(uint64, tag = "6")]
    pub tx_errors: u64,
}

/// Answer of NetworkInfo.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct NetworkInfo {
    /// Name servers.
    #[prost(string, repeated, tag = "1")]
    pub dns_servers: Vec<String>,
    /// Default routes.
    #[prost(message, repeated, tag = "2")]
    pub gateways: Vec<Gateway>,
    /// Interfaces that lead out of the guest.
    #[prost(message, repeated, tag = "3")]
    pub interfaces: Vec<Interface>,
}

/// One container.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct Container {
    /// Id, 64 hex.
    #[prost(string, tag = "1")]
    pub id: String,
    /// Names, each with a slash before it as Docker says.
    #[prost(string, repeated, tag = "2")]
    pub names: Vec<String>,
    /// Image as it was asked for.
    #[prost(string, tag = "3")]
    pub image: String,
    /// Id of the image.
    #[prost(string, tag = "4")]
    pub image_id: String,
    /// Command.
    #[prost(string, tag = "5")]
    pub command: String,
    /// When it was made, Unix seconds.
    #[prost(int64, tag = "6")]
    pub created: i64,
    /// `running`, `exited`, …
    #[prost(string, tag = "7")]
    pub state: String,
    /// State for people, e.g. `Up 3 minutes`.
    #[prost(string, tag = "8")]
    pub status: String,
}

/// Answer of ListContainers.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct ListContainersResponse {
    /// All containers.
    #[prost(message, repeated, tag = "1")]
    pub containers: Vec<Container>,
}
