// SPDX-License-Identifier: Apache-2.0
//! `teepod.toml`: merged input -> validated settings. Keys keep the original's names where the meaning is the same.

use dstack_core::ids::ImageName;
use dstack_core::spec::{Platform, Protocol, Vsock};
use dstack_service::config::ConfigError;
use serde::Deserialize;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Bytes of a `max_disk_size` unit.
pub const GIB: u64 = 1024 * 1024 * 1024;
/// Bytes of a `max_allocable_memory_in_mb` unit.
pub const MIB: u64 = 1024 * 1024;

/// The file as written; every key has a default, unknown keys are refused.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Input {
    image_path: PathBuf,
    kms_url: String,
    cvm: CvmInput,
    networking: NetworkingInput,
    gateway: Gateway,
    auth: Auth,
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct CvmInput {
    platform: String,
    vsock: String,
    qemu_path: PathBuf,
    firmware: PathBuf,
    default_image: String,
    qgs_port: u32,
    cid_start: u32,
    cid_pool_size: u32,
    max_allocable_vcpu: u32,
    max_allocable_memory_in_mb: u64,
    max_disk_size: u64,
    memory_overhead_in_mb: u64,
    kms_url: String,
    kms_urls: Vec<String>,
    tproxy_url: String,
    tproxy_urls: Vec<String>,
    pccs_url: String,
    progress_timeout: u64,
    boot_timeout: u64,
    stop_timeout: u64,
    port_mapping: PortMappingInput,
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct PortMappingInput {
    enabled: bool,
    address: IpAddr,
    range: Vec<PortRange>,
}

/// Host ports that mappings may use.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortRange {
    /// Transport protocol.
    pub protocol: Protocol,
    /// First port.
    pub from: u16,
    /// Last port.
    pub to: u16,
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct NetworkingInput {
    mode: String,
}

/// Where apps appear to the world; for links only.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Gateway {
    /// Domain below which apps appear.
    pub base_domain: String,
    /// Public port.
    pub port: u16,
    /// Port of the guest agent's dashboard.
    pub tappd_port: u16,
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Auth {
    enabled: bool,
}

impl Default for Input {
    fn default() -> Self {
        Self {
            image_path: "/var/lib/dstack/images".into(),
            kms_url: String::new(),
            cvm: CvmInput::default(),
            networking: NetworkingInput::default(),
            gateway: Gateway::default(),
            auth: Auth { enabled: true },
        }
    }
}

impl Default for CvmInput {
    fn default() -> Self {
        Self {
            platform: "auto".into(),
            vsock: "auto".into(),
            qemu_path: "/usr/bin/qemu-system-x86_64".into(),
            firmware: "/usr/share/ovmf/OVMF.fd".into(),
            default_image: String::new(),
            qgs_port: 4050,
            cid_start: 1000,
            cid_pool_size: 1000,
            max_allocable_vcpu: 20,
            max_allocable_memory_in_mb: 100_000,
            max_disk_size: 100,
            memory_overhead_in_mb: 512,
            kms_url: String::new(),
            kms_urls: Vec::new(),
            tproxy_url: String::new(),
            tproxy_urls: Vec::new(),
            pccs_url: String::new(),
            progress_timeout: 180,
            boot_timeout: 1800,
            stop_timeout: 60,
            port_mapping: PortMappingInput::default(),
        }
    }
}

impl Default for PortMappingInput {
    fn default() -> Self {
        let range = |protocol| PortRange { protocol, from: 1024, to: 32767 };
        Self {
            enabled: true,
            address: [127, 0, 0, 1].into(),
            range: vec![range(Protocol::Tcp), range(Protocol::Udp)],
        }
    }
}

impl Default for NetworkingInput {
    fn default() -> Self {
        Self { mode: "user".into() }
    }
}

impl Default for Auth {
    fn default() -> Self {
        Self { enabled: true }
    }
}

impl Default for Gateway {
    fn default() -> Self {
        Self { base_domain: String::new(), port: 443, tappd_port: 8090 }
    }
}

/// Validated settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Directory of all images.
    pub image_path: PathBuf,
    /// Key service as teepod reaches it; empty when there is none.
    pub kms_url: String,
    /// What VMs run on; `None`: found out by a probe.
    pub platform: Option<Platform>,
    /// How host and guest speak; `None`: found out by a probe.
    pub vsock: Option<Vsock>,
    /// QEMU's program.
    pub qemu_path: PathBuf,
    /// Firmware for images that bring none.
    pub firmware: PathBuf,
    /// Image for VMs that name none; `None`: the newest.
    pub default_image: Option<ImageName>,
    /// Vsock port of the host's quote generation service.
    pub qgs_port: u32,
    /// Context ids for VMs.
    pub cids: std::ops::Range<u32>,
    /// Most vCPUs of all VMs together.
    pub max_vcpus: u32,
    /// Most memory of all VMs together, bytes.
    pub max_memory: u64,
    /// Largest data disk, bytes.
    pub max_disk: u64,
    /// Memory that QEMU needs beyond the guest's, bytes.
    pub memory_overhead: u64,
    /// Key services as guests reach them.
    pub kms_urls: Vec<String>,
    /// Ingresses as guests reach them.
    pub tproxy_urls: Vec<String>,
    /// Collateral cache as guests reach it.
    pub pccs_url: String,
    /// Longest time without progress while booting.
    pub progress_timeout: Duration,
    /// Longest boot.
    pub boot_timeout: Duration,
    /// Longest shutdown.
    pub stop_timeout: Duration,
    /// Which ports may be mapped.
    pub ports: PortPolicy,
    /// Links to apps.
    pub gateway: Gateway,
    /// Whether HTTP requests need the token.
    pub auth: bool,
}

