// SPDX-License-Identifier: Apache-2.0
//! A coarse timer wheel: pure, O(1) to arm, and nothing to disarm.
//!
//! A timer that is no longer wanted stays until it fires; whoever armed it compares. Deadlines beyond the wheel's span
//! fire early and are armed anew, so that a connection costs one entry whatever its timeouts are.

use crate::slab::Token;
use std::time::Duration;

/// Milliseconds of one tick.
pub const TICK_MS: u64 = 64;
/// Ticks of the wheel: about 65 seconds.
const SPAN: u32 = 1024;
const WORDS: usize = (SPAN / 64) as usize;

/// A moment, in ticks since the process started.
pub type Tick = u32;

/// The tick of a time since the start.
#[must_use]
pub fn tick(since_start: Duration) -> Tick {
    u32::try_from(since_start.as_millis() / u128::from(TICK_MS)).unwrap_or(u32::MAX)
}

/// Ticks that last at least so many milliseconds.
#[must_use]
pub fn ticks(milliseconds: u64) -> Tick {
    u32::try_from(milliseconds.div_ceil(TICK_MS)).unwrap_or(u32::MAX / 2).saturating_add(1)
}

/// Timers of one worker.
#[derive(Debug)]
pub struct Wheel {
    buckets: Vec<Vec<Token>>,
    /// One bit per bucket that is not empty.
    occupied: [u64; WORDS],
    /// The last tick that was taken out.
    now: Tick,
}

impl Wheel {
    /// An empty wheel at a moment.
    #[must_use]
    pub fn new(now: Tick) -> Self {
        Self { buckets: (0..SPAN).map(|_| Vec::new()).collect(), occupied: [0; WORDS], now }
    }

    /// Arms a timer; returns when it fires, which is earlier than asked when that is beyond the wheel.
    pub fn arm(&mut self, at: Tick, token: Token) -> Tick {
        let at = at.clamp(self.now.saturating_add(1), self.now.saturating_add(SPAN - 1));
        let index = (at % SPAN) as usize;
        if let (Some(bucket), Some(word)) = (self.buckets.get_mut(index), self.occupied.get_mut(index / 64)) {
            bucket.push(token);
            *word |= 1 << (index % 64);
        }
        at
    }

    /// The next tick at which something fires.
    #[must_use]
    pub fn next(&self) -> Option<Tick> {
        let start = self.now.saturating_add(1);
        let mut ahead = 0;
        while ahead < SPAN {
            let index = (start.wrapping_add(ahead)) % SPAN;
            let word = self.occupied.get((index / 64) as usize).copied().unwrap_or_default();
            let rest = word >> (index % 64);
            if rest != 0 {
                let found = ahead + rest.trailing_zeros();
                return (found < SPAN).then(|| start.saturating_add(found));
            }
            ahead += 64 - index % 64;
        }
        None
    }

    /// Takes out what fires until now, each with its tick.
    pub fn advance(&mut self, now: Tick, fired: &mut Vec<(Tick, Token)>) {
        while let Some(at) = self.next().filter(|at| *at <= now) {
            let index = (at % SPAN) as usize;
            if let Some(bucket) = self.buckets.get_mut(index) {
                fired.extend(bucket.drain(..).map(|token| (at, token)));
            }
            if let Some(word) = self.occupied.get_mut(index / 64) {
                *word &= !(1 << (index % 64));
            }
            self.now = at;
        }
        self.now = self.now.max(now);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn token(slot: u32) -> Token {
        Token { slot, generation: 1 }
    }

    fn fired(wheel: &mut Wheel, now: Tick) -> Vec<(Tick, u32)> {
        let mut out = Vec::new();
        wheel.advance(now, &mut out);
        out.into_iter().map(|(at, token)| (at, token.slot)).collect()
    }

    #[test]
    fn fires_in_order_and_once() {
        let mut wheel = Wheel::new(1000);
        assert_eq!((wheel.arm(1005, token(1)), wheel.arm(1003, token(2))), (1005, 1003));
        assert_eq!((wheel.arm(1005, token(3)), wheel.next()), (1005, Some(1003)));
        assert_eq!(fired(&mut wheel, 1002), []);
        assert_eq!(fired(&mut wheel, 1005), [(1003, 2), (1005, 1), (1005, 3)]);
        assert_eq!((fired(&mut wheel, 9000), wheel.next()), (vec![], None));
    }

    #[test]
    fn the_past_is_the_next_tick_and_the_far_future_comes_early() {
        let mut wheel = Wheel::new(50);
        assert_eq!(wheel.arm(7, token(1)), 51);
        assert_eq!(wheel.arm(u32::MAX, token(2)), 50 + 1023);
        assert_eq!(fired(&mut wheel, 51), [(51, 1)]);
        assert_eq!(wheel.next(), Some(1073));
        assert_eq!(fired(&mut wheel, 5000), [(1073, 2)]);
    }

    #[test]
    fn agrees_with_a_sorted_list() {
        let (mut wheel, mut model, mut seed) = (Wheel::new(0), Vec::new(), 7_u64);
        let mut now = 0;
        for slot in 0..20_000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let ahead = u32::try_from(seed >> 40).unwrap() % 1500;
            model.push((wheel.arm(now + ahead, token(slot)), slot));
            if slot % 3 == 0 {
                now += u32::try_from(seed >> 32).unwrap() % 40;
                let due = fired(&mut wheel, now);
                assert!(due.is_sorted_by_key(|(at, _)| *at));
                let mut expected: Vec<_> = model.iter().copied().filter(|(at, _)| *at <= now).collect();
                model.retain(|(at, _)| *at > now);
                expected.sort_unstable();
                let mut due = due;
                due.sort_unstable();
                assert_eq!(due, expected);
            }
            assert_eq!(wheel.next(), model.iter().map(|(at, _)| *at).min());
        }
    }
}
