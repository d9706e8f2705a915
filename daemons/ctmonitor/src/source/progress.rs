// SPDX-License-Identifier: Apache-2.0
//! How far a list of certificates was looked at: what is new comes first, what failed before comes last and ever more
//! rarely. Else a few that fail for good would keep all older ones from being looked at. Pure.

use super::pause;
use crate::crtsh::Entry;
use crate::store::{Attempts, Cursor};
use std::collections::{BTreeMap, BTreeSet};

/// What was looked at, and what could not be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    checked: BTreeSet<u64>,
    failed: BTreeMap<u64, Attempts>,
}

/// What is to be looked at.
#[derive(Debug, PartialEq, Eq)]
pub struct Due<'a> {
    /// Never tried, the newest first.
    pub fresh: Vec<&'a Entry>,
    /// Tried in vain, and due again: the one that waits longest first.
    pub again: Vec<&'a Entry>,
}

impl Progress {
    /// As it was kept.
    #[must_use]
    pub fn of(cursor: Cursor) -> Self {
        match cursor {
            Cursor::Search { checked, failed } => Self { checked, failed },
            _ => Self::default(),
        }
    }

    /// As it is kept.
    #[must_use]
    pub fn cursor(&self) -> Cursor {
        Cursor::Search { checked: self.checked.clone(), failed: self.failed.clone() }
    }

    /// Forgets what is not listed any more, so that it is looked at again if it comes back, and vain tries of what is to be
    /// skipped by now; gives how many that were looked at are gone.
    pub fn forget(&mut self, list: &BTreeMap<u64, Entry>, skipped: impl Fn(&Entry) -> bool) -> usize {
        let before = self.checked.len();
        self.checked.retain(|id| list.contains_key(id));
        self.failed.retain(|id, _| list.get(id).is_some_and(|entry| !skipped(entry)));
        before - self.checked.len()
    }

    /// What is due of a list, without what is to be skipped.
    #[must_use]
    pub fn due<'a>(
        &self,
        list: &'a BTreeMap<u64, Entry>,
        skipped: impl Fn(&Entry) -> bool,
        now: u64,
    ) -> Due<'a> {
        let is_fresh = |e: &&Entry| !(self.checked.contains(&e.id) || self.failed.contains_key(&e.id));
        let fresh = list.values().rev().filter(|e| is_fresh(e) && !skipped(e)).collect();
        let mut again: Vec<_> = self.failed.iter().filter(|(_, attempts)| attempts.retry_at <= now).collect();
        again.sort_by_key(|(_, attempts)| attempts.retry_at);
        Due { fresh, again: again.into_iter().filter_map(|(id, _)| list.get(id)).collect() }
    }

    /// How many could not be looked at.
    #[must_use]
    pub fn failed(&self) -> usize {
        self.failed.len()
    }

    /// One was looked at.
    pub fn done(&mut self, id: u64) {
        self.failed.remove(&id);
        self.checked.insert(id);
    }

    /// One could not be looked at.
    pub fn fail(&mut self, id: u64, now: u64) {
        let attempts = self.failed.entry(id).or_default();
        attempts.count = attempts.count.saturating_add(1);
        attempts.retry_at = now + pause(attempts.count, None);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn list(ids: impl Iterator<Item = u64>) -> BTreeMap<u64, Entry> {
        let json = |id: u64| {
            serde_json::json!({"id": id, "issuer_ca_id": 1, "issuer_name": "", "common_name": null, "name_value": "",
                "not_before": "2024-09-24T02:23:15", "not_after": "2024-12-23T02:23:14", "serial_number": "01"})
        };
        ids.map(|id| (id, serde_json::from_value(json(id)).unwrap())).collect()
    }

    fn ids(progress: &Progress, list: &BTreeMap<u64, Entry>, now: u64) -> (Vec<u64>, Vec<u64>) {
        let due = progress.due(list, |e| e.id == 9, now);
        let ids = |entries: Vec<&Entry>| entries.iter().map(|e| e.id).collect();
        (ids(due.fresh), ids(due.again))
    }

    #[test]
    fn what_failed_comes_last_and_ever_more_rarely() {
        let (list, mut progress) = (list(1..=9), Progress::default());
        [8, 7, 8].into_iter().for_each(|id| progress.fail(id, 1000));
        progress.done(6);
        let fresh = vec![5, 4, 3, 2, 1];
        assert_eq!(ids(&progress, &list, 1059), (fresh.clone(), vec![]));
        assert_eq!(ids(&progress, &list, 1060), (fresh.clone(), vec![7]));
        assert_eq!(ids(&progress, &list, 1120), (fresh.clone(), vec![7, 8]), "the longest waiting first");
        progress.done(8);
        assert_eq!(Progress::of(progress.cursor()), progress);
        assert_eq!((ids(&progress, &list, 1120), progress.failed()), ((fresh, vec![7]), 1));
    }

    #[test]
    fn what_comes_back_is_new_and_what_is_skipped_is_not_waited_for() {
        let mut progress = Progress::default();
        progress.done(1);
        [2, 9].into_iter().for_each(|id| progress.fail(id, 0));
        assert_eq!(progress.forget(&list([3, 9].into_iter()), |e| e.id == 9), 1, "one that was looked at");
        assert_eq!((ids(&progress, &list(1..=2), 0), progress.failed()), ((vec![2, 1], vec![]), 0));
    }
}
