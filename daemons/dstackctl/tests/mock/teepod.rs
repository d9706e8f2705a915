// SPDX-License-Identifier: Apache-2.0
//! The interfaces of teepod as far as the tests need them; what a VM does is decided by its name.

use super::bus::Bus;
use dstack_service::api::teepod1::{Error, ImageRow, NAME, OwnedOptions, PATH, Port, VmRow};
use dstack_service::errors::Fdo;
use std::collections::BTreeMap;
use std::io::Write;
use std::os::fd::OwnedFd as StdFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use zbus::message::{Flags, Header};
use zbus::object_server::SignalEmitter;
use zbus::{Connection, OwnedFd, OwnedObjectPath, Variant, interface};

#[derive(Debug, Clone, Default)]
pub struct VmState {
    pub state: String,
    pub progress: String,
    pub error: String,
    pub ports: Vec<Port>,
    pub compose: Vec<u8>,
    pub app_id: String,
    pub options: BTreeMap<String, String>,
    /// `encrypted_env` and `encrypted_env_sig`, as they are now.
    pub env: (Vec<u8>, Vec<u8>),
}

/// An option that is bytes.
fn bytes(options: &OwnedOptions, name: &str) -> Option<Vec<u8>> {
    options.get(name).map(|value| value.try_clone().unwrap().try_into().unwrap())
}

/// What the mock has seen and is.
#[derive(Debug, Default)]
pub struct Shared {
    pub vms: Mutex<BTreeMap<String, VmState>>,
    pub calls: Mutex<Vec<String>>,
    next: Mutex<u32>,
}

impl Shared {
    fn update(&self, name: &str, change: impl FnOnce(&mut VmState)) {
        if let Some(vm) = self.vms.lock().unwrap().get_mut(name) {
            change(vm);
        }
    }
    fn vm(&self, name: &str) -> VmState {
        self.vms.lock().unwrap().get(name).cloned().unwrap_or_default()
    }
    pub fn called(&self, what: &str) -> bool {
        self.calls.lock().unwrap().iter().any(|c| c == what)
    }
}

struct Job(Mutex<(String, f64, (String, String))>);

#[interface(name = "org.dstack.teepod1.Job")]
impl Job {
    #[zbus(property)]
    fn stage(&self) -> String {
        self.0.lock().unwrap().0.clone()
    }
    #[zbus(property)]
    fn progress(&self) -> f64 {
        self.0.lock().unwrap().1
    }
    #[zbus(property)]
    fn error(&self) -> (String, String) {
        self.0.lock().unwrap().2.clone()
    }
}

struct Vm(String, Arc<Shared>);

#[interface(name = "org.dstack.teepod1.Vm")]
impl Vm {
    #[zbus(property)]
    fn id(&self) -> String {
        // As a hostile host could answer.
        format!("../../{}", self.0)
    }
    #[zbus(property)]
    fn name(&self) -> String {
        self.0.clone()
    }
    #[zbus(property)]
    fn app_id(&self) -> String {
        self.1.vm(&self.0).app_id
    }
    #[zbus(property)]
    fn instance_id(&self) -> String {
        "77".repeat(20)
    }
    #[zbus(property)]
    fn compose_hash(&self) -> String {
        dstack_core::compose::hash(&self.1.vm(&self.0).compose).to_string()
    }
    #[zbus(property)]
    fn state(&self) -> String {
        self.1.vm(&self.0).state
    }
    #[zbus(property)]
    fn boot_progress(&self) -> String {
        self.1.vm(&self.0).progress
    }
    #[zbus(property)]
    fn boot_error(&self) -> String {
        self.1.vm(&self.0).error
    }
    #[zbus(property)]
    fn image(&self) -> String {
        "dstack-0.1.0".to_owned()
    }
    #[zbus(property)]
    fn vcpus(&self) -> u32 {
        2
    }
    #[zbus(property)]
    fn memory(&self) -> u64 {
        2 << 30
    }
    #[zbus(property)]
    fn disk(&self) -> u64 {
        20 << 30
    }
    #[zbus(property)]
    fn ports(&self) -> Vec<Port> {
        self.1.vm(&self.0).ports
    }
    #[zbus(property)]
    fn cid(&self) -> u32 {
        1001
    }
    #[zbus(property)]
    fn unit(&self) -> String {
        format!("dstack-vm@{}.service", self.0)
    }
    #[zbus(property)]
    fn autostart(&self) -> bool {
        false
    }
    #[zbus(property)]
    fn created_at(&self) -> u64 {
        1_700_000_000
    }
    #[zbus(property)]
    fn timeline(&self) -> Vec<(String, u64)> {
        vec![("firmware".to_owned(), 800), ("docker".to_owned(), 9000)]
    }
}

