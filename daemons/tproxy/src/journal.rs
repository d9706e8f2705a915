// SPDX-License-Identifier: Apache-2.0
//! The registered instances on disk: a file of lines, each on the disk before its lease is answered.
//!
//! ```text
//! {"format":"dstack-tproxy-instances","version":1}
//! {"put":{"instance_id":"…","app_id":"…","public_key":"…","address":"10.0.0.2","registered":1700000000,…}}
//! {"del":"<instance id>"}
//! ```
//!
//! Lines are appended, and all that wait are written by one sync. Once the file holds more than twice as many lines as
//! needed it is replaced by a fresh one. What a kill leaves of an unfinished last line was never answered and is cut off;
//! any other damage stops the service, and the file is left as it is. After a failed write nothing is answered until the
//! whole file could be replaced.

use crate::registry::Instance;
use dstack_core::ids::InstanceId;
use dstack_service::state::{self, StateError};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use tokio::sync::oneshot;

/// Name of the file in the state directory.
pub const FILE: &str = "instances.jsonl";
/// Longest line, bytes.
pub const LINE_MAX: usize = 4096;
/// Most lines, so that a damaged file does not fill the memory.
pub const LINES_MAX: usize = 1_000_000;
/// Lines beyond twice the needed ones before the file is replaced.
const SLACK: usize = 1024;
const FORMAT: &str = "dstack-tproxy-instances";
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Head {
    format: String,
    version: u32,
}

/// A line after the first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Line {
    /// An instance is registered so from now on.
    Put(Instance),
    /// It is not registered any more.
    Del(InstanceId),
}

/// Why an instance is not on the disk.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct WriteError(String);

/// Reads a file's content: its instances, the number of its lines, and how many bytes of it are finished lines.
///
/// # Errors
/// The number of the first line that is damaged, and why.
pub fn parse(bytes: impl Read) -> io::Result<Result<Content, Damage>> {
    let mut content = Content::default();
    let mut reader = BufReader::new(bytes);
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = reader.by_ref().take(LINE_MAX as u64 + 1).read_until(b'\n', &mut line)?;
        if read == 0 || (line.last() != Some(&b'\n') && line.len() <= LINE_MAX) {
            return Ok(Ok(content));
        }
        if let Err(reason) = content.take(&line) {
            return Ok(Err(Damage { line: content.lines + 1, reason }));
        }
        content.lines += 1;
        content.finished += read as u64;
    }
}

/// What a file holds.
#[derive(Debug, Default)]
pub struct Content {
    /// Instances by their ids.
    pub instances: HashMap<InstanceId, Instance>,
    /// Finished lines, with the first.
    pub lines: usize,
    /// Their bytes.
    pub finished: u64,
}

/// What is wrong with a file.
#[derive(Debug, PartialEq, Eq)]
pub struct Damage {
    /// Number of the line, from 1.
    pub line: usize,
    /// Why.
    pub reason: String,
}

impl Content {
    fn take(&mut self, line: &[u8]) -> Result<(), String> {
        if line.len() > LINE_MAX {
            return Err(format!("longer than {LINE_MAX} bytes"));
        }
        if self.lines == 0 {
            let head: Head = serde_json::from_slice(line).map_err(|e| e.to_string())?;
            return match head {
                Head { format, version: VERSION } if format == FORMAT => Ok(()),
                Head { version, .. } => {
                    Err(format!("version {version} is not known; install the newer package again"))
                }
            };
        }
        if self.lines > LINES_MAX {
            return Err(format!("more than {LINES_MAX} lines"));
        }
        match serde_json::from_slice(line).map_err(|e| e.to_string())? {
            Line::Put(instance) => drop(self.instances.insert(instance.instance_id, instance)),
            Line::Del(id) => drop(self.instances.remove(&id)),
        }
        Ok(())
    }
}

/// A wish to the writer.
struct Wish {
    what: What,
    done: oneshot::Sender<Result<(), WriteError>>,
}

enum What {
    Append(Vec<u8>),
    /// The whole content.
    Replace(Vec<u8>),
}

/// Waits until a wish is on the disk.
#[derive(Debug)]
pub struct Written(oneshot::Receiver<Result<(), WriteError>>);

impl Written {
    /// Waits for the sync.
    ///
    /// # Errors
    /// [`WriteError`] says why nothing may be answered.
    pub async fn done(self) -> Result<(), WriteError> {
        self.0.await.unwrap_or_else(|_| Err(WriteError("the writer of the instances has ended".to_owned())))
    }
}

/// The open file.
#[derive(Debug)]
pub struct Journal {
    wishes: mpsc::Sender<Wish>,
    lines: AtomicUsize,
    failed: Arc<AtomicBool>,
}

impl std::fmt::Debug for Wish {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Wish")
    }
}

