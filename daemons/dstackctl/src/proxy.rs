// SPDX-License-Identifier: Apache-2.0
//! `proxy …`: the ingress of a host, over the bus.

use crate::cli::Global;
use crate::cli_proxy::ProxyCommand;
use crate::client::Client;
use crate::errors::Failure;
use crate::output::{Tone, Ui, note};
use comfy_table::Cell;
use dstack_core::ids::InstanceId;
use dstack_service::api::tproxy1::InstanceRow;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Carries out a `proxy` command.
///
/// # Errors
/// The daemon's, as [`Failure`].
pub async fn run(command: &ProxyCommand, global: &Global, ui: &Ui) -> Result<(), Failure> {
    let client = Client::open(global).await?;
    match command {
        ProxyCommand::List => list(&client, ui).await,
        ProxyCommand::Info(args) => match &args.instance {
            Some(id) => instance(&client, id, ui).await,
            None => info(&client, ui).await,
        },
        ProxyCommand::Drain(args) => change(&client, "Drain", "drained", &args.instance, ui).await,
        ProxyCommand::Undrain(args) => change(&client, "Undrain", "undrained", &args.instance, ui).await,
        ProxyCommand::Remove(args) => change(&client, "Remove", "removed", &args.instance, ui).await,
        ProxyCommand::Stats => stats(&client, ui).await,
    }
}

async fn change(
    client: &Client,
    method: &'static str,
    result: &str,
    id: &InstanceId,
    ui: &Ui,
) -> Result<(), Failure> {
    let () = client.change_proxy(method, &(id.to_string(),)).await?;
    if ui.json {
        return ui.json(&json!({"result": result, "id": id}));
    }
    ui.text(&format!("{result}: {id}\n"))
}

/// A row as JSON: what this program does not know is passed on as text.
fn object(row: InstanceRow) -> Map<String, Value> {
    let value = |value: zbus::OwnedVariant| {
        let text = |v: &zbus::OwnedVariant| {
            v.try_clone().ok().and_then(|v| String::try_from(v).ok()).map(Value::from)
        };
        let number =
            |v: &zbus::OwnedVariant| v.try_clone().ok().and_then(|v| u64::try_from(v).ok()).map(Value::from);
        let flag =
            |v: &zbus::OwnedVariant| v.try_clone().ok().and_then(|v| bool::try_from(v).ok()).map(Value::from);
        text(&value)
            .or_else(|| number(&value))
            .or_else(|| flag(&value))
            .unwrap_or_else(|| format!("{value:?}").into())
    };
    row.into_iter().map(|(key, v)| (key, value(v))).collect()
}

