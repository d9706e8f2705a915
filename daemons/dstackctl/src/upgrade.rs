// SPDX-License-Identifier: Apache-2.0
//! `vm upgrade`: another version of an app, with the app's id, disk and keys.

use crate::cli_deploy::Upgrade;
use crate::client::Client;
use crate::errors::Failure;
use crate::output::{Ui, note};
use crate::prepare::{self, Prepared};
use crate::provider;
use crate::secrets;
use dstack_core::compose::{AppCompose, KeyProvider};
use dstack_core::ids::{AppId, ComposeHash};
use dstack_service::api::kms1::UpgradeRow;
use dstack_service::api::teepod1::Options;
use serde_json::json;
use zbus::Variant;

/// Whether the key service knows a version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Permission {
    /// It needs none, or has it.
    Given,
    /// This command gives it, here.
    Missing(String),
    /// It cannot be told from here; these commands give it.
    Unknown(String),
}

/// Gives a VM another version of its app; returns the VM's name.
///
/// # Errors
/// What is wrong with the input, or why teepod refused.
pub async fn run(client: &Client, args: &Upgrade, ui: &Ui) -> Result<String, Failure> {
    let vm = client.vm(&args.name).await?;
    let (name, id) = (vm.name().await?, vm.id().await?);
    let app: AppId = vm.app_id().await?.parse().map_err(|e| Failure::new(format!("{e}")))?;
    let bytes = client.manager.get_app_compose(&name).await?;
    let old = AppCompose::parse(&bytes)
        .map_err(|e| Failure::new(format!("the version that VM {name} has cannot be read: {e}")))?;
    let prepared = prepare::upgrade(client, args, &name, &old).await?;
    prepared.tell();
    let sealed = prepared.seal(client, app, &id).await?;
    let mut options = Options::new();
    prepare::insert(&mut options, sealed.as_ref());
    if args.no_secrets {
        options.insert("encrypted_env", Variant::from(Vec::<u8>::new()));
        options.insert("encrypted_env_sig", Variant::from(Vec::<u8>::new()));
    }
    let hash: String = client.change("UpgradeApp", &(&name, &prepared.built.bytes, options)).await?;
    if let Some(sealed) = &sealed {
        secrets::remember(&app, &id, sealed)?;
    }
    report(client, &prepared, &name, app, &hash, ui).await?;
    Ok(name)
}

async fn report(
    client: &Client,
    prepared: &Prepared,
    name: &str,
    app: AppId,
    hash: &str,
    ui: &Ui,
) -> Result<(), Failure> {
    let permission = permission(client, prepared, app).await?;
    if ui.json {
        let (allowed, command) = match &permission {
            Permission::Given => (Some(true), None),
            Permission::Missing(command) => (Some(false), Some(command)),
            Permission::Unknown(command) => (None, Some(command)),
        };
        ui.json(&json!({
            "name": name, "app_id": app, "compose_hash": hash, "allowed": allowed, "allow": command,
        }))?;
    } else {
        ui.text(&format!("{name}: compose hash {hash}, app id {app}\n"))?;
    }
    match permission {
        Permission::Given => {}
        Permission::Missing(command) => {
            note(&format!("the key service does not allow this version yet; allow it with:\n  {command}"));
        }
        Permission::Unknown(command) => {
            note(&format!("the key service must allow this version; unless it does already:\n  {command}"));
        }
    }
    if prepared.built.parsed.key_provider() == KeyProvider::None && prepared.hash().app_id() != app {
        note(
            "note: without a key service nobody can vouch that this is still the same app, so the guest refuses \
             to boot it under the old app id; deploy it anew instead",
        );
    }
    Ok(())
}

/// Whether the key service lets this version have the app's keys, and the command for it.
///
/// # Errors
/// When this host's key service is the app's and does not answer.
pub async fn permission(client: &Client, prepared: &Prepared, app: AppId) -> Result<Permission, Failure> {
    let (parsed, hash) = (&prepared.built.parsed, prepared.hash());
    if parsed.key_provider() != KeyProvider::Kms {
        return Ok(Permission::Given);
    }
    let spki = parsed.key_provider_spki();
    let local = provider::local(client).await?.filter(|kms| kms.ca_public_key == spki);
    let command = command(!parsed.upgrade_keys.is_empty(), &app, &hash);
    if local.is_none() {
        return Ok(if hash.app_id() == app { Permission::Given } else { Permission::Unknown(command) });
    }
    let rows = client.kms().await?.list_upgrades(&app.to_string()).await?;
    Ok(if is_allowed(&rows, &app, &hash) { Permission::Given } else { Permission::Missing(command) })
}

fn command(by_owner: bool, app: &AppId, hash: &ComposeHash) -> String {
    if by_owner {
        return format!(
            "dstackctl app sign-upgrade --key KEY --app {app} --hash {hash} --seq N -o upgrade.json\n  \
             dstackctl kms submit-upgrade upgrade.json"
        );
    }
    format!("dstackctl kms allow-upgrade {app} {hash}")
}

/// The first version needs no permission, and can be revoked like the others.
fn is_allowed(rows: &[UpgradeRow], app: &AppId, hash: &ComposeHash) -> bool {
    let hash_text = hash.to_string();
    let mut of_hash =
        rows.iter().filter(|(known, ..)| known.len() >= 40 && hash_text.starts_with(known.as_str()));
    match of_hash.next() {
        Some((_, by, _)) => by != "revoked" && of_hash.all(|(_, by, _)| by != "revoked"),
        None => hash.app_id() == *app,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn t08_what_the_registry_says_of_a_version() {
        let hash = ComposeHash::of(b"{}");
        let (first, other) = (hash.app_id(), AppId::from([1; 20]));
        let row = |hash: &str, by: &str| (hash.to_owned(), by.to_owned(), 0);
        let (whole, half) = (hash.to_string(), hash.to_string()[..40].to_owned());
        for (rows, app, allowed) in [
            (vec![], &first, true),
            (vec![], &other, false),
            (vec![row(&whole, "operator")], &other, true),
            (vec![row(&half, "operator")], &other, true),
            (vec![row(&whole, "owner")], &other, true),
            (vec![row(&whole, "revoked")], &first, false),
            (vec![row(&whole, "operator"), row(&half, "revoked")], &other, false),
            (vec![row(&"00".repeat(32), "operator")], &other, false),
            (vec![row("", "operator")], &other, false),
        ] {
            assert_eq!(is_allowed(&rows, app, &hash), allowed, "{rows:?}");
        }
        assert!(command(true, &other, &hash).contains("sign-upgrade"));
        assert_eq!(command(false, &other, &hash), format!("dstackctl kms allow-upgrade {other} {hash}"));
    }
}
