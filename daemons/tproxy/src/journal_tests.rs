// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used)]

use super::*;
use crate::registry::Ports;
use std::os::unix::fs::PermissionsExt;

fn instance(n: u32) -> Instance {
    let mut id = [0; 20];
    id[16..].copy_from_slice(&n.to_be_bytes());
    let mut key = [1; 32];
    key[28..].copy_from_slice(&n.to_be_bytes());
    Instance {
        instance_id: id.into(),
        app_id: [7; 20].into(),
        public_key: key.into(),
        address: (0x0a00_0000 + n).into(),
        registered: 1_700_000_000,
        drained: false,
        ports: Ports::default(),
    }
}

async fn put(journal: &Journal, n: u32, live: usize) {
    let instance = instance(n);
    journal.write(&[Line::Put(instance.clone())], std::iter::once(&instance), live).done().await.unwrap();
}

fn numbers(instances: &[Instance]) -> Vec<u32> {
    let mut numbers: Vec<u32> = instances.iter().map(|i| u32::from(i.address) - 0x0a00_0000).collect();
    numbers.sort_unstable();
    numbers
}

#[tokio::test]
async fn what_is_written_is_there_at_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, found) = Journal::open(dir.path()).unwrap();
    assert!(found.is_empty());
    for n in 1..=3 {
        put(&journal, n, 3).await;
    }
    journal.write(&[Line::Del(instance(2).instance_id)], std::iter::empty(), 2).done().await.unwrap();
    drop(journal);
    let (_, found) = Journal::open(dir.path()).unwrap();
    assert_eq!(numbers(&found), [1, 3]);
    assert_eq!(found.iter().find(|i| i.address.octets()[3] == 3), Some(&instance(3)));
    let mode = std::fs::metadata(dir.path().join(FILE)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test]
async fn p30_an_unfinished_line_is_cut_and_other_damage_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE);
    let (journal, _) = Journal::open(dir.path()).unwrap();
    put(&journal, 1, 1).await;
    drop(journal);
    let good = std::fs::read(&path).unwrap();
    let second = encode(&Line::Put(instance(2)));
    for cut in 0..second.len() {
        std::fs::write(&path, [&good, &second[..cut]].concat()).unwrap();
        let (journal, found) = Journal::open(dir.path()).unwrap();
        assert_eq!(numbers(&found), [1], "{cut}");
        put(&journal, 3, 2).await;
        drop(journal);
        assert_eq!(numbers(&Journal::open(dir.path()).unwrap().1), [1, 3], "{cut}");
    }
    for bad in [
        "",
        "x\n",
        "{\"format\":\"dstack-tproxy-instances\",\"version\":2}\n",
        "{\"format\":\"x\",\"version\":1}\n",
    ] {
        std::fs::write(&path, bad).unwrap();
        let error = Journal::open(dir.path()).unwrap_err();
        assert!(matches!(error, StateError::Damaged { .. }), "{bad:?}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), bad, "it is left as it is");
    }
    std::fs::write(&path, [&good, b"{\"put\":{}}\n".as_slice()].concat()).unwrap();
    let error = Journal::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("line 3"), "{error}");
    let long = [&good, "x".repeat(LINE_MAX + 1).as_bytes()].concat();
    assert_eq!(parse(long.as_slice()).unwrap().unwrap_err().line, 3);
}

#[tokio::test]
async fn the_file_does_not_grow_without_end() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = Journal::open(dir.path()).unwrap();
    let one = instance(1);
    let writes: Vec<Written> =
        (0..3000).map(|_| journal.write(&[Line::Put(one.clone())], std::iter::once(&one), 1)).collect();
    for write in writes {
        write.done().await.unwrap();
    }
    let content = std::fs::read(dir.path().join(FILE)).unwrap();
    let lines = content.iter().filter(|b| **b == b'\n').count();
    assert!(lines <= SLACK + 3, "{lines}");
    drop(journal);
    assert_eq!(numbers(&Journal::open(dir.path()).unwrap().1), [1]);
}

#[tokio::test]
async fn after_a_failed_write_the_whole_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE);
    let (journal, _) = Journal::open(dir.path()).unwrap();
    put(&journal, 1, 1).await;
    // As after a full disk: the line of the second never arrived.
    journal.failed.store(true, Ordering::Release);
    let all = [instance(1), instance(2)];
    journal.write(&[], all.iter(), 2).done().await.unwrap();
    assert!(!journal.failed.load(Ordering::Acquire));
    put(&journal, 3, 3).await;
    drop(journal);
    assert_eq!(numbers(&Journal::open(dir.path()).unwrap().1), [1, 2, 3]);
    // And an error is told: here the directory is gone.
    let (journal, _) = Journal::open(dir.path()).unwrap();
    journal.failed.store(true, Ordering::Release);
    std::fs::remove_file(&path).unwrap();
    std::fs::remove_dir(dir.path()).unwrap();
    assert!(journal.write(&[], all.iter(), 2).done().await.is_err());
    assert!(journal.failed.load(Ordering::Acquire));
    std::fs::create_dir(dir.path()).unwrap();
    journal.write(&[], all.iter(), 2).done().await.unwrap();
    assert_eq!(numbers(&Journal::open(dir.path()).unwrap().1), [1, 2]);
}
