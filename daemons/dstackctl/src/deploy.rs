// SPDX-License-Identifier: Apache-2.0
//! `deploy`: from a compose file to a running app.

use crate::answer::{self, Answer, Reach};
use crate::cli::{Global, Shape};
use crate::cli_deploy::{self, Deploy};
use crate::client::Client;
use crate::compose::{self, Built};
use crate::errors::{Exit, Failure};
use crate::events::Events;
use crate::ingress;
use crate::jobs::{self, End, Work};
use crate::output::{Tone, Ui, note};
use crate::prepare::{self, Prepared};
use crate::progress::Progress;
use crate::quantity::show_duration;
use crate::secrets::{self, Sealed};
use crate::upgrade::{self, Permission};
use dstack_core::compose::{KeyProvider, hash};
use dstack_core::ids::{AppId, VmName};
use dstack_core::limits::USER_CONFIG_MAX;
use dstack_service::api::teepod1::{Options, Port, VmProxy};
use serde_json::json;
use std::net::{IpAddr, Ipv4Addr};
use zbus::{OwnedObjectPath, Variant};

/// What a deploy without a key service means; said each time (trust rule T24).
pub const EPHEMERAL: &str = "no key service is used: the app's disk and keys are fresh at each boot, and nothing in the VM survives a restart";

/// Carries out `deploy`.
///
/// # Errors
/// What is wrong with the input, why teepod refused, or why the boot failed.
pub async fn run(args: &Deploy, global: &Global, ui: &Ui) -> Result<(), Failure> {
    let input = args.file.as_deref().map(compose::read).transpose()?;
    let name = args.name.as_ref().map(VmName::as_str);
    if args.dry_run {
        let client = Client::open(global).await;
        if client.is_err() && args.document.key_provider != Some(cli_deploy::KeyProvider::None) {
            note("note: the bus cannot be reached, so this host's key service was not asked");
        }
        let prepared = prepare::deploy(client.as_ref().ok(), input, name, &args.document).await?;
        prepared.tell();
        return dry_run(args, &prepared.built, &vm_name(args, &prepared.built)?, ui);
    }
    let client = Client::open(global).await?;
    let prepared = prepare::deploy(Some(&client), input, name, &args.document).await?;
    let built = &prepared.built;
    let name = vm_name(args, built)?;
    warn(built);
    prepared.tell();
    let app = args.app_id.unwrap_or(prepared.hash().app_id());
    let sealed = prepared.seal(&client, app, "").await?;
    let mut options = shape_options(&client, &args.shape).await?;
    if let Some(path) = args.user_config.as_deref() {
        options.insert("user_config", Variant::from(read_user_config(path)?));
    }
    prepare::insert(&mut options, sealed.as_ref());
    if let Some(app_id) = args.app_id {
        options.insert("app_id", Variant::from(app_id.to_string()));
        allow_note(&client, &prepared, app_id).await?;
    }
    options.insert("autostart", Variant::from(args.autostart));
    options.insert("start", Variant::from(!args.no_start));
    let deployment = Deployment {
        client: &client,
        ui,
        name: &name,
        built,
        app,
        sent: sealed.as_ref(),
        starts: !args.no_start,
    };
    deployment.run(options, global.waits()).await
}

/// Another version that joins an app needs the key service's permission too.
async fn allow_note(client: &Client, prepared: &Prepared, app: AppId) -> Result<(), Failure> {
    match upgrade::permission(client, prepared, app).await? {
        Permission::Given => {}
        Permission::Missing(command) | Permission::Unknown(command) => {
            note(&format!(
                "the key service must allow this version for app {app}; unless it does already:\n  {command}"
            ));
        }
    }
    Ok(())
}

fn vm_name(args: &Deploy, built: &Built) -> Result<String, Failure> {
    if let Some(name) = &args.name {
        return Ok(name.to_string());
    }
    let name = compose::valid_name(&built.parsed.name);
    if name.is_empty() {
        return Err(Failure::usage("the app's name cannot be a VM's name; give one with --name"));
    }
    Ok(name)
}

fn dry_run(args: &Deploy, built: &Built, name: &str, ui: &Ui) -> Result<(), Failure> {
    let compose_hash = hash(&built.bytes);
    let app_id = args.app_id.unwrap_or(compose_hash.app_id()).to_string();
    let text = String::from_utf8_lossy(&built.bytes);
    if ui.json {
        return ui.json(&json!({
            "name": name, "app_id": app_id, "compose_hash": compose_hash.to_string(), "app_compose": text,
        }));
    }
    ui.text(&text)?;
    if ui.width.is_some() {
        ui.text("\n")?;
    }
    note(&format!("name          {name}\napp id        {app_id}\ncompose hash  {compose_hash}"));
    Ok(())
}

