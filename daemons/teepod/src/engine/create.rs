// SPDX-License-Identifier: Apache-2.0
//! CreateVm: check everything, lease a context id and ports, write the files, and only then let the VM exist.

use super::errors::{bad_compose, internal, invalid};
use super::vm::Vm;
use super::{Engine, Event, Lease};
use crate::leases::{conflict, free_cid, not_allowed};
use crate::settings::MIB;
use crate::vm::Record;
use crate::vm::record::Seed;
use dstack_core::compose::AppCompose;
use dstack_core::config_disk::{File, Files};
use dstack_core::ids::{AppId, ComposeHash, IdError, ImageName, VmName};
use dstack_core::spec::{PortMapping, Protocol, VmSpec, Vsock};
use dstack_service::api::teepod1::Error;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

const VCPUS: u32 = 1;
const MEMORY: u64 = 2048 * MIB;
const DISK: u64 = 20 * 1024 * MIB;

/// What a caller asks for; absent options get defaults.
#[derive(Debug, Default)]
pub struct Create {
    /// Name.
    pub name: String,
    /// Exact bytes of `app-compose.json`.
    pub compose: Vec<u8>,
    /// Image.
    pub image: Option<ImageName>,
    /// Virtual CPUs.
    pub vcpus: Option<u32>,
    /// Memory, bytes.
    pub memory: Option<u64>,
    /// Data disk, bytes.
    pub disk: Option<u64>,
    /// Port mappings.
    pub ports: Vec<Port>,
    /// Encrypted environment.
    pub encrypted_env: Option<Vec<u8>>,
    /// Who signed it.
    pub encrypted_env_sig: Option<Vec<u8>>,
    /// App id, when it is not the head of the compose hash.
    pub app_id: Option<AppId>,
    /// Bytes for the app, unmeasured.
    pub user_config: Option<Vec<u8>>,
    /// Whether it starts after a host reboot.
    pub autostart: bool,
    /// Whether it starts now.
    pub start: bool,
}

/// A port mapping as asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// Transport protocol.
    pub protocol: Protocol,
    /// Address on the host; absent: the configured one.
    pub host_address: Option<IpAddr>,
    /// Port on the host.
    pub host_port: u16,
    /// Port in the VM.
    pub vm_port: u16,
}

/// Gives back what a creation holds, whatever way it ends.
struct Reservation<'a>(&'a Engine, VmName);

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        self.0.table().reserved.remove(&self.1);
    }
}

impl Engine {
    /// Creates a VM and does not start it yet.
    ///
    /// # Errors
    /// Names what is wrong and what to do; nothing is left behind then.
    pub async fn create(&self, ask: Create) -> Result<Arc<Vm>, Error> {
        let name: VmName = ask.name.parse().map_err(|e: IdError| invalid(e))?;
        AppCompose::parse(&ask.compose).map_err(|e| bad_compose(&e))?;
        let image = self.choose_image(ask.image.clone()).await?;
        let mut spec = self.spec(&ask, name.clone(), image)?;
        spec.ports = self.checked_ports(&ask.ports)?;
        self.check_limits(&spec)?;
        let (reservation, cid) = self.reserve(&spec)?;
        self.bind_ports(&spec.ports)?;
        let record = Record { spec, cid, start_pending: ask.start, removing: false, seed: Some(new_seed()?) };
        self.write(&record, ask).await?;
        let vm = Arc::new(Vm::new(record));
        self.insert(&vm);
        drop(reservation);
        self.tell(Event::New(name));
        Ok(vm)
    }

