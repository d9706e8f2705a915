// SPDX-License-Identifier: Apache-2.0
//! The release log (trust rule T23): one line of JSON for each release and denial, each with the hash of the line before.
//!
//! The hash of a line is `sha256("dstack-release-log-v1" ‖ line)` without its line end; the first line's `prev` is 64
//! zeros. A line is on the disk before its key leaves. What a kill leaves of an unfinished line is set aside in a file of
//! its own, and a line of kind `repaired` says so with its hash; any other damage stops the service.

use dstack_core::ids::{AppId, ComposeHash, InstanceId};
use dstack_service::state;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{mpsc, oneshot};

/// Domain of the hashes.
const DOMAIN: &[u8] = b"dstack-release-log-v1";
/// Longest line, bytes.
pub const LINE_MAX: usize = 8 * 1024;
/// Longest reason, characters.
const REASON_MAX: usize = 512;
/// Most lines that are written by one sync.
const BATCH: usize = 128;
/// Most entries of one answer.
pub const ANSWER_MAX: usize = 1000;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// An app's keys were released.
    Released,
    /// They were asked for and refused.
    Denied,
    /// A certificate was signed.
    Signed,
    /// The root keys went to another key service.
    Onboarded,
    /// A boot goes on with its data disk; `reason` names its epoch (trust rule T13).
    DiskEpoch,
    /// It goes on with an older one, as its app allows.
    DiskOlder,
    /// The operator lets an instance's next boot have any data disk.
    DiskForgotten,
    /// The end of an unfinished line was set aside; `reason` is its SHA-256.
    Repaired,
}

impl Kind {
    /// The word in the log.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Released => "released",
            Self::Denied => "denied",
            Self::Signed => "signed",
            Self::Onboarded => "onboarded",
            Self::DiskEpoch => "disk-epoch",
            Self::DiskOlder => "disk-older",
            Self::DiskForgotten => "disk-forgotten",
            Self::Repaired => "repaired",
        }
    }
}

/// What is recorded, without its place in the chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When, Unix seconds.
    pub time: u64,
    /// What.
    pub kind: Kind,
    /// Of which app.
    pub app: Option<AppId>,
    /// To which instance.
    pub instance: Option<InstanceId>,
    /// With which compose file.
    pub compose_hash: Option<ComposeHash>,
    /// The verdict in short, e.g. `root=intel tcb=UpToDate image=compared upgrades=first`.
    pub verdict: String,
    /// Why it was refused.
    pub reason: String,
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Number, from 1.
    pub seq: u64,
    /// Hash of the line before, hex.
    pub prev: String,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

/// Why the log cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// It cannot be read or written.
    #[error("release log {0}: {1}")]
    Io(String, String),
    /// A line is not what it must be.
    #[error(
        "release log {path}: line {line} is damaged ({reason}); no key is released until it is restored from a backup"
    )]
    Damaged {
        /// The file.
        path: String,
        /// Which line.
        line: u64,
        /// What is wrong.
        reason: &'static str,
    },
    /// The writer has ended after an error.
    #[error("release log is closed after an error; see the journal and restart dstack-kms")]
    Closed,
}

/// Newest line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Its number, 0 when there is none.
    pub seq: u64,
    /// Its hash.
    pub hash: [u8; 32],
}

#[derive(Debug)]
struct Index {
    head: Head,
    end: u64,
    /// Where each app's lines begin.
    lines: HashMap<AppId, Vec<u64>>,
}

/// A line to write, and whom to tell when it is on the disk.
type Job = (Event, oneshot::Sender<Result<Entry, LogError>>);

/// The log.
#[derive(Debug, Clone)]
pub struct ReleaseLog {
    path: Arc<Path>,
    file: Arc<File>,
    index: Arc<Mutex<Index>>,
    jobs: mpsc::Sender<Job>,
    /// What was set aside at the start.
    repaired: Option<Arc<Path>>,
}

/// The hash of a line.
#[must_use]
pub fn line_hash(line: &[u8]) -> [u8; 32] {
    Sha256::new().chain_update(DOMAIN).chain_update(line).finalize().into()
}

