// SPDX-License-Identifier: Apache-2.0
//! `app …`: keys and statements of an app's owner (trust rule T8). No daemon is asked.

use crate::cli_kms::{AppCommand, Keygen, SignUpgrade};
use crate::errors::Failure;
use crate::identity::{self, Identity};
use crate::output::{Ui, note};
use crate::places;
use crate::quantity::parse_duration;
use dstack_core::compose::{self, AppCompose};
use dstack_core::ids::{ComposeHash, SignerKey};
use dstack_core::limits::APP_COMPOSE_MAX;
use dstack_core::upgrade::{Signature, Signed, Statement};
use dstack_keys::{ed25519, keyfile};
use serde_json::{Value, json};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// Carries out an `app` command.
///
/// # Errors
/// What is wrong with a file.
pub fn run(command: &AppCommand, ui: &Ui) -> Result<(), Failure> {
    match command {
        AppCommand::Keygen(args) => keygen(args, ui),
        AppCommand::SignUpgrade(args) => sign_upgrade(args, ui),
        AppCommand::Show(args) => show(&args.file, ui),
    }
}

fn keygen(args: &Keygen, ui: &Ui) -> Result<(), Failure> {
    let identity = Identity::generate(&args.output)?;
    let pem = keyfile::public_to_pem(&identity.public).map_err(|e| Failure::new(e.to_string()))?;
    let mut public = args.output.clone().into_os_string();
    public.push(".pub");
    places::write_new(Path::new(&public), &pem, 0o644)?;
    if ui.json {
        return ui.json(&json!({"private_key": args.output, "public_key": identity.public}));
    }
    ui.text(&format!("{}\n", identity.public))?;
    note(&format!(
        "note: keep {} safe and apart from the host: who has it allows upgrades; without it nobody does",
        args.output.display()
    ));
    Ok(())
}

fn sign_upgrade(args: &SignUpgrade, ui: &Ui) -> Result<(), Failure> {
    let signed = signed(args)?;
    let mut json = serde_json::to_vec_pretty(&signed)
        .map_err(|e| Failure::new(format!("cannot write the statement: {e}")))?;
    json.push(b'\n');
    let Some(path) = &args.output else { return ui.text(&String::from_utf8_lossy(&json)) };
    places::write_new(path, &json, 0o644)?;
    let statement = &signed.statement;
    if ui.json {
        return ui.json(&json!({
            "app_id": statement.app_id, "compose_hash": statement.compose_hash, "seq": statement.seq, "file": path,
        }));
    }
    ui.text(&format!(
        "{}: version {} of app {}, number {}\n",
        path.display(),
        statement.compose_hash,
        statement.app_id,
        statement.seq
    ))?;
    note(&format!("next: dstackctl kms submit-upgrade {}", path.display()));
    Ok(())
}

fn signed(args: &SignUpgrade) -> Result<Signed, Failure> {
    let compose_hash = match (&args.compose, args.hash) {
        (_, Some(hash)) => hash,
        (Some(path), None) => document(path)?.0,
        (None, None) => return Err(Failure::usage("give the version: --compose FILE or --hash HASH")),
    };
    let identity = Identity::load(&args.key)?;
    let first_compose =
        args.first_compose.as_ref().map(|path| first(path, args, identity.public)).transpose()?;
    let not_after = args.not_after.as_deref().map_or(Ok(0), |text| time(text, now()))?;
    let statement = Statement {
        app_id: args.app,
        compose_hash,
        seq: args.seq,
        not_after,
        revoke_below: args.revoke_below,
    };
    let bytes = statement.to_bytes();
    Statement::from_bytes(&bytes).map_err(|e| Failure::usage(e.to_string()))?;
    let signature = ed25519::sign(&identity.secret, &bytes).map_err(|e| Failure::new(e.to_string()))?;
    let signatures = vec![Signature { key: identity.public, signature }];
    Ok(Signed { statement, signatures, first_compose })
}

