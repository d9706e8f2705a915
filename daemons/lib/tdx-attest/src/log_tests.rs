// SPDX-License-Identifier: Apache-2.0
use super::*;
use crate::platform::Registers;
use std::os::unix::fs::PermissionsExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use tempfile::TempDir;

/// What the TEE does at its next extension.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Next {
    Work,
    FailBefore,
    FailAfter,
    /// The process is killed: a panic that drops the owner, as a kill would.
    KillBefore,
    KillAfter,
    /// Somebody else extends too.
    Interloper,
}

struct Tee(Mutex<(Digest, Next)>);

impl Tee {
    fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(([0; 48], Next::Work))))
    }

    fn next(&self, next: Next) {
        self.state().1 = next;
    }

    fn rtmr3(&self) -> Digest {
        self.state().0
    }

    fn state(&self) -> std::sync::MutexGuard<'_, (Digest, Next)> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Platform for Tee {
    fn label(&self) -> &'static str {
        "simulated"
    }

    fn quote(&self, report_data: &[u8; 64]) -> Result<Vec<u8>, AttestError> {
        Ok([&report_data[..], &self.rtmr3()].concat())
    }

    fn extend(&self, digest: &Digest) -> Result<(), AttestError> {
        let mut state = self.state();
        let next = std::mem::replace(&mut state.1, Next::Work);
        let failed = Err(AttestError::Malformed("nothing"));
        match next {
            Next::FailBefore => return failed,
            Next::KillBefore => panic!("killed"),
            Next::Interloper => state.0 = event_log::extend(&state.0, &[0xee; 48]),
            _ => {}
        }
        state.0 = event_log::extend(&state.0, digest);
        match next {
            Next::FailAfter => failed,
            Next::KillAfter => panic!("killed"),
            _ => Ok(()),
        }
    }

    fn registers(&self) -> Result<Registers, AttestError> {
        let zero = [0; 48];
        let rtmr3 = self.rtmr3();
        Ok(Registers { mrtd: zero, rtmr0: zero, rtmr1: zero, rtmr2: zero, rtmr3, mr_config_id: zero })
    }
}

fn open(dir: &TempDir, tee: &Arc<Tee>) -> Result<EventLog, LogError> {
    EventLog::open(dir.path(), Arc::clone(tee) as Arc<dyn Platform>)
}

fn boot(log: &mut EventLog, events: usize) {
    for name in TRUSTED.into_iter().skip(log.events().len()).take(events) {
        log.append(name, name.as_bytes()).unwrap();
    }
}

#[test]
fn t14_the_log_always_gives_rtmr3_and_passes_to_the_next_owner() {
    let (dir, tee) = (tempfile::tempdir().unwrap(), Tee::new());
    let mut log = open(&dir, &tee).unwrap();
    boot(&mut log, 7);
    assert!(matches!(open(&dir, &tee), Err(LogError::Owned)));
    drop(log);
    let mut log = open(&dir, &tee).unwrap();
    boot(&mut log, 3);
    log.append("my-event", b"payload").unwrap();
    let attested = log.attest(&[7; 64]).unwrap();
    let events = event_log::parse(&attested.event_log).unwrap();
    assert_eq!(event_log::replay(&events).unwrap()[3], tee.rtmr3());
    assert_eq!(attested.quote[64..], tee.rtmr3());
    assert_eq!(peek(dir.path()).unwrap(), events);
    assert_eq!(events.len(), 11);
}

#[test]
fn t14_a_kill_at_any_step_loses_or_keeps_the_whole_event() {
    for (kill, kept) in [(Next::KillBefore, 3), (Next::KillAfter, 4)] {
        let (dir, tee) = (tempfile::tempdir().unwrap(), Tee::new());
        let mut log = open(&dir, &tee).unwrap();
        boot(&mut log, 3);
        tee.next(kill);
        let killed = catch_unwind(AssertUnwindSafe(move || log.append(TRUSTED[3], b"x")));
        assert!(killed.is_err());
        let mut log = open(&dir, &tee).unwrap();
        assert_eq!(log.events().len(), kept, "{kill:?}");
        assert_eq!(event_log::replay(log.events()).unwrap()[3], tee.rtmr3());
        assert!(!dir.path().join("events.intent").exists());
        boot(&mut log, 10);
        assert!(log.attest(&[0; 64]).is_ok());
    }
}

