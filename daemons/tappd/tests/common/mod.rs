// SPDX-License-Identifier: Apache-2.0
//! Real journal files for tests, written by systemd-journal-remote from the journal's export format.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    dead_code,
    missing_docs,
    missing_debug_implementations,
    unreachable_pub
)]

pub mod program;
pub mod real_kms;
pub mod world;

use std::io::Write;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

const WRITER: &str = "/lib/systemd/systemd-journal-remote";
/// Docker splits lines here.
const PIECE: usize = 16 * 1024;

/// A journal that grows while it is read.
pub struct Journal {
    pub directory: tempfile::TempDir,
    child: Child,
    input: Option<ChildStdin>,
    /// Microseconds since 1970 of the next record.
    pub clock: u64,
    pieces: u64,
}

impl Journal {
    /// `None`, said aloud, where the writer is not installed.
    pub fn create() -> Option<Self> {
        if !Path::new(WRITER).exists() {
            eprintln!("SKIP: {WRITER} is missing (package systemd-journal-remote)");
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let mut child = Command::new(WRITER)
            .arg("-o")
            .arg(directory.path().join("test.journal"))
            .arg("-")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let input = child.stdin.take();
        Some(Self { directory, child, input, clock: 1_700_000_000_000_000, pieces: 0 })
    }

    /// Writes one record with these fields.
    pub fn record(&mut self, fields: &[(&str, &[u8])]) {
        self.clock += 1_000_000;
        let mut text = format!(
            "__REALTIME_TIMESTAMP={0}\n__MONOTONIC_TIMESTAMP={0}\n_BOOT_ID=0123456789abcdef0123456789abcdef\n",
            self.clock
        )
        .into_bytes();
        for (name, value) in fields {
            text.extend_from_slice(name.as_bytes());
            text.push(b'\n');
            text.extend_from_slice(&(value.len() as u64).to_le_bytes());
            text.extend_from_slice(value);
            text.push(b'\n');
        }
        text.push(b'\n');
        self.input.as_mut().unwrap().write_all(&text).unwrap();
    }

    /// Writes a line as Docker's journald driver does: in pieces of 16 KiB.
    pub fn line(&mut self, container: &str, priority: &str, line: &[u8]) {
        let parts: Vec<&[u8]> = if line.is_empty() { vec![line] } else { line.chunks(PIECE).collect() };
        self.pieces += 1;
        let id = self.pieces.to_string();
        for (at, part) in parts.iter().enumerate() {
            let mut fields: Vec<(&str, &[u8])> = vec![
                ("MESSAGE", part),
                ("PRIORITY", priority.as_bytes()),
                ("CONTAINER_NAME", container.as_bytes()),
                ("CONTAINER_ID", b"0123456789ab"),
            ];
            let last = at + 1 == parts.len();
            if parts.len() > 1 {
                fields.push(("CONTAINER_PARTIAL_ID", id.as_bytes()));
                fields.push(("CONTAINER_PARTIAL_LAST", if last { b"true" } else { b"false" }));
            }
            if !last {
                fields.push(("CONTAINER_PARTIAL_MESSAGE", b"true"));
            }
            self.record(&fields);
        }
    }

    /// Ends the writer, so that everything is in the file.
    pub fn close(&mut self) {
        drop(self.input.take());
        self.child.wait().unwrap();
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        drop(self.input.take());
        let _ = self.child.wait();
    }
}

/// Processor time that this process has used.
pub fn cpu_time() -> Duration {
    let usage = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = usage.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}

/// Asks until it is so, at most ten seconds.
pub async fn eventually(mut so: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !so().await {
        assert!(Instant::now() < end, "not within ten seconds");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
