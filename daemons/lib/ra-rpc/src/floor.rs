// SPDX-License-Identifier: Apache-2.0
//! What was once verified never falls (trust rule T12): a platform's TCB evaluation, and the time.
//!
//! Only collateral whose signatures were good raises a floor, so a false server cannot raise it, and one that gives old
//! collateral cannot go below it.

use crate::collateral::{PlatformId, replace};
use dstack_ra_tls::Verdict;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Most platforms with a floor of their own; each has had a genuine quote.
const PLATFORMS_MAX: usize = 1024;
/// Largest file of a floor, bytes.
const FILE_MAX: u64 = 1024;

/// The least that a platform's collateral may say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Floor {
    /// Number of the TCB evaluation.
    pub evaluation_number: u32,
    /// Newest issue date, seconds since 1970.
    pub not_earlier_than: u64,
}

impl Floor {
    const fn raised(self, other: Self) -> Self {
        const fn larger(a: u64, b: u64) -> u64 {
            if a > b { a } else { b }
        }
        let number = if self.evaluation_number > other.evaluation_number {
            self.evaluation_number
        } else {
            other.evaluation_number
        };
        Self {
            evaluation_number: number,
            not_earlier_than: larger(self.not_earlier_than, other.not_earlier_than),
        }
    }
}

/// Floors by platform, in files beside the collateral.
#[derive(Debug)]
pub struct Floors {
    directory: Option<PathBuf>,
    known: Mutex<HashMap<PlatformId, Floor>>,
}

impl Floors {
    /// The floors that an earlier run left in `directory`, if there is one.
    #[must_use]
    pub fn load(directory: Option<PathBuf>) -> Self {
        let files = directory.iter().filter_map(|d| std::fs::read_dir(d).ok()).flatten().flatten();
        let known = files.filter_map(|entry| read(&entry.path())).take(PLATFORMS_MAX).collect();
        Self { directory, known: Mutex::new(known) }
    }

    /// The floor of a platform.
    #[must_use]
    pub fn of(&self, platform: PlatformId) -> Floor {
        self.lock().get(&platform).copied().unwrap_or_default()
    }

    /// The time is at least this, seconds since 1970.
    #[must_use]
    pub fn not_earlier_than(&self) -> u64 {
        self.lock().values().map(|floor| floor.not_earlier_than).max().unwrap_or(0)
    }

    /// Raises a platform's floor to what a genuine quote's collateral says.
    pub fn raise(&self, platform: PlatformId, verdict: &Verdict) {
        let (evaluation_number, not_earlier_than) = (verdict.evaluation_number, verdict.not_earlier_than);
        let mut known = self.lock();
        let before = known.get(&platform).copied();
        let after = before.unwrap_or_default().raised(Floor { evaluation_number, not_earlier_than });
        if before == Some(after) || (before.is_none() && known.len() >= PLATFORMS_MAX) {
            return;
        }
        known.insert(platform, after);
        let json = serde_json::to_vec(&after);
        if let (Some(directory), Ok(json)) = (&self.directory, json) {
            // A full disk must not stop verification; the floor holds while the daemon runs.
            drop(replace(&directory.join(format!("floor-{platform}.json")), &json));
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PlatformId, Floor>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read(path: &Path) -> Option<(PlatformId, Floor)> {
    let name = path.file_name()?.to_str()?.strip_prefix("floor-")?.strip_suffix(".json")?;
    let mut platform = [0; 6];
    hex::decode_to_slice(name, &mut platform).ok()?;
    let mut json = Vec::new();
    std::fs::File::open(path).ok()?.take(FILE_MAX).read_to_end(&mut json).ok()?;
    Some((PlatformId(platform), serde_json::from_slice(&json).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t12_a_floor_rises_in_each_part_alone() {
        let floor = |evaluation_number, not_earlier_than| Floor { evaluation_number, not_earlier_than };
        assert_eq!(floor(5, 100).raised(floor(4, 200)), floor(5, 200));
        assert_eq!(floor(5, 100).raised(floor(6, 50)), floor(6, 100));
    }
}
