// SPDX-License-Identifier: Apache-2.0
//! When a certificate is renewed: by its age, by what its authority suggests (ARI, RFC 9773), after failures. Pure.
//!
//! All times are Unix seconds by the wall clock, which may have jumped either way since they were written.

use serde::{Deserialize, Serialize};

/// Seconds of a day.
pub const DAY: i64 = 86_400;
/// First pause after a failure, seconds; doubled with each further one.
const BACKOFF_FIRST: i64 = 900;
/// Longest pause after failures, seconds.
const BACKOFF_LAST: i64 = DAY;

/// From when until when a certificate is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// First second.
    pub not_before: i64,
    /// Last second.
    pub not_after: i64,
}

impl Validity {
    fn life(&self) -> i64 {
        self.not_after.saturating_sub(self.not_before).max(0)
    }
}

/// When the authority wants it renewed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Suggested {
    /// From then.
    pub start: i64,
    /// Until then.
    pub end: i64,
    /// When to ask again.
    pub ask_again: i64,
}

/// What is known of a certificate.
#[derive(Debug, Clone, Copy)]
pub struct Known {
    /// Of the live one; `None`: there is none.
    pub validity: Option<Validity>,
    /// Whether it has just the names that it is to have, and is of the authority that is configured.
    pub fits: bool,
    /// What the authority suggests.
    pub suggested: Option<Suggested>,
    /// Any number that is the certificate's own, so that not all are renewed at one moment.
    pub spread: u64,
}

/// Whether and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Now, for this reason.
    Renew(Reason),
    /// At that time.
    At(i64),
}

/// Why it is renewed now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// There is none.
    Missing,
    /// It has other names, or is of another authority.
    Changed,
    /// It is old.
    Age,
    /// Its authority suggests it.
    Suggested,
    /// Somebody wants it.
    Forced,
}

impl Reason {
    /// In words.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::Missing => "there is none",
            Self::Changed => "names or authority have changed",
            Self::Age => "it expires soon",
            Self::Suggested => "its authority suggests it",
            Self::Forced => "it was asked for",
        }
    }
}

/// Decides. `days_before` are the days before the end at which it is renewed by age: at most a third of its life.
#[must_use]
pub fn decide(now: i64, known: &Known, days_before: u32, forced: bool) -> Decision {
    if forced {
        return Decision::Renew(Reason::Forced);
    }
    let Some(validity) = known.validity else { return Decision::Renew(Reason::Missing) };
    if !known.fits {
        return Decision::Renew(Reason::Changed);
    }
    let life = validity.life();
    let margin = (i64::from(days_before) * DAY).min(life / 3);
    let by_age = validity.not_after - margin;
    // An authority may say "later", but not "too late".
    let last = validity.not_after - margin.min(life / 10);
    match known.suggested.filter(|s| s.start < s.end && s.start < validity.not_after) {
        Some(suggested) => {
            let at = moment(&suggested, known.spread).min(last);
            if now >= at { Decision::Renew(Reason::Suggested) } else { Decision::At(at) }
        }
        None if now >= by_age => Decision::Renew(Reason::Age),
        None => Decision::At(by_age),
    }
}

/// A moment of the window, always the same for one certificate.
fn moment(suggested: &Suggested, spread: u64) -> i64 {
    let length = suggested.end.saturating_sub(suggested.start).unsigned_abs().max(1);
    suggested.start.saturating_add(i64::try_from(spread % length).unwrap_or(0))
}

/// Whether the authority is to be asked for its suggestion again.
#[must_use]
pub fn is_suggestion_old(now: i64, suggested: Option<&Suggested>) -> bool {
    // A time further ahead than any server may ask for was written by another clock.
    suggested.is_none_or(|s| now >= s.ask_again || s.ask_again - now > 8 * DAY)
}

/// What failed before.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failures {
    /// How many in a row.
    pub count: u32,
    /// When the last one was.
    pub last: i64,
    /// The authority wants to hear nothing before that; 0: it has not said so.
    pub not_before: i64,
}

impl Failures {
    /// One more, with what the authority said.
    #[must_use]
    pub fn another(self, now: i64, not_before: Option<i64>) -> Self {
        let not_before = not_before.map_or(0, |until| until.min(furthest(now)));
        Self { count: self.count.saturating_add(1), last: now, not_before }
    }

    /// When it may be tried again. Somebody who forces it only has to wait for the authority.
    #[must_use]
    pub fn until(&self, now: i64, forced: bool) -> Option<i64> {
        let doubled =
            BACKOFF_FIRST.saturating_mul(1_i64.checked_shl(self.count.saturating_sub(1)).unwrap_or(i64::MAX));
        let pause = if self.count == 0 || forced { 0 } else { doubled.clamp(BACKOFF_FIRST, BACKOFF_LAST) };
        // What is in the future was written before the clock was set back. It is no pause, or it would begin anew at each
        // look; the next failure is written by the clock of now.
        let paused = if self.last > now { 0 } else { self.last.saturating_add(pause) };
        let told = if self.not_before > furthest(now) { 0 } else { self.not_before };
        let until = paused.max(told);
        (until > now).then_some(until)
    }
}

/// The last moment until which an authority is believed.
pub(crate) fn furthest(now: i64) -> i64 {
    let most = i64::try_from(crate::limits::RETRY_AFTER_MAX.as_secs()).unwrap_or(i64::MAX);
    now.saturating_add(most)
}

#[cfg(test)]
#[path = "renewal_tests.rs"]
mod tests;
