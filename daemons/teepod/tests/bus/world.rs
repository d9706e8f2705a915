// SPDX-License-Identifier: Apache-2.0
//! A private bus with a systemd, a polkit, an image, and the real teepod on it.

use crate::systemd::Systemd;
use dstack_service::api::teepod1::{Error, JobProxy, ManagerProxy, NAME, Options, VmProxy};
use dstack_testing::bus::{self, PrivateBus};
use dstack_testing::polkit::Polkit;
use dstack_testing::process::Process;
use futures_util::StreamExt;
use rustix::io::{FdFlags, fcntl_setfd};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::net::TcpListener;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;
use zbus::{Connection, MatchRule, MessageStream, OwnedObjectPath, OwnedVariant, Variant};

pub const COMPOSE: &str = r#"{"manifest_version":2,"name":"hello","runner":"docker-compose",
    "docker_compose_file":"services:\n  web:\n    image: hello\n"}"#;
const PATIENCE: Duration = Duration::from_secs(10);

/// A signal of teepod.
#[derive(Debug, Clone)]
pub enum Seen {
    VmNew(String),
    VmRemoved(String),
    JobNew,
    JobRemoved(String, String),
    Changed(String, HashMap<String, OwnedVariant>),
}

pub struct World {
    pub systemd: Systemd,
    pub polkit: Polkit,
    pub manager: ManagerProxy<'static>,
    pub connection: Connection,
    pub address: String,
    pub http: u16,
    seen: Arc<Mutex<Vec<Seen>>>,
    grown: watch::Receiver<usize>,
    listeners: Vec<OwnedFd>,
    wrapper: Vec<String>,
    pub teepod: Option<Process>,
    _bus: PrivateBus,
    dir: tempfile::TempDir,
}

/// The daemon; `DSTACK_TEEPOD` names another build of it, e.g. to take figures.
fn program() -> String {
    std::env::var("DSTACK_TEEPOD").unwrap_or_else(|_| env!("CARGO_BIN_EXE_dstack-teepod").to_owned())
}

/// Puts an image into a directory.
pub fn make_image(directory: &Path, name: &str, version: &str) {
    std::fs::create_dir_all(directory).unwrap();
    let metadata = format!(
        r#"{{"name":"{name}","version":"{version}","uki":"guest.efi","root":"root.img","root_hash":"{}"}}"#,
        "ab".repeat(32)
    );
    let files = [("guest.efi", "uki"), ("metadata.json", metadata.as_str()), ("root.img", "root")];
    let mut sums = String::new();
    for (file, content) in files {
        std::fs::write(directory.join(file), content).unwrap();
        sums += &format!("{}  {file}\n", hex::encode(Sha256::digest(content)));
    }
    std::fs::write(directory.join("sha256sum.txt"), sums).unwrap();
}

impl World {
    pub async fn new() -> Self {
        Self::with("", &[]).await
    }

    /// With more settings, and teepod run by another program.
    pub async fn with(settings: &str, wrapper: &[&str]) -> Self {
        let mut world = Self::without_teepod(settings, wrapper).await;
        world.start_teepod().await;
        world
    }

