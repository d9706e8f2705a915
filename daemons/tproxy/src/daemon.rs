// SPDX-License-Identifier: Apache-2.0
//! From start to stop: configuration, sockets, state, objects, name, readiness, and the loop.

use crate::bus::manager::{self, Manager};
use crate::certbot::{self, HostCertbot};
use crate::control::Control;
use crate::dns;
use crate::engine::keeper::LOOK;
use crate::engine::{Engine, Parts, Told};
use crate::issuer::{GuestAgent, HostKms, Issued, Issuer};
use crate::names::Names;
use crate::rpc::{self, Served};
use crate::session::{self, Shared};
use crate::settings::Settings;
use crate::tunnel::Guarded;
use crate::units::Systemd;
use crate::{key, users};
use dstack_ra_rpc::Verifier;
use dstack_ra_rpc::collateral::{Cache, QuoteSim};
use dstack_ra_tls::{Label, Policy, Roots, dropins};
use dstack_rpc::Listener;
use dstack_service::api::tproxy1::{NAME as BUS_NAME, PATH};
use dstack_service::bus;
use dstack_service::config::Directories;
use dstack_service::lifecycle::{self, Asked, Signals, Watchdog};
use dstack_service::logging::LevelHandle;
use dstack_service::sockets::Sockets;
use dstack_wireguard::System;
use futures_util::{Stream, StreamExt};
use std::error::Error;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::{mpsc, watch};
use tokio::time::{Interval, MissedTickBehavior, interval};
use zbus::Connection;

/// Name of the program and its journal identifier.
pub const NAME: &str = "dstack-tproxy";
/// `FileDescriptorName=` of the RPC's socket, and of the data planes'.
const SOCKETS: [&str; 2] = ["rpc", "flow"];
/// Worker threads: quotes are verified in threads of their own.
const WORKERS: usize = 2;
/// Threads for verification and files.
const BLOCKING: usize = 8;
/// Time that work under way gets to end at a stop.
const GRACE: Duration = Duration::from_secs(3);
/// How often our certificate is renewed and collateral asked for again: three times in its life.
const RENEWAL: Duration = Duration::from_secs(8 * 3600);
/// How long after a failure our certificate is asked for again, when nothing tells sooner that it may help.
const RETRY: Duration = Duration::from_secs(60);

type Outcome<T> = Result<T, Box<dyn Error>>;

/// Directories that systemd gives.
struct Places {
    state: PathBuf,
    cache: Option<PathBuf>,
    directories: Directories,
}

impl Places {
    fn from_env() -> Outcome<Self> {
        let directory = |name: &str| std::env::var_os(name).map(PathBuf::from);
        let state = directory("STATE_DIRECTORY").ok_or(
            "STATE_DIRECTORY is not set; start the daemon by `systemctl start dstack-tproxy`".to_owned(),
        )?;
        Ok(Self { state, cache: directory("CACHE_DIRECTORY"), directories: Directories::default() })
    }
}

/// Runs the daemon until it is told to stop.
///
/// # Errors
/// What keeps it from starting, or the loss of the bus.
pub fn run(level: LevelHandle) -> Outcome<()> {
    let places = Places::from_env()?;
    let mut sockets = Sockets::take()?;
    // The ingress ports are passed too, since they start this daemon; only data planes accept there.
    let [rpc, flow] = SOCKETS.map(|name| sockets.named(name));
    drop(sockets);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(BLOCKING)
        .enable_all()
        .build()?;
    let result = runtime.block_on(serve(places, rpc, flow, level));
    runtime.shutdown_timeout(GRACE);
    result
}

async fn serve(places: Places, rpc: Vec<OwnedFd>, flow: Vec<OwnedFd>, level: LevelHandle) -> Outcome<()> {
    let signals = Signals::new()?;
    let connection = bus::connect(NAME, level).await?;
    let units = Arc::new(Systemd::new(connection.clone()));
    let (control, words) =
        Control::new(places.directories.clone(), units, Arc::new(HostCertbot::new(connection.clone())));
    // With settings that cannot be used it stays, too: data planes go on with what they were told, and sockets with it.
    let opened = match control.start() {
        Some(settings) => Some(open(settings, &places)?),
        None => None,
    };
    let (engine, told) =
        opened.map_or_else(|| (None, mpsc::unbounded_channel().1), |(e, told)| (Some(e), told));
    let manager = Manager::new(engine.clone(), control.clone(), &connection);
    connection.object_server().at(PATH, manager).await?;
    tokio::spawn(manager::follow(connection.clone(), told, words));
    bus::request_name(&connection, BUS_NAME).await?;
    let result = match engine {
        Some(engine) => {
            Work { engine, control, connection: connection.clone() }.run(rpc, flow, signals).await
        }
        None => idle(&connection, &control, signals).await,
    };
    lifecycle::stopping();
    // Not graceful_shutdown(): it waits until every task has let go of the connection. What was said is written.
    drop(connection);
    result
}

