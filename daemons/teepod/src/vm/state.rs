// SPDX-License-Identifier: Apache-2.0
//! The state of a VM, derived from what systemd and its dstack-vm say.
//!
//! Nothing is remembered that those two do not know: whatever order their words arrive in, and whoever used
//! `systemctl` behind teepod's back, the same words give the same state.

use dstack_core::boot::{Failure, Stage};
use dstack_core::home::{Phase, Status};
use std::fmt;

/// What a VM is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// It does not run.
    Stopped,
    /// Its unit is being started; QEMU does not run yet.
    Starting,
    /// QEMU runs, the app is not up.
    Booting,
    /// The app is up.
    Running,
    /// It is shutting down.
    Stopping,
    /// It ended in a way it should not, for this reason.
    Failed(Reason),
}

impl State {
    /// The word on the bus.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Starting => "starting",
            Self::Booting => "booting",
            Self::Running => "running",
            Self::Stopping => "stopping",
            Self::Failed(_) => "failed",
        }
    }

    /// Whether nothing of it runs.
    #[must_use]
    pub const fn is_down(&self) -> bool {
        matches!(self, Self::Stopped | Self::Failed(_))
    }
}

/// `Result=` of a failed service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason(pub String);

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0.as_str() {
            "timeout" => "it did not become ready in time",
            "start-limit-hit" => "it failed too often in the last hour",
            "watchdog" => "it stopped answering",
            "oom-kill" => "the host ran out of memory for it",
            "resources" => "the host could not set up its unit",
            "signal" | "core-dump" => "its main process was killed",
            _ => "its main process ended with an error",
        })
    }
}

/// What systemd says about a VM's unit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum UnitState {
    /// `inactive`, or never loaded.
    #[default]
    Inactive,
    /// `activating`; `true` while waiting for an automatic restart.
    Activating(bool),
    /// `active` or `reloading`.
    Active,
    /// `deactivating`.
    Deactivating,
    /// `failed`, with `Result=`.
    Failed(String),
}

impl UnitState {
    /// From `ActiveState`, `SubState` and `Result`.
    #[must_use]
    pub fn parse(active: &str, sub: &str, result: &str) -> Self {
        match active {
            "active" | "reloading" => Self::Active,
            "activating" => Self::Activating(sub.starts_with("auto-restart")),
            "deactivating" => Self::Deactivating,
            "failed" => Self::Failed(result.to_owned()),
            _ => Self::Inactive,
        }
    }

    /// Whether a process of the unit may run.
    #[must_use]
    pub const fn is_up(&self) -> bool {
        matches!(self, Self::Activating(false) | Self::Active | Self::Deactivating)
    }
}

/// What teepod was asked to do and systemd has not begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// To start the VM.
    Start,
    /// To stop the VM.
    Stop,
}

/// Everything known about a VM from outside.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// systemd's word.
    pub unit: UnitState,
    /// A verb that is under way.
    pub asked: Option<Asked>,
    /// Whether dstack-vm is connected, so that `status` is of now.
    pub home: bool,
    /// dstack-vm's last word, kept after it ended: its error, timeline and instance id outlive it.
    pub status: Option<Status>,
}

impl Observed {
    /// The state that these words mean.
    #[must_use]
    pub fn state(&self) -> State {
        let phase = self.status.as_ref().filter(|_| self.home).map(|s| s.phase);
        match (&self.unit, phase, self.asked) {
            (UnitState::Inactive, _, Some(Asked::Start)) => State::Starting,
            (UnitState::Inactive, ..) => State::Stopped,
            (UnitState::Failed(_), _, Some(Asked::Start)) => State::Starting,
            (UnitState::Failed(result), ..) => State::Failed(Reason(result.clone())),
            (UnitState::Deactivating, ..) | (_, _, Some(Asked::Stop)) => State::Stopping,
            (UnitState::Activating(_) | UnitState::Active, Some(Phase::Stopping), _) => State::Stopping,
            (UnitState::Activating(_), Some(Phase::Booting | Phase::Running), _) => State::Booting,
            (UnitState::Activating(_), ..) => State::Starting,
            (UnitState::Active, ..) => State::Running,
        }
    }

    /// What the boot is doing, in words; empty when it is not booting, `done` when the app is up.
    #[must_use]
    pub fn boot_progress(&self) -> String {
        match (self.state(), &self.status) {
            (State::Running, _) => "done".to_owned(),
            (State::Booting, Some(status)) => stage_words(status),
            (State::Starting, _) => "starting the VM".to_owned(),
            _ => String::new(),
        }
    }

    /// Why the last boot failed, in words; empty when it did not. What was said of an earlier run is not said of the next.
    #[must_use]
    pub fn boot_error(&self) -> String {
        let said = self.status.as_ref().map(|s| failure_words(&s.error)).unwrap_or_default();
        let current = self.home || self.unit == UnitState::Activating(true);
        match self.state() {
            State::Failed(reason) if said.is_empty() => reason.to_string(),
            State::Failed(_) => said,
            State::Booting | State::Starting | State::Stopping if current => said,
            _ => String::new(),
        }
    }

    /// Whether a boot has failed whose unit has not ended yet: systemd would merge a start into that lost one.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        let failed = self.status.as_ref().is_some_and(|status| !status.error.is_empty());
        failed && self.home && self.unit == UnitState::Activating(false)
    }

    /// How far the boot is, from 0 to 1.
    #[must_use]
    pub fn fraction(&self) -> f64 {
        let Some(status) = self.status.as_ref().filter(|_| self.home) else { return 0.0 };
        let stages = Stage::ALL.len() as f64 + 1.0;
        let at = Stage::from_code(&status.stage).and_then(|s| Stage::ALL.iter().position(|x| *x == s));
        let (done, total) = status.progress;
        let within = if total > 0 { f64::from(done.min(total)) / f64::from(total) } else { 0.0 };
        at.map_or(0.0, |at| (at as f64 + 1.0 + within) / stages)
    }
}

fn stage_words(status: &Status) -> String {
    let words = match Stage::from_code(&status.stage) {
        Some(stage) => stage.sentence(),
        // Up, and systemd has not heard of it yet.
        None if status.phase == Phase::Running => "done",
        None => "starting firmware and kernel",
    };
    if !status.waiting.is_empty() {
        return format!("{words}: {}", failure_words(&status.waiting));
    }
    match status.progress {
        (_, 0) => words.to_owned(),
        (done, total) => format!("{words} ({done} of {total})"),
    }
}

/// Codes become sentences; host-side sentences stay.
fn failure_words(error: &str) -> String {
    Failure::from_code(error).map_or_else(|| error.to_owned(), |f| f.sentence().to_owned())
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
