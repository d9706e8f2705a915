// SPDX-License-Identifier: Apache-2.0
//! How long each step took, for the journal.

use std::fmt;
use std::time::{Duration, Instant};

/// The steps so far.
#[derive(Debug)]
pub struct Timing {
    begun: Instant,
    last: Instant,
    steps: Vec<(&'static str, Duration)>,
}

impl Timing {
    /// Begins to measure.
    #[must_use]
    pub fn begin() -> Self {
        let now = Instant::now();
        Self { begun: now, last: now, steps: Vec::new() }
    }

    /// A step has ended.
    pub fn done(&mut self, step: &'static str) {
        let now = Instant::now();
        self.steps.push((step, now - self.last));
        self.last = now;
    }
}

impl fmt::Display for Timing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (step, took) in &self.steps {
            write!(f, "{step} {} ms, ", took.as_millis())?;
        }
        write!(f, "in all {} ms", (self.last - self.begun).as_millis())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_told_in_their_order() {
        let mut timing = Timing::begin();
        timing.done("config");
        timing.done("keys");
        let text = timing.to_string();
        assert!(
            text.starts_with("config ") && text.contains(" ms, keys ") && text.contains("in all "),
            "{text}"
        );
    }
}
