// SPDX-License-Identifier: Apache-2.0
//! From a VM's record to what its dstack-vm and its guest get: pure.

use crate::images::Image;
use crate::settings::Settings;
use crate::vm::Record;
use dstack_core::config_disk::{File, Files};
use dstack_core::spec::{CONFIG_DISK, LAUNCH_VERSION, LaunchSpec, Network, Platform, Vsock, mr_config_id};
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

/// The vhost-user vsock program beside the other helpers.
pub const VSOCK_PROGRAM: &str = "/usr/libexec/dstack/vhost-device-vsock";

/// What VMs run on and how host and guest speak.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ground {
    /// What VMs run on.
    pub platform: Platform,
    /// How host and guest speak.
    pub vsock: Vsock,
    /// How that was found out, in words.
    pub reason: String,
}

/// `sys-config.json`: the host's hints to the guest, hostile until measured.
#[derive(Debug, Serialize)]
struct SysConfig<'a> {
    kms_urls: Vec<String>,
    tproxy_urls: &'a [String],
    pccs_url: &'a str,
    os_image_hash: String,
    /// JSON text: what a verifier needs to know of the VM's shape.
    vm_config: String,
}

/// `vm_config`.
#[derive(Debug, Serialize)]
struct VmConfig {
    spec_version: u32,
    os_image_hash: String,
    cpu_count: u32,
    memory_size: u64,
}

/// `instance-info.json`: what the host keeps for the guest.
#[derive(Debug, Serialize)]
struct InstanceInfo {
    app_id: String,
    /// Behind the instance id, and so behind the disk's key: the same for the whole life of a VM.
    instance_id_seed: String,
}

/// The launch specification of a VM.
#[must_use]
pub fn launch(record: &Record, settings: &Settings, ground: &Ground, image: &Image) -> LaunchSpec {
    let metadata = &image.manifest.metadata;
    let image_dir = settings.image_path.join(image.name.as_str());
    let firmware =
        metadata.firmware.as_ref().map_or_else(|| settings.firmware.clone(), |f| image_dir.join(f));
    LaunchSpec {
        version: LAUNCH_VERSION,
        vm: record.spec.clone(),
        platform: ground.platform,
        vsock: ground.vsock,
        cid: record.cid,
        network: Network::User,
        qemu: settings.qemu_path.clone(),
        vsock_program: Path::new(VSOCK_PROGRAM).to_owned(),
        uki: metadata.uki.clone(),
        root: metadata.root.clone(),
        verity: metadata.verity.clone(),
        image_dir,
        firmware,
        config_disk: CONFIG_DISK.into(),
        mr_config_id: mr_config_id(&record.spec.compose_hash),
        qgs_port: (ground.platform == Platform::Tdx).then_some(settings.qgs_port),
        progress_timeout: settings.progress_timeout.as_secs(),
        boot_timeout: settings.boot_timeout.as_secs(),
        stop_timeout: settings.stop_timeout.as_secs(),
    }
}

/// Where guests look for the key service: as configured, else on this host, by the address that the outside knows (a
/// guest reaches no loopback service). A hint: the app's compose file pins the key.
#[must_use]
pub fn kms_urls(settings: &Settings, own: Option<IpAddr>) -> Vec<String> {
    match own {
        Some(ip) if settings.kms_urls.is_empty() => {
            vec![format!("https://{}", SocketAddr::new(ip, dstack_core::kms_address::PORT))]
        }
        _ => settings.kms_urls.clone(),
    }
}

/// Puts the host's own files among those of the deployer. `own` is this host's address.
pub fn host_files(
    files: &mut Files,
    record: &Record,
    settings: &Settings,
    image: &Image,
    own: Option<IpAddr>,
) {
    let vm = VmConfig {
        spec_version: 1,
        os_image_hash: image.manifest.hash.to_string(),
        cpu_count: record.spec.vcpus,
        memory_size: record.spec.memory,
    };
    let sys = SysConfig {
        kms_urls: kms_urls(settings, own),
        tproxy_urls: &settings.tproxy_urls,
        pccs_url: &settings.pccs_url,
        os_image_hash: image.manifest.hash.to_string(),
        vm_config: serde_json::to_string(&vm).unwrap_or_default(),
    };
    let instance = InstanceInfo {
        app_id: record.spec.app_id.to_string(),
        instance_id_seed: hex::encode(record.instance_seed()),
    };
    // Strings and numbers only: their JSON always exists.
    files.insert(File::SysConfig, serde_json::to_vec(&sys).unwrap_or_default());
    files.insert(File::InstanceInfo, serde_json::to_vec(&instance).unwrap_or_default());
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn guests_look_for_the_key_service_where_they_can_reach_it() {
        let mut settings = Settings::default();
        let own = |ip: &str| Some(ip.parse().unwrap());
        assert_eq!(kms_urls(&settings, own("198.51.100.7")), ["https://198.51.100.7:9043"]);
        assert_eq!(kms_urls(&settings, own("2001:db8::7")), ["https://[2001:db8::7]:9043"]);
        assert!(kms_urls(&settings, None).is_empty());
        settings.kms_urls = vec!["https://kms.example:8000".into()];
        assert_eq!(kms_urls(&settings, own("198.51.100.7")), settings.kms_urls);
    }
}
