// SPDX-License-Identifier: Apache-2.0
//! `doctor`: checks that this host can run VMs, each with what to do about it.

pub mod bus;
pub mod certbot;
pub mod certificates;
pub mod configuration;
pub mod host;
pub mod images;
pub mod ingress;
pub mod keys;
pub mod units;

use crate::cli::Global;
use crate::client::Client;
use crate::errors::{Exit, Failure};
use crate::output::{Tone, Ui};
use dstack_core::spec::Platform;
use dstack_service::config::Directories;
use serde::Serialize;
use std::path::PathBuf;
use std::process::ExitCode;

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Fine.
    Good,
    /// Works, or is still to be set up: read it.
    Warning,
    /// Broken: exit code 1.
    Bad,
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at.
    pub name: &'static str,
    /// How it came out.
    pub status: Status,
    /// One sentence.
    pub message: String,
    /// What to do, when something is to be done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Check {
    /// A check that is fine.
    pub fn good(name: &'static str, message: impl Into<String>) -> Self {
        Self { name, status: Status::Good, message: message.into(), remedy: None }
    }

    /// A check to read, with what to do.
    pub fn warning(name: &'static str, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name, status: Status::Warning, message: message.into(), remedy: Some(remedy.into()) }
    }

    /// Something broken, with what to do.
    pub fn bad(name: &'static str, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name, status: Status::Bad, message: message.into(), remedy: Some(remedy.into()) }
    }
}

/// The keys of `teepod.toml` that the checks need; all others are teepod's business.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(default)]
pub struct Config {
    /// Directory of the images.
    pub image_path: PathBuf,
    /// VMs.
    pub cvm: Cvm,
}

/// `[cvm]`.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(default)]
pub struct Cvm {
    /// QEMU's program.
    pub qemu_path: PathBuf,
    /// Firmware for images that bring none.
    pub firmware: PathBuf,
    /// First context id.
    pub cid_start: u32,
    /// Number of context ids.
    pub cid_pool_size: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self { image_path: "/var/lib/dstack/images".into(), cvm: Cvm::default() }
    }
}

impl Default for Cvm {
    fn default() -> Self {
        Self {
            qemu_path: "/usr/bin/qemu-system-x86_64".into(),
            firmware: "/usr/share/ovmf/OVMF.fd".into(),
            cid_start: 1000,
            cid_pool_size: 1000,
        }
    }
}

/// Carries out `doctor`; exit code 1 when something is broken.
///
/// # Errors
/// When the report cannot be written, or another host is asked for.
pub async fn run(global: &Global, ui: &Ui) -> Result<ExitCode, Failure> {
    if let Some(host) = &global.host {
        return Err(Failure::usage("doctor works only on the host itself")
            .hint(format!("ssh -t {host} dstackctl doctor")));
    }
    let (checks, platform) = gather(global).await;
    report(&checks, platform, ui)?;
    let broken = checks.iter().any(|c| c.status == Status::Bad);
    Ok(if broken { ExitCode::from(Exit::Failed as u8) } else { ExitCode::SUCCESS })
}

/// All checks, and what VMs run on.
pub async fn gather(global: &Global) -> (Vec<Check>, Option<Platform>) {
    // What is wrong with it is said by the checks of all files.
    let config = settings().unwrap_or_default();
    let mut checks = configuration::check(&Directories::default());
    let client = Client::open(global).await;
    let (teepod, platform) = match &client {
        Ok(client) => bus::teepod(client).await,
        Err(failure) => (vec![bus::unreachable(failure)], None),
    };
    let (probed, found) = host::probe(&config, platform).await;
    checks.extend(probed);
    checks.extend(host::files(&config));
    checks.extend(host::resources());
    if let Ok(client) = &client {
        checks.extend(bus::units(client).await);
        checks.extend(units::failed(client).await);
    }
    checks.extend(teepod);
    if let Ok(client) = &client {
        checks.extend(images::check(client, &config).await);
        checks.extend(bus::capacity(client, &config).await);
        checks.extend(keys::check(client, found).await);
        checks.extend(ingress::check(client).await);
        checks.extend(certbot::check(client, &Directories::default()).await);
        checks.extend(certificates::check(client).await);
    }
    (checks, found)
}

/// What teepod's settings say of the checks' business.
///
/// # Errors
/// What is wrong with a file.
pub fn settings() -> Result<Config, dstack_service::config::ConfigError> {
    dstack_service::config::load(&Directories::default(), "teepod")
}

/// What a platform protects, in plain words.
#[must_use]
pub const fn protection(platform: Option<Platform>) -> (Tone, &'static str) {
    match platform {
        Some(Platform::Tdx) => {
            (Tone::Good, "VMs run on Intel TDX: the app's memory is protected from this host and its owner.")
        }
        Some(Platform::Kvm) => {
            (Tone::Warning, "VMs run on plain KVM: nothing is confidential, this host can read everything.")
        }
        Some(Platform::Tcg) => (
            Tone::Warning,
            "VMs run on software emulation: slow, and nothing is confidential. Good for trying things out.",
        ),
        None => (Tone::Bad, "VMs cannot run on this host yet."),
    }
}

fn report(checks: &[Check], platform: Option<Platform>, ui: &Ui) -> Result<(), Failure> {
    let worst = checks.iter().map(|c| c.status).max().unwrap_or(Status::Good);
    let (tone, words) = protection(platform);
    if ui.json {
        let confidential = platform == Some(Platform::Tdx);
        return ui.json(&serde_json::json!({
            "ok": worst != Status::Bad, "platform": platform, "confidential": confidential, "checks": checks,
        }));
    }
    let text = format!("{}\n{}\n", lines(checks, ui), ui.paint(tone, words));
    ui.text(&text)
}

/// The checks as text, each with its remedy.
#[must_use]
pub fn lines(checks: &[Check], ui: &Ui) -> String {
    let mut text = String::new();
    for check in checks {
        let (tone, mark) = match check.status {
            Status::Good => (Tone::Good, "ok     "),
            Status::Warning => (Tone::Warning, "warning"),
            Status::Bad => (Tone::Bad, "FAILED "),
        };
        text.push_str(&format!("{}  {:<14} {}\n", ui.paint(tone, mark), check.name, check.message));
        if let Some(remedy) = &check.remedy {
            text.push_str(&format!(
                "         {:<14} {}\n",
                "",
                ui.paint(Tone::Faint, &format!("-> {remedy}"))
            ));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_tdx_is_called_protected() {
        for (platform, part) in [
            (Some(Platform::Tdx), "protected"),
            (Some(Platform::Kvm), "nothing is confidential"),
            (Some(Platform::Tcg), "nothing is confidential"),
            (None, "cannot run"),
        ] {
            assert!(protection(platform).1.contains(part), "{platform:?}");
        }
    }

    #[test]
    fn a_partial_configuration_keeps_the_defaults() {
        let config: Result<Config, _> = serde_json::from_str(r#"{"cvm":{"cid_start":33000},"gateway":{}}"#);
        assert_eq!(config.map(|c| (c.cvm.cid_start, c.cvm.cid_pool_size)).ok(), Some((33000, 1000)));
    }
}