    pub async fn without_teepod(settings: &str, wrapper: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["state", "images", "etc"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        make_image(&dir.path().join("images/dstack-0.1.0"), "dstack", "0.1.0");
        let images = dir.path().join("images").display().to_string();
        std::fs::write(dir.path().join("etc/teepod.toml"), format!("image_path = {images:?}\n{settings}"))
            .unwrap();
        let bus = PrivateBus::start(dir.path());
        let address = bus.address.clone();
        let systemd = Systemd::new(&address).await;
        let polkit = Polkit::new(&bus).await;
        let connection = bus.connect().await;
        let (seen, grown) = collect(&connection).await;
        let manager = ManagerProxy::new(&connection).await.unwrap();
        let (listeners, http) = listeners(dir.path());
        let wrapper = wrapper.iter().map(|w| (*w).to_owned()).collect();
        Self {
            systemd,
            polkit,
            manager,
            connection,
            address,
            http,
            seen,
            grown,
            listeners,
            wrapper,
            teepod: None,
            _bus: bus,
            dir,
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Starts the daemon as systemd would, and waits until it has its name.
    pub async fn start_teepod(&mut self) {
        // Jobs are numbered from one again.
        self.forget_signals();
        let fds: Vec<i32> = self.listeners.iter().map(AsRawFd::as_raw_fd).collect();
        let script = format!("export LISTEN_PID=$$; exec \"$@\" 3<&{} 4<&{}", fds[0], fds[1]);
        let mut command = Command::new("bash");
        command
            .args(["-c", &script, "bash"])
            .args(&self.wrapper)
            .arg(program())
            .env("LISTEN_FDS", "2")
            .env("LISTEN_FDNAMES", "teepod:teepod")
            .env("DBUS_SYSTEM_BUS_ADDRESS", &self.address)
            .env("STATE_DIRECTORY", self.path("state"))
            .env("CONFIGURATION_DIRECTORY", self.path("etc"))
            .stdin(Stdio::null());
        let spawn = || command.spawn().unwrap();
        self.teepod = Some(bus::start(&self.connection, NAME, PATIENCE, spawn).await);
    }

    /// SIGKILL, as the kernel or an operator would.
    pub async fn kill_teepod(&mut self) {
        bus::kill(&self.connection, NAME, self.teepod.take()).await;
    }

    /// Waits until a file has this text.
    pub async fn until_file(&self, name: &str, part: &str) {
        for _ in 0..500 {
            if std::fs::read_to_string(self.path(name)).is_ok_and(|text| text.contains(part)) {
                return;
            }
            // Nothing tells of a file.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("no {part} in {name}");
    }

    /// Names of all files below teepod's state of VMs.
    pub fn vm_files(&self) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(self.path("state/vms"))
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    pub async fn vm(&self, name: &str) -> VmProxy<'static> {
        let path = self.manager.get_vm(name).await.unwrap();
        VmProxy::builder(&self.connection)
            .path(path)
            .cache_properties(zbus::proxy::CacheProperties::No)
            .build()
            .await
            .unwrap()
    }

    pub async fn job(&self, path: &OwnedObjectPath) -> JobProxy<'static> {
        JobProxy::builder(&self.connection).path(path.clone()).build().await.unwrap()
    }

    pub async fn state(&self, name: &str) -> String {
        self.vm(name).await.state().await.unwrap()
    }

    /// Waits until a VM says this state.
    pub async fn until_state(&self, name: &str, state: &str) {
        let path = self.manager.get_vm(name).await.unwrap();
        self.until(&format!("{name} {state}"), |seen| match seen {
            Seen::Changed(at, properties) if *at == path.as_str() => {
                properties.get("State").is_some_and(|v| **v == Variant::from(state)).then_some(())
            }
            _ => None,
        })
        .await;
    }

    /// Waits for a signal; looks at those before too.
    pub async fn until<T>(&self, what: &str, find: impl Fn(&Seen) -> Option<T>) -> T {
        let mut grown = self.grown.clone();
        let found = async {
            loop {
                grown.mark_unchanged();
                if let Some(found) = self.seen.lock().unwrap().iter().find_map(&find) {
                    return found;
                }
                grown.changed().await.unwrap();
            }
        };
        let found = tokio::time::timeout(PATIENCE, found).await;
        found.unwrap_or_else(|_| panic!("no signal {what} among {:#?}", self.seen.lock().unwrap()))
    }

    /// How a job ended, and its error's name and sentence.
    pub async fn ended(&self, job: &OwnedObjectPath) -> (String, String, String) {
        let result = self
            .until("JobRemoved", |seen| match seen {
                Seen::JobRemoved(path, result) if *path == job.as_str() => Some(result.clone()),
                _ => None,
            })
            .await;
        let error = self.seen.lock().unwrap().iter().find_map(|seen| match seen {
            Seen::Changed(path, properties) if *path == job.as_str() => {
                let error = properties.get("Error")?.try_clone().ok()?;
                <(String, String)>::try_from(error).ok()
            }
            _ => None,
        });
        let (name, text) = error.unwrap_or_default();
        (result, name, text)
    }

    pub async fn done(&self, job: &OwnedObjectPath) {
        let (result, name, text) = self.ended(job).await;
        assert_eq!(result, "done", "{name}: {text}");
    }

    pub fn forget_signals(&self) {
        self.seen.lock().unwrap().clear();
    }

    /// Creates a VM, started, and waits for it.
    pub async fn create(&self, name: &str) -> OwnedObjectPath {
        let (vm, job) = self.manager.create_vm(name, COMPOSE.as_bytes(), options(&[])).await.unwrap();
        self.done(&job).await;
        vm
    }

    /// Creates a VM that does not start.
    pub async fn create_stopped(
        &self,
        name: &str,
        more: &[(&'static str, Variant<'static>)],
    ) -> Result<(), Error> {
        let mut options = options(more);
        options.insert("start", false.into());
        let (_, job) = self.manager.create_vm(name, COMPOSE.as_bytes(), options).await?;
        self.done(&job).await;
        Ok(())
    }
}

pub fn options(pairs: &[(&'static str, Variant<'static>)]) -> Options<'static> {
    pairs.iter().map(|(k, v)| (*k, v.try_clone().unwrap())).collect()
}

pub fn ports(ports: &[(&str, u16, u16)]) -> Variant<'static> {
    let row = |(protocol, host, vm): &(&str, u16, u16)| ((*protocol).to_owned(), String::new(), *host, *vm);
    ports.iter().map(row).collect::<Vec<_>>().into()
}

