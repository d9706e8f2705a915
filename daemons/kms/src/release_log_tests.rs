// SPDX-License-Identifier: Apache-2.0
//! The chain, over kills and damage.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use super::*;

const NOW: u64 = 1_800_000_000;

fn event(app: u8, kind: Kind) -> Event {
    Event {
        time: NOW,
        kind,
        app: Some(AppId::from([app; 20])),
        instance: None,
        compose_hash: Some(ComposeHash::from([2; 32])),
        verdict: "root=intel".into(),
        reason: String::new(),
    }
}

fn open(dir: &tempfile::TempDir) -> ReleaseLog {
    ReleaseLog::open(dir.path(), NOW).unwrap()
}

/// The chain as an owner checks it from the text alone.
fn verify(text: &str) -> [u8; 32] {
    let mut last = [0; 32];
    for line in text.lines() {
        let entry: Entry = serde_json::from_str(line).unwrap();
        assert_eq!(entry.prev, hex::encode(last));
        last = line_hash(line.as_bytes());
    }
    last
}

#[tokio::test]
async fn t23_lines_form_a_chain_that_survives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..3 {
        let log = open(&dir);
        assert_eq!((log.head().seq, log.repaired()), (round * 2, None));
        log.record(event(1, Kind::Released)).await.unwrap();
        log.record(event(2, Kind::Denied)).await.unwrap();
        let text = std::fs::read_to_string(dir.path().join("releases.log")).unwrap();
        assert_eq!(verify(&text), log.head().hash);
    }
    let log = open(&dir);
    let (lines, more) = log.of_app(&AppId::from([2; 20]), 2, 1).unwrap();
    let entry: Entry = serde_json::from_str(&lines[0]).unwrap();
    assert_eq!((entry.seq, entry.event.kind, lines.len(), more), (4, Kind::Denied, 1, true));
    assert_eq!(log.of_app(&AppId::from([2; 20]), 6, 0).unwrap(), (Vec::new(), false));
    assert_eq!(log.of_app(&AppId::from([9; 20]), 0, 0).unwrap(), (Vec::new(), false));
}

#[tokio::test]
async fn t23_concurrent_events_are_one_chain() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(&dir);
    let tasks: Vec<_> = (0..200)
        .map(|n| {
            let log = log.clone();
            tokio::spawn(async move { log.record(event(n % 3, Kind::Released)).await.unwrap().seq })
        })
        .collect();
    let mut seqs = Vec::new();
    for task in tasks {
        seqs.push(task.await.unwrap());
    }
    seqs.sort_unstable();
    assert_eq!(seqs, (1..=200).collect::<Vec<u64>>());
    verify(&std::fs::read_to_string(dir.path().join("releases.log")).unwrap());
    assert_eq!(log.of_app(&AppId::from([0; 20]), 0, 0).unwrap().0.len(), 67);
}

#[tokio::test]
async fn t23_an_unfinished_line_is_set_aside_and_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("releases.log");
    let log = open(&dir);
    log.record(event(1, Kind::Released)).await.unwrap();
    log.record(event(1, Kind::Released)).await.unwrap();
    drop(log);
    let whole = std::fs::read(&path).unwrap();
    let second = whole.iter().position(|b| *b == b'\n').unwrap() + 1;
    for cut in second + 1..whole.len() {
        std::fs::write(&path, &whole[..cut]).unwrap();
        let log = open(&dir);
        let aside = log.repaired().unwrap().to_owned();
        assert_eq!(std::fs::read(&aside).unwrap(), &whole[second..cut]);
        let text = std::fs::read_to_string(&path).unwrap();
        let last: Entry = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        assert_eq!((last.seq, last.event.kind), (2, Kind::Repaired));
        assert_eq!(last.event.reason, hex::encode(Sha256::digest(&whole[second..cut])));
        assert_eq!(verify(&text), log.head().hash);
        drop(log);
        assert_eq!(open(&dir).repaired(), None, "once");
    }
}

#[tokio::test]
async fn t23_a_changed_or_removed_line_stops_the_service() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("releases.log");
    let log = open(&dir);
    for app in 1..4 {
        log.record(event(app, Kind::Released)).await.unwrap();
    }
    drop(log);
    let text = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let changed = text.replacen("root=intel", "root=other", 1);
    let garbage = format!("{}x\n{}", lines[0], lines[1]);
    let endless = format!("{}{}", lines[0], "x".repeat(LINE_MAX + 1));
    for bad in [changed, [lines[0], lines[2]].concat(), [lines[1], lines[0]].concat(), garbage, endless] {
        std::fs::write(&path, &bad).unwrap();
        assert!(matches!(ReleaseLog::open(dir.path(), NOW), Err(LogError::Damaged { .. })), "{bad}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), bad, "left as it is");
    }
}

#[tokio::test]
async fn long_reasons_are_cut() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(&dir);
    let entry = log.record(Event { reason: "x".repeat(100_000), ..event(1, Kind::Denied) }).await.unwrap();
    assert_eq!(entry.event.reason.len(), REASON_MAX);
}

/// A file that takes no writes is the nearest thing to a broken disk.
#[tokio::test]
async fn t23_what_is_not_on_the_disk_was_not_released() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(&dir);
    log.record(event(1, Kind::Released)).await.unwrap();
    let read_only = Arc::new(File::open(dir.path().join("releases.log")).unwrap());
    let writer = Writer { path: "log".into(), file: read_only, index: Arc::clone(&log.index) };
    let (jobs, queue) = mpsc::channel(1);
    let thread = std::thread::spawn(move || writer.run(queue));
    let broken = ReleaseLog { jobs, ..log.clone() };
    assert!(matches!(broken.record(event(1, Kind::Released)).await, Err(LogError::Io(..))));
    thread.join().unwrap();
    assert_eq!(broken.record(event(1, Kind::Released)).await, Err(LogError::Closed));
    assert_eq!(log.head().seq, 1);
}
