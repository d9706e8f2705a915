// SPDX-License-Identifier: Apache-2.0
//! From start to stop: configuration, sockets, keys, objects, name, readiness, and the loop.

use crate::bus::manager::{self, Manager};
use crate::engine::{Engine, Parts, Phase, trust_directories};
use crate::onboard::OnHost;
use crate::rpc::{self, Served};
use crate::settings::{Input, Settings};
use crate::vault::HostVault;
use crate::webhook::{Authorize, Nobody};
use dstack_ra_rpc::Verifier;
use dstack_ra_rpc::collateral::{Cache, QuoteSim};
use dstack_ra_tls::{Label, Roots, dropins};
use dstack_rpc::Listener;
use dstack_service::api::kms1::{NAME as BUS_NAME, PATH};
use dstack_service::config::Directories;
use dstack_service::lifecycle::{self, Asked, Signals, Watchdog};
use dstack_service::logging::{LevelHandle, message_id};
use dstack_service::sockets::Sockets;
use dstack_service::{bus, config};
use std::error::Error;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval};
use zbus::Connection;

/// Name of the program and its journal identifier.
pub const NAME: &str = "dstack-kms";
/// `FileDescriptorName=` of its socket.
const SOCKETS: &str = "kms";
/// Worker threads: quotes are verified in threads of their own.
const WORKERS: usize = 2;
/// Threads for verification.
const BLOCKING: usize = 8;
/// Time that work under way gets to end at a stop.
const GRACE: Duration = Duration::from_secs(3);
/// How often the certificate is renewed and collateral asked for again: three times in its life.
const RENEWAL: Duration = Duration::from_secs(8 * 3600);
/// How often it is forecast who will be refused (trust rule T22).
const FORECAST: Duration = Duration::from_secs(24 * 3600);
/// How often it is looked whether that is due: by the wall clock, which goes on while a machine sleeps.
const LOOK: Duration = Duration::from_secs(60);

type Outcome<T> = Result<T, Box<dyn Error>>;

/// Directories that systemd gives.
struct Places {
    state: PathBuf,
    runtime: PathBuf,
    cache: Option<PathBuf>,
    directories: Directories,
}

impl Places {
    fn from_env() -> Outcome<Self> {
        let directory = |name: &str| std::env::var_os(name).map(PathBuf::from);
        let needed = |name: &str| {
            directory(name)
                .ok_or(format!("{name} is not set; start the daemon by `systemctl start dstack-kms`"))
        };
        Ok(Self {
            state: needed("STATE_DIRECTORY")?,
            runtime: needed("RUNTIME_DIRECTORY")?,
            cache: directory("CACHE_DIRECTORY"),
            directories: Directories::default(),
        })
    }
}

/// Runs the daemon until it is told to stop.
///
/// # Errors
/// What keeps it from starting, or the loss of the bus.
pub fn run(level: LevelHandle) -> Outcome<()> {
    let places = Places::from_env()?;
    let settings = Settings::from_input(config::load::<Input>(&places.directories, "kms")?)?;
    let sockets = Sockets::take()?.named(SOCKETS);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(BLOCKING)
        .enable_all()
        .build()?;
    let result = runtime.block_on(serve(settings, places, sockets, level));
    runtime.shutdown_timeout(GRACE);
    result
}

async fn serve(settings: Settings, places: Places, sockets: Vec<OwnedFd>, level: LevelHandle) -> Outcome<()> {
    let signals = Signals::new()?;
    let connection = bus::connect(NAME, level).await?;
    let (engine, told) = Engine::open(parts(settings, places, &connection)?)?;
    say_start(&engine);
    let server = connection.object_server();
    server.at(PATH, Manager::new(engine.clone(), &connection)).await?;
    let (stop, stopped) = watch::channel(false);
    let served = rpc::listen(&engine, listeners(sockets)?, &stopped)?;
    let (told_founded, founded) = mpsc::unbounded_channel();
    tokio::spawn(manager::follow(connection.clone(), engine.clone(), told, told_founded));
    bus::request_name(&connection, BUS_NAME).await?;
    lifecycle::ready(&engine.status());
    let result = watch_over(&engine, &connection, &served, founded, signals).await;
    lifecycle::stopping();
    stop.send_replace(true);
    served.wait().await;
    // Not graceful_shutdown(): it waits until every task has let go of the connection. What was said is written.
    drop(connection);
    result
}

fn parts(settings: Settings, places: Places, connection: &Connection) -> Outcome<Parts> {
    let roots = Roots::load(&trust_directories(&places.directories))?;
    let policy = dropins::load(&places.directories.vendor, &places.directories.operator)?;
    let cache = match roots.realm() {
        Label::Test(_) => Cache::new(places.cache, QuoteSim(settings.quote_sim.clone())),
        Label::Intel => Cache::new(places.cache, settings.pccs.clone()),
    };
    let webhook: Arc<dyn Authorize> = match &settings.webhook {
        Some(webhook) => Arc::new(webhook.clone()),
        None => Arc::new(Nobody),
    };
    Ok(Parts {
        settings,
        state: places.state,
        verifier: Arc::new(Verifier::new(roots, policy, cache)),
        vault: Arc::new(HostVault::new(&places.runtime, connection)?),
        webhook,
        attest: Arc::new(OnHost),
        directories: places.directories,
    })
}