    fn spec(&self, ask: &Create, name: VmName, image: ImageName) -> Result<VmSpec, Error> {
        let hash = ComposeHash::of(&ask.compose);
        let spec = VmSpec {
            id: uuid::Uuid::new_v4(),
            name,
            app_id: ask.app_id.unwrap_or_else(|| hash.app_id()),
            compose_hash: hash,
            image,
            vcpus: ask.vcpus.unwrap_or(VCPUS),
            memory: ask.memory.unwrap_or(MEMORY),
            disk: ask.disk.unwrap_or_else(|| DISK.min(self.inner.settings.max_disk)),
            ports: Vec::new(),
            autostart: ask.autostart,
            created_at: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()),
        };
        spec.check().map_err(invalid)?;
        Ok(spec)
    }

    async fn write(&self, record: &Record, ask: Create) -> Result<(), Error> {
        let (engine, record) = (self.clone(), record.clone());
        self.blocking(move || {
            let image = engine.inner.images.get(&record.spec.image)?;
            let mut files = Files::from([(File::AppCompose, ask.compose)]);
            files.extend(ask.encrypted_env.filter(|b| !b.is_empty()).map(|b| (File::EncryptedEnv, b)));
            let signature = ask.encrypted_env_sig.filter(|b| !b.is_empty());
            files.extend(signature.map(|b| (File::EncryptedEnvSig, b)));
            files.extend(ask.user_config.filter(|b| !b.is_empty()).map(|b| (File::UserConfig, b)));
            let own = engine.inner.host.own_address();
            crate::launch::host_files(&mut files, &record, &engine.inner.settings, &image, own);
            Ok::<(), Error>(engine.inner.store.create(&record, &files, |_| {})?)
        })
        .await?
    }

    pub(super) fn insert(&self, vm: &Arc<Vm>) {
        let mut table = self.table();
        table.ids.insert(vm.record().spec.id, vm.name.clone());
        table.vms.insert(vm.name.clone(), Arc::clone(vm));
    }

    /// The image asked for, the configured one, or the newest; it must be usable.
    pub(super) async fn choose_image(&self, asked: Option<ImageName>) -> Result<ImageName, Error> {
        let images = self.inner.images.clone();
        let asked = asked.or_else(|| self.inner.settings.default_image.clone());
        self.blocking(move || {
            let none =
                "there is no image yet; install package dstack-guest-image, or `dstackctl image import DIR`";
            let name =
                asked.or_else(|| images.newest()).ok_or_else(|| Error::NoSuchImage(none.to_owned()))?;
            images.get(&name)?;
            Ok(name)
        })
        .await?
    }

    /// The operator's limits on one VM.
    pub(super) fn check_limits(&self, spec: &VmSpec) -> Result<(), Error> {
        let settings = &self.inner.settings;
        let exceeded = |what: String, key: &str| {
            Err(Error::LimitExceeded(format!(
                "{what} allowed by {key} in teepod.toml; ask for less, or raise it"
            )))
        };
        if spec.vcpus > settings.max_vcpus {
            let what = format!("{} vCPUs are more than the {}", spec.vcpus, settings.max_vcpus);
            return exceeded(what, "cvm.max_allocable_vcpu");
        }
        if spec.memory > settings.max_memory {
            let (asked, most) = (spec.memory / MIB, settings.max_memory / MIB);
            return exceeded(
                format!("{asked} MiB of memory are more than the {most}"),
                "cvm.max_allocable_memory_in_mb",
            );
        }
        if spec.disk > settings.max_disk {
            let (asked, most) = (spec.disk / MIB, settings.max_disk / MIB);
            return exceeded(format!("a disk of {asked} MiB is more than the {most}"), "cvm.max_disk_size");
        }
        Ok(())
    }

    /// Fills in addresses and checks the operator's policy.
    pub(super) fn checked_ports(&self, asked: &[Port]) -> Result<Vec<PortMapping>, Error> {
        let policy = &self.inner.settings.ports;
        let fill = |p: &Port| PortMapping {
            protocol: p.protocol,
            host_address: p.host_address.unwrap_or(policy.address),
            host_port: p.host_port,
            vm_port: p.vm_port,
        };
        let ports: Vec<PortMapping> = asked.iter().map(fill).collect();
        dstack_core::spec::check_ports(&ports).map_err(invalid)?;
        for port in &ports {
            if let Some(reason) = not_allowed(policy, port) {
                return Err(Error::PortNotAllowed(format!("port mapping {port} is not allowed: {reason}")));
            }
        }
        Ok(ports)
    }

    /// Takes the name, a context id and the ports, all at once.
    fn reserve(&self, spec: &VmSpec) -> Result<(Reservation<'_>, u32), Error> {
        let mut table = self.table();
        if let Some(reason) = table.unreadable.get(&spec.name) {
            return Err(super::errors::unreadable(&spec.name, reason));
        }
        if table.vms.contains_key(&spec.name) || table.reserved.contains_key(&spec.name) {
            return Err(Error::VmExists(format!(
                "there is a VM {:?} already; choose another name",
                spec.name.as_str()
            )));
        }
        table.check_ports(&spec.name, &spec.ports)?;
        let cid = self.lease_cid(&table)?;
        table.reserved.insert(spec.name.clone(), Lease { cid, ports: spec.ports.clone() });
        Ok((Reservation(self, spec.name.clone()), cid))
    }

    fn lease_cid(&self, table: &super::Table) -> Result<u32, Error> {
        let pool = self.inner.settings.cids.clone();
        let kernel = self.ground_now().is_none_or(|g| g.vsock == Vsock::Kernel);
        let in_use = |cid| kernel && self.inner.host.cid_in_use(cid);
        free_cid(pool.clone(), &table.cids(), in_use).ok_or_else(|| {
            Error::NoFreeCid(format!(
                "all context ids from {} to {} are in use; remove a VM, or raise cvm.cid_pool_size in teepod.toml",
                pool.start,
                pool.end - 1
            ))
        })
    }

    /// Leases another context id for a VM whose own is used by somebody else now.
    pub(super) fn another_cid(&self) -> Result<u32, Error> {
        self.lease_cid(&self.table())
    }

    /// Whether this VM may have these ports beside all others.
    pub(super) fn check_port_leases(&self, name: &VmName, ports: &[PortMapping]) -> Result<(), Error> {
        self.table().check_ports(name, ports)
    }

    /// Tries to listen on each port, which is the only sure way to know.
    pub(super) fn bind_ports(&self, ports: &[PortMapping]) -> Result<(), Error> {
        for port in ports {
            self.inner.host.port_free(port).map_err(|error| port_error(port, &error))?;
        }
        Ok(())
    }
}