struct Manager(Arc<Shared>);

fn vm_path(name: &str) -> OwnedObjectPath {
    let element = dstack_service::bus::path_element(name);
    OwnedObjectPath::try_from(format!("{PATH}/vm/{element}")).unwrap()
}

impl Manager {
    fn known(&self, name: &str) -> Result<(), Error> {
        if self.0.vms.lock().unwrap().contains_key(name) {
            return Ok(());
        }
        Err(Error::NoSuchVm(format!("no VM {name:?}; `dstackctl vm list` shows all")))
    }

    fn saw(&self, call: &str, name: &str) {
        self.0.calls.lock().unwrap().push(format!("{call} {name}"));
    }

    /// Makes a job that walks through stages and ends as the VM's name says.
    async fn job(&self, bus: &Connection, name: &str, end: &'static str) -> OwnedObjectPath {
        let id = {
            let mut next = self.0.next.lock().unwrap();
            *next += 1;
            *next
        };
        let path = OwnedObjectPath::try_from(format!("{PATH}/job/{id}")).unwrap();
        let job = Job(Mutex::new(("creating disks".to_owned(), 0.1, Default::default())));
        bus.object_server().at(&path, job).await.unwrap();
        let walk = walk(Arc::clone(&self.0), bus.clone(), (id, path.clone()), name.to_owned(), end);
        tokio::spawn(walk);
        path
    }
}

async fn walk(
    shared: Arc<Shared>,
    bus: Connection,
    (id, path): (u32, OwnedObjectPath),
    name: String,
    end: &'static str,
) {
    let pause = || tokio::time::sleep(Duration::from_millis(30));
    for (state, stage) in [("starting", "starting QEMU"), ("booting", "starting Docker")] {
        if end != "running" {
            break;
        }
        pause().await;
        shared.update(&name, |vm| (vm.state, vm.progress) = (state.to_owned(), stage.to_owned()));
        changed_vm(&bus, &name).await;
    }
    if name.starts_with("hang") {
        return;
    }
    if name.starts_with("stuck") {
        // As a guest does whose app failed: it says so and stays up, and so does the job.
        shared.update(&name, |vm| vm.error = "docker compose could not start the containers".to_owned());
        let vm = bus.object_server().interface::<_, Vm>(vm_path(&name)).await.unwrap();
        vm.get().await.boot_error_changed(vm.signal_emitter()).await.unwrap();
        return;
    }
    if name.starts_with("refused") {
        let error = dstack_core::boot::Failure::KeysRefused.sentence();
        shared.update(&name, |vm| vm.error = error.to_owned());
        let vm = bus.object_server().interface::<_, Vm>(vm_path(&name)).await.unwrap();
        vm.get().await.boot_error_changed(vm.signal_emitter()).await.unwrap();
        return;
    }
    if name.starts_with("gone") {
        bus.release_name(NAME).await.unwrap();
        pause().await;
    }
    let result = match (name.starts_with("fail"), name.starts_with("slow")) {
        (true, _) => "failed",
        (_, true) => "timeout",
        _ => "done",
    };
    if result == "failed" {
        let error = "an image could not be pulled; check its name, the registry, and the network";
        shared.update(&name, |vm| (vm.state, vm.error) = ("failed".to_owned(), error.to_owned()));
        let job = bus.object_server().interface::<_, Job>(&path).await.unwrap();
        job.get().await.0.lock().unwrap().2 = ("org.dstack.teepod1.BootFailed".to_owned(), error.to_owned());
        job.get().await.error_changed(job.signal_emitter()).await.unwrap();
    } else if end == "removed" {
        shared.vms.lock().unwrap().remove(&name);
    } else {
        shared.update(&name, |vm| end.clone_into(&mut vm.state));
    }
    changed_vm(&bus, &name).await;
    let body = (id, &path, result);
    bus.emit_signal(None::<&str>, PATH, "org.dstack.teepod1.Manager", "JobRemoved", &body).await.unwrap();
    let _ = bus.object_server().remove::<Job, _>(&path).await;
    if name.starts_with("gone") {
        bus.request_name(NAME).await.unwrap();
    }
}

