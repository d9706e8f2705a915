// SPDX-License-Identifier: Apache-2.0
//! `image …`.

use crate::cli::{Global, ImageCommand, Import};
use crate::client::Client;
use crate::errors::Failure;
use crate::events::Events;
use crate::jobs::{self, End, Work};
use crate::output::{Tone, Ui, note};
use crate::progress::Progress;
use crate::quantity::show_size;
use dstack_service::api::teepod1::{ImageRow, Options};
use serde_json::{Value, json};
use std::os::fd::AsFd;
use zbus::{Fd, OwnedObjectPath};

/// Carries out an `image` command.
///
/// # Errors
/// teepod's, as [`Failure`].
pub async fn run(command: &ImageCommand, global: &Global, ui: &Ui) -> Result<(), Failure> {
    let client = Client::open(global).await?;
    match command {
        ImageCommand::List => list(&client, ui).await,
        ImageCommand::Import(args) => import(&client, args, global.waits(), ui).await,
        ImageCommand::Remove(args) => {
            let () = client.change("RemoveImage", &(&args.name,)).await?;
            result(ui, &args.name, "removed")
        }
    }
}

fn result(ui: &Ui, name: &str, word: &str) -> Result<(), Failure> {
    if ui.json {
        ui.json(&json!({"name": name, "result": word}))
    } else {
        ui.text(&format!("{name}: {word}\n"))
    }
}

async fn list(client: &Client, ui: &Ui) -> Result<(), Failure> {
    let images = client.manager.list_images().await?;
    let default = client.manager.default_image().await.unwrap_or_default();
    if ui.json {
        return ui.json(&images.iter().map(|i| row_json(i, &default)).collect::<Vec<_>>());
    }
    if images.is_empty() {
        note(
            "no images yet; install one: apt install dstack-guest-image, or dstackctl image import DIRECTORY",
        );
        return Ok(());
    }
    let rows = images.into_iter().map(|(name, version, hash, is_dev, size)| {
        let full = full_name(&name, &version);
        let mark = if full == default { "default" } else { "" };
        let kind = match is_dev {
            true => Ui::cell(Tone::Warning, "dev: anybody can log in"),
            false => "production".into(),
        };
        vec![full.into(), kind, show_size(size).into(), mark.into(), ui.id(&hash).into()]
    });
    ui.text(&ui.table(&["NAME", "KIND", "SIZE", "", "HASH"], rows.collect()))
}

/// The directory name, which is how an image is called everywhere; a row may carry it as its name already.
#[must_use]
pub fn full_name(name: &str, version: &str) -> String {
    if name.ends_with(&format!("-{version}")) { name.to_owned() } else { format!("{name}-{version}") }
}

fn row_json((name, version, hash, is_dev, size): &ImageRow, default: &str) -> Value {
    let full = full_name(name, version);
    let is_default = full == default;
    json!({
        "name": full, "version": version, "os_image_hash": hash, "is_dev": is_dev, "size": size,
        "default": is_default,
    })
}

async fn import(client: &Client, args: &Import, wait: bool, ui: &Ui) -> Result<(), Failure> {
    client.needs_local("image import")?;
    let shown = args.directory.display();
    let directory = std::fs::File::open(&args.directory)
        .map_err(|e| Failure::new(format!("cannot open {shown}: {e}")))?;
    if !args.directory.join("metadata.json").is_file() {
        return Err(Failure::new(format!("{shown} is no image: it has no metadata.json"))
            .hint("give the directory that `make image` wrote, or an unpacked image"));
    }
    let mut events = Events::subscribe(client).await?;
    let mut progress = Progress::new(ui);
    let request = (Fd::from(directory.as_fd()), Options::new());
    let job: OwnedObjectPath = client.change("ImportImage", &request).await?;
    if !wait {
        return result(ui, &shown.to_string(), "under way");
    }
    let on_interrupt = "no longer waiting; the import goes on".to_owned();
    let work = Work { job: &job, vm: None, app: None, on_interrupt };
    match jobs::follow(client, &mut events, &work, &mut progress).await? {
        End::Done => result(ui, &shown.to_string(), "imported"),
        End::Lost => Err(Failure::new("dstack-teepod was stopped meanwhile").hint("import the image again")),
    }
}
