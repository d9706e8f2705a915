// SPDX-License-Identifier: Apache-2.0
//! What dstack-vm decides: events in, actions out, no I/O. Times are since dstack-vm's start.

use crate::end::End;
use crate::journal::{self, Priority};
use crate::qmp::{Command, Message};
use crate::stop::{Ladder, Step};
use crate::timeline::Timeline;
use dstack_core::boot::{Failure, Line};
use dstack_core::home::{Phase, Status};
use std::time::Duration;

/// How much later than our own systemd's patience ends.
const MARGIN: Duration = Duration::from_secs(15);
/// Step of the timeline when the firmware has written its first byte.
pub const FIRMWARE: &str = "firmware";

/// The times that a VM is given.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// To READY without progress.
    pub progress: Duration,
    /// To READY in all.
    pub boot: Duration,
    /// To shut down.
    pub stop: Duration,
}

/// Something has happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// QEMU runs, with this process id.
    Started(u32),
    /// A step that the console shows: [`FIRMWARE`], `kernel`.
    Seen(&'static str),
    /// The guest's boot agent has said something.
    Guest(Line),
    /// QEMU has said something.
    Qmp(Message),
    /// QEMU is gone; its last words.
    Ended(String),
    /// systemd or machined asks for the end.
    Stop,
    /// The guest's agent has accepted, or not, to shut down.
    Asked(bool),
    /// Time has passed.
    Tick,
}

/// Something is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Tell systemd that the unit is up.
    Ready,
    /// Tell systemd that the unit is going down.
    Stopping,
    /// Tell systemd to wait this long from now on.
    Extend(Duration),
    /// Write to the journal.
    Log(Priority, Option<&'static str>, String),
    /// Ask the guest's agent to shut down.
    AskGuest,
    /// Give QEMU a command.
    Qmp(Command),
    /// Kill QEMU.
    Kill,
    /// End with this status.
    Exit(u8),
}

/// The state of one VM.
#[derive(Debug)]
pub struct Engine {
    times: Times,
    status: Status,
    timeline: Timeline,
    failure: Option<Failure>,
    /// What the guest has said it waits for.
    waited: Option<Failure>,
    end: End,
    /// The guest's system was heard of.
    spoke: bool,
    progressed: Duration,
    extended: Duration,
    ladder: Option<Ladder>,
    changed: bool,
}

impl Engine {
    /// A VM that has not been started.
    #[must_use]
    pub fn new(times: Times, cid: u32) -> Self {
        let status = Status {
            phase: Phase::Starting,
            stage: String::new(),
            progress: (0, 0),
            error: String::new(),
            waiting: String::new(),
            instance_id: None,
            cid: Some(cid),
            qemu_pid: 0,
            timeline: Vec::new(),
        };
        Self {
            times,
            status,
            timeline: Timeline::default(),
            failure: None,
            waited: None,
            end: End::default(),
            spoke: false,
            progressed: Duration::ZERO,
            extended: Duration::ZERO,
            ladder: None,
            changed: true,
        }
    }

    /// What teepod is told.
    #[must_use]
    pub fn status(&self) -> Status {
        Status { timeline: self.timeline.steps().to_vec(), ..self.status.clone() }
    }

    /// Whether the status has changed since the last call.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// The state in words, for `systemctl status`.
    #[must_use]
    pub fn sentence(&self) -> String {
        match (self.status.phase, self.failure) {
            (Phase::Stopping, _) => "Shutting down".to_owned(),
            (Phase::Running, _) => format!("Running; boot: {}", self.timeline.line()),
            (_, Some(failure)) => format!("Boot failed: {}", failure.sentence()),
            (Phase::Starting, None) => "Starting QEMU".to_owned(),
            _ => format!("Booting: {}", self.stage_words()),
        }
    }

    fn stage_words(&self) -> String {
        let words = match self.status.stage.as_str() {
            FIRMWARE => "waiting for the guest's system",
            code => {
                dstack_core::boot::Stage::from_code(code).map_or("the guest's system is up", |s| s.sentence())
            }
        };
        let waiting = Failure::from_code(&self.status.waiting);
        match (waiting, self.status.progress) {
            (Some(waiting), _) => format!("{words}: {}", waiting.sentence()),
            (None, (_, 0)) => words.to_owned(),
            (None, (done, total)) => format!("{words} ({done} of {total})"),
        }
    }

    /// When to call with [`Event::Tick`] at the latest.
    #[must_use]
    pub fn deadline(&self) -> Option<Duration> {
        match &self.ladder {
            Some(ladder) => ladder.deadline(),
            None => self.boot_deadline(),
        }
    }

    fn boot_deadline(&self) -> Option<Duration> {
        let waiting = matches!(self.status.phase, Phase::Starting | Phase::Booting);
        waiting.then(|| self.times.boot.min(self.progressed + self.times.progress))
    }