impl ReleaseLog {
    /// Opens the log in a directory, checks the whole chain, and sets an unfinished last line aside.
    ///
    /// # Errors
    /// [`LogError`].
    pub fn open(directory: &Path, now: u64) -> Result<Self, LogError> {
        let path = directory.join("releases.log");
        let io = |error: io::Error| LogError::Io(path.display().to_string(), error.to_string());
        let mut options = OpenOptions::new();
        let file = options.create(true).read(true).append(true).mode(0o600).open(&path).map_err(io)?;
        let (mut index, torn) = scan(&path, &file)?;
        let repaired =
            torn.map(|torn| repair(&path, &file, &mut index, &torn, now)).transpose().map_err(io)?;
        state::sync_parent(&path).map_err(io)?;
        let (jobs, queue) = mpsc::channel(BATCH);
        let file = Arc::new(file);
        let index = Arc::new(Mutex::new(index));
        let writer = Writer { path: path.clone(), file: Arc::clone(&file), index: Arc::clone(&index) };
        std::thread::Builder::new()
            .name("release-log".into())
            .spawn(move || writer.run(queue))
            .map_err(|error| LogError::Io(path.display().to_string(), error.to_string()))?;
        Ok(Self { path: path.into(), file, index, jobs, repaired: repaired.map(Into::into) })
    }

    /// Where the end of an unfinished line was set aside at the start.
    #[must_use]
    pub fn repaired(&self) -> Option<&Path> {
        self.repaired.as_deref()
    }

    /// Records an event; it is on the disk when this returns.
    ///
    /// # Errors
    /// [`LogError`]; then nothing may be released.
    pub async fn record(&self, mut event: Event) -> Result<Entry, LogError> {
        event.reason = event.reason.chars().take(REASON_MAX).collect();
        let (told, written) = oneshot::channel();
        self.jobs.send((event, told)).await.map_err(|_| LogError::Closed)?;
        written.await.map_err(|_| LogError::Closed)?
    }

    /// The newest line.
    #[must_use]
    pub fn head(&self) -> Head {
        lock(&self.index).head
    }

    /// Whether there is a line of this app.
    #[must_use]
    pub fn has(&self, app: &AppId) -> bool {
        lock(&self.index).lines.contains_key(app)
    }

    /// The lines of an app with a number above `after`, at most `limit`, and whether there are more.
    ///
    /// # Errors
    /// [`LogError::Io`].
    pub fn of_app(&self, app: &AppId, after: u64, limit: usize) -> Result<(Vec<String>, bool), LogError> {
        let offsets = lock(&self.index).lines.get(app).cloned().unwrap_or_default();
        let limit = if limit == 0 { ANSWER_MAX } else { limit.min(ANSWER_MAX) };
        // Numbers ascend with offsets, so the first wanted one is found by halving.
        let mut failed = None;
        let from = offsets.partition_point(|offset| match self.entry(*offset) {
            Ok((_, entry)) => entry.seq <= after,
            Err(error) => {
                failed = Some(error);
                false
            }
        });
        if let Some(error) = failed {
            return Err(error);
        }
        let wanted = offsets.iter().skip(from);
        let lines = wanted.take(limit).map(|o| self.entry(*o).map(|(line, _)| line));
        Ok((lines.collect::<Result<_, _>>()?, offsets.len() > from.saturating_add(limit)))
    }

    fn entry(&self, offset: u64) -> Result<(String, Entry), LogError> {
        let failed = |reason: &dyn std::fmt::Display| {
            LogError::Io(self.path.display().to_string(), format!("line at byte {offset}: {reason}"))
        };
        let mut buffer = vec![0; LINE_MAX];
        let read = self.file.read_at(&mut buffer, offset).map_err(|e| failed(&e))?;
        let line = buffer.get(..read).and_then(|b| b.split(|c| *c == b'\n').next()).unwrap_or_default();
        let entry = serde_json::from_slice(line).map_err(|e| failed(&e))?;
        Ok((String::from_utf8_lossy(line).into_owned(), entry))
    }
}

fn lock(index: &Mutex<Index>) -> MutexGuard<'_, Index> {
    index.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Checks the chain; gives the index and the bytes of an unfinished last line.
fn scan(path: &Path, file: &File) -> Result<(Index, Option<Vec<u8>>), LogError> {
    let mut index = Index { head: Head { seq: 0, hash: [0; 32] }, end: 0, lines: HashMap::new() };
    let mut reader = BufReader::new(file);
    let mut line = Vec::new();
    loop {
        line.clear();
        let io = |error: io::Error| LogError::Io(path.display().to_string(), error.to_string());
        if reader.by_ref().take(LINE_MAX as u64 + 1).read_until(b'\n', &mut line).map_err(io)? == 0 {
            return Ok((index, None));
        }
        if line.last() != Some(&b'\n') && line.len() <= LINE_MAX {
            return Ok((index, Some(line)));
        }
        line.pop();
        check(&mut index, &line).map_err(|reason| LogError::Damaged {
            path: path.display().to_string(),
            line: index.head.seq + 1,
            reason,
        })?;
    }
}

