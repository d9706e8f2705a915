// SPDX-License-Identifier: Apache-2.0
//! `ct …`: the certificate monitor of a host, over the bus.

use crate::cli::Global;
use crate::cli_ct::{Acknowledge, CtCommand};
use crate::client::Client;
use crate::errors::{Exit, Failure};
use crate::output::{Tone, Ui, note};
use comfy_table::Cell;
use dstack_service::api::ctmonitor1::{ManagerProxy, NAME};
use dstack_service::asking::{self, AskError};
use serde_json::{Map, Value, json};
use std::collections::{BTreeSet, HashMap};
use zbus::{OwnedObjectPath, OwnedVariant};

/// A row of the daemon as JSON.
type Row = Map<String, Value>;

/// Carries out a `ct` command.
///
/// # Errors
/// The daemon's, as [`Failure`]; also new alerts of a check.
pub async fn run(command: &CtCommand, global: &Global, ui: &Ui) -> Result<(), Failure> {
    let client = Client::open(global).await?;
    match command {
        CtCommand::Status => status(&client, ui).await,
        CtCommand::Alerts => list(&client, ui).await,
        CtCommand::Check => check(&client, global, ui).await,
        CtCommand::Acknowledge(args) => acknowledge(&client, args, ui).await,
    }
}

/// A row as JSON: what this program does not know is passed on as text.
fn object(row: HashMap<String, OwnedVariant>) -> Row {
    row.into_iter().map(|(key, v)| (key, value(&v))).collect()
}

fn value(value: &OwnedVariant) -> Value {
    let taken = || value.try_clone().ok();
    let text = taken().and_then(|v| String::try_from(v).ok()).map(Value::from);
    let large = || taken().and_then(|v| u64::try_from(v).ok()).map(Value::from);
    let small = || taken().and_then(|v| u32::try_from(v).ok()).map(Value::from);
    let list = || taken().and_then(|v| Vec::<String>::try_from(v).ok()).map(Value::from);
    text.or_else(large).or_else(small).or_else(list).unwrap_or_else(|| format!("{value:?}").into())
}

fn text(row: &Row, key: &str) -> String {
    row.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn number(row: &Row, key: &str) -> u64 {
    row.get(key).and_then(Value::as_u64).unwrap_or_default()
}

fn names(row: &Row) -> String {
    let list = row.get("names").and_then(Value::as_array).cloned().unwrap_or_default();
    list.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" ")
}

/// A time in RFC 3339, `never` for 0.
fn time(seconds: u64) -> String {
    let stamp =
        i64::try_from(seconds).ok().filter(|s| *s > 0).and_then(|s| jiff::Timestamp::from_second(s).ok());
    stamp.map_or_else(|| "never".to_owned(), |stamp| stamp.to_string())
}

fn is_open(row: &Row) -> bool {
    number(row, "acknowledged") == 0 && number(row, "settled") == 0
}

/// How an alert stands, in one word.
fn state(row: &Row) -> (Tone, &'static str) {
    match () {
        () if number(row, "settled") > 0 => (Tone::Faint, "settled"),
        () if number(row, "acknowledged") > 0 => (Tone::Faint, "acknowledged"),
        () => (Tone::Bad, "open"),
    }
}

async fn alerts(manager: &ManagerProxy<'_>) -> Result<Vec<Row>, Failure> {
    let mut rows: Vec<Row> = manager.list_alerts().await?.into_iter().map(object).collect();
    rows.sort_by_key(|row| !is_open(row));
    Ok(rows)
}

async fn list(client: &Client, ui: &Ui) -> Result<(), Failure> {
    let rows = alerts(&client.ct().await?).await?;
    if ui.json {
        return ui.json(&rows);
    }
    if rows.is_empty() {
        note("no certificate of an unknown key was seen");
        return Ok(());
    }
    show(&rows, ui)
}

fn show(rows: &[Row], ui: &Ui) -> Result<(), Failure> {
    let cells = rows.iter().map(|row| {
        let (tone, word) = state(row);
        let what = if text(row, "kind") == "unknown-key" { names(row) } else { text(row, "text") };
        vec![
            Cell::new(text(row, "id").get(..16).unwrap_or_default()),
            text(row, "kind").into(),
            Ui::cell(tone, word),
            time(number(row, "first_seen")).into(),
            what.into(),
            text(row, "issuer").into(),
            text(row, "place").into(),
        ]
    });
    let head = ["ALERT", "KIND", "STATE", "FIRST SEEN", "WHAT", "ISSUER", "WHERE"];
    ui.text(&ui.table(&head, cells.collect()))
}

