// SPDX-License-Identifier: Apache-2.0
//! What systemd is told.

use sd_notify::NotifyState;
use std::time::Duration;

/// systemd's notification socket, by the environment; without one nothing happens.
#[derive(Debug, Default)]
pub struct Notify;

impl Notify {
    /// The unit is up.
    pub fn ready(&self, status: &str) {
        self.send(&[NotifyState::Ready, NotifyState::Status(status)]);
    }

    /// The unit goes down.
    pub fn stopping(&self) {
        self.send(&[NotifyState::Stopping]);
    }

    /// The state in words.
    pub fn status(&self, text: &str) {
        self.send(&[NotifyState::Status(text)]);
    }

    /// Have patience for this long from now on.
    pub fn extend(&self, time: Duration) {
        let usec = u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
        self.send(&[NotifyState::ExtendTimeoutUsec(usec)]);
    }

    /// Still alive.
    pub fn watchdog(&self) {
        self.send(&[NotifyState::Watchdog]);
    }

    /// Half of the time in which systemd wants to hear [`Self::watchdog`], if it does.
    #[must_use]
    pub fn watchdog_interval(&self) -> Option<Duration> {
        let usec: u64 = std::env::var("WATCHDOG_USEC").ok()?.parse().ok()?;
        (usec > 0).then(|| Duration::from_micros(usec / 2))
    }

    fn send(&self, states: &[NotifyState<'_>]) {
        // systemd may be away for a moment (daemon-reexec); the next message repeats what matters.
        let _ = sd_notify::notify(states);
    }
}