/// Takes a line into the index when it continues the chain.
fn check(index: &mut Index, line: &[u8]) -> Result<(), &'static str> {
    let entry: Entry = serde_json::from_slice(line).map_err(|_| "not the JSON it should be")?;
    if entry.seq != index.head.seq + 1 {
        return Err("its number does not follow");
    }
    if entry.prev != hex::encode(index.head.hash) {
        return Err("it does not continue the chain");
    }
    take(index, &entry, line);
    Ok(())
}

fn take(index: &mut Index, entry: &Entry, line: &[u8]) {
    if let Some(app) = entry.event.app {
        index.lines.entry(app).or_default().push(index.end);
    }
    index.head = Head { seq: entry.seq, hash: line_hash(line) };
    index.end += line.len() as u64 + 1;
}

/// Sets an unfinished line aside: first a copy, then the cut, then a line that tells.
fn repair(path: &Path, file: &File, index: &mut Index, torn: &[u8], now: u64) -> io::Result<PathBuf> {
    let aside = path.with_file_name(format!("releases.torn-{}", index.head.seq + 1));
    state::replace(&aside, torn, 0o600).map_err(io::Error::other)?;
    file.set_len(index.end)?;
    let event = Event {
        time: now,
        kind: Kind::Repaired,
        app: None,
        instance: None,
        compose_hash: None,
        verdict: String::new(),
        reason: hex::encode(Sha256::digest(torn)),
    };
    let mut lines = Vec::new();
    append(index, event, &mut lines)?;
    write(file, &lines)?;
    Ok(aside)
}

/// Puts an event at the end of the chain and of the bytes to write.
fn append(index: &mut Index, event: Event, lines: &mut Vec<u8>) -> io::Result<Entry> {
    let entry = Entry { seq: index.head.seq + 1, prev: hex::encode(index.head.hash), event };
    let line = serde_json::to_vec(&entry)?;
    if line.len() >= LINE_MAX {
        return Err(io::Error::other("an entry is too long"));
    }
    take(index, &entry, &line);
    lines.extend_from_slice(&line);
    lines.push(b'\n');
    Ok(entry)
}

fn write(mut file: &File, lines: &[u8]) -> io::Result<()> {
    file.write_all(lines)?;
    file.sync_data()
}

/// Writes what is waiting by one sync, in a thread of its own: a sync blocks.
struct Writer {
    path: PathBuf,
    file: Arc<File>,
    index: Arc<Mutex<Index>>,
}

impl Writer {
    fn run(self, mut queue: mpsc::Receiver<Job>) {
        while let Some(job) = queue.blocking_recv() {
            let mut jobs = vec![job];
            while jobs.len() < BATCH {
                let Ok(job) = queue.try_recv() else { break };
                jobs.push(job);
            }
            if let Err(error) = self.batch(jobs) {
                // The end of the file is in doubt now; the next start mends it. Whoever waits is told by the closed
                // channel.
                tracing::error!("{error}");
                return;
            }
        }
    }

    /// Writes and syncs. A full disk is no end, once the part that was written is cut off; a failed sync is one.
    fn put(&self, lines: &[u8], end: u64) -> Result<(), (io::Error, bool)> {
        let mut file = &*self.file;
        if let Err(error) = file.write_all(lines) {
            return Err((error, file.set_len(end).is_err()));
        }
        file.sync_data().map_err(|error| (error, true))
    }

    fn batch(&self, jobs: Vec<Job>) -> Result<(), LogError> {
        // The index that readers see changes only once the lines are on the disk.
        let (head, end) = {
            let index = lock(&self.index);
            (index.head, index.end)
        };
        let mut next = Index { head, end, lines: HashMap::new() };
        let (mut lines, mut done) = (Vec::new(), Vec::new());
        let failed = |error: io::Error| LogError::Io(self.path.display().to_string(), error.to_string());
        for (event, told) in jobs {
            match append(&mut next, event, &mut lines) {
                Ok(entry) => done.push((entry, told)),
                Err(error) => drop(told.send(Err(failed(error)))),
            }
        }
        if let Err((error, fatal)) = self.put(&lines, end) {
            let error = failed(error);
            done.into_iter().for_each(|(_, told)| drop(told.send(Err(error.clone()))));
            return if fatal { Err(error) } else { Ok(()) };
        }
        let mut index = lock(&self.index);
        (index.head, index.end) = (next.head, next.end);
        for (app, offsets) in next.lines {
            index.lines.entry(app).or_default().extend(offsets);
        }
        drop(index);
        done.into_iter().for_each(|(entry, told)| drop(told.send(Ok(entry))));
        Ok(())
    }
}

#[cfg(test)]
#[path = "release_log_tests.rs"]
mod tests;
