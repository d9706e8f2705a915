// SPDX-License-Identifier: Apache-2.0
//! Connections from running VMs: each dstack-vm reports its state and passes descriptors.
//!
//! Who is calling is decided by the peer's unit alone. A dstack-vm may have been taken over by its guest: it can lie
//! about its own VM and nothing else, and what it sends is bounded.

use super::Engine;
use super::vm::Vm;
use dstack_core::home::{FromVm, PROTOCOL, Status, ToVm, format, parse};
use dstack_core::ids::VmName;
use dstack_core::limits::HOME_PACKET_MAX;
use dstack_sys::peer;
use dstack_sys::seqpacket::{self, Packet};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};

/// Time for the first packet, and for an answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Requests of one VM that wait at a time.
const REQUESTS_MAX: usize = 32;
/// Connections at a time; more wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 4096;
/// Longest error text, stages in a timeline and length of their names that are kept.
const TEXT_MAX: usize = 512;
const TIMELINE_MAX: usize = 64;

static SERIAL: AtomicU64 = AtomicU64::new(1);

/// What teepod wants from a dstack-vm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// A stream to a vsock port of the guest.
    Port(u32),
    /// A stream of the console.
    Console,
}

type Answer = Result<OwnedFd, String>;

/// The engine's end of a connection.
#[derive(Debug, Clone)]
pub struct Home {
    /// Tells connections of one VM apart.
    pub(super) serial: u64,
    requests: mpsc::Sender<(Wanted, oneshot::Sender<Answer>)>,
}

impl Home {
    /// Asks for a descriptor; `Err(None)` when the connection is gone, else the VM's words.
    pub(super) async fn open(&self, wanted: Wanted) -> Result<OwnedFd, Option<String>> {
        let (sender, receiver) = oneshot::channel();
        self.requests.send((wanted, sender)).await.map_err(|_| None)?;
        match tokio::time::timeout(PATIENCE, receiver).await {
            Ok(Ok(answer)) => answer.map_err(Some),
            Ok(Err(_)) => Err(None),
            Err(_) => Err(Some(format!("no answer within {} s", PATIENCE.as_secs()))),
        }
    }
}

