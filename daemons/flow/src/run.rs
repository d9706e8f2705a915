// SPDX-License-Identifier: Apache-2.0
//! The life of a data plane: sockets, the first word of control, workers, and the end after the last connection.

use crate::conn::Front;
use crate::control::{Control, log};
use crate::options::{Options, OptionsError};
use crate::shared::Shared;
use crate::tls::TlsError;
use crate::worker::{Listener, Worker};
use dstack_sys::fds;
use dstack_sys::ktls::{self, Support};
use dstack_sys::signal::{self, Signals};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{Resource, Rlimit};
use sd_notify::NotifyState;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// Clients that wait to be accepted, on sockets of our own.
const BACKLOG: i32 = 4096;
/// Descriptors that are not connections'.
const OTHER_FDS: u64 = 128;
/// Most threads.
const WORKERS_MAX: usize = 256;

/// Why the data plane cannot run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Something of the system.
    #[error("{0}: {1}")]
    Io(&'static str, io::Error),
    /// The command line names something that cannot be used.
    #[error("{0}")]
    Options(#[from] OptionsError),
    /// TLS.
    #[error("{0}")]
    Tls(#[from] TlsError),
    /// No sockets.
    #[error("no listening socket: start dstack-tproxy.socket, or give --listen")]
    NoSocket,
    /// A worker has ended before its time.
    #[error("a worker has ended: {0}")]
    Worker(String),
}

fn failed(what: &'static str) -> impl Fn(io::Error) -> RunError {
    move |error| RunError::Io(what, error)
}

/// Runs until a signal, and then until the last connection has ended.
///
/// # Errors
/// [`RunError`] when it cannot begin, or must stop.
pub fn run(options: Options) -> Result<(), RunError> {
    let signals = Signals::block(&[signal::TERM, signal::INT]).map_err(failed("signals"))?;
    let listeners = listeners(&options)?;
    let count = options.workers.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, Into::into));
    let count = count.clamp(1, WORKERS_MAX);
    let most = connections_max(count);
    let shared = Arc::new(Shared::new(count, ktls_support()).map_err(failed("waker"))?);
    let messages = options.stand_alone()?;
    let path = messages.is_none().then_some(options.control);
    let mut control = Control::new(path, options.generation, Arc::clone(&shared))?;
    if let Some(messages) = messages {
        for message in messages {
            control.apply(message);
        }
        control.publish();
    }
    let mut life = Life { shared, control, signals, listeners, workers: Vec::new(), most, stop: false };
    life.run(count)
}

/// The main thread's.
struct Life {
    shared: Arc<Shared>,
    control: Control,
    signals: Signals,
    listeners: Vec<Listener>,
    workers: Vec<JoinHandle<io::Result<()>>>,
    most: usize,
    stop: bool,
}

impl Life {
    fn run(&mut self, count: usize) -> Result<(), RunError> {
        say(&[NotifyState::Status("Waiting for the control plane")]);
        while !self.control.is_ready() {
            if self.stop {
                return Ok(());
            }
            self.wait()?;
        }
        self.start(count)?;
        say(&[NotifyState::Ready, NotifyState::Status("Serving")]);
        while !self.workers.iter().all(JoinHandle::is_finished) {
            if !self.stop && self.workers.iter().any(JoinHandle::is_finished) {
                break;
            }
            self.wait()?;
        }
        self.end()
    }

    /// Waits for whatever comes, and does it.
    fn wait(&mut self) -> Result<(), RunError> {
        let mut fds = vec![
            PollFd::from_borrowed_fd(self.signals.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.shared.waker.as_fd(), PollFlags::IN),
        ];
        fds.extend(self.control.interest().map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags)));
        let patience = [self.control.patience(), watchdog()].into_iter().flatten().min();
        let patience = patience.and_then(|limit| Timespec::try_from(limit).ok());
        match poll(&mut fds, patience.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(RunError::Io("poll", error.into())),
        }
        self.shared.waker.clear();
        if self.signals.next().map_err(failed("signals"))?.is_some() && !self.stop {
            self.stop = true;
            say(&[NotifyState::Stopping, NotifyState::Status("Draining: no new clients, the others go on")]);
            self.shared.drain();
            self.listeners.clear();
        }
        if watchdog().is_some() {
            say(&[NotifyState::Watchdog]);
        }
        self.control.turn();
        Ok(())
    }

    fn start(&mut self, count: usize) -> Result<(), RunError> {
        for index in 0..count {
            let shared = Arc::clone(&self.shared);
            let worker = Worker::new(Arc::clone(&shared), index, self.listeners.clone(), self.most);
            let worker = worker.map_err(failed("worker"))?;
            let thread = std::thread::Builder::new().name(format!("flow-{index}"));
            let body = move || {
                let outcome = worker.run();
                shared.waker.wake();
                outcome
            };
            self.workers.push(thread.spawn(body).map_err(failed("thread"))?);
        }
        Ok(())
    }

    fn end(&mut self) -> Result<(), RunError> {
        for worker in self.workers.drain(..).filter(JoinHandle::is_finished) {
            match worker.join() {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Err(RunError::Worker(error.to_string())),
                Err(_) => return Err(RunError::Worker("it panicked".to_owned())),
            }
        }
        self.control.drained();
        Ok(())
    }
}

