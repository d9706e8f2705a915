// SPDX-License-Identifier: Apache-2.0
//! Named limits for everything that comes from outside.

/// Largest `app-compose.json`, bytes.
pub const APP_COMPOSE_MAX: usize = 128 * 1024;
/// Largest `sys-config.json`, bytes.
pub const SYS_CONFIG_MAX: usize = 10 * 1024;
/// Largest `encrypted-env`, bytes.
pub const ENCRYPTED_ENV_MAX: usize = 256 * 1024;
/// Largest `encrypted-env.sig`, bytes.
pub const ENCRYPTED_ENV_SIG_MAX: usize = 1024;
/// Most names in `allowed_envs`.
pub const ALLOWED_ENVS_MAX: usize = 1024;
/// Most keys in `upgrade_keys`.
pub const UPGRADE_KEYS_MAX: usize = 16;
/// Longest `key_provider_id`, hex digits (an RSA-4096 key has 1100).
pub const KEY_PROVIDER_ID_MAX: usize = 1200;
/// Largest `user-config`, bytes.
pub const USER_CONFIG_MAX: usize = 1024 * 1024;
/// Largest `instance-info.json`, bytes.
pub const INSTANCE_INFO_MAX: usize = 10 * 1024;
/// Largest config disk: all files at their cap, headers and padding.
pub const CONFIG_DISK_MAX: usize = 2 * 1024 * 1024;
/// Longest line of the guest's boot protocol, bytes, without the line end.
pub const BOOT_LINE_MAX: usize = 256;
/// Largest packet between teepod and dstack-vm, bytes.
pub const HOME_PACKET_MAX: usize = 16 * 1024;
/// Largest `metadata.json` or `sha256sum.txt` of an image, bytes.
pub const IMAGE_METADATA_MAX: usize = 64 * 1024;
/// Most files in one image.
pub const IMAGE_FILES_MAX: usize = 64;
/// Longest VM name; `v<name>` must be a Linux user name (31 characters).
pub const VM_NAME_MAX: usize = 30;
/// Most port mappings of one VM.
pub const PORTS_MAX: usize = 64;
/// Most vCPUs of one VM, whatever the operator's config says.
pub const VCPUS_MAX: u32 = 256;
/// Least memory of a VM, bytes: below it the guest cannot start Docker.
pub const MEMORY_MIN: u64 = 512 * 1024 * 1024;
/// Most memory of a VM, bytes.
pub const MEMORY_MAX: u64 = 4 * 1024 * 1024 * 1024 * 1024;
/// Least data disk, bytes.
pub const DISK_MIN: u64 = 64 * 1024 * 1024;
/// Most data disk, bytes.
pub const DISK_MAX: u64 = 64 * 1024 * 1024 * 1024 * 1024;
/// Vsock port of the guest's boot status lines.
pub const BOOT_STATUS_PORT: u32 = 9997;
/// Vsock port of the guest API (HTTP, `/api/<Method>`).
pub const GUEST_API_PORT: u32 = 8000;