/// The app's first compose file says whose signature counts, so it can be checked here already.
fn first(path: &Path, args: &SignUpgrade, key: SignerKey) -> Result<String, Failure> {
    let (hash, parsed, bytes) = document(path)?;
    if hash.app_id() != args.app {
        return Err(Failure::usage(format!(
            "{} is not the first version of app {}: it is that of {}",
            path.display(),
            args.app,
            hash.app_id()
        )));
    }
    if !parsed.upgrade_keys.contains(&key) {
        return Err(Failure::new(format!(
            "the app does not take upgrades from {key}: it is not in upgrade_keys of {}",
            path.display()
        )));
    }
    String::from_utf8(bytes).map_err(|_| Failure::new(format!("{} is not UTF-8 text", path.display())))
}

fn document(path: &Path) -> Result<(ComposeHash, AppCompose, Vec<u8>), Failure> {
    let bytes = crate::compose::read(path)?.bytes;
    let parsed = AppCompose::parse(&bytes).map_err(|e| {
        Failure::new(format!("{}: {e}", path.display()))
            .hint("the hash is that of the app-compose.json: dstackctl deploy --dry-run prints it")
    })?;
    Ok((compose::hash(&bytes), parsed, bytes))
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// A time to come: seconds since 1970, RFC 3339, or a span from now.
fn time(text: &str, now: u64) -> Result<u64, Failure> {
    let at = match (text.parse::<u64>(), text.parse::<jiff::Timestamp>(), parse_duration(text)) {
        (Ok(seconds), ..) => seconds,
        (_, Ok(time), _) => u64::try_from(time.as_second()).unwrap_or(0),
        (.., Ok(span)) => now.saturating_add(span.as_secs()),
        _ => {
            return Err(Failure::usage(format!(
                "--not-after {text:?} is no time: write 30d, 2030-01-31T12:00:00Z, or seconds since 1970"
            )));
        }
    };
    if at > now { Ok(at) } else { Err(Failure::usage(format!("--not-after {text:?} has passed"))) }
}

/// Shows what a file is: a key, a signed statement, or a document.
fn show(path: &Path, ui: &Ui) -> Result<(), Failure> {
    let bytes = places::read(path)?.ok_or_else(|| Failure::new(format!("there is no {}", path.display())))?;
    if bytes.starts_with(b"-----BEGIN") {
        let key = identity::public(&path.to_string_lossy())?;
        return table(ui, &json!({"public_key": key}));
    }
    if let Ok(signed) = Signed::parse(&bytes) {
        return table(ui, &statement_json(&signed));
    }
    if bytes.len() > APP_COMPOSE_MAX {
        return Err(Failure::new(format!("{} is no key, statement or app-compose.json", path.display())));
    }
    let (hash, parsed, _) = document(path)?;
    table(ui, &document_json(&hash, &parsed))
}

fn statement_json(signed: &Signed) -> Value {
    let message = signed.statement.to_bytes();
    let good = |s: &&Signature| ed25519::verify(&s.key, &message, &s.signature).unwrap_or(false);
    let by: Vec<String> = signed.signatures.iter().filter(good).map(|s| s.key.to_string()).collect();
    let forged = signed.signatures.len() - by.len();
    json!({
        "app_id": signed.statement.app_id, "compose_hash": signed.statement.compose_hash,
        "seq": signed.statement.seq, "not_after": signed.statement.not_after,
        "revoke_below": signed.statement.revoke_below, "signed_by": by, "wrong_signatures": forged,
    })
}

fn document_json(hash: &ComposeHash, parsed: &AppCompose) -> Value {
    let unpinned = parsed.docker_compose_file.as_deref().map(crate::pin::unpinned).unwrap_or_default();
    json!({
        "name": parsed.name, "app_id_if_first": hash.app_id(), "compose_hash": hash,
        "key_provider": parsed.key_provider(), "key_provider_id": parsed.key_provider_id,
        "env_signer": parsed.env_signer, "allowed_envs": parsed.allowed_envs, "upgrade_keys": parsed.upgrade_keys,
        "images": if unpinned.is_empty() { "pinned" } else { "unpinned" },
        "upgrades": if parsed.upgrade_keys.is_empty() { "operator" } else { "owner" },
    })
}

/// A flat object as a table, or as JSON.
fn table(ui: &Ui, value: &Value) -> Result<(), Failure> {
    if ui.json {
        return ui.json(value);
    }
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Array(list) => list.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" "),
        Value::Null => String::new(),
        other => other.to_string(),
    };
    let rows = value.as_object().into_iter().flatten();
    let rows = rows.map(|(key, value)| vec![key.replace('_', " ").into(), text(value).into()]);
    ui.text(&ui.table(&[], rows.collect()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::errors::Exit;

    const COMPOSE: &str =
        r#"{"manifest_version":2,"name":"a","runner":"bash","bash_script":"true","upgrade_keys":["KEY"]}"#;

    struct Bench {
        directory: tempfile::TempDir,
        owner: Identity,
        args: SignUpgrade,
    }

    fn bench() -> Bench {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let owner = Identity::generate(&path("owner.pem")).unwrap();
        let first = COMPOSE.replace("KEY", &owner.public.to_string());
        std::fs::write(path("first.json"), &first).unwrap();
        std::fs::write(path("second.json"), first.replace("true", "false")).unwrap();
        let args = SignUpgrade {
            key: path("owner.pem"),
            app: ComposeHash::of(first.as_bytes()).app_id(),
            compose: Some(path("second.json")),
            hash: None,
            seq: 1,
            not_after: None,
            revoke_below: 1,
            first_compose: Some(path("first.json")),
            output: None,
        };
        Bench { directory, owner, args }
    }

    #[test]
    fn t08_the_owner_signs_a_version_of_the_app() {
        let bench = bench();
        let signed = signed(&bench.args).unwrap();
        let again = Signed::parse(&serde_json::to_vec(&signed).unwrap()).unwrap();
        assert_eq!(again, signed);
        let bytes = std::fs::read(bench.directory.path().join("second.json")).unwrap();
        assert_eq!(signed.statement.compose_hash, ComposeHash::of(&bytes));
        let shown = statement_json(&signed);
        assert_eq!(shown["signed_by"], json!([bench.owner.public]));
        let mut forged = signed;
        forged.statement.seq = 2;
        assert_eq!(statement_json(&forged)["wrong_signatures"], 1);
    }

    #[test]
    fn t08_what_the_key_service_would_refuse_is_refused_here() {
        let bench = bench();
        let with = |change: &dyn Fn(&mut SignUpgrade)| {
            let mut args =
                SignUpgrade { first_compose: bench.args.first_compose.clone(), ..copy(&bench.args) };
            change(&mut args);
            signed(&args).unwrap_err().message
        };
        assert!(with(&|a| a.revoke_below = 2).contains("revoke_below"));
        assert!(with(&|a| a.app = dstack_core::ids::AppId::from([1; 20])).contains("not the first version"));
        let stranger = bench.directory.path().join("stranger.pem");
        Identity::generate(&stranger).unwrap();
        assert!(with(&|a| a.key = stranger.clone()).contains("not in upgrade_keys"));
        assert!(with(&|a| a.not_after = Some("1".into())).contains("has passed"));
    }

    fn copy(args: &SignUpgrade) -> SignUpgrade {
        SignUpgrade {
            key: args.key.clone(),
            app: args.app,
            compose: args.compose.clone(),
            hash: args.hash,
            seq: args.seq,
            not_after: args.not_after.clone(),
            revoke_below: args.revoke_below,
            first_compose: None,
            output: None,
        }
    }

    #[test]
    fn times_to_come() {
        assert_eq!(time("1000", 999).unwrap(), 1000);
        assert_eq!(time("30d", 1000).unwrap(), 1000 + 30 * 86_400);
        assert_eq!(time("1970-01-01T01:00:00Z", 1000).unwrap(), 3600);
        for bad in ["", "tomorrow", "1000", "1970-01-01T00:00:01Z"] {
            assert_eq!(time(bad, 1000).unwrap_err().exit, Exit::Usage, "{bad}");
        }
    }
}