/// What the kernel can do of TLS; the journal says it.
fn ktls_support() -> Support {
    let (support, text) = match ktls::probe() {
        Ok(support) if support.rekey => (support, "kTLS: yes".to_owned()),
        Ok(support) if support.any() => {
            (support, "kTLS: TLS 1.2 alone, since this kernel (before 6.14) cannot change keys".to_owned())
        }
        Ok(support) => (support, "kTLS: no, the kernel knows none of the ciphers".to_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            (Support::default(), "kTLS: no, the kernel has no module tls, or it is not loaded".to_owned())
        }
        Err(error) => (Support::default(), format!("kTLS: no, it cannot be tried: {error}")),
    };
    log(6, &text);
    support
}

/// Tells systemd, when it is there.
fn say(words: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(words) {
        log(4, &format!("systemd cannot be told: {error}"));
    }
}

/// How often systemd wants to hear that the main loop lives.
fn watchdog() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|limit| limit / 2)
}

/// Raises the limit of descriptors as far as allowed, and says how many connections a worker may have.
fn connections_max(workers: usize) -> usize {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    // The unit has raised it already, and its filter of system calls would refuse.
    let raise = limit.current != limit.maximum;
    let current = match raise.then(|| rustix::process::setrlimit(Resource::Nofile, raised)) {
        Some(Ok(())) => limit.maximum,
        Some(Err(_)) | None => limit.current,
    };
    // Two sockets each, and a tenth for pipes and attempts.
    let connections = current.unwrap_or(1 << 20).saturating_sub(OTHER_FDS) * 9 / 10 / 2;
    (usize::try_from(connections).unwrap_or(usize::MAX) / workers).max(8)
}

/// The sockets that systemd passed, and those of the command line.
fn listeners(options: &Options) -> Result<Vec<Listener>, RunError> {
    let mut all = Vec::new();
    for inherited in fds::take().map_err(failed("inherited sockets"))? {
        let front = match inherited.name.as_str() {
            "ingress" => Front::Ingress,
            "passthrough" => Front::Passthrough,
            "http" => Front::Http,
            _ => continue, // the control plane's
        };
        all.push(listener(inherited.fd, front)?);
    }
    let own = [
        (Front::Ingress, &options.listen),
        (Front::Passthrough, &options.listen_passthrough),
        (Front::Http, &options.listen_http),
    ];
    for (front, address) in own.into_iter().flat_map(|(front, list)| list.iter().map(move |a| (front, *a))) {
        let fd = listen(address).map_err(failed("listen"))?;
        let bound = rustix::net::getsockname(&fd).ok().and_then(|bound| SocketAddr::try_from(bound).ok());
        // Whoever asked for port 0 wants to know.
        println!("{} {}", format!("{front:?}").to_lowercase(), bound.unwrap_or(address));
        all.push(listener(fd, front)?);
    }
    if all.is_empty() { Err(RunError::NoSocket) } else { Ok(all) }
}

/// Longest time that accepting may hold a worker up; the kernel rounds it up to its tick.
const ACCEPT_MAX: Duration = Duration::from_millis(1);

/// Makes a listening socket fit for the workers: it does not block, and clients inherit TCP_NODELAY.
///
/// O_NONBLOCK belongs to the socket and not to us: systemd and each generation have the same one, and systemd clears the
/// flag whenever it passes the socket to a service without NonBlocking=. A worker that then waited in accept(2) would
/// leave all its clients waiting, so the socket has a timeout, too.
fn listener(fd: OwnedFd, front: Front) -> Result<Listener, RunError> {
    let failed = |error: Errno| RunError::Io("socket", error.into());
    rustix::io::ioctl_fionbio(&fd, true).map_err(failed)?;
    sockopt::set_socket_timeout(&fd, Timeout::Recv, Some(ACCEPT_MAX)).map_err(failed)?;
    sockopt::set_tcp_nodelay(&fd, true).map_err(failed)?;
    Ok(Listener { fd: Arc::new(fd), front })
}

fn listen(address: SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let fd = rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_reuseaddr(&fd, true)?;
    rustix::net::bind(&fd, &address)?;
    rustix::net::listen(&fd, BACKLOG)?;
    Ok(fd)
}