/// Says what the deployer should know of this document.
fn warn(built: &Built) {
    if built.parsed.key_provider() == KeyProvider::None {
        note(&format!("note: {EPHEMERAL}"));
    }
    if built.parsed.tproxy_enabled && built.parsed.key_provider() == KeyProvider::None {
        note(
            "note: the app asks for the ingress and has no keys to show there, so it is not reached by name",
        );
    }
    if built.parsed.public_logs {
        note(
            "note: the containers' logs are public: whoever reaches the VM can read them (--no-public-logs)",
        );
    }
}

fn read_user_config(path: &std::path::Path) -> Result<Vec<u8>, Failure> {
    let cannot = |e| Failure::new(format!("cannot read {}: {e}", path.display()));
    let length = std::fs::metadata(path).map_err(cannot)?.len();
    if length > USER_CONFIG_MAX as u64 {
        return Err(Failure::new(format!(
            "{} has {length} bytes; a user config may have {USER_CONFIG_MAX}",
            path.display()
        )));
    }
    std::fs::read(path).map_err(cannot)
}

/// The options of a shape: only what was given. Ports without an address get teepod's.
///
/// # Errors
/// A port mapping twice.
pub async fn shape_options(client: &Client, shape: &Shape) -> Result<Options<'static>, Failure> {
    let mut options = Options::new();
    if let Some(vcpus) = shape.vcpus {
        options.insert("vcpus", Variant::from(vcpus));
    }
    if let Some(memory) = shape.memory {
        options.insert("memory", Variant::from(memory));
    }
    if let Some(disk) = shape.disk {
        options.insert("disk", Variant::from(disk));
    }
    if let Some(image) = &shape.image {
        options.insert("image", Variant::from(image.clone()));
    }
    if !shape.ports.is_empty() {
        options.insert("ports", Variant::from(ports(client, shape).await?));
    }
    Ok(options)
}

async fn ports(client: &Client, shape: &Shape) -> Result<Vec<Port>, Failure> {
    let mut default = IpAddr::V4(Ipv4Addr::LOCALHOST);
    if shape.ports.iter().any(|p| p.address.is_none()) {
        let (address, ..) = client.manager.port_range().await?;
        default = address.parse().unwrap_or(default);
    }
    let mappings: Vec<_> = shape.ports.iter().map(|p| p.mapping(default)).collect();
    dstack_core::spec::check_ports(&mappings).map_err(|e| Failure::usage(e.to_string()))?;
    let wire = |p: dstack_core::spec::PortMapping| {
        (p.protocol.to_string(), p.host_address.to_string(), p.host_port, p.vm_port)
    };
    Ok(mappings.into_iter().map(wire).collect())
}

/// Addresses by the ingress.
struct Named {
    urls: Vec<String>,
    online: bool,
}

struct Deployment<'a> {
    client: &'a Client,
    ui: &'a Ui,
    name: &'a str,
    built: &'a Built,
    app: AppId,
    sent: Option<&'a Sealed>,
    starts: bool,
}

