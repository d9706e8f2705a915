// SPDX-License-Identifier: Apache-2.0
//! What this guest is, in the shape of each service: for its containers, for anybody, for the host.

use crate::app::App;
use crate::attest::Snapshot;
use crate::vault::Vault;
use dstack_rpc::dstack::AppInfo;
use dstack_rpc::worker::WorkerInfo;
use serde::Serialize;
use serde_json::{Value, json};

/// What is measured, as clients know it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Measured {
    /// SHA-256 of the platform's id.
    pub device_id: Vec<u8>,
    /// SHA-256 over all registers.
    pub mr_aggregated: Vec<u8>,
    /// Hash of the image that the boot recorded.
    pub os_image_hash: Vec<u8>,
    /// Registers and event log, JSON text.
    pub tcb_info: String,
    /// Names and values of the registers.
    pub registers: Vec<(&'static str, String)>,
    /// `tdx` or `simulated`.
    pub platform: &'static str,
}

impl Measured {
    /// From what the TEE says.
    #[must_use]
    pub fn of(app: &App, snapshot: &Snapshot) -> Self {
        let registers = &snapshot.registers;
        let names = ["mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3"];
        let values = [registers.mrtd, registers.rtmr0, registers.rtmr1, registers.rtmr2, registers.rtmr3];
        let mut measured = Self {
            device_id: snapshot.facts.device_id.to_vec(),
            mr_aggregated: snapshot.facts.aggregated(registers).to_vec(),
            os_image_hash: snapshot.boot.os_image_hash.as_bytes().to_vec(),
            tcb_info: String::new(),
            registers: names.into_iter().zip(values.map(hex::encode)).collect(),
            platform: snapshot.platform,
        };
        measured.tcb_info = measured.tcb_info(app, &snapshot.event_log);
        measured
    }

    fn tcb_info(&self, app: &App, event_log: &[u8]) -> String {
        let mut info = json!({
            "mr_aggregated": hex::encode(&self.mr_aggregated),
            "os_image_hash": hex::encode(&self.os_image_hash),
            // What clients of the first versions knew an image by.
            "rootfs_hash": hex::encode(&self.os_image_hash),
            "compose_hash": app.compose_hash,
            "device_id": hex::encode(&self.device_id),
            "event_log": serde_json::from_slice::<Value>(event_log).unwrap_or(Value::Null),
            "app_compose": app.compose,
        });
        for (name, value) in &self.registers {
            if let Some(fields) = info.as_object_mut() {
                fields.insert((*name).to_owned(), Value::String(value.clone()));
            }
        }
        format!("{info:#}")
    }
}

/// The key provider as the event log has it: name and public key.
#[derive(Serialize)]
struct KeyProvider<'a> {
    name: &'a str,
    id: &'a str,
}

/// The key provider as JSON text; nothing without keys.
#[must_use]
pub fn key_provider_info(vault: &Vault) -> String {
    let info =
        vault.keys().map(|keys| KeyProvider { name: vault.provider(), id: &keys.handed().provider_id });
    info.and_then(|info| serde_json::to_string(&info).ok()).unwrap_or_default()
}

/// `DstackGuest.Info`.
#[must_use]
pub fn app_info(app: &App, vault: &Vault, measured: Measured) -> AppInfo {
    // Ids are hex texts that the boot wrote; what is none is shown as none.
    let bytes = |text: &str| hex::decode(text).unwrap_or_default();
    AppInfo {
        app_id: bytes(&app.app_id),
        instance_id: bytes(&app.instance_id),
        app_cert: vault.certificate(),
        tcb_info: measured.tcb_info,
        app_name: app.name.clone(),
        public_logs: app.public_logs,
        public_sysinfo: app.public_sysinfo,
        device_id: measured.device_id,
        mr_aggregated: measured.mr_aggregated,
        os_image_hash: measured.os_image_hash,
        key_provider_info: key_provider_info(vault),
        compose_hash: bytes(&app.compose_hash),
        vm_config: vault.vm_config().to_owned(),
        ..AppInfo::default()
    }
}

/// `Tappd.Info` and `Worker.Info`.
#[must_use]
pub fn worker_info(app: &App, vault: &Vault, measured: Measured) -> WorkerInfo {
    let info = app_info(app, vault, measured);
    WorkerInfo {
        app_id: app.app_id.clone(),
        instance_id: app.instance_id.clone(),
        app_cert: info.app_cert,
        tcb_info: info.tcb_info,
        app_name: info.app_name,
        public_logs: info.public_logs,
        public_sysinfo: info.public_sysinfo,
        device_id: info.device_id,
        mr_aggregated: info.mr_aggregated,
        os_image_hash: info.os_image_hash,
        key_provider_info: info.key_provider_info,
        compose_hash: info.compose_hash,
        vm_config: info.vm_config,
    }
}