#[test]
fn t14_a_kill_around_the_files_is_repaired() {
    let (dir, tee) = (tempfile::tempdir().unwrap(), Tee::new());
    let mut log = open(&dir, &tee).unwrap();
    boot(&mut log, 3);
    let last = serde_json::to_vec(log.events().last().unwrap()).unwrap();
    drop(log);
    // Committed, and killed before the intent was removed.
    fs::write(dir.path().join("events.intent"), last).unwrap();
    assert_eq!(open(&dir, &tee).unwrap().events().len(), 3);
    // Killed within a write: the temporary files are half there.
    fs::write(dir.path().join("events.new"), "[{\"imr\"").unwrap();
    let mut log = open(&dir, &tee).unwrap();
    boot(&mut log, 1);
    assert_eq!(log.events().len(), 4);
}

#[test]
fn t14_an_error_of_the_tee_leaves_log_and_register_agreed() {
    let (dir, tee) = (tempfile::tempdir().unwrap(), Tee::new());
    let mut log = open(&dir, &tee).unwrap();
    boot(&mut log, 2);
    tee.next(Next::FailBefore);
    assert!(matches!(log.append(TRUSTED[2], b""), Err(LogError::Platform(_))));
    assert_eq!(log.events().len(), 2);
    tee.next(Next::FailAfter);
    log.append(TRUSTED[2], b"").unwrap();
    assert_eq!(event_log::replay(log.events()).unwrap()[3], tee.rtmr3());
    drop(log);
    assert_eq!(open(&dir, &tee).unwrap().events().len(), 3);
}

#[test]
fn t14_a_second_hand_at_the_register_poisons() {
    let (dir, tee) = (tempfile::tempdir().unwrap(), Tee::new());
    let mut log = open(&dir, &tee).unwrap();
    boot(&mut log, 2);
    tee.next(Next::Interloper);
    assert!(matches!(log.append(TRUSTED[2], b""), Err(LogError::Poisoned)));
    assert!(matches!(log.append(TRUSTED[2], b""), Err(LogError::Poisoned)));
    assert!(matches!(log.attest(&[0; 64]), Err(LogError::Poisoned)));
    drop(log);
    assert!(matches!(open(&dir, &tee), Err(LogError::Poisoned)), "a restart does not heal");
}

#[test]
fn p11_a_changed_lost_or_damaged_log_is_never_believed() {
    let spoil: [fn(&Path); 4] = [
        |path| fs::remove_file(path).unwrap(),
        |path| fs::write(path, "[]").unwrap(),
        |path| fs::write(path, "").unwrap(),
        |path| fs::write(path, fs::read_to_string(path).unwrap().replace("app-id", "app-ie")).unwrap(),
    ];
    for spoil in spoil {
        let (dir, tee) = (tempfile::tempdir().unwrap(), Tee::new());
        boot(&mut open(&dir, &tee).unwrap(), 3);
        spoil(&dir.path().join("events.json"));
        assert!(matches!(open(&dir, &tee), Err(LogError::Poisoned | LogError::Event(_))));
    }
    // A forged intent does not explain the register either.
    let (dir, tee) = (tempfile::tempdir().unwrap(), Tee::new());
    boot(&mut open(&dir, &tee).unwrap(), 2);
    tee.extend(&[9; 48]).unwrap();
    let forged = Event { digest: [9; 48], ..Event::runtime(TRUSTED[2], b"").unwrap() };
    fs::write(dir.path().join("events.intent"), serde_json::to_vec(&forged).unwrap()).unwrap();
    assert!(matches!(open(&dir, &tee), Err(LogError::Poisoned)));
}

#[test]
fn t07_names_come_in_their_order_and_never_again() {
    let (dir, tee) = (tempfile::tempdir().unwrap(), Tee::new());
    let mut log = open(&dir, &tee).unwrap();
    assert!(matches!(log.append("app-id", b""), Err(LogError::Event(EventError::Order { index: 0, .. }))));
    boot(&mut log, 10);
    for name in TRUSTED {
        assert!(matches!(log.append(name, b""), Err(LogError::Reserved(_))), "{name}");
    }
    for name in ["", "a:b", "a\n"] {
        assert!(matches!(log.append(name, b""), Err(LogError::Event(EventError::Name(_)))), "{name:?}");
    }
    assert_eq!(log.events().len(), 10);
    while log.events().len() < EVENTS_MAX {
        let event = Event::runtime("filler", b"").unwrap();
        tee.extend(&event.digest).unwrap();
        log.register = event_log::extend(&log.register, &event.digest);
        log.events.push(event);
    }
    assert!(matches!(log.append("one-more", b""), Err(LogError::Full)));
}

#[test]
fn p03_the_files_are_private() {
    let (dir, tee) = (tempfile::tempdir().unwrap(), Tee::new());
    boot(&mut open(&dir, &tee).unwrap(), 2);
    for entry in fs::read_dir(dir.path()).unwrap() {
        let mode = entry.unwrap().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{mode:o}");
    }
}
