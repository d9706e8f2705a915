// SPDX-License-Identifier: Apache-2.0
//! `org.dstack.teepod1.Manager`: all verbs by name, so that one `busctl call` does it.

use super::api::Api;
use super::{actions, export, options};
use crate::engine::vm::Vm;
use dstack_core::config_disk::File;
use dstack_core::spec::{Protocol, Vsock};
use dstack_service::api::teepod1::{Error, ImageRow, OwnedOptions, VmRow};
use std::sync::Arc;
use zbus::message::Header;
use zbus::object_server::SignalEmitter;
use zbus::{OwnedFd, OwnedObjectPath, interface};

/// The manager on the bus.
#[derive(Debug)]
pub struct Manager {
    api: Arc<Api>,
}

impl Manager {
    /// The manager's object.
    #[must_use]
    pub const fn new(api: Arc<Api>) -> Self {
        Self { api }
    }
}

/// The word for a way to speak vsock.
pub(super) const fn vsock_word(vsock: Vsock) -> &'static str {
    match vsock {
        Vsock::Kernel => "kernel",
        Vsock::User => "user",
    }
}

fn row(vm: &Vm) -> Result<VmRow, Error> {
    let view = vm.view();
    let spec = &view.record.spec;
    let (name, id, app) = (spec.name.to_string(), spec.id.to_string(), spec.app_id.to_string());
    let (state, boot) = (view.state.word().to_owned(), view.boot().to_owned());
    Ok((name, id, app, state, spec.image.to_string(), boot, export::path(&vm.name)?))
}

#[interface(name = "org.dstack.teepod1.Manager")]
impl Manager {
    /// Creates a VM from the exact bytes of app-compose.json, and starts it unless option start is false.
    #[zbus(out_args("vm", "job"))]
    async fn create_vm(
        &self,
        name: String,
        app_compose: Vec<u8>,
        options: OwnedOptions,
        #[zbus(header)] call: Header<'_>,
    ) -> Result<(OwnedObjectPath, OwnedObjectPath), Error> {
        self.api.allow(&call, actions::MANAGE_VMS, &name).await?;
        let create = options::create(name, app_compose, options)?;
        let start = create.start;
        let vm = self.api.engine.create(create).await?;
        let path = self.api.exporter.add(&self.api, &vm).await?;
        Ok((path, self.api.created(&vm, start).await?))
    }

    /// Starts a VM; the job ends when the app is up.
    #[zbus(out_args("job"))]
    async fn start_vm(
        &self,
        name: String,
        #[zbus(header)] call: Header<'_>,
    ) -> Result<OwnedObjectPath, Error> {
        self.api.start(&call, &name).await
    }

    /// Shuts a VM down in order.
    #[zbus(out_args("job"))]
    async fn stop_vm(
        &self,
        name: String,
        #[zbus(header)] call: Header<'_>,
    ) -> Result<OwnedObjectPath, Error> {
        self.api.stop(&call, &name).await
    }

    /// Ends a VM at once.
    async fn kill_vm(&self, name: String, #[zbus(header)] call: Header<'_>) -> Result<(), Error> {
        self.api.kill(&call, &name).await
    }

    /// Stops, then starts a VM.
    #[zbus(out_args("job"))]
    async fn restart_vm(
        &self,
        name: String,
        #[zbus(header)] call: Header<'_>,
    ) -> Result<OwnedObjectPath, Error> {
        self.api.restart(&call, &name).await
    }

    /// Removes a stopped VM with its disk.
    #[zbus(out_args("job"))]
    async fn remove_vm(
        &self,
        name: String,
        #[zbus(header)] call: Header<'_>,
    ) -> Result<OwnedObjectPath, Error> {
        self.api.remove(&call, &name).await
    }

