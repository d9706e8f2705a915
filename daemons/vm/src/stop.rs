// SPDX-License-Identifier: Apache-2.0
//! The steps by which a VM is brought down: ask the guest, press the power button, quit, kill.

use std::time::Duration;

/// Time between `quit` and the end that systemd was promised.
const QUIT_BEFORE: Duration = Duration::from_secs(5);
/// Time between the kill and that end.
const KILL_BEFORE: Duration = Duration::from_secs(2);
/// Least time for a stop.
const TIMEOUT_MIN: Duration = Duration::from_secs(10);
/// Most time between asking the guest and pressing the power button.
const ASK_MAX: Duration = Duration::from_secs(30);
/// Time for a guest that never spoke: firmware does not listen to the power button, and nothing is mounted.
const SILENT_MAX: Duration = Duration::from_secs(10);

/// A step that is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Ask the guest's agent to shut down.
    Ask,
    /// Press the power button.
    PowerDown,
    /// End QEMU.
    Quit,
    /// Kill QEMU.
    Kill,
}

/// The steps that are still to come.
#[derive(Debug)]
pub(crate) struct Ladder {
    steps: Vec<(Duration, Step)>,
    end: Duration,
}

impl Ladder {
    /// Begins at `now`; `spoke` says whether the guest's system was ever heard of.
    pub(crate) fn begin(now: Duration, timeout: Duration, spoke: bool) -> Self {
        let timeout = timeout.max(TIMEOUT_MIN);
        let timeout = if spoke { timeout } else { timeout.min(SILENT_MAX + QUIT_BEFORE) };
        let power = if spoke { now + ASK_MAX.min(timeout / 3) } else { now };
        let end = now + timeout;
        // The next step is the last of the list.
        let mut steps =
            vec![(end - KILL_BEFORE, Step::Kill), (end - QUIT_BEFORE, Step::Quit), (power, Step::PowerDown)];
        if spoke {
            steps.push((now, Step::Ask));
        }
        Self { steps, end }
    }

    /// When the next step is due.
    pub(crate) fn deadline(&self) -> Option<Duration> {
        self.steps.last().map(|(at, _)| *at)
    }

    /// When all of it will be over.
    pub(crate) const fn end(&self) -> Duration {
        self.end
    }

    /// The step that is due, once.
    pub(crate) fn due(&mut self, now: Duration) -> Option<Step> {
        self.deadline().filter(|at| *at <= now)?;
        self.steps.pop().map(|(_, step)| step)
    }

    /// The guest's agent cannot be asked: press the power button now.
    pub(crate) fn hurry(&mut self, now: Duration) {
        if let Some((at, Step::PowerDown)) = self.steps.last_mut() {
            *at = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn the_whole_ladder() {
        let mut ladder = Ladder::begin(at(100), at(90), true);
        assert_eq!(ladder.due(at(100)), Some(Step::Ask));
        assert_eq!(ladder.due(at(129)), None);
        assert_eq!(ladder.due(at(130)), Some(Step::PowerDown));
        assert_eq!(ladder.due(at(184)), None);
        assert_eq!(ladder.due(at(185)), Some(Step::Quit));
        assert_eq!(ladder.deadline(), Some(at(188)));
        assert_eq!(ladder.due(at(188)), Some(Step::Kill));
        assert_eq!((ladder.due(at(999)), ladder.deadline(), ladder.end()), (None, None, at(190)));
    }

    #[test]
    fn a_deaf_agent_and_a_silent_guest() {
        let mut ladder = Ladder::begin(at(0), at(90), true);
        assert_eq!(ladder.due(at(0)), Some(Step::Ask));
        ladder.hurry(at(1));
        assert_eq!(ladder.due(at(1)), Some(Step::PowerDown));
        ladder.hurry(at(1));
        assert_eq!(ladder.due(at(1)), None);
        let mut ladder = Ladder::begin(at(0), at(90), false);
        assert_eq!(ladder.due(at(0)), Some(Step::PowerDown));
        assert_eq!(ladder.due(at(10)), Some(Step::Quit));
        assert_eq!(ladder.end(), at(15));
    }

    #[test]
    fn a_tiny_timeout_still_has_every_step() {
        let mut ladder = Ladder::begin(at(0), at(0), true);
        let steps: Vec<_> = std::iter::from_fn(|| ladder.due(at(60))).collect();
        assert_eq!(steps, [Step::Ask, Step::PowerDown, Step::Quit, Step::Kill]);
    }
}