/// Why a connection is given up.
#[derive(Debug, thiserror::Error)]
enum HomeError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("the peer belongs to no VM's unit")]
    Stranger,
    #[error("the unit of VM {0} is not one of teepod's VMs")]
    Unknown(VmName),
    #[error("the first packet is no greeting of VM {0}")]
    Greeting(VmName),
    #[error("{0}")]
    Packet(#[from] dstack_core::home::PacketError),
    #[error("{0}")]
    Unit(#[from] crate::units::UnitError),
    #[error("no greeting in time")]
    Silent,
}

impl Engine {
    /// Accepts connections until the daemon ends.
    pub async fn serve_homes(&self, listener: OwnedFd) -> io::Result<()> {
        rustix::fs::fcntl_setfl(&listener, rustix::fs::OFlags::NONBLOCK)?;
        let listener = registered(listener)?;
        let slots = Arc::new(tokio::sync::Semaphore::new(CONNECTIONS_MAX));
        loop {
            let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return Ok(()) };
            match listener.async_io(Interest::READABLE, |l| seqpacket::accept(l.as_fd())).await {
                Ok(fd) => {
                    let engine = self.clone();
                    tokio::spawn(async move {
                        engine.serve_home(fd).await;
                        drop(slot);
                    });
                }
                Err(error) => {
                    tracing::warn!("a VM's connection cannot be accepted: {error}");
                    // Out of descriptors: the queue waits, and so do we.
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
        }
    }

    async fn serve_home(&self, fd: OwnedFd) {
        let greeted = tokio::time::timeout(PATIENCE, self.greet(fd)).await;
        let (socket, vm) = match greeted.unwrap_or(Err(HomeError::Silent)) {
            Ok(greeted) => greeted,
            Err(error) => {
                tracing::warn!("a connection to the VM socket was refused: {error}");
                return;
            }
        };
        let (sender, requests) = mpsc::channel(REQUESTS_MAX);
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        vm.set_home(Some(Home { serial, requests: sender }));
        if let Err(error) = self.converse(&socket, &vm, requests).await {
            tracing::info!(DSTACK_VM = vm.name.as_str(), "connection to VM {} broke: {error}", vm.name);
        }
        if vm.drop_home(serial) {
            self.observe(&vm, |o| o.home = false);
        }
    }

    /// Finds out who is calling, by its unit, and takes its greeting.
    async fn greet(&self, fd: OwnedFd) -> Result<(AsyncFd<OwnedFd>, Arc<Vm>), HomeError> {
        // Held until the unit is known, so that the number cannot come to mean another process meanwhile.
        let _pinned = peer::pidfd(fd.as_fd())?;
        let pid = peer::credentials(fd.as_fd())?.pid.ok_or(HomeError::Stranger)?;
        let name = self.inner.units.vm_of(pid).await?.ok_or(HomeError::Stranger)?;
        let vm = self.table().vms.get(&name).cloned().ok_or_else(|| HomeError::Unknown(name.clone()))?;
        let socket = registered(fd)?;
        match receive(&socket).await?.map(|p| parse::<FromVm>(&p.bytes)).transpose()? {
            Some(FromVm::Hello { protocol, vm: said, build }) if said == name => {
                tracing::debug!(
                    DSTACK_VM = name.as_str(),
                    "VM {name} calls home: dstack-vm {build}, protocol {protocol} (ours is {PROTOCOL})"
                );
                Ok((socket, vm))
            }
            _ => Err(HomeError::Greeting(name)),
        }
    }

    async fn converse(
        &self,
        socket: &AsyncFd<OwnedFd>,
        vm: &Vm,
        mut requests: mpsc::Receiver<(Wanted, oneshot::Sender<Answer>)>,
    ) -> Result<(), HomeError> {
        let mut waiting: BTreeMap<u64, oneshot::Sender<Answer>> = BTreeMap::new();
        let mut next = 0;
        loop {
            tokio::select! {
                packet = receive(socket) => match packet {
                    Ok(Some(packet)) => self.take(vm, packet, &mut waiting)?,
                    Ok(None) => return Ok(()),
                    // Lost, but the connection goes on.
                    Err(error) if error.kind() == io::ErrorKind::InvalidData => {}
                    Err(error) => return Err(error.into()),
                },
                Some((wanted, answer)) = requests.recv() => {
                    next += 1;
                    send(socket, wanted, next).await?;
                    waiting.retain(|_, sender| !sender.is_closed());
                    waiting.insert(next, answer);
                }
            }
        }
    }

    fn take(
        &self,
        vm: &Vm,
        packet: Packet,
        waiting: &mut BTreeMap<u64, oneshot::Sender<Answer>>,
    ) -> Result<(), HomeError> {
        let (id, answer) = match parse::<FromVm>(&packet.bytes)? {
            FromVm::Status(status) => {
                let status = bounded(status);
                self.observe(vm, |o| (o.home, o.status) = (true, Some(status)));
                return Ok(());
            }
            FromVm::Opened { id } => {
                (id, packet.fds.into_iter().next().ok_or_else(|| "it passed no descriptor".to_owned()))
            }
            FromVm::Failed { id, error } => (id, Err(sentence(&error))),
            FromVm::Hello { .. } | FromVm::Unknown => return Ok(()),
        };
        if let Some(sender) = waiting.remove(&id) {
            // Whoever asked may have given up.
            drop(sender.send(answer));
        }
        Ok(())
    }
}

/// A printable text of bounded length.
fn sentence(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(TEXT_MAX).collect()
}

fn bounded(mut status: Status) -> Status {
    status.error = sentence(&status.error);
    status.stage = sentence(&status.stage);
    status.timeline.truncate(TIMELINE_MAX);
    status.timeline.iter_mut().for_each(|(stage, _)| *stage = sentence(stage));
    status
}

/// tokio's replacement is `unsafe` because a type could give out different descriptors; an `OwnedFd` never does.
#[allow(deprecated)]
fn registered(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::new(fd)
}

async fn receive(socket: &AsyncFd<OwnedFd>) -> io::Result<Option<Packet>> {
    socket.async_io(Interest::READABLE, |fd| seqpacket::receive(fd.as_fd(), HOME_PACKET_MAX)).await
}

async fn send(socket: &AsyncFd<OwnedFd>, wanted: Wanted, id: u64) -> Result<(), HomeError> {
    let packet = match wanted {
        Wanted::Port(port) => ToVm::Connect { id, port },
        Wanted::Console => ToVm::Console { id },
    };
    let bytes = format(&packet)?;
    Ok(socket.async_io(Interest::WRITABLE, |fd| seqpacket::send(fd.as_fd(), &bytes, &[])).await?)
}
