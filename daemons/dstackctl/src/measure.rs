// SPDX-License-Identifier: Apache-2.0
//! `measure`: what a VM of an image and a shape measures at boot.

use crate::cli::Global;
use crate::errors::{Exit, Failure};
use crate::measure_cli::{Boot, Measure};
use crate::output::{Ui, note};
use dstack_core::event_log::Digest;
use dstack_core::image::Manifest;
use dstack_core::limits::IMAGE_METADATA_MAX;
use dstack_core::measure::rtmr0::Acpi;
use dstack_core::measure::{FIRMWARE_MAX, Inputs, Platform, Prediction, Register, Shape, UKI_MAX};
use dstack_core::{ccel, measure};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use std::io::Read;
use std::path::{Path, PathBuf};

/// Where installed images are.
const IMAGES: &str = "/var/lib/dstack/images";

/// Carries out `measure`.
///
/// # Errors
/// [`Failure`] when a file cannot be read or measured.
pub fn run(args: &Measure, global: &Global, ui: &Ui) -> Result<(), Failure> {
    here(global, "measure")?;
    let image = Image::open(&args.image)?;
    let predicted = image.predict(args.platform.into(), args.shape(), &args.boot)?;
    if args.policy {
        let text = policy(&image, &predicted, args.shape())?;
        return ui.text(&text);
    }
    if ui.json {
        return ui.json(&as_json(&image, &predicted, args));
    }
    ui.text(&table(&image, &predicted, args, ui))?;
    if predicted.rtmr0.is_none() {
        note(
            "RTMR0 depends on QEMU's ACPI tables: give --acpi or --ccel, taken on the same QEMU with the same shape",
        );
    }
    Ok(())
}

/// Refuses a command that reads files of this machine when another host is named.
///
/// # Errors
/// A usage failure.
pub fn here(global: &Global, command: &str) -> Result<(), Failure> {
    if global.host.is_some() {
        return Err(Failure::usage(format!(
            "{command} works on this machine's files; run it over ssh instead"
        )));
    }
    Ok(())
}

/// An image's directory and its parsed texts.
#[derive(Debug)]
pub struct Image {
    directory: PathBuf,
    /// The texts.
    pub manifest: Manifest,
}

impl Image {
    /// Opens a directory, or an installed image by its name.
    ///
    /// # Errors
    /// [`Failure`] names the file that is missing or wrong.
    pub fn open(name: &str) -> Result<Self, Failure> {
        let installed = Path::new(IMAGES).join(name);
        let is_name = !name.contains('/') && !Path::new(name).is_dir();
        let directory = if is_name { installed } else { PathBuf::from(name) };
        if !directory.join("metadata.json").is_file() {
            let message = format!("{} is no image: it has no metadata.json", directory.display());
            return Err(Failure::with(Exit::NotFound, message).hint("see the images: dstackctl image list"));
        }
        let read = |file: &str| read(&directory.join(file), IMAGE_METADATA_MAX);
        let manifest = Manifest::parse(&read("metadata.json")?, &read("sha256sum.txt")?);
        let manifest = manifest.map_err(|e| Failure::new(format!("{}: {e}", directory.display())))?;
        Ok(Self { directory, manifest })
    }

    /// A file of the image, whose sum must be the listed one.
    fn file(&self, name: &str, limit: usize) -> Result<Vec<u8>, Failure> {
        let path = self.directory.join(name);
        let bytes = read(&path, limit)?;
        let sum: [u8; 32] = Sha256::digest(&bytes).into();
        if self.manifest.sums.get(name) == Some(&sum) {
            return Ok(bytes);
        }
        Err(Failure::new(format!("{} has not the sum that sha256sum.txt lists", path.display()))
            .hint("the image was changed; install it again"))
    }

    /// Predicts the registers of a VM.
    ///
    /// # Errors
    /// [`Failure`] when a file cannot be read or measured.
    pub fn predict(&self, platform: Platform, shape: Shape, boot: &Boot) -> Result<Prediction, Failure> {
        let metadata = &self.manifest.metadata;
        let firmware = match &metadata.firmware {
            Some(own) => self.file(own, FIRMWARE_MAX)?,
            None => read(&boot.firmware, FIRMWARE_MAX)
                .map_err(|f| f.hint("name the firmware that teepod uses: --firmware FILE"))?,
        };
        let uki = self.file(&metadata.uki, UKI_MAX)?;
        let acpi = acpi(boot)?;
        let order = boot.page_order.into();
        let inputs = Inputs { firmware: &firmware, uki: &uki, shape, acpi: acpi.as_ref(), order };
        Prediction::of(platform, &inputs).map_err(|error| {
            let failure = Failure::new(error.to_string());
            match error {
                measure::MeasureError::NoMetadata => {
                    failure.hint("name a firmware for TDX with --firmware, or add --platform simulated")
                }
                _ => failure,
            }
        })
    }
}