/// Which host ports VMs may have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortPolicy {
    /// Whether any port may be mapped.
    pub enabled: bool,
    /// Address for mappings that name none; also the widest allowed one.
    pub address: IpAddr,
    /// Allowed ports.
    pub ranges: Vec<PortRange>,
}

impl Settings {
    /// Checks the merged input.
    ///
    /// # Errors
    /// [`ConfigError::Rule`] names the key and what is allowed.
    pub fn from_input(input: Input) -> Result<Self, ConfigError> {
        let cvm = input.cvm;
        check_networking(&input.networking.mode)?;
        absolute("image_path", &input.image_path)?;
        absolute("cvm.qemu_path", &cvm.qemu_path)?;
        absolute("cvm.firmware", &cvm.firmware)?;
        Ok(Self {
            image_path: input.image_path,
            kms_url: input.kms_url,
            platform: platform(&cvm.platform)?,
            vsock: vsock(&cvm.vsock)?,
            qemu_path: cvm.qemu_path,
            firmware: cvm.firmware,
            default_image: default_image(&cvm.default_image)?,
            qgs_port: cvm.qgs_port,
            cids: cids(cvm.cid_start, cvm.cid_pool_size)?,
            max_vcpus: cvm.max_allocable_vcpu,
            max_memory: scaled("cvm.max_allocable_memory_in_mb", cvm.max_allocable_memory_in_mb, MIB)?,
            max_disk: scaled("cvm.max_disk_size", cvm.max_disk_size, GIB)?,
            memory_overhead: scaled("cvm.memory_overhead_in_mb", cvm.memory_overhead_in_mb, MIB)?,
            kms_urls: urls("cvm.kms_urls", cvm.kms_url, cvm.kms_urls)?,
            tproxy_urls: urls("cvm.tproxy_urls", cvm.tproxy_url, cvm.tproxy_urls)?,
            pccs_url: cvm.pccs_url,
            progress_timeout: seconds("cvm.progress_timeout", cvm.progress_timeout)?,
            boot_timeout: seconds("cvm.boot_timeout", cvm.boot_timeout)?,
            stop_timeout: seconds("cvm.stop_timeout", cvm.stop_timeout)?,
            ports: port_policy(cvm.port_mapping)?,
            gateway: input.gateway,
            auth: input.auth.enabled,
        })
    }
}