async fn status(client: &Client, ui: &Ui) -> Result<(), Failure> {
    let ct = client.ct().await?;
    let configured = ct.configured().await?;
    let sources: Vec<Row> = match configured {
        true => ct.list_sources().await?.into_iter().map(object).collect(),
        false => Vec::new(),
    };
    let all = json!({
        "configured": configured,
        "domains": ct.domains().await?,
        "status": ct.status().await?,
        "alerts": ct.alerts().await?,
        "known_keys": ct.known_keys().await?,
        "last_check": ct.last_check().await?,
        "last_success": ct.last_success().await?,
        "last_error": ct.last_error().await?,
        "version": ct.version().await?,
        "sources": sources,
    });
    if ui.json {
        return ui.json(&all);
    }
    let row = all.as_object().cloned().unwrap_or_default();
    let open = number(&row, "alerts");
    let alerts = if open == 0 { Ui::cell(Tone::Good, "none") } else { Ui::cell(Tone::Bad, open) };
    let rows = vec![
        vec!["Status".into(), text(&row, "status").into()],
        vec!["Open alerts".into(), alerts],
        vec!["Known keys".into(), number(&row, "known_keys").to_string().into()],
        vec!["Last check".into(), time(number(&row, "last_check")).into()],
        vec!["Last without trouble".into(), time(number(&row, "last_success")).into()],
        vec!["Version".into(), text(&row, "version").into()],
    ];
    ui.text(&ui.table(&[], rows))?;
    if sources.is_empty() {
        Ok(())
    } else {
        ui.text(&ui.table(&SOURCES, sources.iter().map(source).collect()))
    }
}

const SOURCES: [&str; 5] = ["SOURCE", "LAST SUCCESS", "POSITION", "WAITING", "TROUBLE"];

fn source(row: &Row) -> Vec<Cell> {
    let error = text(row, "error");
    let tone = if error.is_empty() { Tone::Good } else { Tone::Warning };
    vec![
        Cell::new(text(row, "name")),
        time(number(row, "last_success")).into(),
        number(row, "position").to_string().into(),
        number(row, "pending").to_string().into(),
        Ui::cell(tone, if error.is_empty() { "none".to_owned() } else { error }),
    ]
}

async fn check(client: &Client, global: &Global, ui: &Ui) -> Result<(), Failure> {
    let begin = || client.change_ct::<_, OwnedObjectPath>("Check", &());
    if !global.waits() {
        let job = begin().await?;
        return if ui.json { ui.json(&json!({"job": job.as_str()})) } else { ui.text(&format!("{job}\n")) };
    }
    let ct = client.ct().await?;
    let before: BTreeSet<String> = alerts(&ct).await?.iter().map(|row| text(row, "id")).collect();
    let result = tokio::select! {
        result = asking::ask(&client.connection, NAME, |_| begin()) => result.map_err(unasked)?,
        _ = tokio::signal::ctrl_c() => {
            return Err(Failure::with(Exit::Interrupted, "not waiting any more; the check goes on"));
        }
    };
    let new: Vec<Row> =
        alerts(&ct).await?.into_iter().filter(|row| !before.contains(&text(row, "id"))).collect();
    let error = ct.last_error().await?;
    if ui.json {
        ui.json(&json!({"result": result, "new_alerts": new, "last_error": error}))?;
    } else if !new.is_empty() {
        show(&new, ui)?;
    }
    match () {
        () if !new.is_empty() => Err(Failure::new(format!("{} new alerts", new.len()))
            .hint("see what they are: journalctl -x -u dstack-ct-monitor -p err")),
        () if result != "done" || !error.is_empty() => {
            Err(Failure::new(format!("the check ended as {result}: {error}")))
        }
        () if ui.json => Ok(()),
        () => ui.text("nothing unknown\n"),
    }
}

fn unasked(error: AskError<Failure>) -> Failure {
    match error {
        AskError::Refused(failure) => failure,
        AskError::Bus(error) => error.into(),
        gone => Failure::new(gone.to_string()),
    }
}

async fn acknowledge(client: &Client, args: &Acknowledge, ui: &Ui) -> Result<(), Failure> {
    let mut ids = args.alerts.clone();
    if args.all {
        let open = alerts(&client.ct().await?).await?;
        ids.extend(open.iter().filter(|row| is_open(row)).map(|row| text(row, "id")));
    }
    for id in &ids {
        let () = client.change_ct("Acknowledge", &(id,)).await?;
    }
    if ui.json {
        return ui.json(&json!({"result": "acknowledged", "alerts": ids}));
    }
    ui.text(&format!("acknowledged: {}\n", ids.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_in_their_order() {
        let row = |value: Value| value.as_object().cloned().unwrap_or_default();
        for (value, word) in [
            (json!({"acknowledged": 5, "settled": 6}), "settled"),
            (json!({"acknowledged": 5, "settled": 0}), "acknowledged"),
            (json!({}), "open"),
        ] {
            assert_eq!(state(&row(value)).1, word);
        }
    }
}