async fn changed_vm(bus: &Connection, name: &str) {
    let Ok(vm) = bus.object_server().interface::<_, Vm>(vm_path(name)).await else { return };
    vm.get().await.state_changed(vm.signal_emitter()).await.unwrap();
    vm.get().await.boot_progress_changed(vm.signal_emitter()).await.unwrap();
}

#[interface(name = "org.dstack.teepod1.Manager")]
impl Manager {
    async fn create_vm(
        &self,
        name: String,
        app_compose: Vec<u8>,
        options: OwnedOptions,
        #[zbus(header)] call: Header<'_>,
        #[zbus(connection)] bus: &Connection,
    ) -> Result<(OwnedObjectPath, OwnedObjectPath), Error> {
        self.saw("CreateVm", &name);
        if name == "denied" {
            let interactive = call.primary().flags().contains(Flags::ALLOW_INTERACTIVE_AUTH);
            let denied = if interactive {
                Fdo::access_denied("polkit denies it (asked)")
            } else {
                Fdo::interactive_required("authentication is needed (not asked)")
            };
            return Err(denied.into());
        }
        if name == "taken" {
            return Err(Error::VmExists(format!("VM {name:?} exists; choose another --name")));
        }
        let ports = options.get("ports").map(|p| p.try_clone().unwrap().try_into().unwrap());
        let text = |v: &zbus::OwnedVariant| match &**v {
            Variant::Str(text) => text.to_string(),
            other => format!("{other:?}"),
        };
        let shown = options.iter().map(|(key, value)| (key.clone(), text(value))).collect();
        let vm = VmState {
            state: "stopped".to_owned(),
            app_id: options.get("app_id").map_or_else(
                || dstack_core::compose::hash(&app_compose).app_id().to_string(),
                |id| id.try_clone().unwrap().try_into().unwrap(),
            ),
            compose: app_compose,
            env: (
                bytes(&options, "encrypted_env").unwrap_or_default(),
                bytes(&options, "encrypted_env_sig").unwrap_or_default(),
            ),
            ports: ports.unwrap_or_default(),
            options: shown,
            ..VmState::default()
        };
        self.0.vms.lock().unwrap().insert(name.clone(), vm);
        bus.object_server().at(vm_path(&name), Vm(name.clone(), Arc::clone(&self.0))).await.unwrap();
        let start = options.get("start").is_none_or(|s| matches!(&**s, Variant::Bool(true)));
        let job = self.job(bus, &name, if start { "running" } else { "stopped" }).await;
        Ok((vm_path(&name), job))
    }

    async fn start_vm(
        &self,
        name: String,
        #[zbus(connection)] bus: &Connection,
    ) -> Result<OwnedObjectPath, Error> {
        self.known(&name)?;
        Ok(self.job(bus, &name, "running").await)
    }

    async fn stop_vm(
        &self,
        name: String,
        #[zbus(connection)] bus: &Connection,
    ) -> Result<OwnedObjectPath, Error> {
        self.known(&name)?;
        Ok(self.job(bus, &name, "stopped").await)
    }

    async fn remove_vm(
        &self,
        name: String,
        #[zbus(connection)] bus: &Connection,
    ) -> Result<OwnedObjectPath, Error> {
        self.known(&name)?;
        if self.0.vm(&name).state != "stopped" {
            return Err(Error::VmRunning(format!("VM {name:?} is running; `dstackctl vm stop` it first")));
        }
        Ok(self.job(bus, &name, "removed").await)
    }

    async fn kill_vm(&self, name: String, #[zbus(connection)] bus: &Connection) -> Result<(), Error> {
        self.known(&name)?;
        self.saw("KillVm", &name);
        self.0.update(&name, |vm| "stopped".clone_into(&mut vm.state));
        changed_vm(bus, &name).await;
        Ok(())
    }

