// SPDX-License-Identifier: Apache-2.0
//! The start order and the main loop.

use crate::agent::Agent;
use crate::app::App;
use crate::guest_api::SystemdPower;
use crate::logs::{Logs, Place};
use crate::settings::Settings;
use crate::{bus, guest_api, http};
use axum::Router;
use dstack_rpc::{Listener, ServeOptions};
use dstack_service::access::Gate;
use dstack_service::config::{self, ConfigError, Directories};
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
    let external = sockets.one("external")?;
    let guest_api = sockets.named("guest-api");
    let agent = Arc::new(agent(&settings)?);
    // One thread: the agent mostly waits, and a guest's memory is dear.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(main_loop(&agent, level, external, guest_api))
}

fn agent(settings: &Settings) -> Result<Agent, StartError> {
    let app = App::load(&settings.run_directory).unwrap_or_else(|error| {
        // The host can still shut the guest down; nothing is public.
        tracing::error!("the app is not known, so nothing of it is shown: {error}");
        App::default()
    });
    let place = settings.journal_directory.clone().map_or(Place::System, Place::Directory);
    Ok(Agent::new(app, Logs::start(place)?, settings))
}

async fn main_loop(
    agent: &Arc<Agent>,
    level: LevelHandle,
    external: OwnedFd,
    guest_api: Vec<OwnedFd>,
) -> Result<(), StartError> {
    let mut signals = Signals::new()?;
    let connection = dstack_service::bus::connect(IDENTIFIER, level).await?;
    let manager = bus::Manager::new(Arc::clone(agent), Gate::new(&connection));
    connection.object_server().at(bus::PATH, manager).await?;

    let mut doors = Doors::default();
    doors.open(external, http::router(Arc::clone(agent)), ServeOptions::default())?;
    for fd in guest_api {
        let router = guest_api::router(Arc::clone(agent), SystemdPower::new(connection.clone()));
        doors.open(fd, router, ServeOptions { connections: GUEST_API_CONNECTIONS, ..Default::default() })?;
    }
    dstack_service::bus::request_name(&connection, bus::NAME).await?;
    lifecycle::ready(&status(&agent.app));
    wait_for_stop(&mut signals).await;
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
fn status(app: &App) -> String {
    if app.app_id.is_empty() {
        return "No app: see the first lines of the log".to_owned();
    }
    let logs = if app.public_logs { "public" } else { "private" };
    format!("App {} ({}), logs {logs}", app.name.escape_default(), app.app_id)
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
