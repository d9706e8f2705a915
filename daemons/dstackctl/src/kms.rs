// SPDX-License-Identifier: Apache-2.0
//! `kms …`: this host's key service over the bus, and trusted ones over the network.

use crate::cli::Global;
use crate::cli_kms::{Bootstrap, KmsCommand, Peer, ReleaseLog, Submit};
use crate::client::Client;
use crate::errors::Failure;
use crate::kms_rpc;
use crate::kms_trust;
use crate::output::{Tone, Ui, note};
use crate::places;
use crate::provider::{custody_words, realm_words};
use crate::realm;
use crate::trust::{Store, Trusted, fingerprint};
use dstack_core::upgrade::Signed;
use dstack_keys::sign::{recover, release_head_message};
use dstack_rpc::kms::{GetReleaseLogRequest, GetReleaseLogResponse, SubmitUpgradeRequest};
use dstack_service::api::kms1::{Options, ReleaseRow, UpgradeRow};
use serde_json::{Value, json};
use zbus::Variant;

/// Carries out a `kms` command.
///
/// # Errors
/// The key service's, as [`Failure`].
pub async fn run(command: &KmsCommand, global: &Global, ui: &Ui) -> Result<(), Failure> {
    match command {
        KmsCommand::Trust(args) => return kms_trust::trust(args, ui).await,
        KmsCommand::Untrust(args) => return kms_trust::untrust(&args.kms, ui),
        KmsCommand::SubmitUpgrade(args) if args.kms.is_some() => return submit(None, args, ui).await,
        KmsCommand::ReleaseLog(args) if args.kms.is_some() => return release_log_of(args, ui).await,
        _ => {}
    }
    let client = Client::open(global).await?;
    match command {
        KmsCommand::Status => status(&client, ui).await,
        KmsCommand::Bootstrap(args) => bootstrap(&client, args, ui).await,
        KmsCommand::AllowUpgrade(args) => {
            let () = client.change_kms("AllowUpgrade", &(args.app.to_string(), &args.hash)).await?;
            done(ui, "allowed", &json!({"app_id": args.app, "compose_hash": args.hash}))
        }
        KmsCommand::RevokeUpgrade(args) => {
            let () = client.change_kms("RevokeUpgrade", &(args.app.to_string(), &args.hash)).await?;
            done(ui, "revoked", &json!({"app_id": args.app, "compose_hash": args.hash}))
        }
        KmsCommand::Upgrades(args) => upgrades(&client, &args.app.to_string(), ui).await,
        KmsCommand::SubmitUpgrade(args) => submit(Some(&client), args, ui).await,
        KmsCommand::ReleaseLog(args) => release_log(&client, args, ui).await,
        KmsCommand::ForgetDisk(args) => {
            let () =
                client.change_kms("ForgetDisk", &(args.app.to_string(), args.instance.to_string())).await?;
            done(ui, "forgotten", &json!({"app_id": args.app, "instance_id": args.instance}))
        }
        KmsCommand::Forecast => forecast(&client, ui).await,
        KmsCommand::AllowPeer(args) => allow_peer(&client, args, ui).await,
        KmsCommand::Onboard(args) => {
            let found = kms_trust::confirmed(&args.url, args.fingerprint.as_deref(), args.yes).await?;
            let key = hex::encode(&found.ca_public_key);
            let options = Options::from([("ca_public_key", Variant::from(key))]);
            let () = client.change_kms("Onboard", &(&found.url, options)).await?;
            done(ui, "onboarded", &json!({"source": found.url}))
        }
        KmsCommand::Trust(_) | KmsCommand::Untrust(_) => Ok(()),
    }
}

/// One line, or the same as JSON.
fn done(ui: &Ui, result: &str, what: &Value) -> Result<(), Failure> {
    if ui.json {
        let mut object = what.as_object().cloned().unwrap_or_default();
        object.insert("result".into(), result.into());
        return ui.json(&object);
    }
    let words: Vec<&str> = what.as_object().into_iter().flatten().filter_map(|(_, v)| v.as_str()).collect();
    ui.text(&format!("{result}: {}\n", words.join(" ")))
}

/// New root keys.
#[derive(Debug)]
pub struct NewKeys {
    /// SubjectPublicKeyInfo of the CA, hex.
    pub ca_public_key: String,
    /// Its fingerprint.
    pub fingerprint: String,
    /// Realm.
    pub realm: String,
    /// Custody.
    pub custody: String,
}

