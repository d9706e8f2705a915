// SPDX-License-Identifier: Apache-2.0
//! When each step of a boot was first seen.

use std::time::Duration;

/// Most steps that are kept: a guest may not grow it without end.
const STEPS_MAX: usize = 32;

/// Milliseconds from dstack-vm's start to each step, in order.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Timeline(Vec<(String, u64)>);

impl Timeline {
    /// Notes a step; returns whether it is new.
    pub fn mark(&mut self, step: &str, now: Duration) -> bool {
        if self.0.len() == STEPS_MAX || self.0.iter().any(|(seen, _)| seen == step) {
            return false;
        }
        self.0.push((step.to_owned(), u64::try_from(now.as_millis()).unwrap_or(u64::MAX)));
        true
    }

    /// The steps and their times.
    #[must_use]
    pub fn steps(&self) -> &[(String, u64)] {
        &self.0
    }

    /// One line for the log: `qemu 0.1, firmware 0.9, config 9.0, ready 34.0 s`.
    #[must_use]
    pub fn line(&self) -> String {
        let steps: Vec<String> =
            self.0.iter().map(|(step, ms)| format!("{step} {}.{}", ms / 1000, ms % 1000 / 100)).collect();
        steps.join(", ") + " s"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_noted_once_and_bounded() {
        let mut timeline = Timeline::default();
        let at = Duration::from_millis;
        assert!(timeline.mark("qemu", at(120)));
        assert!(timeline.mark("ready", at(34_060)));
        assert!(!timeline.mark("ready", at(40_000)));
        assert_eq!(timeline.line(), "qemu 0.1, ready 34.0 s");
        for n in 0..100 {
            timeline.mark(&format!("s{n}"), at(50_000));
        }
        assert_eq!(timeline.steps().len(), STEPS_MAX);
    }
}
