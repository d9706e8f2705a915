// SPDX-License-Identifier: Apache-2.0
use super::*;

fn status(phase: Phase) -> Status {
    Status {
        phase,
        stage: String::new(),
        progress: (0, 0),
        error: String::new(),
        waiting: String::new(),
        instance_id: None,
        cid: None,
        qemu_pid: 0,
        timeline: Vec::new(),
    }
}

fn failed(result: &str) -> UnitState {
    UnitState::Failed(result.into())
}

#[test]
fn every_pair_of_words_has_one_state() {
    use UnitState::{Activating, Active, Deactivating, Inactive};
    let none = None;
    let start = Some(Asked::Start);
    let stop = Some(Asked::Stop);
    let table = [
        (Inactive, None, none, "stopped"),
        (Inactive, None, start, "starting"),
        (Inactive, None, stop, "stopped"),
        (Inactive, Some(Phase::Running), none, "stopped"),
        (Activating(false), None, none, "starting"),
        (Activating(false), Some(Phase::Starting), none, "starting"),
        (Activating(false), Some(Phase::Booting), none, "booting"),
        (Activating(false), Some(Phase::Running), none, "booting"),
        (Activating(false), Some(Phase::Stopping), none, "stopping"),
        (Activating(false), Some(Phase::Booting), stop, "stopping"),
        (Activating(true), None, none, "starting"),
        (Active, None, none, "running"),
        (Active, Some(Phase::Booting), none, "running"),
        (Active, Some(Phase::Running), start, "running"),
        (Active, Some(Phase::Stopping), none, "stopping"),
        (Active, Some(Phase::Unknown), none, "running"),
        (Active, None, stop, "stopping"),
        (Deactivating, Some(Phase::Running), none, "stopping"),
        (Deactivating, None, start, "stopping"),
        (failed("timeout"), None, none, "failed"),
        (failed("timeout"), None, start, "starting"),
        (failed("exit-code"), Some(Phase::Running), stop, "failed"),
    ];
    for (unit, phase, asked, word) in table {
        let observed = Observed { unit, asked, home: phase.is_some(), status: phase.map(status) };
        assert_eq!(observed.state().word(), word, "{observed:?}");
    }
}

#[test]
fn words_of_a_gone_dstack_vm_do_not_count() {
    let status = Some(status(Phase::Stopping));
    let observed = Observed { unit: UnitState::Active, home: false, status, ..Observed::default() };
    assert_eq!(observed.state(), State::Running);
}

#[test]
fn units_are_parsed() {
    for (active, sub, expected) in [
        ("active", "running", UnitState::Active),
        ("reloading", "reload", UnitState::Active),
        ("activating", "start", UnitState::Activating(false)),
        ("activating", "auto-restart", UnitState::Activating(true)),
        ("activating", "auto-restart-queued", UnitState::Activating(true)),
        ("deactivating", "stop-sigterm", UnitState::Deactivating),
        ("failed", "failed", failed("timeout")),
        ("inactive", "dead", UnitState::Inactive),
        ("maintenance", "?", UnitState::Inactive),
    ] {
        assert_eq!(UnitState::parse(active, sub, "timeout"), expected, "{active}");
    }
}

#[test]
fn t18_guests_speak_in_codes_and_the_host_in_sentences() {
    let mut said = status(Phase::Booting);
    (said.stage, said.progress, said.error) = ("pull".into(), (3, 7), "pull-failed".into());
    let mut observed =
        Observed { unit: UnitState::Activating(false), asked: None, home: true, status: Some(said) };
    assert_eq!(observed.boot_progress(), "pulling images (3 of 7)");
    assert!(observed.boot_error().contains("an image could not be pulled"));
    assert!(observed.is_lost());
    assert!((observed.fraction() - (9.0 + 3.0 / 7.0) / 12.0).abs() < 0.01);
    observed.unit = failed("timeout");
    observed.home = false;
    assert!(!observed.is_lost());
    assert!(observed.boot_error().contains("an image could not be pulled"));
    observed.asked = Some(Asked::Start);
    assert_eq!(observed.boot_error(), "", "the next run has said nothing yet");
    observed.asked = None;
    observed.status = None;
    assert_eq!(observed.boot_error(), "it did not become ready in time");
    assert_eq!(observed.boot_progress(), "");
    observed.unit = UnitState::Active;
    assert_eq!((observed.boot_progress().as_str(), observed.boot_error().as_str()), ("done", ""));
}