/// The VM's instance, and so its disk and keys, for its whole life.
fn new_seed() -> Result<Seed, Error> {
    let mut seed = Seed::default();
    getrandom::fill(&mut seed).map_err(|e| internal(&e))?;
    Ok(seed)
}

fn port_error(port: &PortMapping, error: &io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::AddrInUse => Error::PortInUse(format!(
            "port mapping {port} is not possible: another process listens there (see `ss -lnp`); use another host port"
        )),
        io::ErrorKind::PermissionDenied => Error::PortNotAllowed(format!(
            "port mapping {port} is not allowed: ports below 1024 are privileged; use a higher host port"
        )),
        io::ErrorKind::AddrNotAvailable => {
            invalid(format!("port mapping {port} is not possible: this host does not have that address"))
        }
        _ => invalid(format!("port mapping {port} is not possible: {error}")),
    }
}

impl super::Table {
    fn cids(&self) -> std::collections::BTreeSet<u32> {
        let created = self.vms.values().map(|vm| vm.record().cid);
        created.chain(self.reserved.values().map(|l| l.cid)).collect()
    }

    fn check_ports(&self, name: &VmName, ports: &[PortMapping]) -> Result<(), Error> {
        let created = self.vms.values().map(|vm| (vm.name.clone(), vm.record().spec.ports));
        let reserved = self.reserved.iter().map(|(n, l)| (n.clone(), l.ports.clone()));
        for (owner, theirs) in created.chain(reserved).filter(|(owner, _)| owner != name) {
            if let Some(port) = ports.iter().find(|p| theirs.iter().any(|t| conflict(p, t))) {
                return Err(Error::PortInUse(format!(
                    "port mapping {port} is not possible: VM {owner} has it; use another host port"
                )));
            }
        }
        Ok(())
    }
}