fn text(row: &Map<String, Value>, key: &str) -> String {
    row.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn number(row: &Map<String, Value>, key: &str) -> u64 {
    row.get(key).and_then(Value::as_u64).unwrap_or_default()
}

fn flag(row: &Map<String, Value>, key: &str) -> bool {
    row.get(key).and_then(Value::as_bool).unwrap_or_default()
}

/// A time in RFC 3339, `never` for 0.
fn time(seconds: u64) -> String {
    let stamp =
        i64::try_from(seconds).ok().filter(|s| *s > 0).and_then(|s| jiff::Timestamp::from_second(s).ok());
    stamp.map_or_else(|| "never".to_owned(), |stamp| stamp.to_string())
}

/// What an instance is, in one word.
fn state(row: &Map<String, Value>) -> (Tone, &'static str) {
    match () {
        () if number(row, "clone_alarm") > 0 => (Tone::Bad, "cloned"),
        () if flag(row, "drained") => (Tone::Warning, "drained"),
        () if flag(row, "online") => (Tone::Good, "online"),
        () => (Tone::Faint, "offline"),
    }
}

async fn list(client: &Client, ui: &Ui) -> Result<(), Failure> {
    let rows: Vec<Map<String, Value>> =
        client.proxy().await?.list_instances().await?.into_iter().map(object).collect();
    if ui.json {
        return ui.json(&rows);
    }
    if rows.is_empty() {
        note("no instance is registered; apps register when their compose file asks for the ingress");
        return Ok(());
    }
    let cells = rows.iter().map(|row| {
        let (tone, word) = state(row);
        vec![
            Cell::new(ui.id(&text(row, "id"))),
            ui.id(&text(row, "app")).into(),
            text(row, "address").into(),
            Ui::cell(tone, word),
            time(number(row, "handshake")).into(),
            number(row, "open").to_string().into(),
        ]
    });
    ui.text(&ui.table(&["INSTANCE", "APP", "ADDRESS", "STATE", "LAST HANDSHAKE", "OPEN"], cells.collect()))
}

async fn instance(client: &Client, id: &InstanceId, ui: &Ui) -> Result<(), Failure> {
    let row = object(client.proxy().await?.get_instance(&id.to_string()).await?);
    if ui.json {
        return ui.json(&row);
    }
    let (tone, word) = state(&row);
    let rows = [
        ("Instance", Cell::new(text(&row, "id"))),
        ("App", text(&row, "app").into()),
        ("State", Ui::cell(tone, word)),
        ("Address", text(&row, "address").into()),
        ("WireGuard key", text(&row, "public_key").into()),
        ("Registered", time(number(&row, "registered")).into()),
        ("Last handshake", time(number(&row, "handshake")).into()),
        ("Clone alarm", time(number(&row, "clone_alarm")).into()),
        (
            "Connections",
            format!(
                "{} open, {} made, {} failed",
                number(&row, "open"),
                number(&row, "connected"),
                number(&row, "failed")
            )
            .into(),
        ),
    ];
    ui.text(&ui.table(&[], rows.into_iter().map(|(key, cell)| vec![key.into(), cell]).collect()))
}

async fn info(client: &Client, ui: &Ui) -> Result<(), Failure> {
    let proxy = client.proxy().await?;
    let value = json!({
        "configured": proxy.configured().await?,
        "base_domain": proxy.base_domain().await?,
        "endpoint": proxy.endpoint().await?,
        "public_key": proxy.public_key().await?,
        "status": proxy.status().await?,
        "registered": proxy.registered().await?,
        "online": proxy.online().await?,
        "generation": proxy.generation().await?,
        "version": proxy.version().await?,
    });
    if ui.json {
        return ui.json(&value);
    }
    let row = value.as_object().cloned().unwrap_or_default();
    let numbers = format!("{} registered, {} online", number(&row, "registered"), number(&row, "online"));
    let rows = [
        ("Status", text(&row, "status")),
        ("Domain", text(&row, "base_domain")),
        ("WireGuard", format!("{} {}", text(&row, "endpoint"), text(&row, "public_key"))),
        ("Instances", numbers),
        ("Data plane", format!("generation {}", number(&row, "generation"))),
        ("Version", text(&row, "version")),
    ];
    ui.text(&ui.table(&[], rows.into_iter().map(|(key, text)| vec![key.into(), text.into()]).collect()))
}

async fn stats(client: &Client, ui: &Ui) -> Result<(), Failure> {
    let numbers: BTreeMap<String, u64> = client.proxy().await?.stats().await?.into_iter().collect();
    if ui.json {
        return ui.json(&numbers);
    }
    let rows = numbers.into_iter().map(|(name, value)| vec![name.into(), value.to_string().into()]);
    ui.text(&ui.table(&["NUMBER", "VALUE"], rows.collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_in_their_order() {
        let row = |value: Value| value.as_object().cloned().unwrap_or_default();
        for (value, word) in [
            (json!({"online": true, "drained": true, "clone_alarm": 5}), "cloned"),
            (json!({"online": true, "drained": true, "clone_alarm": 0}), "drained"),
            (json!({"online": true}), "online"),
            (json!({}), "offline"),
        ] {
            assert_eq!(state(&row(value)).1, word);
        }
        assert_eq!((time(0).as_str(), time(1_700_000_000).as_str()), ("never", "2023-11-14T22:13:20Z"));
    }
}
