// SPDX-License-Identifier: Apache-2.0
//! `vm …`.

use crate::cli::{Global, Remove, Resize, VmCommand};
use crate::cli_deploy::Upgrade;
use crate::client::Client;
use crate::errors::Failure;
use crate::events::Events;
use crate::jobs::{self, End, Work};
use crate::output::{Tone, Ui, note};
use crate::progress::Progress;
use crate::quantity::{show_duration, show_size};
use crate::{console, deploy, journal, upgrade};
use dstack_service::api::teepod1::{Port, VmProxy, VmRow};
use serde_json::{Value, json};
use std::time::Duration;
use zbus::{OwnedObjectPath, Variant};

/// Carries out a `vm` command.
///
/// # Errors
/// teepod's, as [`Failure`].
pub async fn run(command: &VmCommand, global: &Global, ui: &Ui) -> Result<(), Failure> {
    let client = Client::open(global).await?;
    let wait = global.waits();
    match command {
        VmCommand::List => list(&client, ui).await,
        VmCommand::Show(vm) => show(&client, &vm.name, ui).await,
        VmCommand::Start(vm) => verb(&client, &START, &vm.name, wait, ui).await,
        VmCommand::Stop(vm) => verb(&client, &STOP, &vm.name, wait, ui).await,
        VmCommand::Restart(vm) => verb(&client, &RESTART, &vm.name, wait, ui).await,
        VmCommand::Kill(vm) => kill(&client, &vm.name, ui).await,
        VmCommand::Remove(args) => remove(&client, args, wait, ui).await,
        VmCommand::Resize(args) => resize(&client, args, ui).await,
        VmCommand::Upgrade(args) => upgrade(&client, args, wait, ui).await,
        VmCommand::Console(vm) => console::run(&client, &vm.name).await,
        VmCommand::Logs(args) => journal::run(&client, &args.name, &args.range, ui).await,
        VmCommand::Wait(args) => {
            jobs::wait_state(&client, &args.name, &args.state, args.timeout, ui).await?;
            done(ui, &args.name, &args.state)
        }
    }
}

/// A verb that is a job.
struct Verb {
    method: &'static str,
    /// The state it leads to, for waiting after teepod was restarted.
    state: &'static str,
    past: &'static str,
}

const START: Verb = Verb { method: "StartVm", state: "running", past: "running" };
const STOP: Verb = Verb { method: "StopVm", state: "stopped", past: "stopped" };
const RESTART: Verb = Verb { method: "RestartVm", state: "running", past: "running again" };
const REMOVE: Verb = Verb { method: "RemoveVm", state: "", past: "removed" };

async fn verb(client: &Client, verb: &Verb, name: &str, wait: bool, ui: &Ui) -> Result<(), Failure> {
    let mut events = Events::subscribe(client).await?;
    let mut progress = Progress::new(ui);
    let job: OwnedObjectPath = client.change(verb.method, &(name,)).await?;
    if !wait {
        return done(ui, name, "under way");
    }
    let vm = client.manager.get_vm(name).await.ok();
    let app = app_of(client, vm.as_ref()).await;
    let on_interrupt = format!("no longer waiting; what was begun for VM {name} goes on");
    let work = Work { job: &job, vm: vm.as_ref(), app: app.as_deref(), on_interrupt };
    match jobs::follow(client, &mut events, &work, &mut progress).await? {
        End::Done => done(ui, name, verb.past),
        End::Lost if verb.state.is_empty() => {
            Err(Failure::new("dstack-teepod was stopped meanwhile").hint("try again: see dstackctl vm list"))
        }
        End::Lost => {
            jobs::wait_state(client, name, verb.state, None, ui).await?;
            done(ui, name, verb.past)
        }
    }
}

/// The app of a VM that may be gone meanwhile; without it, only a hint is missing.
async fn app_of(client: &Client, vm: Option<&OwnedObjectPath>) -> Option<String> {
    client.vm_at(vm?.clone()).await.ok()?.app_id().await.ok()
}

fn done(ui: &Ui, name: &str, state: &str) -> Result<(), Failure> {
    if ui.json {
        ui.json(&json!({"name": name, "result": state}))
    } else {
        ui.text(&format!("{name}: {state}\n"))
    }
}

async fn kill(client: &Client, name: &str, ui: &Ui) -> Result<(), Failure> {
    let () = client.change("KillVm", &(name,)).await?;
    done(ui, name, "killed")
}

async fn remove(client: &Client, args: &Remove, wait: bool, ui: &Ui) -> Result<(), Failure> {
    for name in &args.names {
        if args.force {
            end_first(client, name, ui).await?;
        }
        verb(client, &REMOVE, name, wait, ui).await?;
    }
    Ok(())
}

/// Ends a VM that is not stopped, and waits until it is.
async fn end_first(client: &Client, name: &str, ui: &Ui) -> Result<(), Failure> {
    let vm = client.vm(name).await?;
    if matches!(vm.state().await?.as_str(), "stopped" | "failed") {
        return Ok(());
    }
    let killed: Result<(), Failure> = client.change("KillVm", &(name,)).await;
    if let Err(failure) = killed {
        // It may have ended by itself in between; the removal tells.
        note(&format!("dstackctl: {failure}"));
        return Ok(());
    }
    let limit = Some(Duration::from_secs(60));
    jobs::wait_state(client, name, "stopped", limit, ui).await
}

