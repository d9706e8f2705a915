// SPDX-License-Identifier: Apache-2.0
//! Puts VMs on the bus, tells of their changes, and takes them off again.

use super::api::Api;
use super::vm::VmObject;
use crate::engine::vm::{View, Vm};
use crate::engine::{Event, errors};
use dstack_core::ids::VmName;
use dstack_service::api::teepod1::{Error, PATH};
use dstack_service::bus::path_element;
use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::mpsc;
use zbus::names::InterfaceName;
use zbus::object_server::SignalEmitter;
use zbus::{Connection, OwnedObjectPath, Variant, fdo};

const MANAGER: &str = "org.dstack.teepod1.Manager";
const VM: &str = "org.dstack.teepod1.Vm";

/// Objects of VMs, and what was last said about each.
#[derive(Debug)]
pub struct Exporter {
    connection: Connection,
    said: Mutex<HashMap<VmName, View>>,
}

/// The object path of a VM.
///
/// # Errors
/// Never for a [`VmName`]; its letters all have an escape.
pub fn path(name: &VmName) -> Result<OwnedObjectPath, Error> {
    let text = format!("{PATH}/vm/{}", path_element(name.as_str()));
    OwnedObjectPath::try_from(text).map_err(|e| errors::internal(&e))
}

impl Exporter {
    /// No VMs yet.
    #[must_use]
    pub fn new(connection: &Connection) -> Self {
        Self { connection: connection.clone(), said: Mutex::default() }
    }

    /// Exports a VM unless it is there already, and says so.
    ///
    /// # Errors
    /// When the bus fails.
    pub async fn add(&self, api: &Arc<Api>, vm: &Arc<Vm>) -> Result<OwnedObjectPath, Error> {
        let path = path(&vm.name)?;
        let object = VmObject::new(Arc::clone(api), Arc::clone(vm));
        if self.connection.object_server().at(&path, object).await?.is_none() {
            self.remember(&vm.name, vm.view());
            self.signal("VmNew", &(vm.name.as_str(), &path)).await?;
        }
        Ok(path)
    }

    async fn remove(&self, name: &VmName) -> Result<(), Error> {
        let path = path(name)?;
        self.said.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
        match self.connection.object_server().remove::<VmObject, _>(&path).await {
            Ok(_) => {}
            Err(zbus::Error::InterfaceNotFound) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        self.signal("VmRemoved", &(name.as_str(), &path)).await
    }

    async fn signal<B>(&self, name: &str, body: &B) -> Result<(), Error>
    where
        B: serde::Serialize + zbus::zvariant::DynamicType,
    {
        Ok(self.connection.emit_signal(None::<&str>, PATH, MANAGER, name, body).await?)
    }

    fn remember(&self, name: &VmName, view: View) -> Option<View> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).insert(name.clone(), view)
    }

    /// Says which properties of a VM have changed since it was last said.
    async fn tell(&self, vm: &Vm) -> Result<(), Error> {
        let now = vm.look();
        let Some(before) = self.remember(&vm.name, now.clone()) else { return Ok(()) };
        self.properties_changed(&path(&vm.name)?, VM, changed(&before, &now)).await
    }

    async fn properties_changed(
        &self,
        path: &OwnedObjectPath,
        interface: &'static str,
        changed: HashMap<&str, Variant<'_>>,
    ) -> Result<(), Error> {
        if changed.is_empty() {
            return Ok(());
        }
        let emitter = SignalEmitter::new(&self.connection, path)?;
        let interface = InterfaceName::from_static_str_unchecked(interface);
        Ok(fdo::Properties::properties_changed(&emitter, interface, changed, Cow::Borrowed(&[])).await?)
    }

    async fn ground(&self, api: &Api) -> Result<(), Error> {
        let Some(ground) = api.engine.ground_now() else { return Ok(()) };
        let manager = OwnedObjectPath::try_from(PATH).map_err(|e| errors::internal(&e))?;
        let vsock = super::manager::vsock_word(ground.vsock);
        let changed = HashMap::from([
            ("Platform", Variant::from(ground.platform.to_string())),
            ("PlatformReason", Variant::from(ground.reason)),
            ("Vsock", Variant::from(vsock)),
        ]);
        self.properties_changed(&manager, MANAGER, changed).await
    }

    async fn take(&self, api: &Arc<Api>, event: Event) -> Result<(), Error> {
        match event {
            Event::New(name) => match api.engine.get(name.as_str()) {
                Ok(vm) => self.add(api, &vm).await.map(drop),
                // Removed again meanwhile.
                Err(_) => Ok(()),
            },
            Event::Changed(name) => match api.engine.get(name.as_str()) {
                Ok(vm) => self.tell(&vm).await,
                Err(_) => Ok(()),
            },
            Event::Removed(name) => self.remove(&name).await,
            Event::Ground => self.ground(api).await,
        }
    }
}

/// Follows the engine until it ends.
pub async fn follow(api: Arc<Api>, mut events: mpsc::UnboundedReceiver<Event>) {
    while let Some(event) = events.recv().await {
        let what = format!("{event:?}");
        if let Err(error) = api.exporter.take(&api, event).await {
            tracing::warn!("the bus cannot be told of {what}: {error}");
        }
    }
}

/// The properties that differ.
fn changed(before: &View, now: &View) -> HashMap<&'static str, Variant<'static>> {
    let (old, new) = (&before.record.spec, &now.record.spec);
    let mut changed = HashMap::new();
    let mut add = |differs: bool, name: &'static str, value: Variant<'static>| {
        if differs {
            changed.insert(name, value);
        }
    };
    add(before.state.word() != now.state.word(), "State", now.state.word().into());
    add(before.boot_progress != now.boot_progress, "BootProgress", now.boot_progress.clone().into());
    add(before.boot_error != now.boot_error, "BootError", now.boot_error.clone().into());
    add(before.instance_id != now.instance_id, "InstanceId", now.instance_id.clone().into());
    add(old.compose_hash != new.compose_hash, "ComposeHash", new.compose_hash.to_string().into());
    add(old.image != new.image, "Image", new.image.to_string().into());
    add(old.vcpus != new.vcpus, "Vcpus", new.vcpus.into());
    add(old.memory != new.memory, "Memory", new.memory.into());
    add(old.disk != new.disk, "Disk", new.disk.into());
    add(old.ports != new.ports, "Ports", now.ports().into());
    add(before.record.cid != now.record.cid, "Cid", now.record.cid.into());
    add(old.autostart != new.autostart, "Autostart", new.autostart.into());
    changed
}
