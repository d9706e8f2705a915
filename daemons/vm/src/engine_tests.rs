// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used)]
use super::*;
use crate::qmp::Reason;
use dstack_core::boot::Stage;

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn engine() -> Engine {
    let mut engine = Engine::new(Times { progress: at(60), boot: at(300), stop: at(90) }, 42);
    engine.handle(Event::Started(77), at(1));
    engine
}

fn extends(actions: &[Action]) -> Option<u64> {
    actions.iter().find_map(|a| if let Action::Extend(d) = a { Some(d.as_secs()) } else { None })
}

fn logs(actions: &[Action]) -> Vec<&str> {
    actions
        .iter()
        .filter_map(|a| if let Action::Log(_, _, text) = a { Some(text.as_str()) } else { None })
        .collect()
}

#[test]
fn a_boot_to_ready() {
    let mut engine = engine();
    assert_eq!(engine.sentence(), "Booting: waiting for the guest's system");
    assert_eq!(extends(&engine.handle(Event::Seen(FIRMWARE), at(2))), Some(75));
    engine.handle(Event::Guest(Line::Hello(1)), at(10));
    engine.handle(Event::Guest(Line::Stage(Stage::Pull)), at(20));
    let actions = engine.handle(Event::Guest(Line::Progress { done: 3, total: 7 }), at(30));
    assert_eq!(extends(&actions), Some(75));
    assert_eq!(engine.sentence(), "Booting: pulling images (3 of 7)");
    let actions = engine.handle(Event::Guest(Line::Ready), at(34));
    assert!(actions.contains(&Action::Ready));
    assert_eq!(logs(&actions), ["Ready; boot: qemu 1.0, firmware 2.0, system 10.0, pull 20.0, ready 34.0 s"]);
    assert_eq!(engine.status().phase, Phase::Running);
    assert_eq!(engine.deadline(), None);
}

#[test]
fn a_reconnect_changes_nothing() {
    let mut engine = engine();
    let tell = [Line::Hello(1), Line::Stage(Stage::App), Line::Ready];
    for line in tell {
        engine.handle(Event::Guest(line), at(5));
    }
    engine.take_changed();
    for line in tell {
        assert_eq!(engine.handle(Event::Guest(line), at(9)), []);
    }
    assert!(!engine.take_changed());
}

#[test]
fn boot_time_is_capped_however_much_progress_there_is() {
    let mut engine = engine();
    for second in 2..300 {
        let line = Line::Progress { done: u32::try_from(second).unwrap(), total: 1000 };
        let actions = engine.handle(Event::Guest(line), at(second));
        assert!(extends(&actions).is_none_or(|d| second + d <= 315), "{actions:?}");
    }
    assert_eq!(engine.deadline(), Some(at(300)));
    let actions = engine.handle(Event::Tick, at(300));
    assert!(logs(&actions)[0].contains("not ready after 300 s in all"), "{actions:?}");
    assert!(actions.contains(&Action::AskGuest));
    let actions = engine.handle(Event::Ended(String::new()), at(301));
    assert_eq!(actions.last(), Some(&Action::Exit(1)));
}

#[test]
fn a_guest_without_progress_is_ended() {
    let mut engine = engine();
    assert_eq!(engine.deadline(), Some(at(61)));
    let actions = engine.handle(Event::Tick, at(61));
    assert!(logs(&actions)[0].contains("60 s without progress"), "{actions:?}");
    // It never spoke, so the power button comes at once, and quit soon.
    assert!(actions.contains(&Action::Qmp(Command::PowerDown)));
    assert!(engine.handle(Event::Tick, at(71)).contains(&Action::Qmp(Command::Quit)));
}

#[test]
fn a_failed_boot_never_gets_ready_by_itself_and_may_be_retried() {
    let mut engine = engine();
    engine.handle(Event::Guest(Line::Stage(Stage::Pull)), at(5));
    let actions = engine.handle(Event::Guest(Line::Error(Failure::PullFailed)), at(6));
    assert_eq!(logs(&actions).len(), 1);
    assert_eq!(engine.handle(Event::Guest(Line::Error(Failure::PullFailed)), at(7)), []);
    assert_eq!(engine.status().error, "pull-failed");
    assert!(engine.sentence().starts_with("Boot failed: an image could not be pulled"));
    // The guest tries again.
    engine.handle(Event::Guest(Line::Stage(Stage::Pull)), at(8));
    assert_eq!(engine.status().error, "");
    assert!(engine.handle(Event::Guest(Line::Ready), at(9)).contains(&Action::Ready));
}

