// SPDX-License-Identifier: Apache-2.0
//! From start to stop: configuration, objects, name, readiness, and the loop. Work comes as jobs over the bus: timers ask
//! for it.

use crate::bus::manager::{self, Manager};
use crate::control::{Control, Idle};
use dstack_service::api::certbot1::{NAME as BUS_NAME, PATH};
use dstack_service::bus;
use dstack_service::config::Directories;
use dstack_service::lifecycle::{self, Asked, Signals, Watchdog};
use dstack_service::logging::LevelHandle;
use futures_util::StreamExt;
use std::error::Error;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;
use zbus::Connection;

/// Name of the program and its journal identifier.
pub const NAME: &str = "dstack-certbot";
/// Worker threads.
const WORKERS: usize = 2;
/// Time that work under way gets to end at a stop; what is cut off is finished by the next run.
const GRACE: Duration = Duration::from_secs(1);
/// How often the status in words is made anew.
const LOOK: Duration = Duration::from_secs(60);

type Outcome<T> = Result<T, Box<dyn Error>>;

/// Runs the daemon until it is told to stop.
///
/// # Errors
/// What keeps it from starting, or the loss of the bus.
pub fn run(level: LevelHandle) -> Outcome<()> {
    let state = std::env::var_os("STATE_DIRECTORY").map(PathBuf::from);
    let state =
        state.ok_or("STATE_DIRECTORY is not set; start the daemon by `systemctl start dstack-certbot`")?;
    let control = Control::open(Directories::default(), state);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build()?;
    let result = runtime.block_on(serve(control, level));
    runtime.shutdown_timeout(GRACE);
    result
}

async fn serve(control: Control, level: LevelHandle) -> Outcome<()> {
    let signals = Signals::new()?;
    let connection = bus::connect(NAME, level).await?;
    let (manager, told) = Manager::new(control.clone(), &connection);
    connection.object_server().at(PATH, manager).await?;
    tokio::spawn(manager::follow(connection.clone(), control.clone(), told));
    bus::request_name(&connection, BUS_NAME).await?;
    match control.engine() {
        Ok(_) => {}
        Err(idle @ Idle::NotConfigured) => tracing::warn!("{idle}"),
        Err(idle @ Idle::Misconfigured(_)) => tracing::error!("{idle}"),
    }
    lifecycle::ready(&control.status());
    let result = watch_over(&control, &connection, signals).await;
    lifecycle::stopping();
    // Not graceful_shutdown(): it waits until every task has let go of the connection. What was said is written.
    drop(connection);
    result
}

/// The daemon's own loop, which also feeds the watchdog.
async fn watch_over(control: &Control, connection: &Connection, mut signals: Signals) -> Outcome<()> {
    let mut watchdog = Watchdog::from_env();
    let mut look = tokio::time::interval(LOOK);
    let mut lost = bus_lost(connection);
    loop {
        tokio::select! {
            () = &mut lost => return Err("the bus was lost; systemd starts the daemon again".into()),
            _ = look.tick() => lifecycle::status(&control.status()),
            asked = signals.next() => match asked {
                Asked::Stop => return Ok(()),
                Asked::Reload => reload(control),
            },
            () = watchdog.tick() => lifecycle::alive(),
        }
    }
}

fn reload(control: &Control) {
    match control.reload() {
        Ok(()) => tracing::info!("the settings were read again"),
        Err(error) => tracing::error!("{error}"),
    }
    lifecycle::status(&control.status());
}

/// Ends when the bus closes the connection.
fn bus_lost(connection: &Connection) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    let mut messages = zbus::MessageStream::from(connection);
    Box::pin(async move { while messages.next().await.is_some() {} })
}