    fn upgrade_app(
        &self,
        name: String,
        app_compose: Vec<u8>,
        options: OwnedOptions,
    ) -> Result<String, Error> {
        self.known(&name)?;
        let hash = dstack_core::compose::hash(&app_compose).to_string();
        self.0.update(&name, |vm| {
            vm.compose = app_compose;
            vm.env.0 = bytes(&options, "encrypted_env").unwrap_or_else(|| vm.env.0.clone());
            vm.env.1 = bytes(&options, "encrypted_env_sig").unwrap_or_else(|| vm.env.1.clone());
        });
        Ok(hash)
    }

    fn get_app_compose(&self, name: String) -> Result<Vec<u8>, Error> {
        self.known(&name)?;
        Ok(self.0.vm(&name).compose)
    }

    fn resize_vm(&self, name: String, options: OwnedOptions) -> Result<(), Error> {
        self.known(&name)?;
        let mut keys: Vec<&str> = options.keys().map(String::as_str).collect();
        keys.sort_unstable();
        self.saw("ResizeVm", &keys.join(","));
        Ok(())
    }

    fn list_vms(&self) -> Vec<VmRow> {
        let vms = self.0.vms.lock().unwrap();
        let row = |(name, vm): (&String, &VmState)| {
            let app_id = dstack_core::compose::hash(&vm.compose).app_id().to_string();
            let (state, image) = (vm.state.clone(), "dstack-0.1.0".to_owned());
            (name.clone(), "id".to_owned(), app_id, state, image, vm.progress.clone(), vm_path(name))
        };
        vms.iter().map(row).collect()
    }

    fn get_vm(&self, name: String) -> Result<OwnedObjectPath, Error> {
        self.known(&name)?;
        Ok(vm_path(&name))
    }

    fn call_guest(&self, name: String, method: String) -> Result<String, Error> {
        self.known(&name)?;
        assert_eq!(method, "ListContainers");
        let list = r#"{"containers":[{"names":["/web"],"state":"running","image":"nginx","status":"Up \u001b[1m"}]}"#;
        Ok(list.to_owned())
    }

    fn open_logs(&self, name: String, container: String, query: String) -> Result<OwnedFd, Error> {
        self.known(&name)?;
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        if container == "web" {
            writeln!(theirs, "größe {query}").unwrap();
        } else if container != "silent" {
            write!(theirs, r#"{{"error":"no container \"{container}\""}}"#).unwrap();
        }
        Ok(StdFd::from(ours).into())
    }

    fn list_images(&self) -> Vec<ImageRow> {
        vec![("dstack".to_owned(), "0.1.0".to_owned(), "ab".repeat(32), false, 300 << 20)]
    }

    async fn import_image(
        &self,
        directory: zbus::Fd<'_>,
        _options: OwnedOptions,
        #[zbus(connection)] bus: &Connection,
    ) -> Result<OwnedObjectPath, Error> {
        drop(directory);
        Ok(self.job(bus, "image", "done").await)
    }

    fn remove_image(&self, name: String) -> Result<(), Error> {
        Err(Error::NoSuchImage(format!("no image {name:?}; `dstackctl image list` shows all")))
    }

    #[zbus(property)]
    fn port_range(&self) -> (String, u16, u16) {
        ("127.0.0.1".to_owned(), 1024, 32767)
    }
    #[zbus(property)]
    fn platform(&self) -> String {
        "tcg".to_owned()
    }
    #[zbus(property)]
    fn platform_reason(&self) -> String {
        "no /dev/kvm".to_owned()
    }
    #[zbus(property)]
    fn vsock(&self) -> String {
        "user".to_owned()
    }
    #[zbus(property)]
    fn default_image(&self) -> String {
        "dstack-0.1.0".to_owned()
    }
    #[zbus(property)]
    fn version(&self) -> String {
        "0.1.0".to_owned()
    }

    #[zbus(signal)]
    async fn job_removed(
        emitter: &SignalEmitter<'_>,
        id: u32,
        job: OwnedObjectPath,
        result: String,
    ) -> zbus::Result<()>;
}

/// teepod on the bus.
pub struct Teepod {
    pub shared: Arc<Shared>,
    _connection: Connection,
}

impl Teepod {
    pub async fn start(bus: &Bus) -> Self {
        let shared = Arc::new(Shared::default());
        let builder = zbus::connection::Builder::address(bus.address.as_str());
        let connection =
            builder.serve_at(PATH, Manager(Arc::clone(&shared))).name(NAME).build().await.unwrap();
        Self { shared, _connection: connection }
    }
}
