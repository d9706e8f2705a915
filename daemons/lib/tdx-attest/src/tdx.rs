// SPDX-License-Identifier: Apache-2.0
//! Intel TDX: quotes by configfs-tsm, registers by the measurement files of Linux 6.16.
//!
//! A report entry is a directory under the report directory: write 64 bytes to `inblob`, read the quote from `outblob`.
//! Each write raises `generation` by one, so a value that is not the one before plus one says that somebody else wrote in
//! between. One entry with a fixed name is used and kept, so a killed process leaves nothing behind; the lock file makes
//! us its only user, for the driver does not bear parallel requests.

use crate::platform::{AttestError, Platform, QUOTE_MAX, Registers};
use dstack_core::ccel::{self, CCEL_MAX};
use dstack_core::event_log::{Digest, Event};
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Attempts at one quote.
pub const ATTEMPTS: u32 = 5;
/// Our entry in the report directory.
const ENTRY: &str = "dstack";

/// Where the kernel's files are; other places in tests only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    /// configfs-tsm's report directory.
    pub reports: PathBuf,
    /// The measurement files of the TDX guest driver.
    pub measurements: PathBuf,
    /// The firmware's event log.
    pub ccel: PathBuf,
    /// Lock of our report entry.
    pub lock: PathBuf,
}

impl Paths {
    /// The paths under a root directory, `/` in production.
    #[must_use]
    pub fn under(root: &Path) -> Self {
        Self {
            reports: root.join("sys/kernel/config/tsm/report"),
            measurements: root.join("sys/devices/virtual/misc/tdx_guest/measurements"),
            ccel: root.join("sys/firmware/acpi/tables/data/CCEL"),
            lock: root.join("run/dstack/private/tsm.lock"),
        }
    }
}

/// A TD.
#[derive(Debug)]
pub struct Tdx {
    paths: Paths,
}

impl Tdx {
    /// A TD whose driver is there.
    ///
    /// # Errors
    /// [`AttestError::NoDriver`] names what is missing.
    pub fn open(paths: Paths) -> Result<Self, AttestError> {
        let rtmr3 = paths.measurements.join("rtmr3:sha384");
        for needed in [&paths.reports, &rtmr3] {
            if !needed.exists() {
                return Err(AttestError::NoDriver(needed.clone()));
            }
        }
        Ok(Self { paths })
    }

    fn register(&self, name: &str) -> Result<Digest, AttestError> {
        let bytes = read(&self.paths.measurements.join(name), 64)?;
        bytes.try_into().map_err(|_| AttestError::Malformed("a register that is not 48 bytes"))
    }

    /// Takes the lock of the report entry; it is free again when the file is dropped, also by a kill.
    fn lock(&self) -> Result<File, AttestError> {
        let path = &self.paths.lock;
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(false).mode(0o600).open(path);
        let file = file.map_err(AttestError::file(path))?;
        file.lock().map_err(AttestError::file(path))?;
        Ok(file)
    }

    /// One attempt; `None` when somebody came between.
    fn attempt(&self, entry: &Path, report_data: &[u8; 64]) -> Result<Option<Vec<u8>>, AttestError> {
        let before = generation(entry)?;
        match write(&entry.join("inblob"), report_data) {
            Err(AttestError::File { error, .. }) if is_transient(&error) => return Ok(None),
            other => other?,
        }
        let quote = match read(&entry.join("outblob"), QUOTE_MAX) {
            Err(AttestError::File { error, .. }) if is_transient(&error) => return Ok(None),
            other => other?,
        };
        let ours = generation(entry)? == before.wrapping_add(1);
        Ok((ours && !quote.is_empty()).then_some(quote))
    }
}

impl Platform for Tdx {
    fn label(&self) -> &'static str {
        "tdx"
    }

    fn quote(&self, report_data: &[u8; 64]) -> Result<Vec<u8>, AttestError> {
        let _lock = self.lock()?;
        let entry = self.paths.reports.join(ENTRY);
        match fs::create_dir(&entry) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                return Err(AttestError::file(&entry)(error));
            }
            _ => {}
        }
        for _ in 0..ATTEMPTS {
            if let Some(quote) = self.attempt(&entry, report_data)? {
                return Ok(quote);
            }
        }
        Err(AttestError::Contended(ATTEMPTS))
    }

    fn extend(&self, digest: &Digest) -> Result<(), AttestError> {
        write(&self.paths.measurements.join("rtmr3:sha384"), digest)
    }

    fn registers(&self) -> Result<Registers, AttestError> {
        Ok(Registers {
            mrtd: self.register("mrtd:sha384")?,
            rtmr0: self.register("rtmr0:sha384")?,
            rtmr1: self.register("rtmr1:sha384")?,
            rtmr2: self.register("rtmr2:sha384")?,
            rtmr3: self.register("rtmr3:sha384")?,
            mr_config_id: self.register("mrconfigid")?,
        })
    }

    fn firmware_events(&self) -> Result<Vec<Event>, AttestError> {
        if !self.paths.ccel.exists() {
            return Ok(Vec::new());
        }
        let mut events = ccel::parse(&read(&self.paths.ccel, CCEL_MAX)?)?;
        events.iter_mut().for_each(|event| event.event_payload.clear());
        Ok(events)
    }
}

/// Whether the same request may succeed a moment later.
fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::ResourceBusy | ErrorKind::Interrupted)
}

fn generation(entry: &Path) -> Result<u64, AttestError> {
    let text = read(&entry.join("generation"), 32)?;
    let number = std::str::from_utf8(&text).ok().and_then(|t| t.trim().parse().ok());
    number.ok_or(AttestError::Malformed("a generation that is no number"))
}

/// Reads a whole file of at most `max` bytes.
fn read(path: &Path, max: usize) -> Result<Vec<u8>, AttestError> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(AttestError::file(path))?;
    file.take(max as u64 + 1).read_to_end(&mut bytes).map_err(AttestError::file(path))?;
    if bytes.len() > max { Err(AttestError::Malformed("more than its limit")) } else { Ok(bytes) }
}

/// One write, as attributes of the kernel want it.
fn write(path: &Path, bytes: &[u8]) -> Result<(), AttestError> {
    let mut file = OpenOptions::new().write(true).open(path).map_err(AttestError::file(path))?;
    match file.write(bytes) {
        Ok(written) if written == bytes.len() => Ok(()),
        Ok(_) => Err(AttestError::Malformed("a short write")),
        Err(error) => Err(AttestError::file(path)(error)),
    }
}

#[cfg(test)]
#[path = "tdx_tests.rs"]
mod tests;
