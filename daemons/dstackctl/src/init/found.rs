// SPDX-License-Identifier: Apache-2.0
//! Looking at the host: what is there of what is to be.

use super::answers::{Answers, Certificate, Defaults};
use super::ask::Asker;
use super::certificate;
use super::files::Root;
use super::plan::{Found, Goal, Keys, Secret};
use super::secrets::{self, Value};
use super::settings;
use super::systemd::Systemd;
use super::units::{ALL, CERTBOT};
use crate::cli_init::option_of;
use crate::client::Client;
use crate::errors::Failure;
use crate::output::note;
use crate::provider::presence;
use crate::trust::Store;
use dstack_service::config::{self, Directories};
use dstack_service::sealing;
use std::collections::BTreeMap;
use std::net::{IpAddr, UdpSocket};
use std::path::Path;
use std::time::Duration;
use toml::Table;

/// Time for an answer.
const ANSWER: Duration = Duration::from_secs(30);

/// Secrets that are to be stored, by the names of their credentials.
pub type Secrets = BTreeMap<&'static str, Value>;

/// What is taken where nothing is answered.
#[must_use]
pub fn defaults() -> Defaults {
    // Connecting a UDP socket sends nothing; it asks the routing table. The addresses are for documentation alone.
    let outside = |here: &str, there: &str| {
        let socket = UdpSocket::bind(here).ok()?;
        socket.connect(there).ok()?;
        socket.local_addr().ok().map(|a| a.ip()).filter(|ip| is_outside(*ip))
    };
    Defaults { address: outside("0.0.0.0:0", "192.0.2.1:9").or_else(|| outside("[::]:0", "[2001:db8::1]:9")) }
}

const fn is_outside(ip: IpAddr) -> bool {
    !ip.is_loopback() && !ip.is_unspecified()
}

/// The app id of the gateway that goes into our file: the one that is there, a new one, or `None` when another file of the
/// operator names one. A dry run makes none, so that it says the same each time.
///
/// # Errors
/// When a file of the key service's settings is wrong.
pub fn gateway(root: &Root, dry_run: bool) -> Result<Option<String>, Failure> {
    let wrong =
        |e: &dyn std::fmt::Display| Failure::new(e.to_string()).hint("correct the file, then run init again");
    let named = |table: &Table| {
        let id = table.get("gateway_app_id").and_then(toml::Value::as_str);
        id.filter(|id| !id.is_empty()).map(str::to_owned)
    };
    let ours = root.read("/etc/dstack/kms.toml.d/20-init.toml")?.unwrap_or_default();
    if let Some(id) = toml::from_str::<Table>(&ours).map_err(|e| wrong(&e)).map(|table| named(&table))? {
        return Ok(Some(id));
    }
    let directories =
        Directories { vendor: root.real("/usr/lib/dstack"), operator: root.real("/etc/dstack") };
    if named(&config::load::<Table>(&directories, "kms").map_err(|e| wrong(&e))?).is_some() {
        return Ok(None);
    }
    if dry_run {
        return Ok(Some("(generated)".to_owned()));
    }
    let mut id = [0; 20];
    getrandom::fill(&mut id).map_err(|e| Failure::new(format!("no random numbers: {e}")))?;
    Ok(Some(hex::encode(id)))
}

/// What is wanted, from the answers.
///
/// # Errors
/// As [`gateway`].
pub fn goal(answers: &Answers, root: &Root, dry_run: bool) -> Result<Goal, Failure> {
    Ok(Goal {
        files: settings::files(answers, gateway(root, dry_run)?.as_deref()),
        kms_domain: answers.kms_domain.clone(),
        certificate: answers.acme().map(|_| format!("*.{}", answers.base_domain)),
        remedy: remedy(answers),
        own_files: matches!(answers.certificate, Certificate::Files { .. }),
    })
}

/// What helps when certbot gets no certificate: the usual reasons are secrets, and settings that come from answers.
fn remedy(answers: &Answers) -> String {
    let needed = secrets::needed(answers);
    let options = needed.iter().filter_map(|n| option_of(n.key)).map(|option| format!("{option} FILE"));
    let options = options.collect::<Vec<_>>().join(" and ");
    format!(
        "mend it, then run `dstackctl init` again, which asks for secrets again, or takes them from {options}, and goes on \
         from here; its settings are in {}; for more: journalctl -u dstack-certbot -n 50",
        settings::CERTBOT_FILE
    )
}

/// Looks at files: texts of those that are there.
///
/// # Errors
/// When one cannot be read.
pub fn files(goal: &Goal, root: &Root) -> Result<BTreeMap<&'static str, String>, Failure> {
    let read = |path| Ok(root.read(path)?.map(|text| (path, text)));
    goal.files.iter().filter_map(|wanted| read(wanted.path).transpose()).collect()
}