impl Deployment<'_> {
    async fn run(&self, options: Options<'_>, wait: bool) -> Result<(), Failure> {
        let mut events = Events::subscribe(self.client).await?;
        let mut progress = Progress::new(self.ui);
        let request = (self.name, &self.built.bytes, options);
        let created: Result<(OwnedObjectPath, OwnedObjectPath), Failure> =
            self.client.change("CreateVm", &request).await;
        let (vm, job) = created?;
        if let Some(sealed) = self.sent {
            let id = self.client.vm_at(vm.clone()).await?.id().await?;
            secrets::remember(&self.app, &id, sealed)?;
        }
        if !wait {
            return self.created(&vm).await;
        }
        let on_interrupt = self.on_interrupt();
        let app = self.app.to_string();
        let work = Work { job: &job, vm: Some(&vm), app: Some(&app), on_interrupt };
        let end = jobs::follow(self.client, &mut events, &work, &mut progress).await;
        match end {
            Err(failure) => return Err(self.explain(failure)),
            Ok(End::Lost) if self.starts => {
                note("dstack-teepod was restarted; the VM goes on, and so does the waiting");
                jobs::wait_state(self.client, self.name, "running", None, self.ui).await?;
            }
            Ok(End::Lost | End::Done) => {}
        }
        if !self.starts {
            return self.created(&vm).await;
        }
        self.running(&vm, progress.elapsed()).await
    }

    fn on_interrupt(&self) -> String {
        let name = self.name;
        let verb = if self.starts { "booting" } else { "being created" };
        format!(
            "no longer waiting; VM {name} goes on {verb}\n\
             \x20 wait again:  dstackctl vm wait {name}\n\
             \x20 end it:      dstackctl vm remove --force {name}"
        )
    }

    /// A failure, with how to look at the VM, which is left as it is.
    fn explain(&self, failure: Failure) -> Failure {
        if failure.exit == Exit::Interrupted {
            return failure;
        }
        let name = self.name;
        let left = format!(
            "VM {name} is left for inspection, if it was created\n\
             \x20 its console:  dstackctl vm logs {name}\n\
             \x20 its state:    dstackctl vm show {name}\n\
             \x20 remove it:    dstackctl vm remove --force {name}"
        );
        let hint = failure.hint.map_or_else(|| left.clone(), |hint| format!("{hint}\n{left}"));
        Failure {
            hint: Some(hint),
            message: format!("deploying {name} failed: {}", failure.message),
            ..failure
        }
    }

    /// What is known of a VM that nobody waits for.
    async fn created(&self, vm: &OwnedObjectPath) -> Result<(), Failure> {
        let vm = self.client.vm_at(vm.clone()).await?;
        let (app_id, name) = (vm.app_id().await?, self.name);
        if self.ui.json {
            return self.ui.json(&self.describe(&vm, &[]).await?);
        }
        let next = if self.starts { "dstackctl vm wait" } else { "dstackctl vm start" };
        self.ui.text(&format!("created VM {name}, app id {app_id}\n  next: {next} {name}\n"))
    }

    async fn running(&self, vm: &OwnedObjectPath, took: std::time::Duration) -> Result<(), Failure> {
        let vm = self.client.vm_at(vm.clone()).await?;
        let reached = answer::ask_all(self.client, &vm.ports().await?, answer::PATIENCE).await;
        let named = self.named(&vm).await?;
        if self.ui.json {
            let mut said = self.describe(&vm, &reached).await?;
            if let (Some(said), Some(named)) = (said.as_object_mut(), &named) {
                said.insert("public_urls".to_owned(), json!(named.urls));
                said.insert("online".to_owned(), json!(named.online));
            }
            return self.ui.json(&said);
        }
        let (name, ui) = (self.name, self.ui);
        let mut text =
            format!("{} in {}\n", ui.paint(Tone::Good, &format!("{name} is up")), show_duration(took));
        text.extend(reached.iter().map(|r| self.url_line(r)));
        text.extend(named.iter().map(|n| self.named_lines(n)));
        text.push_str(&format!("  app id       {}\n", vm.app_id().await?));
        text.push_str(&format!("  instance id  {}\n", vm.instance_id().await?));
        if !vm.autostart().await? {
            text.push_str(&format!(
                "  at boot      not started; dstackctl vm resize {name} --autostart has it started\n"
            ));
        }
        text.push_str(&format!("  logs         dstackctl logs {name} [CONTAINER]\n"));
        text.push_str(&format!("  console      dstackctl vm logs {name}\n"));
        ui.text(&text)
    }

    /// The app's names outside, once the ingress has heard of the instance.
    async fn named(&self, vm: &VmProxy<'_>) -> Result<Option<Named>, Failure> {
        if !self.built.parsed.tproxy_enabled {
            return Ok(None);
        }
        let Some(ingress) = ingress::find(self.client).await? else { return Ok(None) };
        let instance = vm.instance_id().await?;
        let online = ingress::wait_online(self.client, &instance, ingress::PATIENCE).await?;
        Ok(Some(Named { urls: ingress.urls(&self.app, &ingress::ports(&self.built.parsed)), online }))
    }

    fn named_lines(&self, named: &Named) -> String {
        let (tone, words) = match named.online {
            true => (Tone::Good, "through the ingress"),
            false => (Tone::Warning, "not registered yet; see: dstackctl proxy list"),
        };
        let words = self.ui.paint(tone, words);
        named.urls.iter().map(|url| format!("  url          {url}  {words}\n")).collect()
    }

    fn url_line(&self, reach: &Reach) -> String {
        let tone = match reach.answer {
            Answer::Http | Answer::Open => Tone::Good,
            Answer::Nothing => Tone::Warning,
            Answer::NotAsked => Tone::Faint,
        };
        let words = self.ui.paint(tone, reach.answer.words());
        format!("  url          {}  {words} (port {} of the VM)\n", reach.url, reach.vm_port)
    }

    async fn describe(&self, vm: &VmProxy<'_>, reached: &[Reach]) -> Result<serde_json::Value, Failure> {
        let urls: Vec<&str> = reached.iter().map(|r| r.url.as_str()).collect();
        let answers = reached.iter().all(|r| r.answer >= Answer::Open);
        Ok(json!({
            "name": self.name,
            "id": vm.id().await?,
            "app_id": vm.app_id().await?,
            "instance_id": vm.instance_id().await?,
            "compose_hash": vm.compose_hash().await?,
            "state": vm.state().await?,
            "key_provider": self.built.parsed.key_provider(),
            "images": if self.built.unpinned.is_empty() { "pinned" } else { "unpinned" },
            "urls": urls,
            "answers": answers,
        }))
    }
}
