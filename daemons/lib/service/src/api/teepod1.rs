// SPDX-License-Identifier: Apache-2.0
//! `org.dstack.teepod1`: VMs, images and jobs of a host.

use std::collections::HashMap;
use zbus::{OwnedFd, OwnedObjectPath, OwnedVariant, proxy};

/// Well-known bus name.
pub const NAME: &str = "org.dstack.teepod1";
/// Path of the manager object; VMs are at `…/vm/<escaped name>`, jobs at `…/job/<id>`.
pub const PATH: &str = "/org/dstack/teepod1";

/// Options of a call. `CreateVm`: `image s`, `vcpus u`, `memory t` (bytes), `disk t` (bytes), `ports a(ssqq)`,
/// `encrypted_env ay`, `encrypted_env_sig ay`, `app_id s`, `user_config ay`, `autostart b`, `start b` (default true).
pub type Options<'a> = HashMap<&'a str, zbus::Variant<'a>>;

/// A port mapping: protocol (`tcp`, `udp`), host address, host port, VM port.
pub type Port = (String, String, u16, u16);

/// A row of `ListVms`: name, id, app id, state, image, boot progress or error in words, object path.
pub type VmRow = (String, String, String, String, String, String, OwnedObjectPath);

/// A row of `ListImages`: name, version, os_image_hash, is_dev, size in bytes.
pub type ImageRow = (String, String, String, bool, u64);

crate::bus_errors! {
    /// What teepod refuses, and what to do about it.
    pub enum Error in "org.dstack.teepod1" {
        /// No VM of that name or id.
        NoSuchVm,
        /// The name is taken.
        VmExists,
        /// A name, id or option is out of form.
        InvalidArgument,
        /// `app-compose.json` is not usable.
        InvalidCompose,
        /// No image of that name.
        NoSuchImage,
        /// The image is there already with other content.
        ImageExists,
        /// A file of the image is missing or has another sum.
        ImageInvalid,
        /// A VM is pinned to the image.
        ImageInUse,
        /// Every context id of the pool is in use.
        NoFreeCid,
        /// Another VM or process has the port.
        PortInUse,
        /// The port is outside the allowed range.
        PortNotAllowed,
        /// The operator's limits on VMs, vCPUs, memory or disk.
        LimitExceeded,
        /// The file system has no room.
        NoSpace,
        /// The VM must be stopped first.
        VmRunning,
        /// The VM must run for this.
        VmNotRunning,
        /// A disk cannot shrink.
        DiskShrink,
        /// The VM's state file cannot be read; it is left as it is.
        StateUnreadable,
        /// The guest does not answer.
        GuestUnreachable,
        /// The guest did not become ready.
        BootFailed,
        /// No key service is set up.
        NoKms,
        /// systemd refused or failed.
        UnitFailed,
    }
}