/// Makes the root keys of this host's key service.
///
/// # Errors
/// The key service's: also when it has some.
pub async fn make_keys(client: &Client, domain: &str) -> Result<NewKeys, Failure> {
    let ca_public_key: String = client.change_kms("Bootstrap", &(domain, Options::new())).await?;
    let bytes = hex::decode(&ca_public_key).map_err(|_| Failure::new("dstack-kms returned no public key"))?;
    let kms = client.kms().await?;
    let (realm, custody) = (kms.realm().await?, kms.custody().await?);
    Ok(NewKeys { ca_public_key, fingerprint: fingerprint(&bytes), realm, custody })
}

async fn bootstrap(client: &Client, args: &Bootstrap, ui: &Ui) -> Result<(), Failure> {
    let (kms, domain) = (client.kms().await?, &args.domain);
    // One that has keys says so itself.
    if !kms.bootstrapped().await? {
        let label = kms.realm().await?;
        let thought = realm::think(&label, realm::has_tdx(client).await, args.realm);
        realm::agree(&label, thought, !ui.json)?;
    }
    let made = make_keys(client, domain).await?;
    if ui.json {
        return ui.json(&json!({
            "ca_public_key": made.ca_public_key, "fingerprint": made.fingerprint, "realm": made.realm,
            "custody": made.custody,
        }));
    }
    ui.text(&format!(
        "the key service of {domain} has its root keys\n  fingerprint  sha256:{}\n",
        made.fingerprint
    ))?;
    note(&format!("note: {}\nnote: {}", realm_words(&made.realm), custody_words(&made.custody)));
    Ok(())
}

async fn status(client: &Client, ui: &Ui) -> Result<(), Failure> {
    let local = match crate::provider::presence(client).await? {
        None => json!({"installed": false}),
        Some(None) => json!({"installed": true, "bootstrapped": false}),
        Some(Some(kms)) => described(&kms),
    };
    let store = Store::open()?;
    let default = store.default().ok().flatten().map(|t| t.fingerprint());
    let trusted = store.all()?;
    if ui.json {
        let trusted: Vec<Value> = trusted.iter().map(|t| row_json(t, default.as_deref())).collect();
        return ui.json(&json!({"local": local, "trusted": trusted}));
    }
    ui.text(&local_text(ui, &local))?;
    if trusted.is_empty() {
        note("no key service is trusted yet; trust one over the network: dstackctl kms trust URL");
        return Ok(());
    }
    let rows = trusted.iter().map(|t| row(ui, t, default.as_deref())).collect();
    ui.text("\n")?;
    ui.text(&ui.table(&["TRUSTED", "URL", "REALM", "CUSTODY", "FINGERPRINT", ""], rows))
}

fn described(kms: &Trusted) -> Value {
    json!({
        "installed": true, "bootstrapped": true, "domain": kms.domain, "address": kms.url, "realm": kms.realm,
        "custody": kms.custody, "fingerprint": kms.fingerprint(), "ca_public_key": hex::encode(&kms.ca_public_key),
        "k256_public_key": hex::encode(kms.k256_public_key),
    })
}

fn local_text(ui: &Ui, local: &Value) -> String {
    let text = |key: &str| local.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let is = |key: &str| local.get(key).and_then(Value::as_bool).unwrap_or_default();
    if !is("installed") {
        return "this host has no key service (apt install dstack-kms)\n".to_owned();
    }
    if !is("bootstrapped") {
        return "this host's key service has no keys yet (dstackctl kms bootstrap DOMAIN)\n".to_owned();
    }
    let rows = [
        ("Domain", text("domain")),
        ("Address", text("address")),
        ("Realm", realm_words(&text("realm"))),
        ("Custody", custody_words(&text("custody")).to_owned()),
        ("Fingerprint", format!("sha256:{}", text("fingerprint"))),
        ("CA key", text("ca_public_key")),
        ("k256 key", text("k256_public_key")),
    ];
    ui.table(&[], rows.into_iter().map(|(k, v)| vec![k.into(), v.into()]).collect())
}

fn row_json(kms: &Trusted, default: Option<&str>) -> Value {
    let mut value = described(kms);
    if let Some(object) = value.as_object_mut() {
        object.retain(|key, _| key != "installed" && key != "bootstrapped");
        object.insert("attested".into(), kms.attested.into());
        object.insert("trusted_at".into(), kms.trusted_at.into());
        object.insert("default".into(), (default == Some(kms.fingerprint().as_str())).into());
    }
    value
}

