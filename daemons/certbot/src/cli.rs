// SPDX-License-Identifier: Apache-2.0
//! Commands without the daemon, with the meaning of the original's: `renew`, `init`, `set-caa`, `cfg`; and those that the
//! units use: `request`, `alert`.

use crate::assemble;
use crate::bus::work::Told;
use crate::engine::{Engine, EngineError, Outcome, Silent, time};
use crate::request;
use crate::settings::{Input, Settings};
use clap::{Parser, Subcommand};
use dstack_service::config::{self, Directories};
use dstack_service::logging::{LevelHandle, message_id};
use std::error::Error;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Where the daemon keeps its state.
const STATE: &str = "/var/lib/dstack/certbot";
/// The commented template.
const TEMPLATE: &str = include_str!("../../../units/host/certbot.toml");

/// Certificates of the ingress, by ACME.
#[derive(Debug, Parser)]
#[command(name = "dstack-certbot", version, disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Look at all certificates and renew what is due, again and again.
    Renew {
        /// Settings; without it, those of the daemon.
        #[arg(short, long)]
        config: Option<PathBuf>,
        /// Look once.
        #[arg(long)]
        once: bool,
        /// Renew although nothing is due; implies --once.
        #[arg(long)]
        force: bool,
    },
    /// Make the account, and the CAA records.
    Init {
        /// Settings; without it, those of the daemon.
        #[arg(short, long)]
        config: Option<PathBuf>,
    },
    /// Bring the CAA records to what they are to be.
    SetCaa {
        /// Settings; without it, those of the daemon.
        #[arg(short, long)]
        config: Option<PathBuf>,
    },
    /// Print a commented template of the settings.
    Cfg {
        /// Into a new file.
        #[arg(long)]
        write_to: Option<PathBuf>,
    },
    /// Ask the daemon to do something, and wait.
    #[command(hide = true)]
    Request {
        /// renew or rehearse
        what: String,
    },
    /// Log that a unit has failed.
    #[command(hide = true)]
    Alert {
        /// Its name.
        unit: String,
    },
}

/// Whether a first argument is a command of these, and no switch of the daemon.
#[must_use]
pub fn is_command(first: &str) -> bool {
    ["renew", "init", "set-caa", "cfg", "request", "alert", "help"].contains(&first)
}

/// Does what the arguments say.
#[must_use]
pub fn main(arguments: &[String], _level: &LevelHandle) -> ExitCode {
    let all = std::iter::once("dstack-certbot").chain(arguments.iter().map(String::as_str));
    let parsed = match Arguments::try_parse_from(all) {
        Ok(parsed) => parsed,
        Err(error) => error.exit(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = runtime.map_err(Into::into).and_then(|runtime| runtime.block_on(run(parsed.command)));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dstack-certbot: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> Result<(), Box<dyn Error>> {
    match command {
        Command::Renew { config, once, force } => renew(config.as_deref(), once || force, force).await,
        Command::Init { config } => records(config.as_deref(), true).await,
        Command::SetCaa { config } => records(config.as_deref(), false).await,
        Command::Cfg { write_to } => template(write_to.as_deref()),
        Command::Request { what } => request::run(&what).await,
        Command::Alert { unit } => {
            tracing::error!(
                MESSAGE_ID = message_id::CERTIFICATE_UNIT_FAILED,
                UNIT = unit,
                "{unit} has failed; see: dstackctl cert status"
            );
            Ok(())
        }
    }
}

/// Files of another user in the daemon's directory would keep it from working. Without `-c` that directory is meant, which
/// is no user's but the service's.
fn is_ours(workdir: &Path, is_daemons: bool, instead: &str) -> Result<(), String> {
    let us = rustix::process::geteuid().as_raw();
    let refuse = |whose: &str| {
        Err(format!(
            "{} is the directory of {whose}, and files of user {us} in it would keep dstack-certbot.service from working; \
             run: {instead}; or work in a directory of your own: -c FILE with workdir",
            workdir.display()
        ))
    };
    match std::fs::metadata(workdir) {
        Ok(found) if found.uid() == us => Ok(()),
        Ok(found) => refuse(&format!("user {}", found.uid())),
        Err(error) if error.kind() == ErrorKind::NotFound && is_daemons => refuse("user dstack-certbot"),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(format!("{}: {error}", workdir.display())),
    }
}

fn open(config: Option<&Path>, instead: &str) -> Result<Engine, Box<dyn Error>> {
    let (input, place): (Input, &str) = match config {
        Some(path) => {
            let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
            (toml::from_str(&text).map_err(|e| format!("{}: {e}", path.display()))?, ".")
        }
        None => (config::load(&Directories::default(), "certbot")?, STATE),
    };
    let settings = Settings::from_input(input)?
        .ok_or("there is no certificate in the settings; set domain in certbot.toml")?;
    let is_daemons = settings.workdir.is_none() && config.is_none();
    let workdir = settings.workdir.clone().unwrap_or_else(|| place.into());
    is_ours(&workdir, is_daemons, instead)?;
    Ok(assemble::assemble(settings, &workdir, &assemble::by_systemd)?)
}

async fn renew(config: Option<&Path>, once: bool, force: bool) -> Result<(), Box<dyn Error>> {
    loop {
        let engine = open(config, "dstackctl cert renew")?;
        let looked = look(&engine, force).await;
        match (looked, once) {
            (result, true) => return result,
            (Err(error), false) => tracing::error!("{error}"),
            (Ok(()), false) => {}
        }
        tokio::time::sleep(engine.settings().renew_interval).await;
    }
}

async fn look(engine: &Engine, force: bool) -> Result<(), Box<dyn Error>> {
    let turn = engine.turn().await?;
    let mut failed: Option<EngineError> = None;
    for wanted in engine.select("")? {
        match engine.maintain(&turn, &wanted, force, &Silent).await {
            Ok(Outcome::Fresh(at)) => tracing::info!("{} is up to date until {}", wanted.domain, time(at)),
            Ok(Outcome::Renewed { public_key, .. }) => {
                tracing::info!("{:?}", Told::Changed(wanted.domain.to_string(), public_key));
            }
            Err(error) => {
                tracing::error!("{}: {error}", wanted.domain);
                failed = Some(error);
            }
        }
    }
    failed.map_or(Ok(()), |error| Err(error.into()))
}

async fn records(config: Option<&Path>, init: bool) -> Result<(), Box<dyn Error>> {
    let instead = if init { "dstackctl cert renew" } else { "dstackctl cert caa" };
    let engine = open(config, instead)?;
    let turn = engine.turn().await?;
    let account = engine.account(&turn, &Silent).await?;
    tracing::info!("the account is {}", account.id);
    if init && !engine.settings().auto_set_caa {
        return Ok(());
    }
    for wanted in engine.select("")? {
        engine.set_caa(&turn, &wanted, &Silent).await?;
    }
    Ok(())
}

fn template(path: Option<&Path>) -> Result<(), Box<dyn Error>> {
    use std::io::Write;
    match path {
        None => Ok(std::io::stdout().write_all(TEMPLATE.as_bytes())?),
        Some(path) => {
            let file = std::fs::File::create_new(path);
            let mut file = file.map_err(|e| format!("{}: {e}", path.display()))?;
            Ok(file.write_all(TEMPLATE.as_bytes())?)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn every_command_is_told_from_the_daemons_switches() {
        let arguments = Arguments::command();
        arguments.clone().debug_assert();
        for command in arguments.get_subcommands() {
            assert!(is_command(command.get_name()), "{}", command.get_name());
        }
        assert!(!is_command("--bus-introspect=list") && !is_command("--version"));
    }
}
