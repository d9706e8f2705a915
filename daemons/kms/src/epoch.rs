// SPDX-License-Identifier: Apache-2.0
//! Which boot of an instance wrote its data disk last (trust rule T13, known attack P07): pure, over one instance's record.
//!
//! A boot tells what its disk says and gets a *pending* epoch; it writes that to the disk, flushes, and *commits*. Only
//! then it goes on. So the disk says the committed epoch, or the pending one when a boot was killed between writing and
//! committing; anything else is older. Whatever replaces a pending epoch ends the boot that had it, and so of two boots
//! from the same disk exactly one comes past its commit.

use dstack_core::epoch::Epoch;
use serde::{Deserialize, Serialize};

/// What is known about an instance's disk. The default: nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The last boot that went on.
    pub committed: Option<Epoch>,
    /// The boot that has begun last and has not gone on.
    pub pending: Option<Epoch>,
    /// The operator put a backup back: whatever comes next is taken, until a boot has committed.
    pub forgotten: bool,
}

/// What the disk of a boot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// No boot of this instance has an epoch yet.
    First,
    /// The one that the last boot wrote.
    Last,
    /// One that the operator vouches for.
    Forgotten,
    /// Another one, and the app only wants to be warned.
    Older(Refusal),
}

/// Why a boot may not go on with its disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is older, or a copy that another boot has overtaken.
    #[error("the data disk ({}) is older than this key service knows ({})", shown(.disk), shown(.known))]
    Older {
        /// What it says.
        disk: Option<Epoch>,
        /// What it should say.
        known: Option<Epoch>,
    },
    /// It has an epoch, and this key service knows nothing of the instance.
    #[error("this key service has never seen this data disk ({0})")]
    Unknown(Epoch),
    /// The commit of a boot that is not the last one to have begun.
    #[error("another boot of this instance has begun since, so this one may not go on; start the VM again")]
    Superseded,
    /// There is no number left.
    #[error("the epochs of this instance are used up; make a new VM")]
    Exhausted,
}

fn shown(epoch: &Option<Epoch>) -> String {
    epoch.map_or_else(|| "no epoch".to_owned(), |epoch| epoch.to_string())
}

impl Record {
    /// Begins a boot whose disk says `disk`; `token` is random. With `warn` an older disk passes. Gives what to keep
    /// before the caller learns of it, the epoch to write, and what the disk is.
    ///
    /// # Errors
    /// [`Refusal`]; the record stays as it is then.
    pub fn begin(
        &self,
        disk: Option<Epoch>,
        warn: bool,
        token: &[u8; 16],
    ) -> Result<(Self, Epoch, Found), Refusal> {
        let mut next = self.clone();
        if disk.is_some() && disk == self.pending {
            // Its boot wrote the epoch and was ended before its commit: now it counts.
            (next.committed, next.forgotten) = (disk, false);
        }
        let found = match next.judge(disk) {
            Err(older) if warn => Found::Older(older),
            judged => judged?,
        };
        // Above everything known, so that people can read the order.
        let numbers = [disk, self.committed, self.pending].into_iter().flatten().map(|e| e.number());
        let number = numbers.max().unwrap_or(0).checked_add(1).ok_or(Refusal::Exhausted)?;
        let pending = Epoch::new(number, token).map_err(|_| Refusal::Exhausted)?;
        next.pending = Some(pending);
        Ok((next, pending, found))
    }

    fn judge(&self, disk: Option<Epoch>) -> Result<Found, Refusal> {
        match disk {
            _ if self.forgotten => Ok(Found::Forgotten),
            None if self.committed.is_none() => Ok(Found::First),
            Some(_) if disk == self.committed => Ok(Found::Last),
            Some(epoch) if *self == Self::default() => Err(Refusal::Unknown(epoch)),
            _ => Err(Refusal::Older { disk, known: self.committed.or(self.pending) }),
        }
    }

    /// Lets the boot that has written `epoch` go on. Gives what to keep before it does; `None` when it was told so
    /// before, and its answer was lost.
    ///
    /// # Errors
    /// [`Refusal::Superseded`] when another boot has begun since.
    pub fn commit(&self, epoch: Epoch) -> Result<Option<Self>, Refusal> {
        match (self.committed, self.pending) {
            (_, Some(pending)) if pending == epoch => {
                Ok(Some(Self { committed: Some(epoch), ..Self::default() }))
            }
            // With a pending one somebody has begun after it.
            (Some(committed), None) if committed == epoch => Ok(None),
            _ => Err(Refusal::Superseded),
        }
    }

    /// Whether it says no more than that a boot has begun: no app has ever run with this disk.
    #[must_use]
    pub const fn is_only_begun(&self) -> bool {
        self.committed.is_none() && !self.forgotten
    }

    /// Takes whatever disk comes next, and ends the boot that has begun.
    #[must_use]
    pub fn forget(&self) -> Self {
        Self { committed: self.committed, pending: None, forgotten: true }
    }
}

#[cfg(test)]
#[path = "epoch_tests.rs"]
mod tests;
