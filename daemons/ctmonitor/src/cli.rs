// SPDX-License-Identifier: Apache-2.0
//! The command line: one check or an endless watch without the daemon, and the daemon's check for its timer.

use crate::alert::Alert;
use crate::assemble;
use crate::bus::manager::UNCONFIGURED;
use crate::daemon::now;
use crate::engine::{Engine, Refusal, Summary};
use crate::settings::{Input, Settings};
use crate::store::Store;
use clap::Parser;
use dstack_service::api::ctmonitor1::{Error as BusError, ManagerProxy, NAME};
use dstack_service::asking::{self, AskError};
use dstack_service::config::Directories;
use dstack_service::jobs::Context;
use std::collections::BTreeSet;
use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{MissedTickBehavior, interval};
use zbus::names::OwnedUniqueName;
use zbus::proxy::CacheProperties;
use zbus::{Connection, OwnedObjectPath};

/// Nothing is unknown.
pub const CLEAN: u8 = 0;
/// Something could not be checked.
pub const FAILED: u8 = 1;
/// There are alerts.
pub const ALERTS: u8 = 3;
/// How often an endless watch checks.
const PERIOD: Duration = Duration::from_secs(60);

const EXIT_CODES: &str = "\
Exit status (--once, --check):
  0  nothing unknown
  1  something could not be checked, and there is no alert
  2  the command line is wrong
  3  alerts: with --once all that are open, with --check those that are new

Without arguments it is the daemon that systemd starts; see dstack-ct-monitor(8).";

/// Watch Certificate Transparency for certificates whose key nobody of ours has
#[derive(Debug, Parser)]
#[command(name = "dstack-ct-monitor", version, after_help = EXIT_CODES)]
pub struct Cli {
    /// Where an ingress tells its keys, https://HOST[:PORT][/prpc]; may be repeated
    #[arg(short = 't', long = "tproxy-uri", short_alias = 'g', alias = "gateway-uri", value_name = "URI")]
    pub tproxy_uris: Vec<String>,
    /// A domain to watch, with all names below it; may be repeated
    #[arg(short = 'd', long = "domain", value_name = "DOMAIN")]
    pub domains: Vec<String>,
    /// Check once and end; without it, check every minute
    #[arg(long)]
    pub once: bool,
    /// Key of the key service whose gateways are believed, hex (default: this host's, by the bus)
    #[arg(long, value_name = "HEX", default_value = "")]
    pub kms_public_key: String,
    /// App id that the ingress must have (default: any gateway of that key service)
    #[arg(long, value_name = "HEX", default_value = "")]
    pub app_id: String,
    /// SHA-256 of the public key of a certificate of yours; may be repeated
    #[arg(long = "known-key", value_name = "HEX")]
    pub known_keys: Vec<String>,
    /// Where crt.sh is, or what speaks as it does
    #[arg(long, value_name = "URL", default_value = "https://crt.sh")]
    pub crtsh_url: String,
    /// Most certificates to download in a check, for each domain
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    pub downloads: u32,
    /// Skip certificates that have expired
    #[arg(long)]
    pub skip_expired: bool,
    /// Directory that remembers what was checked and alerted (default: nothing is remembered)
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// Let the daemon of this host check now, as its timer does
    #[arg(long, exclusive = true)]
    pub check: bool,
}

type Outcome<T> = Result<T, Box<dyn Error>>;

/// Carries out a command line.
pub fn run(cli: &Cli) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let result = match runtime {
        Ok(runtime) => {
            let result =
                runtime.block_on(async { if cli.check { ask_daemon().await } else { watch(cli).await } });
            runtime.shutdown_background();
            result
        }
        Err(error) => Err(error.into()),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::from(FAILED)
        }
    }
}

impl Cli {
    /// The settings of a command line, by the same rules as those of the file.
    ///
    /// # Errors
    /// What is wrong.
    pub fn settings(&self) -> Outcome<Settings> {
        let text = |text: &str| toml::Value::String(text.to_owned());
        let list = |texts: &[String]| toml::Value::Array(texts.iter().map(|t| text(t)).collect());
        let table = |pairs: Vec<(&str, toml::Value)>| {
            toml::Value::Table(pairs.into_iter().map(|(k, v)| (k.to_owned(), v)).collect())
        };
        let tproxy = |uri: &String| {
            let pin = ("kms_public_key", text(&self.kms_public_key));
            table(vec![("uri", text(uri)), pin, ("app_id", text(&self.app_id))])
        };
        let downloads = ("downloads_per_check", toml::Value::Integer(self.downloads.into()));
        let merged = table(vec![
            ("domains", list(&self.domains)),
            ("known_keys", list(&self.known_keys)),
            ("skip_expired", toml::Value::Boolean(self.skip_expired)),
            ("tproxy", toml::Value::Array(self.tproxy_uris.iter().map(tproxy).collect())),
            ("crtsh", table(vec![("url", text(&self.crtsh_url)), downloads])),
        ]);
        let input: Input = merged.try_into()?;
        Settings::from_input(input)?.ok_or_else(|| "give a domain to watch: --domain apps.example.com".into())
    }
}