fn listeners(dir: &Path) -> (Vec<OwnedFd>, u16) {
    let http = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = http.local_addr().unwrap().port();
    let homes = dstack_sys::seqpacket::listen(&dir.join("vm.sock")).unwrap();
    let all: Vec<OwnedFd> = vec![http.into(), homes];
    for fd in &all {
        fcntl_setfd(fd, FdFlags::empty()).unwrap();
    }
    (all, port)
}

async fn collect(connection: &Connection) -> (Arc<Mutex<Vec<Seen>>>, watch::Receiver<usize>) {
    let rule = MatchRule::builder()
        .msg_type(zbus::message::Type::Signal)
        .path_namespace("/org/dstack/teepod1")
        .build()
        .unwrap();
    let capacity = std::num::NonZeroUsize::new(10_000);
    let mut stream = MessageStream::for_match_rule(rule, connection, capacity).await.unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (sender, receiver) = watch::channel(0);
    let all = Arc::clone(&seen);
    tokio::spawn(async move {
        while let Some(Ok(message)) = stream.next().await {
            if let Some(signal) = parse(&message) {
                all.lock().unwrap().push(signal);
                sender.send_modify(|n| *n += 1);
            }
        }
    });
    (seen, receiver)
}

fn parse(message: &zbus::Message) -> Option<Seen> {
    let header = message.header();
    let body = message.body();
    let path = header.path()?.to_string();
    Some(match header.member()?.as_str() {
        "VmNew" => Seen::VmNew(body.deserialize::<(String, OwnedObjectPath)>().ok()?.0),
        "VmRemoved" => Seen::VmRemoved(body.deserialize::<(String, OwnedObjectPath)>().ok()?.0),
        "JobNew" => Seen::JobNew,
        "JobRemoved" => {
            let (_, path, result) = body.deserialize::<(u32, OwnedObjectPath, String)>().ok()?;
            Seen::JobRemoved(path.to_string(), result)
        }
        "PropertiesChanged" => {
            let (_, changed, _) =
                body.deserialize::<(String, HashMap<String, OwnedVariant>, Vec<String>)>().ok()?;
            Seen::Changed(path, changed)
        }
        _ => return None,
    })
}