#[test]
fn the_shutdown_ladder() {
    let mut engine = engine();
    engine.handle(Event::Guest(Line::Ready), at(5));
    let actions = engine.handle(Event::Stop, at(10));
    assert!(actions.contains(&Action::Stopping) && actions.contains(&Action::AskGuest), "{actions:?}");
    assert_eq!(extends(&actions), Some(105));
    assert_eq!(engine.handle(Event::Stop, at(11)), []);
    assert_eq!(engine.handle(Event::Asked(true), at(11)), []);
    assert_eq!(engine.deadline(), Some(at(40)));
    assert!(engine.handle(Event::Tick, at(40)).contains(&Action::Qmp(Command::PowerDown)));
    assert!(engine.handle(Event::Tick, at(95)).contains(&Action::Qmp(Command::Quit)));
    assert!(engine.handle(Event::Tick, at(98)).contains(&Action::Kill));
}

#[test]
fn a_deaf_agent_gets_the_power_button_at_once() {
    let mut engine = engine();
    engine.handle(Event::Guest(Line::Ready), at(5));
    engine.handle(Event::Stop, at(10));
    assert!(engine.handle(Event::Asked(false), at(10)).contains(&Action::Qmp(Command::PowerDown)));
    engine.handle(Event::Qmp(Message::Shutdown(Reason::GuestShutdown)), at(12));
    assert_eq!(engine.handle(Event::Ended(String::new()), at(12)).last(), Some(&Action::Exit(0)));
}

#[test]
fn ends() {
    let cases = [
        (vec![Message::Shutdown(Reason::GuestReset)], 133, "The guest reboots: a new QEMU is started"),
        (vec![Message::Panicked, Message::Shutdown(Reason::GuestPanic)], 1, "The guest's kernel panicked;"),
        (vec![], 1, "QEMU has ended by itself, which is a failure of the host: no such disk"),
    ];
    for (messages, status, text) in cases {
        let mut engine = engine();
        engine.handle(Event::Guest(Line::Ready), at(5));
        messages.into_iter().for_each(|m| drop(engine.handle(Event::Qmp(m), at(6))));
        let actions = engine.handle(Event::Ended("no such disk".to_owned()), at(7));
        assert_eq!(actions.last(), Some(&Action::Exit(status)));
        assert!(logs(&actions)[0].starts_with(text), "{actions:?}");
    }
}

#[test]
fn a_guest_that_leaves_is_stopping() {
    let mut engine = engine();
    engine.handle(Event::Guest(Line::Ready), at(5));
    let actions = engine.handle(Event::Guest(Line::Stopping), at(6));
    assert!(!actions.contains(&Action::Stopping));
    assert_eq!(engine.status().phase, Phase::Stopping);
    engine.handle(Event::Qmp(Message::Shutdown(Reason::GuestReset)), at(8));
    assert_eq!(engine.handle(Event::Ended(String::new()), at(8)).last(), Some(&Action::Exit(133)));
}

#[test]
fn a_guest_that_waits_for_the_key_service_is_left_to_it() {
    let mut engine = engine();
    engine.handle(Event::Guest(Line::Stage(Stage::Keys)), at(10));
    let waiting = Event::Guest(Line::Waiting(Failure::KeysUnreachable));
    let actions = engine.handle(waiting.clone(), at(50));
    assert_eq!(extends(&actions), Some(75));
    assert!(logs(&actions)[0].starts_with("The boot waits at stage keys: "), "{actions:?}");
    assert!(engine.sentence().contains("the guest keeps trying"), "{}", engine.sentence());
    assert_eq!((engine.status().waiting.as_str(), engine.status().error.as_str()), ("keys-unreachable", ""));
    for second in [100, 150, 200, 250] {
        let actions = engine.handle(waiting.clone(), at(second));
        assert!(extends(&actions).is_some() && logs(&actions).is_empty(), "said once: {actions:?}");
    }
    // It goes on by itself, and nothing of it stays.
    engine.handle(Event::Guest(Line::Stage(Stage::Disk)), at(260));
    assert_eq!(engine.status().waiting, "");
    assert_eq!(engine.sentence(), "Booting: preparing the data disk");
    // However long it waits, the time for the whole boot ends it.
    engine.handle(waiting, at(299));
    assert_eq!(engine.deadline(), Some(at(300)));
}