    /// Takes an event, says what to do.
    pub fn handle(&mut self, event: Event, now: Duration) -> Vec<Action> {
        let mut actions = match event {
            Event::Started(pid) => self.started(pid, now),
            Event::Seen(step) => self.seen(step, now),
            Event::Guest(line) => self.guest(line, now),
            Event::Qmp(message) => self.qmp(message),
            Event::Ended(words) => return self.ended(&words),
            Event::Stop => self.stop(now),
            Event::Asked(accepted) => self.asked(accepted, now),
            Event::Tick => Vec::new(),
        };
        actions.extend(self.tick(now));
        actions
    }

    fn started(&mut self, pid: u32, now: Duration) -> Vec<Action> {
        self.status.qemu_pid = pid;
        self.status.phase = Phase::Booting;
        self.status.stage = FIRMWARE.to_owned();
        self.changed = true;
        self.seen("qemu", now)
    }

    /// Notes a step; a new one is progress.
    fn seen(&mut self, step: &str, now: Duration) -> Vec<Action> {
        let starting = matches!(self.status.phase, Phase::Starting | Phase::Booting);
        if starting && self.timeline.mark(step, now) {
            self.changed = true;
            return self.progress(now);
        }
        Vec::new()
    }

    fn progress(&mut self, now: Duration) -> Vec<Action> {
        self.progressed = now;
        let Some(until) = self.boot_deadline().map(|at| at + MARGIN) else { return Vec::new() };
        // A talkative guest must not make us talk to systemd all the time.
        if until < self.extended + Duration::from_secs(1) {
            return Vec::new();
        }
        self.extended = until;
        vec![Action::Extend(until.saturating_sub(now))]
    }

    fn guest(&mut self, line: Line, now: Duration) -> Vec<Action> {
        self.spoke = true;
        if let Line::Instance(id) = line {
            self.changed |= self.status.instance_id != Some(id);
            self.status.instance_id = Some(id);
        }
        // After a reconnect the guest tells everything again.
        if self.status.phase != Phase::Booting {
            return self.later(line);
        }
        match line {
            Line::Hello(_) => self.hello(now),
            Line::Stage(stage) => self.stage(stage.code(), now),
            Line::Progress { done, total } => self.counted(done.min(total), total, now),
            Line::Waiting(failure) => self.waiting(failure, now),
            Line::Error(failure) => self.failed(failure),
            Line::Ready => self.ready(now),
            Line::Stopping => self.leaving(),
            Line::Instance(_) => Vec::new(),
        }
    }

    fn later(&mut self, line: Line) -> Vec<Action> {
        if line == Line::Stopping && self.status.phase == Phase::Running {
            self.leaving()
        } else {
            Vec::new()
        }
    }

    fn hello(&mut self, now: Duration) -> Vec<Action> {
        if self.status.stage == FIRMWARE {
            self.status.stage = "system".to_owned();
        }
        self.seen("system", now)
    }

    fn stage(&mut self, code: &str, now: Duration) -> Vec<Action> {
        if self.status.stage != code || self.failure.is_some() {
            self.status.stage = code.to_owned();
            self.status.progress = (0, 0);
            self.status.error.clear();
            self.status.waiting.clear();
            self.failure = None;
            self.changed = true;
        }
        self.seen(code, now)
    }

