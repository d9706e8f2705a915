// SPDX-License-Identifier: Apache-2.0
//! The start order and the main loop.

use crate::agent::Agent;
use crate::app::App;
use crate::attest::Attestor;
use crate::guest_api::SystemdPower;
use crate::keys::Keys;
use crate::logs::{Logs, Place};
use crate::settings::Settings;
use crate::trust::TrustError;
use crate::vault::Vault;
use crate::{bus, dstack_api, guest_api, http, tappd_api};
use axum::Router;
use dstack_rpc::{Listener, ServeOptions};
use dstack_service::access::Gate;
use dstack_service::config::{self, ConfigError, Directories};
use dstack_service::credentials::{self, CredentialError};
use dstack_service::lifecycle::{self, Asked, Signals, Watchdog};
use dstack_service::logging::{self, LevelHandle};
use dstack_service::sockets::{SocketError, Sockets};
use std::io;
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::sync::Arc;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Name of the program, of its unit and of its journal records.
pub const IDENTIFIER: &str = "dstack-tappd";
/// Connections that the host may have open at a time.
const GUEST_API_CONNECTIONS: usize = 16;
/// Threads for what blocks: the TEE, names of hosts.
const BLOCKING_THREADS: usize = 4;
/// The credential with the app's keys.
const KEYS: &str = "app-keys";

/// Why the agent cannot run.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Sockets(#[from] SocketError),
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("the bus cannot be used: {0}; see `systemctl status dbus`")]
    Bus(#[from] zbus::Error),
    #[error(transparent)]
    Credential(#[from] CredentialError),
    #[error(transparent)]
    Trust(#[from] TrustError),
}

/// Runs until systemd asks for a stop; failures are logged once, here.
#[must_use]
pub fn run() -> ExitCode {
    let level = logging::init(IDENTIFIER);
    match start(level) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn start(level: LevelHandle) -> Result<(), StartError> {
    let settings: Settings = config::load(&Directories::default(), "tappd")?;
    let mut sockets = Sockets::take()?;
    let passed = Passed {
        external: sockets.one("external")?,
        guest_api: sockets.named("guest-api"),
        tappd: sockets.named("tappd"),
        dstack: sockets.named("dstack"),
    };
    let agent = Arc::new(agent(&settings)?);
    // One thread: the agent mostly waits, and a guest's memory is dear.
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().max_blocking_threads(BLOCKING_THREADS).build()?;
    runtime.block_on(main_loop(&agent, level, passed))
}

/// The sockets that systemd passed, by their names.
struct Passed {
    external: OwnedFd,
    guest_api: Vec<OwnedFd>,
    tappd: Vec<OwnedFd>,
    dstack: Vec<OwnedFd>,
}

fn agent(settings: &Settings) -> Result<Agent, StartError> {
    let app = App::load(&settings.run_directory).unwrap_or_else(|error| {
        // The host can still shut the guest down; nothing is public.
        tracing::error!("the app is not known, so nothing of it is shown: {error}");
        App::default()
    });
    let place = settings.journal_directory.clone().map_or(Place::System, Place::Directory);
    let vault = vault(settings, &app)?;
    Ok(Agent::new(app, vault, Logs::start(place)?, settings))
}

/// Keys that cannot be used are no reason to be away: the host can still shut down, and apps are told.
fn vault(settings: &Settings, app: &App) -> Result<Vault, StartError> {
    let attestor = || {
        let simulated = settings.simulated_socket.clone();
        let detect = move || dstack_tdx_attest::detect_with(simulated.as_deref());
        Attestor::new(&settings.run_directory.join("private"), Arc::new(detect))
    };
    let app_id = app.app_id.parse().ok();
    let keys = credentials::read_optional(KEYS)?;
    let keys = keys.map(|bytes| Keys::parse(&bytes)).transpose().map(Option::flatten);
    match keys.and_then(|keys| Vault::new(attestor(), keys, app_id)) {
        Ok(vault) => Ok(vault),
        Err(error) => {
            tracing::error!("this app has no keys: {error}");
            Ok(Vault::new(attestor(), None, app_id)?)
        }
    }
}

async fn main_loop(agent: &Arc<Agent>, level: LevelHandle, passed: Passed) -> Result<(), StartError> {
    let mut signals = Signals::new()?;
    let connection = dstack_service::bus::connect(IDENTIFIER, level).await?;
    let manager = bus::Manager::new(Arc::clone(agent), Gate::new(&connection));
    connection.object_server().at(bus::PATH, manager).await?;

    let mut doors = Doors::default();
    doors.open(passed.external, http::router(Arc::clone(agent)), ServeOptions::default())?;
    // The JavaScript SDK shuts down its sending side and goes on reading.
    let half_close = || ServeOptions { half_close: true, ..Default::default() };
    for fd in passed.tappd {
        doors.open(fd, tappd_api::router(Arc::clone(agent)), half_close())?;
    }
    for fd in passed.dstack {
        doors.open(fd, dstack_api::router(Arc::clone(agent)), half_close())?;
    }
    for fd in passed.guest_api {
        let router = guest_api::router(Arc::clone(agent), SystemdPower::new(connection.clone()));
        doors.open(fd, router, ServeOptions { connections: GUEST_API_CONNECTIONS, ..Default::default() })?;
    }
    dstack_service::bus::request_name(&connection, bus::NAME).await?;
    lifecycle::ready(&status(agent));
    let certifying = tokio::spawn({
        let agent = Arc::clone(agent);
        async move { agent.vault.keep_certified().await }
    });
    wait_for_stop(&mut signals).await;
    certifying.abort();
    lifecycle::stopping();
    agent.stop();
    doors.close().await;
    Ok(())
}

async fn wait_for_stop(signals: &mut Signals) {
    let mut watchdog = Watchdog::from_env();
    loop {
        tokio::select! {
            () = watchdog.tick() => lifecycle::alive(),
            asked = signals.next() => match asked {
                Asked::Stop => return,
                // What the agent knows was measured at boot and does not change.
                Asked::Reload => {}
            },
        }
    }
}

/// For `systemctl status`.
fn status(agent: &Agent) -> String {
    let app = &agent.app;
    if app.app_id.is_empty() {
        return "No app: see the first lines of the log".to_owned();
    }
    let logs = if app.public_logs { "public" } else { "private" };
    let keys = match agent.vault.provider() {
        "kms" => "by the key service",
        "none" => "for this boot",
        _ => "none",
    };
    format!("App {} ({}), keys {keys}, logs {logs}", app.name.escape_default(), app.app_id)
}

/// The sockets that are served.
#[derive(Debug)]
struct Doors {
    stop: watch::Sender<bool>,
    serving: JoinSet<()>,
}

impl Default for Doors {
    fn default() -> Self {
        Self { stop: watch::Sender::new(false), serving: JoinSet::new() }
    }
}

impl Doors {
    fn open(&mut self, fd: OwnedFd, router: Router, options: ServeOptions) -> io::Result<()> {
        let listener = Listener::from_fd(fd)?;
        let mut stopped = self.stop.subscribe();
        self.serving.spawn(dstack_rpc::serve(listener, router, options, async move {
            // An error means that the sender is gone, which is a stop as well.
            let _ = stopped.wait_for(|stop| *stop).await;
        }));
        Ok(())
    }

    /// Lets open calls end.
    async fn close(mut self) {
        self.stop.send_replace(true);
        while self.serving.join_next().await.is_some() {}
    }
}