fn row(ui: &Ui, kms: &Trusted, default: Option<&str>) -> Vec<comfy_table::Cell> {
    let fingerprint = kms.fingerprint();
    let mark = if default == Some(fingerprint.as_str()) { "default" } else { "" };
    let tone = if kms.custody == "cvm" && kms.realm == "intel" { Tone::Good } else { Tone::Warning };
    vec![
        (&kms.domain).into(),
        (&kms.url).into(),
        Ui::cell(tone, &kms.realm),
        Ui::cell(tone, &kms.custody),
        ui.id(&fingerprint).into(),
        mark.into(),
    ]
}

async fn upgrades(client: &Client, app: &str, ui: &Ui) -> Result<(), Failure> {
    let rows = client.kms().await?.list_upgrades(app).await?;
    if ui.json {
        let json = |(hash, by, seq): &UpgradeRow| json!({"compose_hash": hash, "by": by, "seq": seq});
        return ui.json(&rows.iter().map(json).collect::<Vec<_>>());
    }
    if rows.is_empty() {
        note("the key service knows nothing of this app yet; its first version needs no permission");
        return Ok(());
    }
    let cells = rows.into_iter().map(|(hash, by, seq)| {
        let tone = if by == "revoked" { Tone::Bad } else { Tone::Plain };
        let seq = if seq == 0 { String::new() } else { seq.to_string() };
        vec![hash.into(), Ui::cell(tone, by), seq.into()]
    });
    ui.text(&ui.table(&["COMPOSE HASH", "BY", "SEQ"], cells.collect()))
}

async fn submit(client: Option<&Client>, args: &Submit, ui: &Ui) -> Result<(), Failure> {
    let bytes = places::read(&args.file)?
        .ok_or_else(|| Failure::new(format!("there is no {}", args.file.display())))?;
    let parsed = Signed::parse(&bytes);
    let signed = parsed.map_err(|e| Failure::new(format!("{}: {e}", args.file.display())))?;
    match (client, &args.kms) {
        (Some(client), _) => {
            let text = String::from_utf8_lossy(&bytes);
            let () = client.change_kms("SubmitUpgrade", &(text.as_ref(),)).await?;
        }
        (None, name) => {
            submit_over_network(&Store::open()?.find(name.as_deref().unwrap_or_default())?, &signed).await?
        }
    }
    let statement = &signed.statement;
    done(
        ui,
        "accepted",
        &json!({"app_id": statement.app_id, "compose_hash": statement.compose_hash, "seq": statement.seq}),
    )
}

/// One signature is enough; which of several the key service knows is for it to say.
async fn submit_over_network(kms: &Trusted, signed: &Signed) -> Result<(), Failure> {
    let mut last =
        Err(Failure::new("the statement carries no signature").hint("dstackctl app sign-upgrade signs one"));
    for signature in &signed.signatures {
        let request = SubmitUpgradeRequest {
            statement: signed.statement.to_bytes(),
            signature: signature.signature.to_vec(),
            first_compose: signed.first_compose.clone().unwrap_or_default().into_bytes(),
        };
        last = kms_rpc::call_trusted::<_, Value>(kms, "SubmitUpgrade", &request).await.map(drop);
        if last.is_ok() {
            break;
        }
    }
    last
}

async fn release_log(client: &Client, args: &ReleaseLog, ui: &Ui) -> Result<(), Failure> {
    let app = args.app.to_string();
    let rows = client.kms().await?.get_release_log(&app, args.after, args.limit).await?;
    let rows: Result<Vec<Value>, _> = rows.iter().map(release_json).collect();
    show_log(&rows?, ui)
}

fn release_json(row: &ReleaseRow) -> Result<Value, Failure> {
    let object = row.iter().map(|(key, value)| {
        let value = match &**value {
            Variant::Str(text) => Value::from(text.as_str()),
            Variant::U64(number) => Value::from(*number),
            Variant::U32(number) => Value::from(*number),
            other => {
                return Err(Failure::new(format!(
                    "a row of the key service has a value of another kind: {}",
                    other.value_signature()
                )));
            }
        };
        Ok((key.clone(), value))
    });
    object.collect::<Result<serde_json::Map<_, _>, _>>().map(Value::Object)
}

