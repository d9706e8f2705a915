// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used)]
use super::*;
use dstack_core::config_disk::File;
use dstack_core::ids::ComposeHash;
use dstack_core::spec::VmSpec;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

fn record(name: &str) -> Record {
    let hash = ComposeHash::of(b"{}");
    let spec = VmSpec {
        id: uuid::Uuid::new_v4(),
        name: name.parse().unwrap(),
        app_id: hash.app_id(),
        compose_hash: hash,
        image: "dstack-0.1.0".parse().unwrap(),
        vcpus: 1,
        memory: 1 << 30,
        disk: 1 << 30,
        ports: Vec::new(),
        autostart: false,
        created_at: 0,
    };
    Record { spec, cid: 1000, start_pending: true, removing: false, seed: None }
}

fn files() -> Files {
    Files::from([(File::AppCompose, b"{}".to_vec())])
}

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(dir.path());
    store.load().unwrap();
    (dir, store)
}

fn entries(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_vm_survives_and_is_private() {
    // As in teepod's unit; the config disk is bound into the VM's and read by another user.
    rustix::process::umask(rustix::fs::Mode::from_bits_truncate(0o077));
    let (_dir, store) = store();
    let record = record("a");
    store.create(&record, &files(), |_| {}).unwrap();
    assert_eq!(store.load().unwrap().records, std::slice::from_ref(&record));
    assert_eq!(store.config(&record.spec.name).unwrap(), files());
    let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let directory = store.directory(&record.spec.name);
    assert_eq!(mode(directory.clone()), 0o700);
    assert_eq!(mode(directory.join(RECORD)), 0o600);
    assert_eq!(mode(directory.join(CONFIG)), 0o644);
    assert!(store.create(&record, &files(), |_| {}).is_err(), "never overwritten");
    assert_eq!(entries(&store.root), ["a"]);
    store.remove(&record.spec.name).unwrap();
    store.remove(&record.spec.name).unwrap();
    assert!(entries(&store.root).is_empty());
}

#[test]
fn nothing_is_left_when_a_file_is_over_its_cap() {
    let (_dir, store) = store();
    let files = Files::from([(File::SysConfig, vec![0; File::SysConfig.cap() + 1])]);
    assert!(matches!(store.create(&record("a"), &files, |_| {}), Err(StoreError::Input(_))));
    assert!(entries(&store.root).is_empty());
}

#[test]
fn p30_an_unreadable_vm_is_reported_and_left_alone() {
    let (_dir, store) = store();
    for name in ["good", "broken", "absent", "other"] {
        store.create(&record(name), &files(), |_| {}).unwrap();
    }
    let path = |name: &str| store.root.join(name).join(RECORD);
    fs::write(path("broken"), "{").unwrap();
    fs::remove_file(path("absent")).unwrap();
    fs::copy(path("good"), path("other")).unwrap();
    let found = store.load().unwrap();
    assert_eq!(found.records.len(), 1);
    let mut names: Vec<_> = found.unreadable.iter().map(|(n, _)| n.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["absent", "broken", "other"]);
    assert_eq!(fs::read(path("broken")).unwrap(), b"{");
}

const CRASH: &str = "DSTACK_TEST_CRASH_AFTER";
const STEPS: [Step; 5] = [Step::Directory, Step::Config, Step::Record, Step::Rename, Step::Durable];

/// The child of the next test: dies for real after one step.
#[test]
fn crash_child() {
    let Ok(argument) = std::env::var(CRASH) else { return };
    let (step, dir) = argument.split_once(' ').unwrap();
    let store = Store::new(Path::new(dir));
    let crash = |at: Step| {
        if format!("{at:?}") == step {
            std::process::abort();
        }
    };
    store.create(&record("a"), &files(), crash).unwrap();
}

#[test]
fn killed_after_each_step_leaves_all_or_nothing() {
    for step in STEPS {
        let (dir, store) = store();
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "store::tests::crash_child"])
            .env(CRASH, format!("{step:?} {}", dir.path().display()))
            .output()
            .unwrap()
            .status;
        assert!(!status.success(), "{step:?} did not crash");
        let found = store.load().unwrap();
        assert!(found.unreadable.is_empty());
        let exists = matches!(step, Step::Rename | Step::Durable);
        assert_eq!(found.records.len(), usize::from(exists), "{step:?}");
        assert_eq!(found.swept, usize::from(!exists), "{step:?}");
        assert_eq!(entries(&store.root).len(), usize::from(exists), "{step:?}");
        assert_eq!(store.create(&record("a"), &files(), |_| {}).is_ok(), !exists, "{step:?}");
    }
}
