// SPDX-License-Identifier: Apache-2.0
//! Which VM a caller is: systemd says to which unit a process belongs, teepod which VM has a CID and what it launched.

use crate::launched::Launched;
use crate::measurer::Measurer;
use crate::registry::{Run, Vm};
use dstack_core::ids::VmName;
use dstack_core::measure::Shape;
use dstack_service::api::teepod1::{ManagerProxy as Teepod, VmProxy};
use std::sync::Arc;
use zbus::proxy::CacheProperties;
use zbus::{Connection, OwnedObjectPath, proxy};

/// A caller, as the kernel names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caller {
    /// A process of this host.
    Process(u32),
    /// The VM with this vsock context id.
    Cid(u32),
}

/// Why a caller gets no answer.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Not a VM of teepod.
    #[error("the caller is no running VM of teepod")]
    NotAVm,
    /// The VM is not running, or is about to end.
    #[error("VM {0} is not running")]
    NotRunning(VmName),
    /// Its image cannot be read.
    #[error("the image of VM {vm} cannot be measured: {reason}")]
    Image {
        /// The VM.
        vm: VmName,
        /// Why.
        reason: String,
    },
    /// systemd or teepod cannot be asked.
    #[error("the bus cannot be asked: {0}")]
    Bus(#[from] zbus::Error),
}

/// What the host knows about its VMs.
pub trait Host: Send + Sync + 'static {
    /// The running VM that the caller is.
    ///
    /// # Errors
    /// [`IdentityError::NotAVm`] for everybody else.
    fn identify(&self, caller: Caller) -> impl Future<Output = Result<Vm, IdentityError>> + Send;

    /// What was launched for a VM.
    ///
    /// # Errors
    /// [`IdentityError`].
    fn launched(&self, name: &VmName) -> impl Future<Output = Result<Launched, IdentityError>> + Send;
}

#[proxy(
    interface = "org.freedesktop.systemd1.Manager",
    default_service = "org.freedesktop.systemd1",
    default_path = "/org/freedesktop/systemd1"
)]
trait Systemd {
    #[zbus(name = "GetUnitByPID")]
    fn get_unit_by_pid(&self, pid: u32) -> zbus::Result<OwnedObjectPath>;
    fn get_unit(&self, name: &str) -> zbus::Result<OwnedObjectPath>;
}

#[proxy(interface = "org.freedesktop.systemd1.Unit", default_service = "org.freedesktop.systemd1")]
trait Unit {
    #[zbus(property(emits_changed_signal = "false"))]
    fn id(&self) -> zbus::Result<String>;
    #[zbus(property(emits_changed_signal = "false"), name = "InvocationID")]
    fn invocation_id(&self) -> zbus::Result<Vec<u8>>;
}

#[proxy(interface = "org.freedesktop.systemd1.Service", default_service = "org.freedesktop.systemd1")]
trait Service {
    #[zbus(property(emits_changed_signal = "false"), name = "MainPID")]
    fn main_pid(&self) -> zbus::Result<u32>;
}

/// systemd and teepod, over the bus.
#[derive(Debug, Clone)]
pub struct BusHost {
    connection: Connection,
    measurer: Arc<Measurer>,
}

impl BusHost {
    /// Asks over this connection; images are measured by `measurer`.
    #[must_use]
    pub fn new(connection: Connection, measurer: Measurer) -> Self {
        Self { connection, measurer: Arc::new(measurer) }
    }

    async fn unit_of(&self, caller: Caller) -> Result<(VmName, OwnedObjectPath), IdentityError> {
        let systemd = SystemdProxy::new(&self.connection).await?;
        match caller {
            Caller::Process(pid) => {
                let path = systemd.get_unit_by_pid(pid).await.map_err(|_| IdentityError::NotAVm)?;
                let unit = UnitProxy::builder(&self.connection)
                    .path(path.clone())
                    .cache_properties(CacheProperties::No)
                    .build()
                    .await?;
                let name = vm_of_unit(&unit.id().await?).ok_or(IdentityError::NotAVm)?;
                Ok((name, path))
            }
            Caller::Cid(cid) => {
                let name = self.vm_of_cid(cid).await?;
                let path = systemd.get_unit(&name.unit()).await;
                let path = path.map_err(|_| IdentityError::NotRunning(name.clone()))?;
                Ok((name, path))
            }
        }
    }

    async fn vm_of_cid(&self, cid: u32) -> Result<VmName, IdentityError> {
        let teepod = Teepod::new(&self.connection).await?;
        let rows = teepod.list_vms().await.map_err(teepod_error)?;
        for (name, .., path) in rows {
            let vm = VmProxy::builder(&self.connection)
                .path(path)
                .cache_properties(CacheProperties::No)
                .build()
                .await?;
            if vm.cid().await? == cid {
                return name.parse().map_err(|_| IdentityError::NotAVm);
            }
        }
        Err(IdentityError::NotAVm)
    }
}

fn teepod_error(error: impl std::fmt::Display) -> IdentityError {
    IdentityError::Bus(zbus::Error::Failure(error.to_string()))
}

impl Host for BusHost {
    async fn identify(&self, caller: Caller) -> Result<Vm, IdentityError> {
        let (name, path) = self.unit_of(caller).await?;
        let unit = UnitProxy::builder(&self.connection)
            .path(path.clone())
            .cache_properties(CacheProperties::No)
            .build()
            .await?;
        let service = ServiceProxy::builder(&self.connection)
            .path(path)
            .cache_properties(CacheProperties::No)
            .build()
            .await?;
        let run =
            Run { invocation: hex::encode(unit.invocation_id().await?), main_pid: service.main_pid().await? };
        if run.main_pid == 0 || run.invocation.is_empty() {
            return Err(IdentityError::NotRunning(name));
        }
        Ok(Vm { name, run })
    }

    async fn launched(&self, name: &VmName) -> Result<Launched, IdentityError> {
        let teepod = Teepod::new(&self.connection).await?;
        let path = teepod.get_vm(name.as_str()).await.map_err(teepod_error)?;
        let vm = VmProxy::builder(&self.connection)
            .path(path)
            .cache_properties(CacheProperties::No)
            .build()
            .await?;
        let image = vm.image().await?;
        let compose = vm.compose_hash().await?;
        let (vcpus, memory) = (vm.vcpus().await?, vm.memory().await?);
        let bad = |reason: String| IdentityError::Image { vm: name.clone(), reason };
        let compose = compose.parse().map_err(|_| bad("teepod gives no compose hash".into()))?;
        let booted = self.measurer.measure(&image).await.map_err(bad)?;
        Ok(Launched::of(&booted, Shape { vcpus, memory }, compose))
    }
}

/// The VM whose unit this is.
fn vm_of_unit(id: &str) -> Option<VmName> {
    let name: VmName = id.strip_prefix("dstack-vm@")?.strip_suffix(".service")?.parse().ok()?;
    (name.unit() == id).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_units_of_vms_are_vms() {
        assert_eq!(vm_of_unit("dstack-vm@hello.service").unwrap().as_str(), "hello");
        for other in [
            "dstack-vm@.service",
            "dstack-vm@a/b.service",
            "dstack-vm@A.service",
            "dstack-vm-net@hello.service",
            "dstack-vm@hello.service.d",
            "dstack-teepod.service",
            "user@0.service",
            "-.slice",
        ] {
            assert_eq!(vm_of_unit(other), None, "{other}");
        }
    }
}
