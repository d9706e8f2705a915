// SPDX-License-Identifier: Apache-2.0
//! Time with a floor (trust rule T12): the host sets the clock, so it counts only from a time that is known to be past.
//!
//! The floor is the newest of: the build of this program, the build of the image (`/usr/lib/clock-epoch`, under
//! dm-verity), and the last write to the data disk. What a certificate is judged by never falls below it.

use rustix::time::{ClockId, Timespec, clock_settime};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Nothing of this was built earlier: 2026-01-01.
const EPOCH: u64 = 1_767_225_600;
/// The file whose time of change is the image's build; systemd sets the clock to it, too.
const CLOCK_EPOCH: &str = "/usr/lib/clock-epoch";

/// Tells the time, never before the floor. Clones share the floor.
#[derive(Debug, Clone)]
pub struct Clock {
    floor: Arc<AtomicU64>,
    system: fn() -> u64,
}

impl Clock {
    /// The system's clock with the floor of this image.
    #[must_use]
    pub fn of_image() -> Self {
        Self::new(build_time(Path::new(CLOCK_EPOCH)), system)
    }

    /// A clock with a floor, both in seconds since 1970.
    #[must_use]
    pub fn new(floor: u64, system: fn() -> u64) -> Self {
        Self { floor: Arc::new(floor.into()), system }
    }

    /// Seconds since 1970.
    #[must_use]
    pub fn now(&self) -> u64 {
        (self.system)().max(self.floor())
    }

    /// The floor.
    #[must_use]
    pub fn floor(&self) -> u64 {
        self.floor.load(Ordering::Relaxed)
    }

    /// This time is past, so the floor is not below it.
    pub fn raise(&self, past: u64) {
        self.floor.fetch_max(past, Ordering::Relaxed);
    }

    /// Whether the system's clock is behind the floor.
    #[must_use]
    pub fn is_behind(&self) -> bool {
        (self.system)() < self.floor()
    }

    /// Sets the system's clock to the floor when it is behind.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn correct_system(&self) -> io::Result<()> {
        if !self.is_behind() {
            return Ok(());
        }
        let seconds = i64::try_from(self.floor()).map_err(io::Error::other)?;
        clock_settime(ClockId::Realtime, Timespec { tv_sec: seconds, tv_nsec: 0 })?;
        println!("<4>the clock was behind what is known to be past; it was set to that");
        Ok(())
    }
}

/// Sets the system's clock to at least the time in a file, decimal seconds since 1970.
///
/// # Errors
/// When the file cannot be read or is no time, or the kernel refuses.
pub fn correct_by(file: &Path) -> io::Result<()> {
    let text = std::fs::read_to_string(file)?;
    Clock::new(text.trim().parse().map_err(io::Error::other)?, system).correct_system()
}

fn system() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// The newest of what is known when the image is built.
fn build_time(epoch: &Path) -> u64 {
    let program = option_env!("SOURCE_DATE_EPOCH").and_then(|text| text.parse().ok()).unwrap_or(EPOCH);
    let changed = std::fs::metadata(epoch).and_then(|m| m.modified()).ok();
    let image = changed.and_then(|t| t.duration_since(UNIX_EPOCH).ok()).map_or(0, |d| d.as_secs());
    EPOCH.max(program).max(image)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000;

    #[test]
    fn t12_time_never_falls_below_what_is_known_to_be_past() {
        let year = 365 * 86_400;
        // The host sets the clock back a year.
        let clock = Clock::new(NOW - year / 2, || NOW - 365 * 86_400);
        assert_eq!(clock.now(), NOW - year / 2);
        let other = clock.clone();
        clock.raise(NOW);
        clock.raise(NOW - 1);
        assert_eq!((clock.now(), other.now(), clock.floor()), (NOW, NOW, NOW));
        assert_eq!(Clock::new(NOW - year, || NOW).now(), NOW, "a clock that is right is used");
        assert!(clock.is_behind() && !Clock::new(1, || NOW).is_behind());
        Clock::new(1, || NOW).correct_system().unwrap();
    }

    #[test]
    fn a_file_without_a_time_sets_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("clock-floor");
        assert!(correct_by(&file).is_err());
        for (text, good) in [("1800\n", true), ("", false), ("-1", false), ("x", false)] {
            std::fs::write(&file, text).unwrap();
            assert_eq!(correct_by(&file).is_ok(), good, "{text:?}");
        }
    }

    #[test]
    fn t12_the_floor_begins_with_the_newest_build() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("clock-epoch");
        assert!(build_time(&file) >= EPOCH);
        let image = UNIX_EPOCH + std::time::Duration::from_secs(4_000_000_000);
        std::fs::File::create(&file).unwrap().set_modified(image).unwrap();
        assert_eq!(build_time(&file), 4_000_000_000);
    }
}
