// SPDX-License-Identifier: Apache-2.0
//! Where custom domains lead, as the control plane answered: a bounded cache, for names without a target too.

use crate::wheel::{Tick, ticks};
use dstack_core::flow::Target;
use std::collections::{HashMap, VecDeque};

/// Most answers that are kept.
pub const NAMES_MAX: usize = 16_384;
/// Most names that are asked at a time.
pub const PENDING_MAX: usize = 1_024;
/// Shortest and longest time that an answer is kept, seconds.
const TTL: std::ops::RangeInclusive<u32> = 1..=3_600;
/// When a question without answer is asked again, milliseconds.
const ASK_AGAIN_MS: u64 = 10_000;

/// What is known of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// It leads there, or nowhere.
    Answer(Option<Target>),
    /// Not yet; `ask` when the question must be sent.
    Wait {
        /// Send the question.
        ask: bool,
    },
    /// Too many names are being asked.
    Full,
}

/// The cache.
#[derive(Debug, Default)]
pub struct Names {
    answers: HashMap<String, (Option<Target>, Tick)>,
    /// Keys of `answers`, in the order of their first answer.
    order: VecDeque<String>,
    /// Questions and when they were sent.
    pending: HashMap<String, Tick>,
}

impl Names {
    /// What is known of a name. While the control plane is away, old answers are good enough.
    pub fn lookup(&mut self, name: &str, now: Tick, control: bool) -> Known {
        if let Some((target, until)) = self.answers.get(name)
            && (*until > now || !control)
        {
            return Known::Answer(*target);
        }
        if let Some(asked) = self.pending.get_mut(name) {
            let ask = now.saturating_sub(*asked) >= ticks(ASK_AGAIN_MS);
            if ask {
                *asked = now;
            }
            return Known::Wait { ask };
        }
        if self.pending.len() >= PENDING_MAX {
            self.pending.retain(|_, asked| now.saturating_sub(*asked) < ticks(ASK_AGAIN_MS));
        }
        if self.pending.len() >= PENDING_MAX {
            return Known::Full;
        }
        self.pending.insert(name.to_owned(), now);
        Known::Wait { ask: true }
    }

    /// Takes an answer; one that nobody asked for is not kept.
    pub fn answer(&mut self, name: &str, target: Option<Target>, ttl: u32, now: Tick) {
        if self.pending.remove(name).is_none() {
            return;
        }
        let ttl = u64::from(ttl.clamp(*TTL.start(), *TTL.end()));
        let until = now.saturating_add(ticks(ttl * 1_000));
        if self.answers.insert(name.to_owned(), (target, until)).is_none() {
            self.order.push_back(name.to_owned());
        }
        while self.answers.len() > NAMES_MAX {
            let Some(oldest) = self.order.pop_front() else { break };
            self.answers.remove(&oldest);
        }
    }

    /// The questions without answer, to be asked anew after the control plane came back.
    pub fn asked_again(&mut self, now: Tick) -> Vec<String> {
        self.pending.values_mut().for_each(|asked| *asked = now);
        self.pending.keys().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASK: Known = Known::Wait { ask: true };
    const WAIT: Known = Known::Wait { ask: false };

    fn target() -> Option<Target> {
        Some(Target { id: [7; 20].into(), port: 443 })
    }

    #[test]
    fn one_question_whatever_the_number_of_connections() {
        let mut names = Names::default();
        assert_eq!((names.lookup("a.b", 5, true), names.lookup("a.b", 5, true)), (ASK, WAIT));
        assert_eq!(names.lookup("a.b", 5 + ticks(ASK_AGAIN_MS), true), ASK);
        names.answer("a.b", target(), 60, 5);
        assert_eq!(names.lookup("a.b", 6, true), Known::Answer(target()));
        let later = 5 + ticks(60_000);
        assert_eq!(names.lookup("a.b", later, false), Known::Answer(target()), "control is away");
        assert_eq!(names.lookup("a.b", later, true), ASK);
        assert_eq!(names.asked_again(later), ["a.b"]);
    }

    #[test]
    fn answers_are_bounded_in_time_and_number() {
        let mut names = Names::default();
        names.answer("unasked.example", target(), 60, 0);
        assert_eq!(names.lookup("unasked.example", 0, true), ASK);
        assert_eq!(names.lookup("no.example", 0, true), ASK);
        names.answer("no.example", None, 0, 0);
        assert_eq!(names.lookup("no.example", 1, true), Known::Answer(None));
        assert_eq!(names.lookup("no.example", ticks(1_000), true), ASK);
        assert_eq!(names.lookup("long.example", 0, true), ASK);
        names.answer("long.example", None, u32::MAX, 0);
        assert_eq!(names.lookup("long.example", ticks(3_600_000), true), ASK);
        let mut names = Names::default();
        for number in 0..NAMES_MAX + 10 {
            let name = format!("n{number}.example");
            assert_eq!(names.lookup(&name, 0, true), ASK);
            names.answer(&name, target(), 3_600, 0);
        }
        assert_eq!((names.answers.len(), names.order.len()), (NAMES_MAX, NAMES_MAX));
        assert_eq!(names.lookup("n0.example", 1, true), ASK, "the oldest went");
    }

    #[test]
    fn p29_a_flood_of_names_stops_at_a_limit_and_ends() {
        let mut names = Names::default();
        for number in 0..PENDING_MAX {
            assert_eq!(names.lookup(&format!("n{number}.example"), 0, true), ASK);
        }
        assert_eq!(names.lookup("more.example", 0, true), Known::Full);
        assert_eq!(names.lookup("more.example", ticks(ASK_AGAIN_MS), true), ASK);
    }
}