fn check_networking(mode: &str) -> Result<(), ConfigError> {
    match mode {
        "user" => Ok(()),
        _ => Err(ConfigError::rule("networking.mode", format!("{mode:?} is not possible yet; use \"user\""))),
    }
}

fn absolute(key: &str, path: &std::path::Path) -> Result<(), ConfigError> {
    if path.is_absolute() {
        return Ok(());
    }
    Err(ConfigError::rule(key, format!("{:?} is not an absolute path", path.display().to_string())))
}

fn platform(text: &str) -> Result<Option<Platform>, ConfigError> {
    Ok(match text {
        "auto" => None,
        "tdx" => Some(Platform::Tdx),
        "kvm" => Some(Platform::Kvm),
        "tcg" => Some(Platform::Tcg),
        _ => {
            let reason = format!("{text:?} is not known; use \"auto\", \"tdx\", \"kvm\" or \"tcg\"");
            return Err(ConfigError::rule("cvm.platform", reason));
        }
    })
}

fn vsock(text: &str) -> Result<Option<Vsock>, ConfigError> {
    Ok(match text {
        "auto" => None,
        "kernel" => Some(Vsock::Kernel),
        "user" => Some(Vsock::User),
        _ => {
            let reason = format!("{text:?} is not known; use \"auto\", \"kernel\" or \"user\"");
            return Err(ConfigError::rule("cvm.vsock", reason));
        }
    })
}

fn default_image(text: &str) -> Result<Option<ImageName>, ConfigError> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse()
        .map(Some)
        .map_err(|e: dstack_core::ids::IdError| ConfigError::rule("cvm.default_image", e.to_string()))
}

/// Context ids 0 to 2 are special, and the last one means "any".
fn cids(start: u32, size: u32) -> Result<std::ops::Range<u32>, ConfigError> {
    if start < 3 {
        return Err(ConfigError::rule("cvm.cid_start", format!("{start} is reserved; use 3 or more")));
    }
    match start.checked_add(size) {
        Some(end) if size > 0 => Ok(start..end),
        _ => Err(ConfigError::rule(
            "cvm.cid_pool_size",
            format!("{size} is not possible; use 1 to {}", u32::MAX - start),
        )),
    }
}

fn scaled(key: &str, value: u64, unit: u64) -> Result<u64, ConfigError> {
    value.checked_mul(unit).ok_or_else(|| ConfigError::rule(key, format!("{value} is too large")))
}

fn seconds(key: &str, value: u64) -> Result<Duration, ConfigError> {
    if (1..=86_400).contains(&value) {
        return Ok(Duration::from_secs(value));
    }
    Err(ConfigError::rule(key, format!("{value} is not possible; use 1 to 86400 seconds")))
}

/// The original had one URL, then a list; both are accepted, the single one first.
fn urls(key: &str, one: String, many: Vec<String>) -> Result<Vec<String>, ConfigError> {
    let all: Vec<String> = Some(one).filter(|u| !u.is_empty()).into_iter().chain(many).collect();
    match all.iter().find(|u| !u.starts_with("https://") || u.len() > 512) {
        Some(bad) => Err(ConfigError::rule(key, format!("{bad:?} is not possible; use an https:// URL"))),
        None => Ok(all),
    }
}

fn port_policy(input: PortMappingInput) -> Result<PortPolicy, ConfigError> {
    if let Some(bad) = input.range.iter().find(|r| r.from == 0 || r.from > r.to) {
        let reason = format!("{} to {} is no range; use 1 <= from <= to <= 65535", bad.from, bad.to);
        return Err(ConfigError::rule("cvm.port_mapping.range", reason));
    }
    Ok(PortPolicy { enabled: input.enabled, address: input.address, ranges: input.range })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
impl Default for Settings {
    /// What an empty file means.
    fn default() -> Self {
        Self::from_input(Input::default()).unwrap()
    }
}

#[cfg(test)]
#[path = "settings_tests.rs"]
mod tests;
