// SPDX-License-Identifier: Apache-2.0
//! The start order and the main loop.

use crate::identity::{BusHost, Caller};
use crate::measurer::Measurer;
use crate::pccs;
use crate::registry::Registry;
use crate::server::Tee;
use crate::store::{self, KEYS, StoreError};
use dstack_rpc::{Listener, Peer, Stream};
use dstack_service::api::teepod1::ManagerProxy as Teepod;
use dstack_service::config::{self, ConfigError, Directories};
use dstack_service::credentials::{self, CredentialError};
use dstack_service::lifecycle::{self, Asked, Signals, Watchdog};
use dstack_service::logging;
use dstack_service::sockets::{SocketError, Sockets};
use futures_util::StreamExt;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Deserialize;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use time::OffsetDateTime;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use zbus::proxy::CacheProperties;

/// Name of the program, of its unit and of its journal records.
pub const IDENTIFIER: &str = "dstack-quote-sim";
/// Connections served at a time; more wait in the kernel's queue.
const CONNECTIONS: usize = 256;
/// Pause after a failed `accept`, so that a lack of descriptors does not become a busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Settings of the daemon, `quote-sim.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Directory of the images, as teepod keeps them.
    pub images_directory: PathBuf,
    /// What teepod boots images with that bring no firmware: its `cvm.firmware`.
    pub firmware: PathBuf,
}

impl Default for Settings {
    fn default() -> Self {
        Self { images_directory: "/var/lib/dstack/images".into(), firmware: "/usr/share/ovmf/OVMF.fd".into() }
    }
}

/// Why the daemon cannot run.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Sockets(#[from] SocketError),
    #[error(transparent)]
    Credential(#[from] CredentialError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("there is no $RUNTIME_DIRECTORY; start the daemon by its unit")]
    NoDirectory,
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("the bus cannot be used: {0}; see `systemctl status dbus`")]
    Bus(#[from] zbus::Error),
}

/// Runs until systemd asks for a stop; failures are logged once, here.
#[must_use]
pub fn run() -> ExitCode {
    drop(logging::init(IDENTIFIER));
    match start() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn start() -> Result<(), StartError> {
    let settings: Settings = config::load(&Directories::default(), "quote-sim")?;
    let mut sockets = Sockets::take()?;
    let mut doors = sockets.named("vsock");
    doors.push(sockets.one("unix")?);
    let web = sockets.named("pccs");
    let root = store::parse(&credentials::read(KEYS)?)?;
    let directory = std::env::var_os("RUNTIME_DIRECTORY").ok_or(StartError::NoDirectory)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let measurer = Measurer::new(settings.images_directory, settings.firmware);
        let connection = zbus::Connection::system().await?;
        let host = BusHost::new(connection.clone(), measurer);
        let tee = Arc::new(Tee::new(root, host, Registry::new(directory.into())));
        forget_removed(&connection, Arc::clone(&tee)).await?;
        main_loop(&tee, doors, web).await
    })
}

/// Forgets the registers of each VM that teepod removes from now on.
async fn forget_removed(connection: &zbus::Connection, tee: Arc<Tee<BusHost>>) -> zbus::Result<()> {
    let teepod = Teepod::builder(connection).cache_properties(CacheProperties::No).build().await?;
    let mut removed = teepod.receive_vm_removed().await?;
    tokio::spawn(async move {
        while let Some(signal) = removed.next().await {
            let Some(name) = signal.args().ok().and_then(|args| args.name.parse().ok()) else { continue };
            if let Err(error) = tee.forget(&name) {
                tracing::warn!(DSTACK_VM = name.as_str(), "registers of a removed VM are left: {error}");
            }
        }
    });
    Ok(())
}

async fn main_loop(
    tee: &Arc<Tee<BusHost>>,
    doors: Vec<OwnedFd>,
    web: Vec<OwnedFd>,
) -> Result<(), StartError> {
    let mut signals = Signals::new()?;
    let mut watchdog = Watchdog::from_env();
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    let mut accepting = JoinSet::new();
    for door in doors {
        accepting.spawn(accept(Listener::from_fd(door)?, Arc::clone(tee), Arc::clone(&slots)));
    }
    for door in web {
        accepting.spawn(accept_web(Listener::from_fd(door)?, Arc::clone(tee), Arc::clone(&slots)));
    }
    lifecycle::ready(&format!("Test root {}; its quotes protect nothing", tee.fingerprint()));
    loop {
        tokio::select! {
            () = watchdog.tick() => lifecycle::alive(),
            asked = signals.next() => if asked == Asked::Stop { break },
        }
    }
    lifecycle::stopping();
    Ok(())
}

async fn accept(listener: Listener, tee: Arc<Tee<BusHost>>, slots: Arc<Semaphore>) {
    let mut serving = JoinSet::new();
    loop {
        while serving.try_join_next().is_some() {}
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        let Ok((stream, peer)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let Some((caller, process)) = caller(&stream, &peer) else { continue };
        let tee = Arc::clone(&tee);
        serving.spawn(async move {
            let alive = || process.as_ref().is_none_or(is_alive);
            if let Err(error) = tee.serve(stream, caller, alive).await {
                tracing::debug!("connection of {caller:?} ended: {error}");
            }
            drop(slot);
        });
    }
}

/// The same for those who want collateral as a PCCS gives it; who they are does not matter.
async fn accept_web(listener: Listener, tee: Arc<Tee<BusHost>>, slots: Arc<Semaphore>) {
    let mut serving = JoinSet::new();
    loop {
        while serving.try_join_next().is_some() {}
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let tee = Arc::clone(&tee);
        serving.spawn(async move {
            pccs::serve(stream, || tee.collateral(OffsetDateTime::now_utc()).map_err(|e| e.to_string()))
                .await;
            drop(slot);
        });
    }
}

/// Who connected, with a pidfd when it is a process.
fn caller(stream: &Stream, peer: &Peer) -> Option<(Caller, Option<OwnedFd>)> {
    match (stream, peer) {
        (Stream::Unix(stream), Peer::Unix { pid: Some(pid), .. }) => {
            let process = dstack_sys::peer::pidfd(stream.as_fd()).ok()?;
            Some((Caller::Process(u32::try_from(*pid).ok()?), Some(process)))
        }
        (Stream::Vsock(_), Peer::Vsock { cid, .. }) => Some((Caller::Cid(*cid), None)),
        _ => None,
    }
}

/// A pidfd becomes readable when its process ends.
fn is_alive(process: &OwnedFd) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    matches!(poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&now)), Ok(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_caller_over_a_unix_socket_is_a_living_process() {
        let (stream, _other) = tokio::net::UnixStream::pair().unwrap();
        let credentials = stream.peer_cred().unwrap();
        let peer = Peer::Unix { uid: credentials.uid(), gid: credentials.gid(), pid: credentials.pid() };
        let (caller, process) = caller(&Stream::Unix(stream), &peer).unwrap();
        assert_eq!(caller, Caller::Process(std::process::id()));
        assert!(is_alive(&process.unwrap()));
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = rustix::process::Pid::from_child(&child);
        let ended = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
        child.wait().unwrap();
        assert!(!is_alive(&ended));
    }
}
