// SPDX-License-Identifier: Apache-2.0
//! `cert …`: the certificates of the ingress, over the bus.

use crate::cli::Global;
use crate::cli_cert::{CertCommand, Renew};
use crate::client::Client;
use crate::errors::{Exit, Failure};
use crate::events::{self, Event, Events};
use crate::output::{Tone, Ui, note};
use crate::progress::Progress;
use dstack_service::api::certbot1::{CertificateRow, NAME, Options, PATH};
use serde_json::{Map, Value, json};
use std::process::ExitCode;
use zbus::{OwnedObjectPath, OwnedVariant};

/// A row of the daemon as JSON.
pub(crate) type Row = Map<String, Value>;

/// Carries out a `cert` command.
///
/// # Errors
/// The daemon's, as [`Failure`].
pub async fn run(command: &CertCommand, global: &Global, ui: &Ui) -> Result<ExitCode, Failure> {
    let client = Client::open(global).await?;
    match command {
        CertCommand::List => list(&client, ui).await?,
        CertCommand::Status => return status(&client, ui).await,
        CertCommand::Show(args) => show(&client, &args.domain, ui).await?,
        CertCommand::Renew(args) => return renew(&client, args, global, ui).await,
        CertCommand::Rehearse => {
            job(&client, ("Rehearse", "the next renewal will work"), &(Options::new(),), global, ui).await?;
        }
        CertCommand::Caa(args) => {
            let body = (args.domain.as_str(), Options::new());
            job(&client, ("SetCaa", "the CAA records are as they are to be"), &body, global, ui).await?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A job that has come to its end, or goes on without us.
struct Ended {
    path: OwnedObjectPath,
    /// `None`: nobody waits for it.
    result: Option<Result<(), Failure>>,
}

async fn job<B>(
    client: &Client,
    (method, done): (&'static str, &str),
    body: &B,
    global: &Global,
    ui: &Ui,
) -> Result<(), Failure>
where
    B: serde::Serialize + zbus::DynamicType,
{
    let ended = start(client, method, body, global, ui).await?;
    match ended.result {
        None => told("under way", &ended.path, ui),
        Some(result) => result.and_then(|()| told(done, &ended.path, ui)),
    }
}

/// Renews what is due, and names what is not valid afterwards: what failed before and waits is no part of the job.
async fn renew(client: &Client, args: &Renew, global: &Global, ui: &Ui) -> Result<ExitCode, Failure> {
    const DONE: &str = "renewed what was due";
    let options = Options::from([("force", args.force.into())]);
    let ended = start(client, "Renew", &(args.domain.as_str(), options), global, ui).await?;
    let Some(result) = ended.result else {
        return told("under way", &ended.path, ui).map(|()| ExitCode::SUCCESS);
    };
    let wanted = domain_of(&args.domain);
    let is_meant = |row: &Row| wanted.is_empty() || text(row, "domain") == wanted;
    let left = rows(client).await?.into_iter().filter(|row| is_meant(row) && text(row, "state") != "valid");
    let left: Vec<Row> = left.collect();
    if left.is_empty() {
        return result.and_then(|()| told(DONE, &ended.path, ui)).map(|()| ExitCode::SUCCESS);
    }
    if ui.json {
        let error = result.as_ref().err().map(|failure| failure.message.clone());
        ui.json(&json!({
            "result": "failed", "job": ended.path.as_str(), "error": error, "not_valid": left,
        }))?;
    }
    left.iter().for_each(|row| note(&trouble(row)));
    result?;
    let names: Vec<String> = left.iter().map(|row| text(row, "domain")).collect();
    Err(Failure::new(format!("not valid: {}", names.join(", ")))
        .hint("mend it, then: dstackctl cert renew --force; for more: dstackctl cert status"))
}

/// What is wrong with a certificate, and when it is tried again.
fn trouble(row: &Row) -> String {
    let error = text(row, "error");
    let why = if error.is_empty() { String::new() } else { format!(": {error}") };
    let next = time(number(row, "retry"), "at the next hourly look");
    format!("{}: {}{why}; the next try is {next}", text(row, "domain"), text(row, "state"))
}

/// A certificate's domain, of its first name.
fn domain_of(name: &str) -> String {
    name.strip_prefix("*.").unwrap_or(name).to_ascii_lowercase()
}

/// Starts a job, and follows it to its end unless told otherwise. Ctrl-C ends the waiting, never the job.
async fn start<B>(
    client: &Client,
    method: &'static str,
    body: &B,
    global: &Global,
    ui: &Ui,
) -> Result<Ended, Failure>
where
    B: serde::Serialize + zbus::DynamicType,
{
    // Before the call, so that no end is missed.
    let mut events = Events::of_daemon(client, NAME, PATH).await?;
    let path: OwnedObjectPath = client.change_certbot(method, body).await?;
    if global.no_wait {
        return Ok(Ended { path, result: None });
    }
    let mut progress = Progress::new(ui);
    let end = tokio::select! {
        end = follow(&mut events, &path, &mut progress) => Some(end),
        _ = tokio::signal::ctrl_c() => None,
    };
    progress.finish();
    let gone = || Failure::with(Exit::Interrupted, "it goes on; see: dstackctl cert status");
    Ok(Ended { path, result: Some(end.ok_or_else(gone)?) })
}

fn told(what: &str, job: &OwnedObjectPath, ui: &Ui) -> Result<(), Failure> {
    match ui.json {
        true => ui.json(&json!({"result": what, "job": job.as_str()})),
        false => ui.text(&format!("{what}\n")),
    }
}

async fn follow(events: &mut Events, job: &OwnedObjectPath, progress: &mut Progress) -> Result<(), Failure> {
    let mut error = None;
    loop {
        match events.next().await? {
            Event::Changed { path, values } if path == *job => {
                error = events::error(&values).or(error);
                progress.job_stage(events::text(&values, "Stage").unwrap_or_default(), None);
            }
            Event::JobRemoved { job: ended, result } if ended == *job => return end_of(&result, error),
            Event::Gone => {
                return Err(Failure::new("dstack-certbot has ended; the next run goes on from there"));
            }
            _ => {}
        }
    }
}

fn end_of(result: &str, error: Option<(String, String)>) -> Result<(), Failure> {
    match (result, error) {
        ("done", _) => Ok(()),
        (_, Some((name, sentence))) => Err(Failure::of_name(&name, &sentence)),
        ("timeout", None) => Err(Failure::with(Exit::Timeout, "it took too long")),
        (other, None) => Err(Failure::new(format!("the job was {other}"))),
    }
}

/// A row as JSON: what this program does not know is passed on as text.
pub(crate) fn object(row: CertificateRow) -> Row {
    let json = |value: &OwnedVariant| {
        let copy = || value.try_clone().ok();
        let text = copy().and_then(|v| String::try_from(v).ok()).map(Value::from);
        let long = || copy().and_then(|v| u64::try_from(v).ok()).map(Value::from);
        let short = || copy().and_then(|v| u32::try_from(v).ok()).map(Value::from);
        let texts = || copy().and_then(|v| Vec::<String>::try_from(v).ok()).map(Value::from);
        let bytes = || copy().and_then(|v| Vec::<u8>::try_from(v).ok()).map(|b| hex::encode(b).into());
        let known = text.or_else(long).or_else(short).or_else(texts).or_else(bytes);
        known.unwrap_or_else(|| format!("{value:?}").into())
    };
    row.iter().map(|(key, value)| (key.clone(), json(value))).collect()
}

pub(crate) fn text(row: &Row, key: &str) -> String {
    match row.get(key) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(texts)) => texts.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" "),
        _ => String::new(),
    }
}

pub(crate) fn number(row: &Row, key: &str) -> u64 {
    row.get(key).and_then(Value::as_u64).unwrap_or_default()
}

pub(crate) fn time(seconds: u64, none: &str) -> String {
    let stamp =
        i64::try_from(seconds).ok().filter(|s| *s > 0).and_then(|s| jiff::Timestamp::from_second(s).ok());
    stamp.map_or_else(|| none.to_owned(), |stamp| stamp.to_string())
}

fn tone(row: &Row) -> Tone {
    match text(row, "state").as_str() {
        "valid" => Tone::Good,
        "missing" => Tone::Warning,
        _ => Tone::Bad,
    }
}

async fn rows(client: &Client) -> Result<Vec<Row>, Failure> {
    Ok(client.certbot().await?.list_certificates().await?.into_iter().map(object).collect())
}

async fn list(client: &Client, ui: &Ui) -> Result<(), Failure> {
    let rows = rows(client).await?;
    if ui.json {
        return ui.json(&rows);
    }
    table(&rows, ui)
}

fn table(rows: &[Row], ui: &Ui) -> Result<(), Failure> {
    let cells = rows.iter().map(|row| {
        vec![
            text(row, "domain").into(),
            text(row, "names").into(),
            Ui::cell(tone(row), text(row, "state")),
            time(number(row, "not_after"), "-").into(),
            time(number(row, "renewal"), "now").into(),
        ]
    });
    ui.text(&ui.table(&["CERTIFICATE", "NAMES", "STATE", "EXPIRES", "RENEWAL"], cells.collect()))
}

async fn show(client: &Client, domain: &str, ui: &Ui) -> Result<(), Failure> {
    let wanted = domain_of(domain);
    let found = rows(client).await?.into_iter().find(|row| text(row, "domain") == wanted);
    let row = found.ok_or_else(|| {
        Failure::with(Exit::NotFound, format!("there is no certificate {domain:?}"))
            .hint("list them: dstackctl cert list")
    })?;
    let keys = client.certbot().await?.historical_keys(&wanted).await?;
    let keys: Vec<String> = keys.iter().map(hex::encode).collect();
    if ui.json {
        let mut row = row;
        row.insert("historical_keys".into(), keys.into());
        return ui.json(&row);
    }
    let lines = [
        ("Certificate", text(&row, "domain").into()),
        ("Names", text(&row, "names").into()),
        ("State", Ui::cell(tone(&row), text(&row, "state"))),
        ("Issuer", text(&row, "issuer").into()),
        ("Valid from", time(number(&row, "not_before"), "-").into()),
        ("Expires", time(number(&row, "not_after"), "-").into()),
        ("Renewal", time(number(&row, "renewal"), "now").into()),
        ("Public key", text(&row, "public_key").into()),
        ("All keys", keys.join("\n").into()),
        ("Failures", number(&row, "failures").to_string().into()),
        ("Last failure", text(&row, "error").into()),
        ("Tried again", time(number(&row, "retry"), "at the next look").into()),
    ];
    ui.text(&ui.table(&[], lines.into_iter().map(|(key, cell)| vec![key.into(), cell]).collect()))
}

/// Exits with 1 when something is red.
async fn status(client: &Client, ui: &Ui) -> Result<ExitCode, Failure> {
    let certbot = client.certbot().await?;
    let (rows, rehearsal) = (rows(client).await?, certbot.last_rehearsal().await?);
    let (account, authority) = (certbot.account_uri().await?, certbot.authority().await?);
    let well = rehearsal.1.is_empty() && rows.iter().all(|row| text(row, "state") == "valid");
    if ui.json {
        ui.json(&json!({
            "well": well, "account_uri": account, "authority": authority, "certificates": rows,
            "rehearsal": {"when": rehearsal.0, "problems": rehearsal.1},
        }))?;
        return Ok(code(well));
    }
    table(&rows, ui)?;
    let rehearsed = match (rehearsal.0, rehearsal.1.is_empty()) {
        (0, _) => Ui::cell(Tone::Faint, "none yet"),
        (when, true) => Ui::cell(Tone::Good, format!("well, {}", time(when, "-"))),
        (when, false) => Ui::cell(Tone::Bad, format!("failed, {}", time(when, "-"))),
    };
    let account = if account.is_empty() { "none yet".to_owned() } else { account };
    let lines = [("Authority", authority.into()), ("Account", account.into()), ("Rehearsal", rehearsed)];
    ui.text(&ui.table(&[], lines.into_iter().map(|(key, cell)| vec![key.into(), cell]).collect()))?;
    for row in rows.iter().filter(|row| !text(row, "error").is_empty()) {
        note(&format!("{}: {}", text(row, "domain"), text(row, "error")));
    }
    rehearsal.1.iter().for_each(|problem| note(&format!("rehearsal: {problem}")));
    Ok(code(well))
}

fn code(well: bool) -> ExitCode {
    if well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
