// SPDX-License-Identifier: Apache-2.0
//! Who will be refused, and when (trust rule T22): what a verdict of today says about the days to come. Pure.

use crate::instances::Instance;
use dstack_core::ids::{AppId, ComposeHash, InstanceId};
use dstack_ra_tls::Verdict;

/// Collateral that ends within this long is told, seconds: it is fetched again every few hours, and holds for about 30
/// days, so by then that has failed for weeks.
pub const NEAR: u64 = 7 * 86_400;

/// Why an instance will be refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// It breaks a rule of the policy now.
    Refused,
    /// Its platform is out of date and passes by grace, which ends.
    GraceEnds,
    /// Its platform's collateral ends and could not be fetched again.
    CollateralEnds,
    /// There is no collateral for its platform.
    NoCollateral,
    /// Its quote no longer stands under the root: its platform was revoked, say.
    NotGenuine,
    /// What was kept of it cannot be read.
    Unreadable,
}

impl Cause {
    /// The word for programs.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::GraceEnds => "grace-ends",
            Self::CollateralEnds => "collateral-ends",
            Self::NoCollateral => "no-collateral",
            Self::NotGenuine => "not-genuine",
            Self::Unreadable => "unreadable",
        }
    }
}

/// When it is refused, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ahead {
    /// From when on, Unix seconds.
    pub when: u64,
    /// Why.
    pub cause: Cause,
    /// Why, in a sentence.
    pub reason: String,
}

/// An instance that will be refused, or is already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outlook {
    /// Its app; `None` when what was kept cannot be read.
    pub app: Option<AppId>,
    /// Its id.
    pub instance: Option<InstanceId>,
    /// Its compose file.
    pub compose_hash: Option<ComposeHash>,
    /// When it got keys last, Unix seconds.
    pub seen: u64,
    /// What is ahead of it.
    pub ahead: Ahead,
}

impl Outlook {
    /// What is ahead of an instance.
    #[must_use]
    pub const fn of(instance: &Instance, ahead: Ahead) -> Self {
        let Instance { app, instance: id, compose_hash, seen, .. } = instance;
        Self { app: Some(*app), instance: *id, compose_hash: Some(*compose_hash), seen: *seen, ahead }
    }
}

/// The first thing that a verdict of `now` says will refuse the instance; `None` when nothing is in sight.
#[must_use]
pub fn ahead(verdict: &Verdict, now: u64) -> Option<Ahead> {
    if !verdict.passed() {
        return Some(Ahead { when: now, cause: Cause::Refused, reason: verdict.reasons() });
    }
    let grace = verdict.grace_until.map(|when| {
        let reason = format!("its platform is {} and passes by grace until then", verdict.tcb_status);
        Ahead { when, cause: Cause::GraceEnds, reason }
    });
    let expires = verdict.collateral_expires;
    let near = (expires.saturating_sub(now) < NEAR).then(|| collateral_ends(expires));
    grace.into_iter().chain(near).min_by_key(|ahead| ahead.when)
}

/// Collateral that ends then, or has ended.
#[must_use]
pub fn collateral_ends(when: u64) -> Ahead {
    let reason = "the collateral of its platform ends then and could not be fetched again".to_owned();
    Ahead { when, cause: Cause::CollateralEnds, reason }
}