impl Journal {
    /// Opens the file in a state directory, or begins one.
    ///
    /// # Errors
    /// [`StateError`] when it cannot be read or is damaged.
    pub fn open(directory: &Path) -> Result<(Self, Vec<Instance>), StateError> {
        let path = directory.join(FILE);
        let failed = |error| StateError::Io { path: path.clone(), error };
        if !path.try_exists().map_err(failed)? {
            state::replace(&path, &content(std::iter::empty()).0, 0o600)?;
        }
        let file = OpenOptions::new().read(true).append(true).open(&path).map_err(failed)?;
        let found = parse(&file).map_err(failed)?.map_err(|damage| StateError::Damaged {
            path: path.clone(),
            reason: format!("line {}: {}", damage.line, damage.reason),
        })?;
        if found.lines == 0 {
            return Err(StateError::Damaged { path, reason: "it has no first line".to_owned() });
        }
        file.set_len(found.finished).and_then(|()| file.sync_data()).map_err(failed)?;
        let failed = Arc::new(AtomicBool::new(false));
        let wishes = start(Writer { path, file, failed: Arc::clone(&failed) });
        let this = Self { wishes, lines: AtomicUsize::new(found.lines), failed };
        Ok((this, found.instances.into_values().collect()))
    }

    /// Wishes lines onto the disk. Wishes are carried out in the order of these calls, so call it under the lock of what
    /// the lines describe; `all` gives the instances of that moment, which includes what the lines say.
    pub fn write<'a>(&self, lines: &[Line], all: impl Iterator<Item = &'a Instance>, live: usize) -> Written {
        let count = self.lines.fetch_add(lines.len(), Ordering::Relaxed) + lines.len();
        let what = if self.failed.load(Ordering::Acquire) || count > 2 * live + SLACK {
            let (bytes, lines) = content(all);
            self.lines.store(lines, Ordering::Relaxed);
            What::Replace(bytes)
        } else {
            What::Append(lines.iter().flat_map(encode).collect())
        };
        let (done, written) = oneshot::channel();
        // When the writer has ended, `done` is dropped, and `Written` says so.
        drop(self.wishes.send(Wish { what, done }));
        Written(written)
    }
}

fn encode(line: &Line) -> Vec<u8> {
    // These types always have a JSON form.
    let mut bytes = serde_json::to_vec(line).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

/// A whole file, and the number of its lines.
fn content<'a>(all: impl Iterator<Item = &'a Instance>) -> (Vec<u8>, usize) {
    let head = Head { format: FORMAT.to_owned(), version: VERSION };
    let mut bytes = serde_json::to_vec(&head).unwrap_or_default();
    bytes.push(b'\n');
    let mut lines = 1;
    for instance in all {
        bytes.extend(encode(&Line::Put(instance.clone())));
        lines += 1;
    }
    (bytes, lines)
}

/// Writes what is waiting by one sync, in a thread of its own: a sync blocks.
struct Writer {
    path: PathBuf,
    file: File,
    failed: Arc<AtomicBool>,
}

fn start(mut writer: Writer) -> mpsc::Sender<Wish> {
    let (wishes, waiting) = mpsc::channel::<Wish>();
    std::thread::spawn(move || {
        while let Ok(first) = waiting.recv() {
            let batch: Vec<Wish> = std::iter::once(first).chain(waiting.try_iter()).collect();
            let result = writer.carry_out(&batch);
            // Whoever wished may be gone.
            batch.into_iter().for_each(|wish| drop(wish.done.send(result.clone())));
        }
    });
    wishes
}

impl Writer {
    fn carry_out(&mut self, batch: &[Wish]) -> Result<(), WriteError> {
        // The last whole content includes everything that was wished before it.
        let whole = batch.iter().rposition(|wish| matches!(wish.what, What::Replace(_)));
        if whole.is_none() && self.failed.load(Ordering::Acquire) {
            return Err(WriteError("the instances could not be written before; try again".to_owned()));
        }
        let result = self.write(batch.get(whole.unwrap_or(0)..).unwrap_or_default());
        self.failed.store(result.is_err(), Ordering::Release);
        result.map_err(|error| {
            let path = self.path.display();
            tracing::error!("{path}: {error}; nobody can register until it can be written");
            WriteError(format!("the registration cannot be stored: {error}"))
        })
    }

    fn write(&mut self, batch: &[Wish]) -> Result<(), StateError> {
        let failed = |error| StateError::Io { path: self.path.clone(), error };
        let mut appended = Vec::new();
        for wish in batch {
            match &wish.what {
                What::Append(bytes) => appended.extend_from_slice(bytes),
                What::Replace(bytes) => {
                    state::replace(&self.path, bytes, 0o600)?;
                    self.file = OpenOptions::new().append(true).open(&self.path).map_err(failed)?;
                }
            }
        }
        if appended.is_empty() {
            return Ok(());
        }
        self.file.write_all(&appended).and_then(|()| self.file.sync_data()).map_err(failed)
    }
}

#[cfg(test)]
#[path = "journal_tests.rs"]
mod tests;