/// Client side of `org.dstack.teepod1.Manager`.
#[proxy(
    interface = "org.dstack.teepod1.Manager",
    default_service = "org.dstack.teepod1",
    default_path = "/org/dstack/teepod1"
)]
pub trait Manager {
    /// Creates a VM from the exact bytes of `app-compose.json` and starts it unless option `start` is false.
    fn create_vm(
        &self,
        name: &str,
        app_compose: &[u8],
        options: Options<'_>,
    ) -> Result<(OwnedObjectPath, OwnedObjectPath), Error>;
    /// Starts a VM; the job ends when the app is up.
    fn start_vm(&self, name: &str) -> Result<OwnedObjectPath, Error>;
    /// Shuts a VM down in order.
    fn stop_vm(&self, name: &str) -> Result<OwnedObjectPath, Error>;
    /// Ends a VM at once.
    fn kill_vm(&self, name: &str) -> Result<(), Error>;
    /// Stops, then starts.
    fn restart_vm(&self, name: &str) -> Result<OwnedObjectPath, Error>;
    /// Removes a stopped VM with its disk.
    fn remove_vm(&self, name: &str) -> Result<OwnedObjectPath, Error>;
    /// Gives a VM a new `app-compose.json`, in force from its next start; returns its hash.
    fn upgrade_app(&self, name: &str, app_compose: &[u8], options: Options<'_>) -> Result<String, Error>;
    /// Changes `vcpus u`, `memory t`, `disk t`, `image s`, `ports a(ssqq)`, `autostart b` of a stopped VM.
    fn resize_vm(&self, name: &str, options: Options<'_>) -> Result<(), Error>;
    /// All VMs, by name.
    fn list_vms(&self) -> Result<Vec<VmRow>, Error>;
    /// The object of a VM, by name or id.
    fn get_vm(&self, name: &str) -> Result<OwnedObjectPath, Error>;
    /// The exact bytes of a VM's `app-compose.json`.
    fn get_app_compose(&self, name: &str) -> Result<Vec<u8>, Error>;
    /// A two-way stream of the VM's serial console.
    fn open_console(&self, name: &str) -> Result<OwnedFd, Error>;
    /// Calls the guest API (`Info`, `SysInfo`, `NetworkInfo`, `ListContainers`, `Shutdown`); returns its JSON.
    fn call_guest(&self, name: &str, method: &str) -> Result<String, Error>;
    /// The body of the guest agent's `/logs/<container>?<query>` as a stream, which ends when the guest closes it.
    /// The guest refuses unless the app's measured compose says `public_logs`; an empty container lists them as JSON.
    fn open_logs(&self, name: &str, container: &str, query: &str) -> Result<OwnedFd, Error>;
    /// All images.
    fn list_images(&self) -> Result<Vec<ImageRow>, Error>;
    /// Copies and checks the image in an open directory.
    fn import_image(&self, directory: zbus::Fd<'_>, options: Options<'_>) -> Result<OwnedObjectPath, Error>;
    /// Removes an image that no VM is pinned to.
    fn remove_image(&self, name: &str) -> Result<(), Error>;
    /// The public key to encrypt an app's environment for.
    fn get_app_env_key(&self, app_id: &str) -> Result<Vec<u8>, Error>;

    /// A VM has appeared.
    #[zbus(signal)]
    fn vm_new(&self, name: String, vm: OwnedObjectPath) -> zbus::Result<()>;
    /// A VM is gone.
    #[zbus(signal)]
    fn vm_removed(&self, name: String, vm: OwnedObjectPath) -> zbus::Result<()>;
    /// A job begins.
    #[zbus(signal)]
    fn job_new(&self, id: u32, job: OwnedObjectPath) -> zbus::Result<()>;
    /// A job has ended: `done canceled failed timeout`.
    #[zbus(signal)]
    fn job_removed(&self, id: u32, job: OwnedObjectPath, result: String) -> zbus::Result<()>;

    /// Version of the daemon.
    #[zbus(property(emits_changed_signal = "const"))]
    fn version(&self) -> zbus::Result<String>;
    /// What VMs run on: `tdx kvm tcg`.
    #[zbus(property)]
    fn platform(&self) -> zbus::Result<String>;
    /// How that was found out, in words.
    #[zbus(property)]
    fn platform_reason(&self) -> zbus::Result<String>;
    /// How host and guest speak: `kernel user`.
    #[zbus(property)]
    fn vsock(&self) -> zbus::Result<String>;
    /// Host ports that mappings may use: address, first, last.
    #[zbus(property)]
    fn port_range(&self) -> zbus::Result<(String, u16, u16)>;
    /// Image for VMs that name none.
    #[zbus(property)]
    fn default_image(&self) -> zbus::Result<String>;
}

/// Client side of `org.dstack.teepod1.Vm`. The verbs are those of the manager.
#[proxy(interface = "org.dstack.teepod1.Vm", default_service = "org.dstack.teepod1")]
pub trait Vm {
    /// Starts it; returns the job.
    fn start(&self) -> Result<OwnedObjectPath, Error>;
    /// Shuts it down in order; returns the job.
    fn stop(&self) -> Result<OwnedObjectPath, Error>;
    /// Ends it at once.
    fn kill(&self) -> Result<(), Error>;
    /// Stops, then starts; returns the job.
    fn restart(&self) -> Result<OwnedObjectPath, Error>;
    /// Removes it, when stopped, with its disk; returns the job.
    fn remove(&self) -> Result<OwnedObjectPath, Error>;

    /// UUID.
    #[zbus(property(emits_changed_signal = "const"))]
    fn id(&self) -> zbus::Result<String>;
    /// Name.
    #[zbus(property(emits_changed_signal = "const"))]
    fn name(&self) -> zbus::Result<String>;
    /// App id, 40 hex digits.
    #[zbus(property(emits_changed_signal = "const"))]
    fn app_id(&self) -> zbus::Result<String>;
    /// Instance id as the guest reported it, empty before.
    #[zbus(property)]
    fn instance_id(&self) -> zbus::Result<String>;
    /// Hash of the compose file in force, 64 hex digits.
    #[zbus(property)]
    fn compose_hash(&self) -> zbus::Result<String>;
    /// `stopped starting booting running stopping failed`; more may come.
    #[zbus(property)]
    fn state(&self) -> zbus::Result<String>;
    /// What the boot is doing, in words.
    #[zbus(property)]
    fn boot_progress(&self) -> zbus::Result<String>;
    /// Why the boot failed, in words; empty when it did not.
    #[zbus(property)]
    fn boot_error(&self) -> zbus::Result<String>;
    /// Directory name of the image.
    #[zbus(property)]
    fn image(&self) -> zbus::Result<String>;
    /// Virtual CPUs.
    #[zbus(property)]
    fn vcpus(&self) -> zbus::Result<u32>;
    /// Memory, bytes.
    #[zbus(property)]
    fn memory(&self) -> zbus::Result<u64>;
    /// Data disk, bytes.
    #[zbus(property)]
    fn disk(&self) -> zbus::Result<u64>;
    /// Port mappings.
    #[zbus(property)]
    fn ports(&self) -> zbus::Result<Vec<Port>>;
    /// Vsock context id, 0 when it has none.
    #[zbus(property)]
    fn cid(&self) -> zbus::Result<u32>;
    /// The unit, e.g. `dstack-vm@hello.service`.
    #[zbus(property(emits_changed_signal = "const"))]
    fn unit(&self) -> zbus::Result<String>;
    /// Whether it starts after a host reboot.
    #[zbus(property)]
    fn autostart(&self) -> zbus::Result<bool>;
    /// When it was created, seconds since 1970.
    #[zbus(property(emits_changed_signal = "const"))]
    fn created_at(&self) -> zbus::Result<u64>;
    /// Stage and milliseconds since the start, for each stage of the last boot.
    #[zbus(property(emits_changed_signal = "false"))]
    fn timeline(&self) -> zbus::Result<Vec<(String, u64)>>;
}

/// Client side of `org.dstack.teepod1.Job`.
#[proxy(interface = "org.dstack.teepod1.Job", default_service = "org.dstack.teepod1")]
pub trait Job {
    /// Ends it as soon as it can be ended cleanly.
    fn cancel(&self) -> zbus::Result<()>;
    /// Number of the job.
    #[zbus(property(emits_changed_signal = "const"))]
    fn id(&self) -> zbus::Result<u32>;
    /// What it does, e.g. `create-vm`.
    #[zbus(property(emits_changed_signal = "const"))]
    fn kind(&self) -> zbus::Result<String>;
    /// What it works on, e.g. the VM's name.
    #[zbus(property(emits_changed_signal = "const"))]
    fn subject(&self) -> zbus::Result<String>;
    /// What it is doing, in words.
    #[zbus(property)]
    fn stage(&self) -> zbus::Result<String>;
    /// From 0 to 1; negative when unknown.
    #[zbus(property)]
    fn progress(&self) -> zbus::Result<f64>;
    /// Error name and sentence of a job that failed; empty before.
    #[zbus(property)]
    fn error(&self) -> zbus::Result<(String, String)>;
}

/// Options as a server receives them.
pub type OwnedOptions = HashMap<String, OwnedVariant>;
