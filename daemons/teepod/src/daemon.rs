// SPDX-License-Identifier: Apache-2.0
//! From start to stop: configuration, sockets, adoption, objects, name, readiness, and the loop.

use crate::bus::api::Api;
use crate::bus::export;
use crate::bus::manager::Manager;
use crate::engine::{Engine, Event, Parts, ground};
use crate::host::ThisHost;
use crate::rpc;
use crate::settings::{Input, Settings};
use crate::systemd::Systemd;
use crate::vm::UnitState;
use dstack_core::ids::VmName;
use dstack_service::api::teepod1::{NAME as BUS_NAME, PATH};
use dstack_service::lifecycle::{self, Asked, Signals, Watchdog};
use dstack_service::logging::LevelHandle;
use dstack_service::sockets::Sockets;
use dstack_service::{bus, config};
use rustix::net::SocketType;
use rustix::net::sockopt::socket_type;
use std::error::Error;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use zbus::Connection;

/// Name of the program and its journal identifier.
pub const NAME: &str = "dstack-teepod";
/// `FileDescriptorName=` of its sockets.
const SOCKETS: &str = "teepod";
/// Worker threads: the work is waiting.
const WORKERS: usize = 2;
/// Time that file work under way gets to end at a stop.
const GRACE: Duration = Duration::from_secs(3);
/// Threads for file work, which is short.
const BLOCKING: usize = 4;

type Outcome<T> = Result<T, Box<dyn Error>>;

/// Runs the daemon until it is told to stop.
///
/// # Errors
/// What keeps it from starting, or the loss of the bus.
pub fn run(level: LevelHandle) -> Outcome<()> {
    let settings = Settings::from_input(config::load::<Input>(&config::Directories::default(), "teepod")?)?;
    let mut sockets = Sockets::take()?;
    let (homes, http) = sort(sockets.named(SOCKETS))?;
    let state = state_directory()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(BLOCKING)
        .enable_all()
        .build()?;
    let result = runtime.block_on(serve(settings, state, homes, http, level));
    // A long import is not waited for: what it leaves is swept at the next start.
    runtime.shutdown_timeout(GRACE);
    result
}

/// VMs' sockets carry packets, web ports streams; a socket unit gives all its sockets one name.
fn sort(all: Vec<OwnedFd>) -> Outcome<(Vec<OwnedFd>, Vec<OwnedFd>)> {
    let (mut homes, mut http) = (Vec::new(), Vec::new());
    for fd in all {
        match socket_type(&fd)? {
            SocketType::SEQPACKET => homes.push(fd),
            _ => http.push(fd),
        }
    }
    Ok((homes, http))
}

/// `$STATE_DIRECTORY` as systemd sets it.
fn state_directory() -> Outcome<PathBuf> {
    let missing = "STATE_DIRECTORY is not set; start the daemon by `systemctl start dstack-teepod`";
    Ok(std::env::var_os("STATE_DIRECTORY").map(PathBuf::from).ok_or(missing)?)
}

async fn serve(
    settings: Settings,
    state: PathBuf,
    homes: Vec<OwnedFd>,
    http: Vec<OwnedFd>,
    level: LevelHandle,
) -> Outcome<()> {
    let signals = Signals::new()?;
    let connection = bus::connect(NAME, level).await?;
    let (sender, changes) = mpsc::unbounded_channel();
    let units = Arc::new(Systemd::new(&connection, sender).await?);
    let (engine, events) = Engine::new(Parts { settings, state, units, host: Arc::new(ThisHost) });
    let unfinished = engine.adopt().await?;
    export_all(&connection, &engine, events).await?;
    let (stop, stopped) = watch::channel(false);
    let served = rpc::listen(&engine, http, stopped)?;
    listen(&engine, homes);
    bus::request_name(&connection, BUS_NAME).await?;
    lifecycle::ready(&status(&engine));
    let prober = engine.clone();
    tokio::spawn(async move { prober.probe(&ground::program()).await });
    engine.finish(unfinished);
    let result = watch_over(&engine, &connection, changes, signals).await;
    lifecycle::stopping();
    stop.send_replace(true);
    served.wait().await;
    // Not graceful_shutdown(): it waits until every task has let go of the connection. What was said is written.
    drop(connection);
    result
}

/// Objects first, the name last: whoever finds the name finds everything.
async fn export_all(
    connection: &Connection,
    engine: &Engine,
    events: mpsc::UnboundedReceiver<Event>,
) -> Outcome<()> {
    let api = Arc::new(Api::new(engine.clone(), connection));
    let server = connection.object_server();
    for vm in engine.vms() {
        api.exporter.add(&api, &vm).await?;
    }
    server.at(PATH, Manager::new(Arc::clone(&api))).await?;
    server.at(PATH, zbus::fdo::ObjectManager).await?;
    tokio::spawn(export::follow(api, events));
    Ok(())
}

fn listen(engine: &Engine, homes: Vec<OwnedFd>) {
    if homes.is_empty() {
        tracing::warn!("no VM socket was passed; VMs cannot report what they do; start dstack-teepod.socket");
    }
    for listener in homes {
        let engine = engine.clone();
        tokio::spawn(async move {
            if let Err(error) = engine.serve_homes(listener).await {
                tracing::error!("the VM socket cannot be served: {error}");
            }
        });
    }
}

/// The engine's own loop, which also feeds the watchdog.
async fn watch_over(
    engine: &Engine,
    connection: &Connection,
    mut changes: mpsc::UnboundedReceiver<(VmName, UnitState)>,
    mut signals: Signals,
) -> Outcome<()> {
    let mut watchdog = Watchdog::from_env();
    let mut said = String::new();
    loop {
        tokio::select! {
            change = changes.recv() => match change {
                Some((vm, state)) => engine.unit_changed(&vm, state),
                None => return Err("the bus was lost; systemd starts teepod again".into()),
            },
            asked = signals.next() => match asked {
                Asked::Stop => return Ok(()),
                Asked::Reload => tracing::info!("settings are read at a start; VMs outlive `systemctl restart {NAME}`"),
            },
            () = watchdog.tick() => {
                // A lock that is never given back is noticed here.
                drop(engine.vms());
                if connection.is_bus() {
                    lifecycle::alive();
                }
            }
        }
        let now = status(engine);
        if now != said {
            lifecycle::status(&now);
            said = now;
        }
    }
}

/// What `systemctl status` shows.
fn status(engine: &Engine) -> String {
    let vms = engine.vms();
    let running = vms.iter().filter(|vm| !vm.state().is_down()).count();
    let unreadable = engine.unreadable().len();
    let platform =
        engine.ground_now().map_or_else(|| "finding out the platform".to_owned(), |g| g.platform.to_string());
    let trouble = if unreadable > 0 {
        format!(", {unreadable} with unreadable state (see the log)")
    } else {
        String::new()
    };
    format!("{running} of {} VMs running, {platform}{trouble}", vms.len())
}