fn open(settings: Settings, places: &Places) -> Outcome<(Engine, mpsc::UnboundedReceiver<Told>)> {
    let Directories { vendor, operator } = &places.directories;
    let roots = Roots::load(&[operator.join("trust.d"), vendor.join("trust.d")])?;
    let policy: Policy = dropins::load(vendor, operator)?;
    let cache = match roots.realm() {
        Label::Test(_) => Cache::new(places.cache.clone(), QuoteSim(settings.quote_sim.clone())),
        Label::Intel => Cache::new(places.cache.clone(), settings.pccs.clone()),
    };
    let (private_key, public_key) = key::load_or_make(&places.state)?;
    let parts = Parts {
        settings,
        state: places.state.clone(),
        private_key,
        public_key,
        verifier: Arc::new(Verifier::new(roots, policy, cache)),
        wireguard: Arc::new(Guarded(System::open()?)),
    };
    Ok(Engine::open(parts)?)
}

/// There are no settings, or bad ones: bus and status say so, and nothing else happens.
async fn idle(connection: &Connection, control: &Control, mut signals: Signals) -> Outcome<()> {
    let why = control.status(None);
    match control.notes().misconfigured {
        Some(_) => tracing::error!("{why}"),
        None => tracing::warn!("{why}"),
    }
    lifecycle::ready(&why);
    let mut watchdog = Watchdog::from_env();
    let mut lost = bus_lost(connection);
    loop {
        tokio::select! {
            () = &mut lost => return Err("the bus was lost; systemd starts the ingress again".into()),
            asked = signals.next() => match asked {
                Asked::Stop => return Ok(()),
                Asked::Reload => lifecycle::ready(&control.status(None)),
            },
            () = watchdog.tick() => lifecycle::alive(),
        }
    }
}

/// A configured daemon.
struct Work {
    engine: Engine,
    control: Control,
    connection: Connection,
}

/// Whenever asking for a certificate again may help.
type News = Pin<Box<dyn Stream<Item = ()> + Send>>;

/// What serves the RPC, as soon as there is a certificate to show.
struct Rpc {
    issuer: Box<dyn Issuer>,
    waiting: Vec<OwnedFd>,
    served: Option<(Served, Vec<u8>)>,
    stopped: watch::Receiver<bool>,
    renewed: Option<SystemTime>,
    tried: Option<SystemTime>,
}

impl Work {
    async fn run(self, rpc: Vec<OwnedFd>, flow: Vec<OwnedFd>, signals: Signals) -> Outcome<()> {
        let (stop, stopped) = watch::channel(false);
        self.control.open(&self.engine.settings());
        for listener in flow {
            tokio::spawn(session::serve(unix(listener)?, self.shared()?));
        }
        // A failure is in the status, and mended at the next look.
        drop(self.engine.make_tunnel().await);
        // Before the first try, so that nothing is missed in between.
        let (issuer, news) = self.issuer().await?;
        let mut rpc = Rpc { issuer, waiting: rpc, served: None, stopped, renewed: None, tried: None };
        if rpc.waiting.is_empty() {
            tracing::warn!("no RPC socket was passed; nobody can register; start dstack-tproxy-rpc.socket");
        }
        tokio::spawn(certbot::follow(self.control.clone(), self.engine.clone(), self.connection.clone()));
        rpc.issue(&self).await;
        self.control.ensure_plane().await;
        lifecycle::ready(&self.status());
        let result = self.watch_over(&mut rpc, news, signals).await;
        stop.send_replace(true);
        if let Some((served, _)) = rpc.served {
            served.wait().await;
        }
        result
    }

    /// Who issues our certificate, and when trying again may help: in a CVM, where there is a guest agent, that; on a host
    /// its key service.
    async fn issuer(&self) -> Outcome<(Box<dyn Issuer>, News)> {
        let settings = self.engine.settings();
        let (socket, pinned) = (settings.agent.clone(), settings.kms_public_key.clone());
        if socket.exists() {
            return Ok((Box::new(GuestAgent { socket, pinned }), Box::pin(futures_util::stream::pending())));
        }
        let kms = HostKms::new(self.connection.clone(), pinned);
        let news = kms.news().await?;
        Ok((Box::new(kms), Box::pin(news)))
    }

    fn shared(&self) -> Outcome<Shared> {
        let resolver = self.engine.settings().proxy.resolver;
        Ok(Shared {
            engine: self.engine.clone(),
            feed: self.control.feed(),
            names: Names::new(dns::lookup(resolver)),
            users: Arc::new(users::allowed(Path::new("/etc/passwd"))?),
        })
    }

    fn status(&self) -> String {
        self.control.status(Some(&self.engine))
    }