/// Checks once or for ever, without the daemon.
async fn watch(cli: &Cli) -> Outcome<u8> {
    let settings = cli.settings()?;
    let store = match &cli.state {
        Some(directory) => Store::open(directory).map_err(|e| format!("{}: {e}", directory.display()))?,
        None => Store::memory(),
    };
    // Only who pins no key needs the bus.
    let asks_host = settings.tproxies.iter().any(|t| t.kms_public_key.is_none());
    let bus = if asks_host { Some(Connection::system().await?) } else { None };
    let parts = assemble::parts(&settings, &Directories::default(), None, bus.as_ref(), store)?;
    let (engine, _told) = Engine::open(parts, Arc::new(now))?;
    tracing::info!("watching {}", cli.domains.join(" "));
    if cli.once {
        return once(&engine).await;
    }
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => report(engine.check(&Context::detached("check", "")).await),
            _ = tokio::signal::ctrl_c() => return Ok(CLEAN),
        }
    }
}

fn report(result: Result<Summary, Refusal>) {
    match result {
        Ok(summary) => {
            let (looked_at, new) = (summary.looked_at, summary.new_alerts.len());
            tracing::info!("looked at {looked_at} certificates, {new} new alerts");
        }
        Err(refusal) => tracing::error!("{refusal}"),
    }
}

async fn once(engine: &Engine) -> Outcome<u8> {
    let result = engine.check(&Context::detached("check", "")).await;
    let clean = result.as_ref().is_ok_and(|summary| summary.troubles.is_empty());
    let pending: u64 = engine.positions()?.iter().map(|p| p.pending).sum();
    if pending > 0 {
        tracing::warn!("{pending} certificates were not looked at");
    }
    report(result);
    Ok(match () {
        () if engine.alerts().iter().any(Alert::is_open) => ALERTS,
        () if clean && pending == 0 => CLEAN,
        () => FAILED,
    })
}

/// Lets the daemon check, and waits for the end; once more when it restarts meanwhile: a check goes on where the last one
/// was.
async fn ask_daemon() -> Outcome<u8> {
    let connection = Connection::system().await?;
    let builder = ManagerProxy::builder(&connection).cache_properties(CacheProperties::No);
    let manager = builder.build().await?;
    let before = alerts(&manager).await;
    let result = match asking::ask(&connection, NAME, |owner| begin(&connection, owner)).await {
        Err(AskError::Refused(BusError::NotConfigured(_))) => {
            // The timer comes before the settings; that is no failure.
            tracing::info!("{UNCONFIGURED}");
            return Ok(CLEAN);
        }
        other => other?,
    };
    let new: Vec<String> = alerts(&manager).await?.difference(&before?).cloned().collect();
    if !new.is_empty() {
        tracing::error!("{} new alerts; see: dstackctl ct alerts", new.len());
        return Ok(ALERTS);
    }
    let error = manager.last_error().await?;
    if result == "done" && error.is_empty() {
        return Ok(CLEAN);
    }
    tracing::warn!("the check ended as {result}: {error}");
    Ok(FAILED)
}

async fn begin(connection: &Connection, owner: OwnedUniqueName) -> Result<OwnedObjectPath, BusError> {
    let manager = ManagerProxy::builder(connection).destination(owner);
    manager.cache_properties(CacheProperties::No).build().await?.check().await
}

async fn alerts(manager: &ManagerProxy<'_>) -> Outcome<BTreeSet<String>> {
    let rows = match manager.list_alerts().await {
        Err(BusError::NotConfigured(_)) => Vec::new(),
        other => other?,
    };
    let id = |row: &dstack_service::api::ctmonitor1::AlertRow| {
        row.get("id").and_then(|id| id.try_clone().ok()).and_then(|id| String::try_from(id).ok())
    };
    Ok(rows.iter().filter_map(id).collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn cli(args: &[&str]) -> Cli {
        Cli::try_parse_from([&["dstack-ct-monitor"], args].concat()).unwrap()
    }

    #[test]
    fn the_tutorials_flags_are_known() {
        Cli::command().debug_assert();
        for flag in ["-t", "--tproxy-uri", "-g", "--gateway-uri"] {
            let parsed = cli(&[flag, "https://localhost:9010/prpc", "-d", "app.kvin.wang"]);
            let settings = parsed.settings().unwrap();
            assert_eq!(settings.tproxies.first().unwrap().address.to_string(), "localhost:9010");
            assert_eq!(settings.domains, ["app.kvin.wang".parse().unwrap()]);
            assert!(!parsed.once && settings.crtsh.unwrap().downloads == 10_000);
        }
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        for (args, named) in [
            (&["-d", "a.example.com"][..], "--tproxy-uri"),
            (&["-t", "https://x"][..], "--domain"),
            (&["-t", "http://x", "-d", "a.example.com"][..], "tproxy.uri"),
            (&["-t", "https://x", "-d", "a b"][..], "domain"),
            (&["--known-key", "x", "-d", "a.example.com"][..], "known_keys"),
        ] {
            let error = cli(args).settings().unwrap_err().to_string();
            assert!(
                error.contains(named) || named == "--tproxy-uri" && error.contains("tproxy"),
                "{args:?}: {error}"
            );
        }
        assert!(Cli::try_parse_from(["x", "--check", "--once"]).is_err());
    }
}