    /// Gives a VM a new app-compose.json, in force from its next start; returns its hash.
    #[zbus(out_args("compose_hash"))]
    async fn upgrade_app(
        &self,
        name: String,
        app_compose: Vec<u8>,
        options: OwnedOptions,
        #[zbus(header)] call: Header<'_>,
    ) -> Result<String, Error> {
        self.api.allow(&call, actions::UPGRADE_APPS, &name).await?;
        let vm = self.api.engine.get(&name)?;
        let hash = self.api.engine.upgrade(&vm, options::upgrade(app_compose, options)?).await?;
        Ok(hash.to_string())
    }

    /// Changes vcpus, memory, disk, image, ports of a stopped VM, or autostart of any.
    async fn resize_vm(
        &self,
        name: String,
        options: OwnedOptions,
        #[zbus(header)] call: Header<'_>,
    ) -> Result<(), Error> {
        self.api.allow(&call, actions::MANAGE_VMS, &name).await?;
        let vm = self.api.engine.get(&name)?;
        self.api.engine.resize(&vm, options::resize(options)?).await
    }

    /// All VMs by name: name, id, app id, state, image, boot progress or error, object.
    #[zbus(out_args("vms"))]
    async fn list_vms(&self, #[zbus(header)] call: Header<'_>) -> Result<Vec<VmRow>, Error> {
        self.api.allow(&call, actions::INSPECT_VMS, "").await?;
        self.api.engine.vms().iter().map(|vm| row(vm)).collect()
    }

    /// The object of a VM, by name or id.
    #[zbus(out_args("vm"))]
    async fn get_vm(&self, name: String, #[zbus(header)] call: Header<'_>) -> Result<OwnedObjectPath, Error> {
        self.api.allow(&call, actions::INSPECT_VMS, &name).await?;
        export::path(&self.api.engine.get(&name)?.name)
    }

    /// The exact bytes of a VM's app-compose.json.
    #[zbus(out_args("app_compose"))]
    async fn get_app_compose(
        &self,
        name: String,
        #[zbus(header)] call: Header<'_>,
    ) -> Result<Vec<u8>, Error> {
        self.api.allow(&call, actions::INSPECT_VMS, &name).await?;
        let vm = self.api.engine.get(&name)?;
        Ok(self.api.engine.files(&vm).await?.remove(&File::AppCompose).unwrap_or_default())
    }

    /// A two-way stream of the VM's serial console.
    #[zbus(out_args("console"))]
    async fn open_console(&self, name: String, #[zbus(header)] call: Header<'_>) -> Result<OwnedFd, Error> {
        self.api.allow(&call, actions::OPEN_CONSOLE, &name).await?;
        let vm = self.api.engine.get(&name)?;
        Ok(self.api.engine.console(&vm).await?.into())
    }

    /// Calls the guest API: Info, SysInfo, NetworkInfo, ListContainers, Shutdown; returns its JSON.
    #[zbus(out_args("json"))]
    async fn call_guest(
        &self,
        name: String,
        method: String,
        #[zbus(header)] call: Header<'_>,
    ) -> Result<String, Error> {
        let action = if method == "Shutdown" { actions::MANAGE_VMS } else { actions::INSPECT_VMS };
        self.api.allow(&call, action, &name).await?;
        let vm = self.api.engine.get(&name)?;
        self.api.engine.call_guest(&vm, &method).await
    }

    /// The body of the guest agent's `/logs/<container>?<query>`, which the guest gives only of an app with public logs;
    /// an empty container gives the list of containers as JSON.
    #[zbus(out_args("body"))]
    async fn open_logs(
        &self,
        name: String,
        container: String,
        query: String,
        #[zbus(header)] call: Header<'_>,
    ) -> Result<OwnedFd, Error> {
        self.api.allow(&call, actions::INSPECT_VMS, &name).await?;
        let vm = self.api.engine.get(&name)?;
        Ok(self.api.engine.logs(&vm, &container, &query).await?.into())
    }