/// Looks at everything.
///
/// # Errors
/// When something cannot be looked at, or what the answers need is not installed.
pub async fn look(client: &Client, systemd: &Systemd, goal: &Goal, root: &Root) -> Result<Found, Failure> {
    let mut found = Found { files: files(goal, root)?, noted: root.noted()?, ..Found::default() };
    for component in ALL {
        for unit in component.triggers.iter().chain([&component.service]) {
            found.units.insert(unit, systemd.state(unit).await?);
        }
    }
    installed(&found, goal)?;
    found.unshown = goal.own_files && shows_none(client).await;
    found.keys = keys(client, &goal.kms_domain).await;
    if let Some(name) = &goal.certificate {
        // One that cannot answer is restarted, or says why when it is asked for the certificate.
        found.certified =
            certificate::look(client, name).await.is_ok_and(|s| s.is_some_and(|s| s.is_valid()));
    }
    Ok(found)
}

/// Whether the ingress says that it has no certificate to show; one that cannot answer is started or restarted anyway.
async fn shows_none(client: &Client) -> bool {
    let status = async { client.proxy().await?.status().await.map_err(Failure::from) };
    match tokio::time::timeout(ANSWER, status).await {
        Ok(Ok(status)) => status.contains("; passthrough only: "),
        _ => false,
    }
}

fn installed(found: &Found, goal: &Goal) -> Result<(), Failure> {
    let missing: Vec<&str> = ALL.into_iter().filter(|c| !found.has(c)).map(|c| c.package).collect();
    if missing.len() == ALL.len() {
        return Err(
            Failure::new("no daemon of dstack is installed on this host").hint("apt install dstack-host")
        );
    }
    if goal.certificate.is_some() && missing.contains(&CERTBOT.package) {
        return Err(Failure::new(
            "certificate.source: \"acme\" needs dstack-certbot, which is not installed",
        )
        .hint("apt install dstack-certbot, and run init again; or choose \"files\" or \"none\""));
    }
    for package in missing.into_iter().filter(|package| *package != CERTBOT.package) {
        note(&format!("note: {package} is not installed and is left out; once it is, run init again"));
    }
    Ok(())
}

async fn has_keys(client: &Client) -> Result<bool, Failure> {
    Ok(client.kms().await?.bootstrapped().await?)
}

async fn keys(client: &Client, domain: &str) -> Keys {
    match presence(client).await {
        // It may just have wrong settings, which are about to be replaced.
        Err(_) => match has_keys(client).await {
            Ok(true) => Keys::Unusable,
            _ => Keys::Unknown,
        },
        Ok(None) => Keys::Absent,
        Ok(Some(None)) => Keys::None,
        Ok(Some(Some(kms))) => {
            if kms.domain != domain {
                note(&format!(
                    "note: the keys were made for {}, and the key service keeps that name",
                    kms.domain
                ));
            }
            let same = |t: &crate::trust::Trusted| t.ca_public_key == kms.ca_public_key && t.url == kms.url;
            match Store::system().all() {
                Ok(all) if all.iter().any(same) => Keys::Trusted,
                _ => Keys::Untrusted,
            }
        }
    }
}

/// Gathers the secrets, and tells which are to be stored.
///
/// # Errors
/// A missing or wrong one.
pub fn secrets(
    answers: &Answers,
    root: &Root,
    mut asker: Option<&mut dyn Asker>,
) -> Result<(BTreeMap<&'static str, Secret>, Secrets), Failure> {
    let (mut states, mut values) = (BTreeMap::new(), Secrets::new());
    for needed in secrets::needed(answers) {
        let stored = root.real(&format!("{}/{}", sealing::STORE, needed.name));
        let is_stored = is_there(&stored)?;
        let asker: Option<&mut dyn Asker> = match &mut asker {
            Some(asker) => Some(&mut **asker),
            None => None,
        };
        let value = secrets::get(&needed, is_stored, asker)?;
        let state = match value {
            Some(value) if !is_stored || !is_same(&stored, needed.name, &value) => {
                values.insert(needed.name, value);
                Secret::New
            }
            _ => Secret::Stored,
        };
        states.insert(needed.name, state);
    }
    Ok((states, values))
}

fn is_there(path: &Path) -> Result<bool, Failure> {
    match std::fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        // Who is not root only looks.
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Ok(false),
        Err(error) => Err(crate::places::cannot("look at", path, &error)),
    }
}

/// One that this machine cannot decrypt is replaced.
fn is_same(stored: &Path, name: &str, value: &Value) -> bool {
    sealing::decrypt(stored, name).is_ok_and(|found| *found == value.as_bytes())
}

#[cfg(test)]
#[path = "found_tests.rs"]
mod tests;
