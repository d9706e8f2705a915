// SPDX-License-Identifier: Apache-2.0
//! Messages of `Teepod`, the VM manager.

use prost::Message;
use serde::{Deserialize, Serialize};

/// One port forwarded from the host into a VM.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct PortMapping {
    /// `tcp` or `udp`.
    #[prost(string, tag = "1")]
    pub protocol: String,
    /// Port on the host.
    #[prost(uint32, tag = "2")]
    pub host_port: u32,
    /// Port in the VM.
    #[prost(uint32, tag = "3")]
    pub vm_port: u32,
}

/// What a VM is made of.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct VmConfiguration {
    /// Name, unique.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Name of the image.
    #[prost(string, tag = "2")]
    pub image: String,
    /// `app-compose.json` as exact text.
    #[prost(string, tag = "3")]
    pub compose_file: String,
    /// Virtual processors.
    #[prost(uint32, tag = "4")]
    pub vcpu: u32,
    /// Memory, MB.
    #[prost(uint32, tag = "5")]
    pub memory: u32,
    /// Data disk, GB.
    #[prost(uint32, tag = "6")]
    pub disk_size: u32,
    /// Forwarded ports.
    #[prost(message, repeated, tag = "7")]
    pub ports: Vec<PortMapping>,
    /// The encrypted environment; may be empty.
    #[prost(bytes = "vec", tag = "8")]
    #[serde(with = "crate::hexbytes")]
    pub encrypted_env: Vec<u8>,
    /// App id, 40 hex; absent: the head of the compose hash.
    #[prost(string, optional, tag = "9")]
    pub app_id: Option<String>,
}

/// A VM.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct Id {
    /// UUID; in the answer of UpgradeApp the new compose id, 40 hex.
    #[prost(string, tag = "1")]
    pub id: String,
}

/// Arguments of UpgradeApp.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct UpgradeAppRequest {
    /// UUID of the VM.
    #[prost(string, tag = "1")]
    pub id: String,
    /// The new `app-compose.json` as exact text.
    #[prost(string, tag = "2")]
    pub compose_file: String,
    /// The new encrypted environment; empty keeps the old one.
    #[prost(bytes = "vec", tag = "3")]
    #[serde(with = "crate::hexbytes")]
    pub encrypted_env: Vec<u8>,
}

/// Arguments of ResizeVm; what is absent stays.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct ResizeVmRequest {
    /// UUID of the VM.
    #[prost(string, tag = "1")]
    pub id: String,
    /// Virtual processors.
    #[prost(uint32, optional, tag = "2")]
    pub vcpu: Option<u32>,
    /// Memory, MB.
    #[prost(uint32, optional, tag = "3")]
    pub memory: Option<u32>,
    /// Data disk, GB; never smaller than it is.
    #[prost(uint32, optional, tag = "4")]
    pub disk_size: Option<u32>,
    /// Name of the image.
    #[prost(string, optional, tag = "5")]
    pub image: Option<String>,
}

/// A VM and how it is.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct VmInfo {
    /// UUID.
    #[prost(string, tag = "1")]
    pub id: String,
    /// Name.
    #[prost(string, tag = "2")]
    pub name: String,
    /// `running`, `exited`, `stopping` or `stopped`.
    #[prost(string, tag = "3")]
    pub status: String,
    /// How long it runs, for people, or `never`.
    #[prost(string, tag = "4")]
    pub uptime: String,
    /// The app's dashboard, once the instance id is known.
    #[prost(string, optional, tag = "5")]
    pub app_url: Option<String>,
    /// App id, 40 hex.
    #[prost(string, tag = "6")]
    pub app_id: String,
    /// Instance id, 40 hex, as the guest claims.
    #[prost(string, optional, tag = "7")]
    pub instance_id: Option<String>,
    /// What it is made of.
    #[prost(message, optional, tag = "8")]
    pub configuration: Option<VmConfiguration>,
    /// When it ended, for people.
    #[prost(string, optional, tag = "9")]
    pub exited_at: Option<String>,
    /// Boot stage, `done` when the app is up.
    #[prost(string, tag = "10")]
    pub boot_progress: String,
    /// Why the boot failed.
    #[prost(string, tag = "11")]
    pub boot_error: String,
    /// Stage of an orderly shutdown.
    #[prost(string, tag = "12")]
    pub shutdown_progress: String,
    /// Version of the image.
    #[prost(string, tag = "13")]
    pub image_version: String,
}

/// Answer of Status.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct StatusResponse {
    /// All VMs, oldest first.
    #[prost(message, repeated, tag = "1")]
    pub vms: Vec<VmInfo>,
    /// Whether ports can be forwarded.
    #[prost(bool, tag = "2")]
    pub port_mapping_enabled: bool,
}

/// Answer of GetInfo.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct GetInfoResponse {
    /// Whether there is such a VM.
    #[prost(bool, tag = "1")]
    pub found: bool,
    /// The VM.
    #[prost(message, optional, tag = "2")]
    pub info: Option<VmInfo>,
}

/// One image.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageInfo {
    /// Name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its metadata, JSON text.
    #[prost(string, tag = "2")]
    pub description: String,
    /// Version.
    #[prost(string, tag = "3")]
    pub version: String,
    /// Whether it is a development image.
    #[prost(bool, tag = "4")]
    pub is_dev: bool,
}

/// Answer of ListImages.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageListResponse {
    /// The usable images.
    #[prost(message, repeated, tag = "1")]
    pub images: Vec<ImageInfo>,
}

/// Argument of GetAppEnvEncryptPubKey.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct AppId {
    /// App id, 40 hex.
    #[prost(string, tag = "1")]
    pub app_id: String,
}

/// Answer of GetAppEnvEncryptPubKey.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct PublicKeyResponse {
    /// X25519 public key, 32 bytes.
    #[prost(bytes = "vec", tag = "1")]
    #[serde(with = "crate::hexbytes")]
    pub public_key: Vec<u8>,
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

/// Where the kms is.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct KmsSettings {
    /// URL for guests.
    #[prost(string, tag = "1")]
    pub url: String,
}

/// Where tproxy is.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct TProxySettings {
    /// URL for guests.
    #[prost(string, tag = "1")]
    pub url: String,
    /// Domain below which apps appear.
    #[prost(string, tag = "2")]
    pub base_domain: String,
    /// Public port.
    #[prost(uint32, tag = "3")]
    pub port: u32,
    /// Port of the guest agent's dashboard.
    #[prost(uint32, tag = "4")]
    pub tappd_port: u32,
}

/// What a VM may ask for.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct ResourcesSettings {
    /// Most VMs.
    #[prost(uint32, tag = "1")]
    pub max_cvm_number: u32,
    /// Most virtual processors.
    #[prost(uint32, tag = "2")]
    pub max_allocable_vcpu: u32,
    /// Most memory, MB.
    #[prost(uint32, tag = "3")]
    pub max_allocable_memory_in_mb: u32,
    /// Largest data disk, GB.
    #[prost(uint32, tag = "4")]
    pub max_disk_size_in_gb: u32,
}

/// Answer of GetMeta.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct GetMetaResponse {
    /// Where the kms is.
    #[prost(message, optional, tag = "1")]
    pub kms: Option<KmsSettings>,
    /// Where tproxy is.
    #[prost(message, optional, tag = "2")]
    pub tproxy: Option<TProxySettings>,
    /// What a VM may ask for.
    #[prost(message, optional, tag = "3")]
    pub resources: Option<ResourcesSettings>,
}