    /// The daemon's own loop, which also feeds the watchdog.
    async fn watch_over(
        &self,
        rpc: &mut Rpc,
        mut news: impl Stream<Item = ()> + Unpin,
        mut signals: Signals,
    ) -> Outcome<()> {
        let mut watchdog = Watchdog::from_env();
        let (mut look, mut recycle) = (ticks(LOOK), ticks(self.recycle_interval()));
        let mut lost = bus_lost(&self.connection);
        let mut connected = self.engine.flows().connected();
        loop {
            tokio::select! {
                () = &mut lost => return Err("the bus was lost; systemd starts the ingress again".into()),
                Some(()) = news.next() => if rpc.served.is_none() { rpc.issue(self).await },
                Ok(()) = connected.changed() => {}
                _ = look.tick() => {
                    self.engine.look().await;
                    if *self.engine.flows().connected().borrow() == 0 {
                        // Not here: a start takes longer than the watchdog waits.
                        let control = self.control.clone();
                        tokio::spawn(async move { control.ensure_plane().await });
                    }
                    if rpc.is_due(SystemTime::now()) { rpc.issue(self).await }
                }
                _ = recycle.tick() => drop(self.engine.recycle()),
                asked = signals.next() => match asked {
                    Asked::Stop => return Ok(()),
                    Asked::Reload => self.reload(),
                },
                () = watchdog.tick() => lifecycle::alive(),
            }
            lifecycle::status(&self.status());
        }
    }

    fn recycle_interval(&self) -> Duration {
        self.engine.settings().recycle.map_or(crate::settings::DURATION_MAX, |recycle| recycle.interval)
    }

    /// By SIGHUP: nobody waits for the answer, so it goes to the journal.
    fn reload(&self) {
        let (control, engine) = (self.control.clone(), self.engine.clone());
        tokio::spawn(async move {
            match control.reload(&engine).await {
                Ok(generation) => tracing::info!("data plane {generation} has taken over"),
                Err(error) => tracing::error!("{error}"),
            }
        });
    }
}

impl Rpc {
    /// Also when the clock was set back: a certificate from the future is none.
    fn is_due(&self, now: SystemTime) -> bool {
        let passed = |since: Option<SystemTime>, limit| {
            since.is_none_or(|since| now.duration_since(since).map_or(true, |passed| passed >= limit))
        };
        passed(self.renewed, RENEWAL) && passed(self.tried, RETRY)
    }

    /// Gets a fresh certificate, and serves with it.
    async fn issue(&mut self, work: &Work) {
        self.tried = Some(SystemTime::now());
        let issued = self.issuer.issue().await;
        let shown = {
            // Whoever is served and then asks how we are must not hear that nobody is.
            let mut notes = work.control.notes();
            let shown = issued.and_then(|issued| self.show(work, issued));
            notes.kms = shown.as_ref().err().map(|error| self.trouble(error));
            shown.is_ok()
        };
        if shown {
            self.renewed = self.tried;
            refresh(&work.engine);
        }
    }

    /// Logs why there is no fresh certificate; gives the words of the status.
    fn trouble(&self, error: &str) -> String {
        if self.served.is_some() {
            tracing::error!("the certificate cannot be renewed; the old one goes on being shown: {error}");
            return format!("our certificate cannot be renewed: {error}");
        }
        tracing::warn!("nobody can register yet: {error}");
        format!("nobody can register: {error}")
    }

    fn show(&mut self, work: &Work, issued: Issued) -> Result<(), String> {
        if let Some((served, kms)) = &self.served {
            return match *kms == issued.kms {
                true => served.renew(&issued.identity),
                false => {
                    Err("the key service has other keys than before; run: systemctl restart dstack-tproxy"
                        .into())
                }
            };
        }
        let listeners: Result<Vec<Listener>, _> =
            std::mem::take(&mut self.waiting).into_iter().map(Listener::from_fd).collect();
        let listeners = listeners.map_err(|e| e.to_string())?;
        let served =
            rpc::listen(&work.engine, &issued.identity, issued.kms.clone(), listeners, &self.stopped)?;
        tracing::info!("methods: {}", rpc::METHODS.join(" "));
        self.served = Some((served, issued.kms));
        Ok(())
    }
}

/// Collateral that gets old is fetched again, so that an outage of its server is no outage of ours.
fn refresh(engine: &Engine) {
    let verifier = Arc::clone(engine.verifier());
    tokio::spawn(async move {
        let failed = verifier.collateral().refresh(SystemTime::now()).await;
        if failed > 0 {
            tracing::warn!(
                "collateral of {failed} platforms could not be fetched again; what is cached is used"
            );
        }
    });
}

fn unix(fd: OwnedFd) -> std::io::Result<tokio::net::UnixListener> {
    let listener = UnixListener::from(fd);
    listener.set_nonblocking(true)?;
    tokio::net::UnixListener::from_std(listener)
}

fn ticks(period: Duration) -> Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// Ends when the bus closes the connection.
fn bus_lost(connection: &Connection) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    let mut messages = zbus::MessageStream::from(connection);
    Box::pin(async move { while messages.next().await.is_some() {} })
}