fn acpi(boot: &Boot) -> Result<Option<Acpi>, Failure> {
    if let Some(directory) = &boot.acpi {
        let part = |name: &str| read(&directory.join(name), FIRMWARE_MAX);
        return Ok(Some(Acpi::of_files(&part("table-loader")?, &part("rsdp")?, &part("tables")?)));
    }
    let Some(path) = &boot.ccel else { return Ok(None) };
    let wrong = |reason: String| Failure::new(format!("{}: {reason}", path.display()));
    let events = ccel::parse(&read(path, ccel::CCEL_MAX)?).map_err(|e| wrong(e.to_string()))?;
    Acpi::of_log(&events).map(Some).ok_or_else(|| wrong("it has not exactly three ACPI events".into()))
}

/// Reads a file up to a limit.
///
/// # Errors
/// [`Failure`] names the file.
pub fn read(path: &Path, limit: usize) -> Result<Vec<u8>, Failure> {
    let failed = |e: std::io::Error| Failure::new(format!("cannot read {}: {e}", path.display()));
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    let most = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    file.take(most).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() > limit {
        return Err(Failure::new(format!("{} is larger than {limit} bytes", path.display())));
    }
    Ok(bytes)
}

const REGISTERS: [Register; 4] = [Register::Mrtd, Register::Rtmr0, Register::Rtmr1, Register::Rtmr2];

fn table(image: &Image, predicted: &Prediction, args: &Measure, ui: &Ui) -> String {
    let metadata = &image.manifest.metadata;
    let kind = if metadata.is_dev { " (development: people can log in)" } else { "" };
    let mut rows: Vec<(String, String)> = vec![
        ("image".into(), format!("{}{kind}", metadata.directory())),
        ("os image hash".into(), image.manifest.hash.to_string()),
        ("platform".into(), platform(predicted.platform).into()),
        ("shape".into(), format!("{} vCPUs, {} MiB", args.vcpus, args.memory >> 20)),
    ];
    rows.extend(REGISTERS.map(|register| {
        let value = predicted.register(register).map(hex);
        (register.to_string(), value.unwrap_or_else(|| "not predicted without QEMU's ACPI tables".into()))
    }));
    let rows = rows.into_iter().map(|(name, value)| vec![name.into(), value.into()]);
    let mut text = ui.table(&[], rows.collect());
    if args.events {
        let rows = predicted.entries.iter().map(|e| {
            let kind = format!("{:#x}", e.event_type);
            vec![
                e.register.to_string().into(),
                kind.into(),
                e.name.clone().into(),
                hex(e.digest).into(),
                e.source.clone().into(),
            ]
        });
        text.push('\n');
        text.push_str(&ui.table(&["REGISTER", "TYPE", "EVENT", "DIGEST", "SOURCE"], rows.collect()));
    }
    text
}

const fn platform(platform: Platform) -> &'static str {
    match platform {
        Platform::Tdx => "tdx",
        Platform::Simulated => "simulated: such registers protect nothing",
    }
}

fn as_json(image: &Image, predicted: &Prediction, args: &Measure) -> Value {
    let metadata = &image.manifest.metadata;
    let mut value = json!({
        "image": metadata.directory(), "os_image_hash": image.manifest.hash.to_string(),
        "is_dev": metadata.is_dev, "platform": predicted.platform, "shape": args.shape(),
    });
    let registers = REGISTERS.map(|r| (r.to_string().to_lowercase(), json!(predicted.register(r).map(hex))));
    if let Some(object) = value.as_object_mut() {
        object.extend(registers);
        if args.events {
            object.insert("events".into(), json!(predicted.entries));
        }
    }
    value
}

/// An entry of a policy, as `dstack_ra_tls::policy` reads it.
fn policy(image: &Image, predicted: &Prediction, shape: Shape) -> Result<String, Failure> {
    let metadata = &image.manifest.metadata;
    let rtmr0 = predicted.rtmr0.ok_or_else(|| {
        Failure::new("RTMR0 is not predicted, and a policy compares all four registers")
            .hint("give --acpi or --ccel, taken on the same QEMU with the same shape")
    })?;
    let (name, hash, is_dev) = (metadata.directory(), &image.manifest.hash, metadata.is_dev);
    let head = format!(
        "# {name}, {} vCPUs, {} MiB, {}",
        shape.vcpus,
        shape.memory >> 20,
        platform(predicted.platform)
    );
    Ok(format!(
        "{head}\n[[images]]\nos_image_hash = \"{hash}\"\nis_dev = {is_dev}\nmr_td = \"{}\"\nrtmr0 = [\"{}\"]\n\
         rtmr1 = \"{}\"\nrtmr2 = \"{}\"\n",
        hex(predicted.mrtd),
        hex(rtmr0),
        hex(predicted.rtmr1),
        hex(predicted.rtmr2)
    ))
}

/// A digest as hex digits.
pub fn hex(digest: Digest) -> String {
    hex::encode(digest)
}
