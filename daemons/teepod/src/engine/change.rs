// SPDX-License-Identifier: Apache-2.0
//! UpgradeApp and ResizeVm: changes that are in force from the next start.

use super::Engine;
use super::create::Port;
use super::errors::{bad_compose, invalid};
use super::vm::Vm;
use crate::settings::MIB;
use dstack_core::compose::AppCompose;
use dstack_core::config_disk::{self, File, Files};
use dstack_core::ids::{ComposeHash, ImageName};
use dstack_core::spec::VmSpec;
use dstack_service::api::teepod1::Error;

/// What a resize changes; what is absent stays.
#[derive(Debug, Default)]
pub struct Resize {
    /// Virtual CPUs.
    pub vcpus: Option<u32>,
    /// Memory, bytes.
    pub memory: Option<u64>,
    /// Data disk, bytes; it only grows.
    pub disk: Option<u64>,
    /// Image.
    pub image: Option<ImageName>,
    /// All port mappings.
    pub ports: Option<Vec<Port>>,
    /// Whether it starts after a host reboot; may change while the VM runs.
    pub autostart: Option<bool>,
}

/// What an upgrade brings beside the compose file; what is absent stays.
#[derive(Debug, Default)]
pub struct Upgrade {
    /// Exact bytes of the new `app-compose.json`.
    pub compose: Vec<u8>,
    /// New encrypted environment; empty removes the old one.
    pub encrypted_env: Option<Vec<u8>>,
    /// Who signed it; a new environment without a signature removes the old one.
    pub encrypted_env_sig: Option<Vec<u8>>,
    /// New bytes for the app; empty removes the old ones.
    pub user_config: Option<Vec<u8>>,
}

impl Engine {
    /// Gives a VM a new compose file, in force from its next start; a running VM keeps the old one until then.
    ///
    /// # Errors
    /// `InvalidCompose`, or what keeps the files from being written.
    pub async fn upgrade(&self, vm: &Vm, ask: Upgrade) -> Result<ComposeHash, Error> {
        AppCompose::parse(&ask.compose).map_err(|e| bad_compose(&e))?;
        let hash = ComposeHash::of(&ask.compose);
        let _busy = vm.busy.lock().await;
        let (store, name) = (self.inner.store.clone(), vm.name.clone());
        self.blocking(move || {
            let mut files = store.config(&name)?;
            files.insert(File::AppCompose, ask.compose);
            // A signature belongs to one environment.
            let signature = ask.encrypted_env_sig.or_else(|| ask.encrypted_env.as_ref().map(|_| Vec::new()));
            replace(&mut files, File::EncryptedEnv, ask.encrypted_env);
            replace(&mut files, File::EncryptedEnvSig, signature);
            replace(&mut files, File::UserConfig, ask.user_config);
            store.save_config(&name, &files)
        })
        .await??;
        self.update(vm, |r| r.spec.compose_hash = hash).await?;
        Ok(hash)
    }

    /// Changes the shape of a stopped VM.
    ///
    /// # Errors
    /// `VmRunning`, `DiskShrink`, `NoSuchImage`, or what makes the shape impossible.
    pub async fn resize(&self, vm: &Vm, ask: Resize) -> Result<(), Error> {
        let _busy = vm.busy.lock().await;
        self.refresh(vm).await?;
        let old = vm.record().spec;
        let new = self.resized(&old, &ask)?;
        let only_autostart = VmSpec { autostart: new.autostart, ..old.clone() } == new;
        if !only_autostart {
            self.check_down(vm)?;
        }
        if new.image != old.image {
            self.choose_image(Some(new.image.clone())).await?;
        }
        if new.ports != old.ports {
            self.check_port_leases(&vm.name, &new.ports)?;
            self.bind_ports(&new.ports)?;
        }
        self.update(vm, |r| r.spec = new).await
    }

    fn resized(&self, old: &VmSpec, ask: &Resize) -> Result<VmSpec, Error> {
        let mut new = old.clone();
        new.vcpus = ask.vcpus.unwrap_or(new.vcpus);
        new.memory = ask.memory.unwrap_or(new.memory);
        new.disk = ask.disk.unwrap_or(new.disk);
        new.image = ask.image.clone().unwrap_or(new.image);
        new.autostart = ask.autostart.unwrap_or(new.autostart);
        if let Some(ports) = &ask.ports {
            new.ports = self.checked_ports(ports)?;
        }
        new.check().map_err(invalid)?;
        if new.disk < old.disk {
            return Err(Error::DiskShrink(format!(
                "the disk of VM {} has {} MiB and cannot shrink; ask for as much or more",
                old.name,
                old.disk / MIB
            )));
        }
        self.check_limits(&new)?;
        Ok(new)
    }

    /// The deployer's files of a VM, e.g. to show or derive it.
    ///
    /// # Errors
    /// When they cannot be read.
    pub async fn files(&self, vm: &Vm) -> Result<config_disk::Files, Error> {
        let (store, name) = (self.inner.store.clone(), vm.name.clone());
        Ok(self.blocking(move || store.config(&name)).await??)
    }
}

fn replace(files: &mut Files, file: File, content: Option<Vec<u8>>) {
    match content {
        Some(bytes) if bytes.is_empty() => drop(files.remove(&file)),
        Some(bytes) => drop(files.insert(file, bytes)),
        None => {}
    }
}
