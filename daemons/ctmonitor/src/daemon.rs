// SPDX-License-Identifier: Apache-2.0
//! From start to stop: configuration, state, objects, name, readiness, and the loop. When a check is due is the timer's
//! business.

use crate::assemble;
use crate::bus::manager::{self, Manager, status};
use crate::engine::Engine;
use crate::settings::{Input, Settings};
use crate::store::Store;
use dstack_service::api::ctmonitor1::{NAME as BUS_NAME, PATH};
use dstack_service::bus;
use dstack_service::config::{self, Directories};
use dstack_service::lifecycle::{self, Asked, Signals, Watchdog};
use dstack_service::logging::LevelHandle;
use futures_util::StreamExt;
use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::{mpsc, watch};
use zbus::Connection;

/// Name of the program and its journal identifier.
pub const NAME: &str = "dstack-ct-monitor";
/// Name of its settings.
pub const CONFIG: &str = "ct-monitor";
/// Worker threads: a check is one task.
const WORKERS: usize = 2;
/// Time that work under way gets to end at a stop; it is safe to be cut off anywhere.
const GRACE: Duration = Duration::from_secs(1);

type Outcome<T> = Result<T, Box<dyn Error>>;

/// The time, Unix seconds.
#[must_use]
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// Runs the daemon until it is told to stop.
///
/// # Errors
/// What keeps it from starting, or the loss of the bus.
pub fn run(level: LevelHandle) -> Outcome<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build()?;
    let result = runtime.block_on(serve(level));
    runtime.shutdown_timeout(GRACE);
    result
}

async fn serve(level: LevelHandle) -> Outcome<()> {
    let signals = Signals::new()?;
    let directories = Directories::default();
    let input: Input = config::load(&directories, CONFIG)?;
    let settings = Settings::from_input(input)?;
    let connection = bus::connect(NAME, level).await?;
    let (engine, told) = match settings {
        Some(settings) => {
            let (engine, told) = open(&settings, &directories, &connection)?;
            (Some(engine), told)
        }
        None => {
            tracing::warn!("{}", manager::UNCONFIGURED);
            (None, mpsc::unbounded_channel().1)
        }
    };
    let (object, changes) = Manager::new(engine.clone(), &connection);
    connection.object_server().at(PATH, object).await?;
    tokio::spawn(manager::follow(connection.clone(), told, changes.clone()));
    bus::request_name(&connection, BUS_NAME).await?;
    lifecycle::ready(&status(engine.as_ref()));
    let result = watch_over(&connection, engine.as_ref(), changes, signals).await;
    lifecycle::stopping();
    result
}

fn open(
    settings: &Settings,
    directories: &Directories,
    connection: &Connection,
) -> Outcome<(Engine, mpsc::UnboundedReceiver<crate::alert::Alert>)> {
    let directory = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let state = directory("STATE_DIRECTORY")
        .ok_or("STATE_DIRECTORY is not set; start the daemon by `systemctl start dstack-ct-monitor`")?;
    let cache = directory("CACHE_DIRECTORY");
    let parts = assemble::parts(settings, directories, cache, Some(connection), Store::open(&state)?)?;
    Ok(Engine::open(parts, Arc::new(now))?)
}

/// The daemon's own loop, which also feeds the watchdog.
async fn watch_over(
    connection: &Connection,
    engine: Option<&Engine>,
    mut changes: watch::Receiver<u64>,
    mut signals: Signals,
) -> Outcome<()> {
    let mut watchdog = Watchdog::from_env();
    let mut messages = zbus::MessageStream::from(connection);
    let lost = async { while messages.next().await.is_some() {} };
    tokio::pin!(lost);
    loop {
        tokio::select! {
            () = &mut lost => return Err("the bus was lost; systemd starts the monitor again".into()),
            Ok(()) = changes.changed() => lifecycle::status(&status(engine)),
            asked = signals.next() => match asked {
                Asked::Stop => return Ok(()),
                Asked::Reload => tracing::info!("settings are read at a start: systemctl restart dstack-ct-monitor"),
            },
            () = watchdog.tick() => lifecycle::alive(),
        }
    }
}
