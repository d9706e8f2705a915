// SPDX-License-Identifier: Apache-2.0
//! Logs from real journal files.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod common;

use common::{Journal, cpu_time, eventually};
use dstack_tappd::logs::{LogError, Logs, Place, Query};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::Receiver;

async fn open(logs: &Logs, name: &str, raw: &str) -> Result<Receiver<Vec<u8>>, LogError> {
    logs.open(name, Query::parse(raw, 0).unwrap(), async { Vec::new() }).await
}

async fn read(logs: &Logs, name: &str, raw: &str) -> Vec<u8> {
    let mut chunks = open(logs, name, raw).await.unwrap();
    let mut all = Vec::new();
    while let Some(chunk) = chunks.recv().await {
        all.extend(chunk);
    }
    all
}

fn start(journal: &Journal) -> Logs {
    Logs::start(Place::Directory(journal.directory.path().into())).unwrap()
}

#[tokio::test]
async fn long_multibyte_and_many_lines_arrive_unchanged() {
    let Some(mut journal) = Journal::create() else { return };
    // 100 KB of three-byte characters: pieces of 16 KiB end inside one.
    let long = "€".repeat(100 * 1024 / 3);
    journal.line("app-web-1", "6", "grüße 日本".as_bytes());
    journal.line("app-web-1", "3", long.as_bytes());
    journal.line("other", "6", b"not this");
    for n in 0..10_000 {
        journal.line("app-web-1", "6", format!("line {n}").as_bytes());
    }
    journal.close();
    let logs = start(&journal);
    let text = String::from_utf8(read(&logs, "web", "text&bare&tail=all").await).unwrap();
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("grüße 日本"));
    assert!(lines.next() == Some(long.as_str()), "the long line differs");
    assert!(lines.by_ref().enumerate().all(|(n, line)| line == format!("line {n}")));
    assert_eq!(text.lines().count(), 10_002);
    let json = String::from_utf8(read(&logs, "/app-web-1", "text&tail=1&timestamps").await).unwrap();
    assert!(json.starts_with(r#"{"channel":"stdout","message":"2023-11-15T"#), "{json}");
    assert!(json.ends_with("Z line 9999\\n\"}\n"), "{json}");
    assert_eq!(read(&logs, "web", "text&bare").await.split(|b| *b == b'\n').count(), 1001);
    assert!(!read(&logs, "0123456789ab", "text&bare&tail=5").await.is_empty());
    let stderr = String::from_utf8(read(&logs, "web", "text&tail=all").await).unwrap();
    assert_eq!(stderr.matches("\"channel\":\"stderr\"").count(), 1);
}

#[tokio::test]
async fn unknown_names_and_containers_without_lines() {
    let Some(mut journal) = Journal::create() else { return };
    journal.line("app-web-1", "6", b"x");
    journal.close();
    let logs = start(&journal);
    assert!(matches!(open(&logs, "nothing", "").await, Err(LogError::Name(_))));
    assert!(matches!(open(&logs, "a/b", "").await, Err(LogError::Name(_))));
    let quiet = logs.open("quiet", Query::default(), async { vec!["app-quiet-1".to_owned()] }).await;
    assert_eq!(quiet.unwrap().recv().await, None);
}

#[tokio::test]
async fn following_is_prompt_and_idle_is_free() {
    let Some(mut journal) = Journal::create() else { return };
    journal.line("c", "6", b"first");
    let logs = start(&journal);
    eventually(async || open(&logs, "c", "").await.is_ok()).await;
    let mut chunks = open(&logs, "c", "text&bare&follow&tail=0").await.unwrap();
    let mut all = open(&logs, "c", "text&bare&follow").await.unwrap();
    assert_eq!(all.recv().await.unwrap(), b"first\n");
    // Nothing is written, so nothing may run.
    let before = cpu_time();
    assert!(tokio::time::timeout(Duration::from_millis(1500), chunks.recv()).await.is_err());
    assert!(cpu_time() - before <= Duration::from_millis(20));
    for n in 0..3 {
        let line = format!("new {n}");
        let written = Instant::now();
        journal.line("c", "6", line.as_bytes());
        assert_eq!(chunks.recv().await.unwrap(), format!("{line}\n").as_bytes());
        assert!(written.elapsed() < Duration::from_secs(1));
    }
}

#[tokio::test]
async fn readers_are_bounded_and_end_with_their_client() {
    let Some(mut journal) = Journal::create() else { return };
    journal.line("c", "6", b"x");
    let logs = start(&journal);
    eventually(async || open(&logs, "c", "").await.is_ok()).await;
    let mut held = Vec::new();
    let refused = loop {
        match open(&logs, "c", "follow").await {
            Ok(chunks) => held.push(chunks),
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, LogError::Busy));
    assert!(held.len() >= dstack_tappd::logs::engine::READERS_MAX - 2);
    held.clear();
    eventually(async || open(&logs, "c", "follow").await.is_ok()).await;
}

#[tokio::test]
async fn following_ends_at_until() {
    let Some(mut journal) = Journal::create() else { return };
    journal.line("c", "6", b"x");
    let logs = start(&journal);
    eventually(async || open(&logs, "c", "").await.is_ok()).await;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let end = u64::try_from((now + Duration::from_millis(300)).as_nanos()).unwrap();
    let query = Query { follow: true, until: Some(end), ..Query::default() };
    let mut chunks = logs.open("c", query, async { Vec::new() }).await.unwrap();
    assert!(chunks.recv().await.is_some());
    let ended = tokio::time::timeout(Duration::from_secs(5), chunks.recv()).await.unwrap();
    assert_eq!(ended, None);
}