    /// The guest keeps trying: that is progress, up to the time for the whole boot.
    fn waiting(&mut self, failure: Failure, now: Duration) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.status.waiting != failure.code() {
            self.status.waiting = failure.code().to_owned();
            self.changed = true;
        }
        if self.waited.replace(failure) != Some(failure) {
            let text = format!("The boot waits at stage {}: {}", self.status.stage, failure.sentence());
            actions.push(Action::Log(Priority::Warning, None, text));
        }
        actions.extend(self.progress(now));
        actions
    }

    fn counted(&mut self, done: u32, total: u32, now: Duration) -> Vec<Action> {
        if self.status.progress == (done, total) {
            return Vec::new();
        }
        self.status.progress = (done, total);
        self.changed = true;
        self.progress(now)
    }

    fn failed(&mut self, failure: Failure) -> Vec<Action> {
        if self.failure == Some(failure) {
            return Vec::new();
        }
        self.failure = Some(failure);
        self.status.waiting.clear();
        self.status.error = failure.code().to_owned();
        self.changed = true;
        let text = format!("Boot failed at stage {}: {}", self.status.stage, failure.sentence());
        vec![Action::Log(Priority::Error, Some(journal::BOOT_FAILED), text)]
    }

    fn ready(&mut self, now: Duration) -> Vec<Action> {
        self.timeline.mark("ready", now);
        self.end.ready = true;
        self.status.phase = Phase::Running;
        self.status.stage.clear();
        self.status.progress = (0, 0);
        self.status.error.clear();
        self.status.waiting.clear();
        self.failure = None;
        self.changed = true;
        let text = format!("Ready; boot: {}", self.timeline.line());
        vec![Action::Log(Priority::Info, Some(journal::READY), text), Action::Ready]
    }

    /// The guest shuts down by itself. systemd hears of it when QEMU is gone: it might as well be a reboot.
    fn leaving(&mut self) -> Vec<Action> {
        self.status.phase = Phase::Stopping;
        self.changed = true;
        vec![Action::Log(Priority::Info, None, "The guest shuts down".to_owned())]
    }

    fn qmp(&mut self, message: Message) -> Vec<Action> {
        let log = |priority, text: String| vec![Action::Log(priority, None, text)];
        match message {
            Message::Shutdown(reason) => {
                self.end.reason = Some(reason);
                Vec::new()
            }
            Message::Panicked => {
                self.end.panicked = true;
                Vec::new()
            }
            Message::Refused(why) => log(Priority::Warning, format!("QEMU refused a command: {why}")),
            Message::Network(false) => log(Priority::Warning, "The network backend is gone".to_owned()),
            Message::Network(true) => log(Priority::Info, "The network backend is connected".to_owned()),
            Message::Greeting | Message::Done | Message::Other => Vec::new(),
        }
    }

    fn stop(&mut self, now: Duration) -> Vec<Action> {
        self.end.asked = true;
        self.bring_down(now)
    }

    fn bring_down(&mut self, now: Duration) -> Vec<Action> {
        if self.ladder.is_some() {
            return Vec::new();
        }
        let ladder = Ladder::begin(now, self.times.stop, self.spoke);
        let wait = ladder.end().saturating_sub(now) + MARGIN;
        self.ladder = Some(ladder);
        self.status.phase = Phase::Stopping;
        self.changed = true;
        vec![Action::Stopping, Action::Extend(wait)]
    }

    fn asked(&mut self, accepted: bool, now: Duration) -> Vec<Action> {
        match &mut self.ladder {
            Some(ladder) if !accepted => ladder.hurry(now),
            _ => {}
        }
        Vec::new()
    }

    fn tick(&mut self, now: Duration) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.ladder.is_none() && self.boot_deadline().is_some_and(|at| at <= now) {
            actions.extend(self.give_up(now));
        }
        while let Some(step) = self.ladder.as_mut().and_then(|ladder| ladder.due(now)) {
            actions.extend(climb(step));
        }
        actions
    }

    fn give_up(&mut self, now: Duration) -> Vec<Action> {
        let limit = if self.times.boot <= now { "in all" } else { "without progress" };
        let seconds = if self.times.boot <= now { self.times.boot } else { self.times.progress }.as_secs();
        let text = format!(
            "The guest is not ready after {seconds} s {limit}; the last thing heard of it: {}",
            match self.failure {
                Some(failure) => failure.sentence().to_owned(),
                None => self.stage_words(),
            }
        );
        self.end.gave_up = true;
        if self.status.error.is_empty() {
            self.status.error.clone_from(&text);
        }
        let mut actions = vec![Action::Log(Priority::Error, Some(journal::BOOT_TIMEOUT), text)];
        actions.extend(self.bring_down(now));
        actions
    }

    fn ended(&mut self, words: &str) -> Vec<Action> {
        let status = self.end.status();
        let mut text = self.end.sentence().to_owned();
        if status != 0 && self.end.reason.is_none() && !words.is_empty() {
            text = format!("{text}: {words}");
        }
        let (priority, id) = if status == crate::end::EXIT_FAILURE {
            self.status.error.clone_from(&text);
            (Priority::Error, Some(journal::VM_FAILED))
        } else {
            (Priority::Info, None)
        };
        self.status.phase = Phase::Stopping;
        self.status.qemu_pid = 0;
        self.changed = true;
        vec![Action::Log(priority, id, upper(&text)), Action::Exit(status)]
    }
}

fn climb(step: Step) -> Vec<Action> {
    let say = |text: &str| Action::Log(Priority::Info, None, text.to_owned());
    let warn = |text: &str| Action::Log(Priority::Warning, None, text.to_owned());
    match step {
        Step::Ask => vec![say("Asking the guest to shut down"), Action::AskGuest],
        Step::PowerDown => vec![say("Pressing the guest's power button"), Action::Qmp(Command::PowerDown)],
        Step::Quit => vec![warn("The guest does not shut down; ending QEMU"), Action::Qmp(Command::Quit)],
        Step::Kill => vec![warn("QEMU does not end; killing it"), Action::Kill],
    }
}

/// The sentence with a capital.
fn upper(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