async fn resize(client: &Client, args: &Resize, ui: &Ui) -> Result<(), Failure> {
    let mut options = deploy::shape_options(client, &args.shape).await?;
    if args.no_ports {
        options.insert("ports", Variant::from(Vec::<Port>::new()));
    }
    if args.autostart || args.no_autostart {
        options.insert("autostart", Variant::from(args.autostart));
    }
    if options.is_empty() {
        return Err(Failure::usage(
            "nothing to change: give at least one option, see dstackctl vm resize --help",
        ));
    }
    let () = client.change("ResizeVm", &(&args.name, options)).await?;
    done(ui, &args.name, "changed")
}

async fn upgrade(client: &Client, args: &Upgrade, wait: bool, ui: &Ui) -> Result<(), Failure> {
    let name = upgrade::run(client, args, ui).await?;
    if args.restart {
        return verb(client, &RESTART, &name, wait, ui).await;
    }
    note(&format!("in force from the next start: dstackctl vm restart {name}"));
    Ok(())
}

async fn list(client: &Client, ui: &Ui) -> Result<(), Failure> {
    let rows = client.manager.list_vms().await?;
    if ui.json {
        return ui.json(&rows.iter().map(row_json).collect::<Vec<_>>());
    }
    if rows.is_empty() {
        note("no VMs yet; make one: dstackctl deploy docker-compose.yaml -p 8080:80");
        return Ok(());
    }
    let cells = rows.into_iter().map(|(name, _, app_id, state, image, words, _)| {
        vec![name.into(), Ui::cell(tone(&state), &state), image.into(), ui.id(&app_id).into(), words.into()]
    });
    ui.text(&ui.table(&["NAME", "STATE", "IMAGE", "APP ID", "BOOT"], cells.collect()))
}

fn row_json((name, id, app_id, state, image, progress, _): &VmRow) -> Value {
    json!({"name": name, "id": id, "app_id": app_id, "state": state, "image": image, "progress": progress})
}

fn tone(state: &str) -> Tone {
    match state {
        "running" => Tone::Good,
        "failed" => Tone::Bad,
        "stopped" => Tone::Faint,
        "starting" | "booting" | "stopping" => Tone::Warning,
        _ => Tone::Plain,
    }
}

async fn show(client: &Client, name: &str, ui: &Ui) -> Result<(), Failure> {
    let vm = client.vm(name).await?;
    let value = describe(&vm).await?;
    if ui.json {
        return ui.json(&value);
    }
    let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let state = text("state");
    let created = jiff::Timestamp::from_second(vm.created_at().await?.cast_signed());
    let mut rows = vec![
        ("Name", text("name")),
        ("State", state.clone()),
        ("Boot", text("boot_progress")),
        ("Error", text("boot_error")),
        ("App id", text("app_id")),
        ("Instance id", text("instance_id")),
        ("Compose hash", text("compose_hash")),
        ("Id", text("id")),
        ("Image", text("image")),
        ("vCPUs", vm.vcpus().await?.to_string()),
        ("Memory", show_size(vm.memory().await?)),
        ("Disk", show_size(vm.disk().await?)),
    ];
    let ports = vm.ports().await?;
    rows.extend(
        ports.iter().map(|(proto, address, host, vm)| ("Port", format!("{address}:{host} -> {vm}/{proto}"))),
    );
    rows.push(("Context id", vm.cid().await?.to_string()));
    rows.push(("Unit", text("unit")));
    rows.push(("Autostart", if vm.autostart().await? { "yes" } else { "no" }.to_owned()));
    rows.push(("Created", created.map(|t| t.to_string()).unwrap_or_default()));
    let stages = vm.timeline().await.unwrap_or_default();
    let took = |ms| show_duration(Duration::from_millis(ms));
    rows.extend(stages.into_iter().map(|(stage, ms)| ("Boot stage", format!("{:>8}  {stage}", took(ms)))));
    let rows = rows.into_iter().filter(|(_, value)| !value.is_empty());
    ui.text(
        &ui.table(
            &[],
            rows.map(|(key, value)| {
                vec![key.into(), Ui::cell(if key == "State" { tone(&state) } else { Tone::Plain }, value)]
            })
            .collect(),
        ),
    )
}

/// All properties of a VM.
async fn describe(vm: &VmProxy<'_>) -> Result<Value, Failure> {
    let ports: Vec<Value> = vm.ports().await?.iter().map(port_json).collect();
    Ok(json!({
        "name": vm.name().await?,
        "id": vm.id().await?,
        "app_id": vm.app_id().await?,
        "instance_id": vm.instance_id().await?,
        "compose_hash": vm.compose_hash().await?,
        "state": vm.state().await?,
        "boot_progress": vm.boot_progress().await?,
        "boot_error": vm.boot_error().await?,
        "image": vm.image().await?,
        "vcpus": vm.vcpus().await?,
        "memory": vm.memory().await?,
        "disk": vm.disk().await?,
        "ports": ports,
        "cid": vm.cid().await?,
        "unit": vm.unit().await?,
        "autostart": vm.autostart().await?,
        "created_at": vm.created_at().await?,
        "timeline": vm.timeline().await?,
    }))
}

fn port_json((protocol, address, host, vm): &Port) -> Value {
    json!({"protocol": protocol, "address": address, "host": host, "vm": vm})
}