/// The log of a trusted key service, whose head its root key has signed (trust rule T23).
async fn release_log_of(args: &ReleaseLog, ui: &Ui) -> Result<(), Failure> {
    let kms = Store::open()?.find(args.kms.as_deref().unwrap_or_default())?;
    let (app_id, after, limit) = (args.app.as_bytes().to_vec(), args.after, args.limit);
    let request = GetReleaseLogRequest { app_id, after, limit };
    let log: GetReleaseLogResponse = kms_rpc::call_trusted(&kms, "GetReleaseLog", &request).await?;
    check_head(&kms, &log)?;
    let rows: Result<Vec<Value>, _> = log.entries.iter().map(|text| serde_json::from_str(text)).collect();
    let rows =
        rows.map_err(|e| Failure::new(format!("the release log has an entry that is not JSON: {e}")))?;
    show_log(&rows, ui)?;
    note(&format!(
        "head {} sha256:{} is signed by the key service's root key",
        log.head_seq,
        hex::encode(&log.head_hash)
    ));
    if log.more {
        note("there is more: give --after with the last number");
    }
    Ok(())
}

fn check_head(kms: &Trusted, log: &GetReleaseLogResponse) -> Result<(), Failure> {
    let refused =
        || Failure::new("the head of the release log is not signed by the key service's trusted root key");
    let hash: [u8; 32] = log.head_hash.as_slice().try_into().map_err(|_| refused())?;
    let signature: [u8; 65] = log.head_signature.as_slice().try_into().map_err(|_| refused())?;
    let signer = recover(&release_head_message(log.head_seq, &hash), &signature).map_err(|_| refused())?;
    if signer == kms.k256_public_key { Ok(()) } else { Err(refused()) }
}

fn show_log(rows: &[Value], ui: &Ui) -> Result<(), Failure> {
    if ui.json {
        return ui.json(&rows);
    }
    if rows.is_empty() {
        note("no key of this app was asked for yet");
        return Ok(());
    }
    let cells = rows.iter().map(|row| {
        let text = |key: &str| row.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let number = |key: &str| row.get(key).and_then(Value::as_i64).unwrap_or_default();
        let time = time_of(number("time"));
        let kind = text("kind");
        let tone = match kind.as_str() {
            "denied" => Tone::Bad,
            "disk-older" | "disk-forgotten" => Tone::Warning,
            _ => Tone::Plain,
        };
        let hash = ui.id(&text("compose_hash"));
        vec![
            number("seq").to_string().into(),
            time.into(),
            Ui::cell(tone, kind),
            ui.id(&text("instance")).into(),
            hash.into(),
            text("reason").into(),
        ]
    });
    ui.text(&ui.table(&["SEQ", "TIME", "WHAT", "INSTANCE", "COMPOSE HASH", "REASON"], cells.collect()))
}

/// Who will be refused (trust rule T22).
async fn forecast(client: &Client, ui: &Ui) -> Result<(), Failure> {
    let rows: Result<Vec<Value>, _> =
        client.kms().await?.forecast().await?.iter().map(release_json).collect();
    let rows = rows?;
    if ui.json {
        return ui.json(&rows);
    }
    if rows.is_empty() {
        note("nobody who got keys in the last 90 days will be refused, by the policy and collateral of now");
        return Ok(());
    }
    let now = jiff::Timestamp::now().as_second();
    let cells = rows.iter().map(|row| {
        let text = |key: &str| row.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let when = row.get("when").and_then(Value::as_i64).unwrap_or_default();
        let tone = if when <= now { Tone::Bad } else { Tone::Warning };
        vec![
            Ui::cell(tone, if when <= now { "now".to_owned() } else { time_of(when) }),
            ui.id(&text("app")).into(),
            ui.id(&text("instance")).into(),
            Ui::cell(tone, text("cause")),
            text("reason").into(),
        ]
    });
    ui.text(&ui.table(&["FROM", "APP", "INSTANCE", "CAUSE", "REASON"], cells.collect()))
}

fn time_of(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds).map(|time| time.to_string()).unwrap_or_default()
}

async fn allow_peer(client: &Client, args: &Peer, ui: &Ui) -> Result<(), Failure> {
    let () = client.change_kms("AllowPeer", &(&args.measurement, args.ttl.as_secs())).await?;
    done(ui, "allowed", &json!({"measurement": args.measurement}))
}
