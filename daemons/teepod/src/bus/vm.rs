// SPDX-License-Identifier: Apache-2.0
//! `org.dstack.teepod1.Vm`: one VM.

use super::api::Api;
use crate::engine::vm::Vm;
use dstack_service::api::teepod1::{Error, Port};
use std::sync::Arc;
use zbus::message::Header;
use zbus::{OwnedObjectPath, interface};

/// A VM on the bus.
#[derive(Debug)]
pub struct VmObject {
    api: Arc<Api>,
    vm: Arc<Vm>,
}

impl VmObject {
    /// The object of a VM.
    #[must_use]
    pub const fn new(api: Arc<Api>, vm: Arc<Vm>) -> Self {
        Self { api, vm }
    }
}

#[interface(name = "org.dstack.teepod1.Vm")]
impl VmObject {
    /// Starts it; the job ends when the app is up.
    #[zbus(out_args("job"))]
    async fn start(&self, #[zbus(header)] call: Header<'_>) -> Result<OwnedObjectPath, Error> {
        self.api.start(&call, self.vm.name.as_str()).await
    }

    /// Shuts it down in order.
    #[zbus(out_args("job"))]
    async fn stop(&self, #[zbus(header)] call: Header<'_>) -> Result<OwnedObjectPath, Error> {
        self.api.stop(&call, self.vm.name.as_str()).await
    }

    /// Ends it at once.
    async fn kill(&self, #[zbus(header)] call: Header<'_>) -> Result<(), Error> {
        self.api.kill(&call, self.vm.name.as_str()).await
    }

    /// Stops, then starts it.
    #[zbus(out_args("job"))]
    async fn restart(&self, #[zbus(header)] call: Header<'_>) -> Result<OwnedObjectPath, Error> {
        self.api.restart(&call, self.vm.name.as_str()).await
    }

    /// Removes it, when stopped, with its disk.
    #[zbus(out_args("job"))]
    async fn remove(&self, #[zbus(header)] call: Header<'_>) -> Result<OwnedObjectPath, Error> {
        self.api.remove(&call, self.vm.name.as_str()).await
    }

    /// UUID.
    #[zbus(property(emits_changed_signal = "const"))]
    fn id(&self) -> String {
        self.vm.record().spec.id.to_string()
    }

    /// Name.
    #[zbus(property(emits_changed_signal = "const"))]
    fn name(&self) -> String {
        self.vm.name.to_string()
    }

    /// App id, 40 hex digits.
    #[zbus(property(emits_changed_signal = "const"))]
    fn app_id(&self) -> String {
        self.vm.record().spec.app_id.to_string()
    }

    /// Instance id as the guest reported it, empty before.
    #[zbus(property)]
    fn instance_id(&self) -> String {
        self.vm.view().instance_id
    }

    /// Hash of the compose file in force, 64 hex digits.
    #[zbus(property)]
    fn compose_hash(&self) -> String {
        self.vm.record().spec.compose_hash.to_string()
    }

    /// stopped, starting, booting, running, stopping, failed; more may come.
    #[zbus(property)]
    fn state(&self) -> String {
        self.vm.state().word().to_owned()
    }

    /// What the boot is doing, in words.
    #[zbus(property)]
    fn boot_progress(&self) -> String {
        self.vm.view().boot_progress
    }

    /// Why the boot failed, in words; empty when it did not.
    #[zbus(property)]
    fn boot_error(&self) -> String {
        self.vm.view().boot_error
    }

    /// Directory name of the image.
    #[zbus(property)]
    fn image(&self) -> String {
        self.vm.record().spec.image.to_string()
    }

    /// Virtual CPUs.
    #[zbus(property)]
    fn vcpus(&self) -> u32 {
        self.vm.record().spec.vcpus
    }

    /// Memory, bytes.
    #[zbus(property)]
    fn memory(&self) -> u64 {
        self.vm.record().spec.memory
    }

    /// Data disk, bytes.
    #[zbus(property)]
    fn disk(&self) -> u64 {
        self.vm.record().spec.disk
    }

    /// Port mappings: protocol, host address, host port, VM port.
    #[zbus(property)]
    fn ports(&self) -> Vec<Port> {
        self.vm.view().ports()
    }

    /// Leased vsock context id.
    #[zbus(property)]
    fn cid(&self) -> u32 {
        self.vm.record().cid
    }

    /// The unit, e.g. dstack-vm@hello.service.
    #[zbus(property(emits_changed_signal = "const"))]
    fn unit(&self) -> String {
        self.vm.name.unit()
    }

    /// Whether it starts after a host reboot.
    #[zbus(property)]
    fn autostart(&self) -> bool {
        self.vm.record().spec.autostart
    }

    /// When it was created, seconds since 1970.
    #[zbus(property(emits_changed_signal = "const"))]
    fn created_at(&self) -> u64 {
        self.vm.record().spec.created_at
    }

    /// Stage and milliseconds since the start, for each stage of the last boot.
    #[zbus(property(emits_changed_signal = "false"))]
    fn timeline(&self) -> Vec<(String, u64)> {
        self.vm.view().timeline
    }
}
