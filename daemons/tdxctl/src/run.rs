// SPDX-License-Identifier: Apache-2.0
//! What each sub-command does.

use crate::args::Command;
use crate::certificates::{self, Kind};
use crate::report;
use dstack_core::event_log::{self, Event, Milestone, Trusted};
use dstack_core::quote_sim_wire::Registers;
use dstack_tdx_attest::{AttestError, Attested, EventLog, LogError, Platform, log};
use serde::Serialize;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use zeroize::Zeroizing;

/// Largest input of `hex`, bytes.
pub const HEX_MAX: u64 = 64 * 1024 * 1024;
/// Attempts at a quote and log that belong together.
const ATTEMPTS: u32 = 5;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CtlError {
    /// The TEE failed.
    #[error(transparent)]
    Attest(#[from] AttestError),
    /// The event log cannot be used.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The input is not report data.
    #[error("standard input must be exactly 64 bytes of report data; hash longer data by sha512")]
    ReportData,
    /// A payload that is not hexadecimal.
    #[error("the payload is not hexadecimal: {0}")]
    Payload(#[from] hex::FromHexError),
    /// A file cannot be read or written.
    #[error("{}: {error}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Standard input or output broke.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Over [`HEX_MAX`].
    #[error("more than {HEX_MAX} bytes")]
    TooLarge,
    /// No certificate could be made.
    #[error("the certificate cannot be made: {0}")]
    Certificate(#[from] rcgen::Error),
    /// The kernel gave no randomness.
    #[error("no randomness: {0}")]
    Random(#[from] getrandom::Error),
    /// What is shown has no JSON form.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
}

impl CtlError {
    pub(crate) fn file(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |error| Self::File { path, error }
    }
}

/// Where a command finds its TEE and log.
pub struct World<'a> {
    /// Opens the TEE; called by the commands that need one.
    pub platform: &'a dyn Fn() -> Result<Arc<dyn Platform>, AttestError>,
    /// Directory of the event log.
    pub log: &'a Path,
}

impl std::fmt::Debug for World<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "World({})", self.log.display())
    }
}

impl World<'_> {
    /// A quote with the log that belongs to it, as one who does not own the log. The log's owner may add an event in
    /// between; the register never has an old value again, so one comparison afterwards tells.
    fn attest(&self, report_data: &[u8; 64]) -> Result<Attested, CtlError> {
        let platform = (self.platform)()?;
        for _ in 0..ATTEMPTS {
            let events = log::peek(self.log)?;
            let [.., replayed] = event_log::replay(&events).map_err(LogError::from)?;
            let quote = platform.quote(report_data)?;
            if platform.registers()?.rtmr3 == replayed {
                let whole = [platform.firmware_events()?, events].concat();
                return Ok(Attested { quote, event_log: serde_json::to_vec(&whole)? });
            }
        }
        Err(LogError::Poisoned.into())
    }
}

/// Does what a command says.
///
/// # Errors
/// [`CtlError`] in a sentence for people.
pub fn run(
    command: &Command,
    world: &World<'_>,
    input: &mut dyn Read,
    output: &mut dyn Write,
) -> Result<(), CtlError> {
    match command {
        Command::Report => {
            let registers = (world.platform)()?.registers()?;
            output.write_all(&report::compose(&report_data(input)?, &registers))?;
        }
        Command::Quote => output.write_all(&(world.platform)()?.quote(&report_data(input)?)?)?,
        Command::Extend { event, payload, .. } => extend(world, event, &hex::decode(payload)?, output)?,
        Command::Show => show(world, output)?,
        Command::Hex { file: None } => hex_of(input, output)?,
        Command::Hex { file: Some(path) } => {
            hex_of(&mut File::open(path).map_err(CtlError::file(path))?, output)?;
        }
        Command::GenRaCert { cert_path, key_path } => {
            certificates::generate(Kind::Client, cert_path, key_path, |data| world.attest(data))?;
        }
        Command::GenCaCert { cert, key, ca_level } => {
            certificates::generate(Kind::Ca(*ca_level), cert, key, |data| world.attest(data))?;
        }
        Command::Rand { bytes, hex, output: file } => random(*bytes, *hex, file.as_deref(), output)?,
    }
    Ok(output.flush()?)
}

fn report_data(input: &mut dyn Read) -> Result<[u8; 64], CtlError> {
    let mut bytes = Vec::new();
    input.take(65).read_to_end(&mut bytes)?;
    bytes.try_into().map_err(|_| CtlError::ReportData)
}

fn extend(world: &World<'_>, event: &str, payload: &[u8], output: &mut dyn Write) -> Result<(), CtlError> {
    let mut log = EventLog::open(world.log, (world.platform)()?)?;
    log.append(event, payload)?;
    let digest = log.events().last().map(|event| hex::encode(event.digest)).unwrap_or_default();
    writeln!(output, "extended RTMR3 by {digest}")?;
    Ok(())
}

/// What `show` prints.
#[derive(Debug, Serialize)]
struct Shown<'a> {
    platform: &'a str,
    #[serde(flatten)]
    registers: Registers,
    app_id: String,
    compose_hash: String,
    instance_id: String,
    ready: bool,
    /// Whether the log gives RTMR3.
    consistent: bool,
    events: &'a [Event],
}

fn show(world: &World<'_>, output: &mut dyn Write) -> Result<(), CtlError> {
    let platform = (world.platform)()?;
    let events = log::peek(world.log)?;
    let registers = platform.registers()?;
    let trusted = Trusted::of(&events).ok();
    let trusted = trusted.as_ref();
    let instance = trusted.and_then(|t| t.instance_id);
    let shown = Shown {
        platform: platform.label(),
        registers,
        app_id: trusted.map(|t| t.app_id.to_string()).unwrap_or_default(),
        compose_hash: trusted.map(|t| t.compose_hash.to_string()).unwrap_or_default(),
        instance_id: instance.map(|i| i.to_string()).unwrap_or_default(),
        ready: trusted.is_some_and(|t| t.milestone == Milestone::Ready),
        consistent: event_log::replay(&events).is_ok_and(|[.., rtmr3]| rtmr3 == registers.rtmr3),
        events: &events,
    };
    serde_json::to_writer_pretty(&mut *output, &shown)?;
    writeln!(output)?;
    Ok(())
}

fn hex_of(input: &mut dyn Read, output: &mut dyn Write) -> Result<(), CtlError> {
    let mut left = HEX_MAX;
    let mut chunk = [0; 8192];
    loop {
        let read = input.read(&mut chunk)?;
        left = left.checked_sub(read as u64).ok_or(CtlError::TooLarge)?;
        if read == 0 {
            return Ok(writeln!(output)?);
        }
        output.write_all(hex::encode(chunk.get(..read).unwrap_or_default()).as_bytes())?;
    }
}

fn random(count: u32, as_hex: bool, file: Option<&Path>, output: &mut dyn Write) -> Result<(), CtlError> {
    let mut bytes = Zeroizing::new(vec![0; usize::try_from(count).unwrap_or_default()]);
    getrandom::fill(&mut bytes)?;
    if as_hex {
        bytes = Zeroizing::new(hex::encode(&*bytes).into_bytes());
    }
    match file {
        Some(path) => write_private(path, &bytes),
        None => Ok(output.write_all(&bytes)?),
    }
}

/// Writes a secret: mode 0600, also when the file was there with another.
pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> Result<(), CtlError> {
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).truncate(true).mode(0o600).open(path);
    let written = file.and_then(|mut file| {
        file.set_permissions(PermissionsExt::from_mode(0o600))?;
        file.write_all(bytes)
    });
    written.map_err(CtlError::file(path))
}