    /// All images: name, version, os_image_hash, whether for development, size in bytes.
    #[zbus(out_args("images"))]
    async fn list_images(&self, #[zbus(header)] call: Header<'_>) -> Result<Vec<ImageRow>, Error> {
        self.api.allow(&call, actions::INSPECT_VMS, "").await?;
        let images = self.api.engine.images().await?.into_iter().map(|image| {
            let metadata = image.manifest.metadata;
            let hash = image.manifest.hash.to_string();
            (image.name.to_string(), metadata.version, hash, metadata.is_dev, image.size)
        });
        Ok(images.collect())
    }

    /// Copies and checks the image in an open directory.
    #[zbus(out_args("job"))]
    async fn import_image(
        &self,
        directory: OwnedFd,
        options: OwnedOptions,
        #[zbus(header)] call: Header<'_>,
    ) -> Result<OwnedObjectPath, Error> {
        self.api.allow(&call, actions::MANAGE_IMAGES, "").await?;
        options::none(options)?;
        self.api.import(directory.into()).await
    }

    /// Removes an image that no VM is pinned to.
    async fn remove_image(&self, name: String, #[zbus(header)] call: Header<'_>) -> Result<(), Error> {
        self.api.allow(&call, actions::REMOVE_IMAGES, &name).await?;
        self.api.engine.remove_image(&name).await
    }

    /// The public key to encrypt an app's environment for.
    #[zbus(out_args("public_key"))]
    async fn get_app_env_key(
        &self,
        app_id: String,
        #[zbus(header)] call: Header<'_>,
    ) -> Result<Vec<u8>, Error> {
        self.api.allow(&call, actions::INSPECT_VMS, "").await?;
        self.api.engine.app_env_key(&app_id)
    }

    /// A VM has appeared.
    #[zbus(signal)]
    async fn vm_new(emitter: &SignalEmitter<'_>, name: &str, vm: OwnedObjectPath) -> zbus::Result<()>;

    /// A VM is gone.
    #[zbus(signal)]
    async fn vm_removed(emitter: &SignalEmitter<'_>, name: &str, vm: OwnedObjectPath) -> zbus::Result<()>;

    /// A job begins.
    #[zbus(signal)]
    async fn job_new(emitter: &SignalEmitter<'_>, id: u32, job: OwnedObjectPath) -> zbus::Result<()>;

    /// A job has ended: done, canceled, failed, timeout.
    #[zbus(signal)]
    async fn job_removed(
        emitter: &SignalEmitter<'_>,
        id: u32,
        job: OwnedObjectPath,
        result: &str,
    ) -> zbus::Result<()>;

    /// Version of the daemon.
    #[zbus(property(emits_changed_signal = "const"))]
    fn version(&self) -> String {
        env!("CARGO_PKG_VERSION").to_owned()
    }

    /// What VMs run on: tdx, kvm, tcg; empty until that is found out.
    #[zbus(property)]
    fn platform(&self) -> String {
        self.api.engine.ground_now().map(|g| g.platform.to_string()).unwrap_or_default()
    }

    /// How that was found out, in words.
    #[zbus(property)]
    fn platform_reason(&self) -> String {
        self.api.engine.ground_now().map(|g| g.reason).unwrap_or_default()
    }

    /// How host and guest speak: kernel, user; empty until that is found out.
    #[zbus(property)]
    fn vsock(&self) -> String {
        self.api.engine.ground_now().map(|g| vsock_word(g.vsock).to_owned()).unwrap_or_default()
    }

    /// Host ports that mappings may use: address, first, last; 0 and 0 when there are none.
    #[zbus(property(emits_changed_signal = "const"))]
    fn port_range(&self) -> (String, u16, u16) {
        let policy = &self.api.engine.settings().ports;
        let tcp = || policy.ranges.iter().filter(|r| policy.enabled && r.protocol == Protocol::Tcp);
        let first = tcp().map(|r| r.from).min().unwrap_or_default();
        (policy.address.to_string(), first, tcp().map(|r| r.to).max().unwrap_or_default())
    }

    /// Image for VMs that name none; empty when there is none.
    #[zbus(property(emits_changed_signal = "false"))]
    async fn default_image(&self) -> String {
        self.api.engine.default_image().await
    }
}