fn listeners(sockets: Vec<OwnedFd>) -> Outcome<Vec<Listener>> {
    if sockets.is_empty() {
        tracing::warn!("no RPC socket was passed; guests cannot get keys; start dstack-kms.socket");
    }
    Ok(sockets.into_iter().map(Listener::from_fd).collect::<Result<_, _>>()?)
}

fn say_start(engine: &Engine) {
    if let Some(aside) = engine.log().repaired() {
        tracing::warn!(
            MESSAGE_ID = message_id::RELEASE_LOG_REPAIRED,
            "the last line of the release log was unfinished; it was moved to {}",
            aside.display()
        );
    }
    match engine.phase() {
        Phase::Ready(_) => tracing::info!("methods: {}", rpc::METHODS.join(" ")),
        Phase::Empty => tracing::info!("{}", engine.status()),
        Phase::Refused(reason) => {
            tracing::error!(MESSAGE_ID = message_id::KMS_REFUSED, "no key is served: {reason}");
        }
    }
}

/// The daemon's own loop, which also feeds the watchdog.
async fn watch_over(
    engine: &Engine,
    connection: &Connection,
    served: &Served,
    mut founded: mpsc::UnboundedReceiver<()>,
    mut signals: Signals,
) -> Outcome<()> {
    let mut watchdog = Watchdog::from_env();
    let (mut look, mut renewed) = (interval(LOOK), SystemTime::now());
    // The first look tells what may have happened while the service was down.
    let mut forecast = SystemTime::UNIX_EPOCH;
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut lost = zbus_lost(connection);
    loop {
        tokio::select! {
            () = &mut lost => return Err("the bus was lost; systemd starts the key service again".into()),
            Some(()) = founded.recv() => renew(engine, served),
            _ = look.tick() => {
                let now = SystemTime::now();
                let due = (is_due(renewed, RENEWAL, now), is_due(forecast, FORECAST, now));
                if due.0 {
                    renewed = now;
                    renew(engine, served);
                }
                if due.1 {
                    forecast = now;
                }
                keep_fresh(engine, due);
            },
            asked = signals.next() => match asked {
                Asked::Stop => return Ok(()),
                Asked::Reload => reload(engine),
            },
            () = watchdog.tick() => {
                // A lock that is never given back is noticed here.
                drop(engine.phase());
                lifecycle::alive();
            }
        }
    }
}

/// Ends when the bus closes the connection.
fn zbus_lost(connection: &Connection) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>> {
    use futures_util::StreamExt;
    let mut messages = zbus::MessageStream::from(connection);
    Box::pin(async move { while messages.next().await.is_some() {} })
}

/// Also when the clock was set back: a certificate from the future is none.
fn is_due(last: SystemTime, every: Duration, now: SystemTime) -> bool {
    now.duration_since(last).map_or(true, |passed| passed >= every)
}

fn renew(engine: &Engine, served: &Served) {
    if let Err(error) = served.renew(engine) {
        tracing::error!("the certificate cannot be renewed; the old one goes on being shown: {error}");
    }
}

/// What is due: collateral that gets old is fetched again, so that an outage of its server is no outage of ours; by what
/// there is then, it is forecast who will be refused; and what nobody needs any more is forgotten.
fn keep_fresh(engine: &Engine, (refresh, forecast): (bool, bool)) {
    let engine = engine.clone();
    tokio::spawn(async move {
        if refresh {
            self::refresh(&engine).await;
        }
        if forecast {
            engine.tell_forecast().await;
            engine.sweep_disks().await;
        }
    });
}

async fn refresh(engine: &Engine) {
    let failed = engine.verifier().collateral().refresh(SystemTime::now()).await;
    if failed > 0 {
        tracing::warn!("collateral of {failed} platforms could not be fetched again; what is cached is used");
    }
}

fn reload(engine: &Engine) {
    lifecycle::reloading();
    match engine.reload() {
        Ok(()) => tracing::info!("the policy was read again"),
        Err(error) => tracing::error!("{error}"),
    }
    lifecycle::ready(&engine.status());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p24_the_certificate_is_renewed_by_the_wall_clock() {
        let is_due = |now| is_due(SystemTime::UNIX_EPOCH + RENEWAL, RENEWAL, now);
        let now = SystemTime::UNIX_EPOCH + RENEWAL;
        assert!(!is_due(now) && !is_due(now + RENEWAL / 2));
        assert!(is_due(now + RENEWAL) && is_due(now - Duration::from_secs(60)));
        assert!(crate::authority::RPC_LIFE > 2 * RENEWAL);
    }
}
