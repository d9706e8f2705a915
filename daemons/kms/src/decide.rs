// SPDX-License-Identifier: Apache-2.0
//! Whether a compose file may have an app's keys: pure, over what is known about the app.

use dstack_core::ids::{AppId, ComposeHash, IdError, SignerKey};
use dstack_core::upgrade::Statement;
use dstack_ra_tls::certificate::Custody;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// Most statements kept of one app.
pub const STATEMENTS_MAX: usize = 256;

/// A compose hash as an operator writes it: whole, or its first 20 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HashName {
    /// 64 hex.
    Whole(ComposeHash),
    /// 40 hex.
    Head(AppId),
}

impl HashName {
    /// Whether it names this hash.
    #[must_use]
    pub fn names(&self, hash: &ComposeHash) -> bool {
        match self {
            Self::Whole(whole) => whole == hash,
            Self::Head(head) => *head == hash.app_id(),
        }
    }

    /// Whether it names the app's first compose file.
    #[must_use]
    pub fn is_first_of(&self, app: &AppId) -> bool {
        match self {
            Self::Whole(whole) => whole.app_id() == *app,
            Self::Head(head) => head == app,
        }
    }

    /// Both names of a hash.
    #[must_use]
    pub fn of(hash: &ComposeHash) -> [Self; 2] {
        [Self::Whole(*hash), Self::Head(hash.app_id())]
    }
}

impl FromStr for HashName {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        match text.strip_prefix("0x").unwrap_or(text).len() {
            40 => text.parse().map(Self::Head),
            _ => text.parse().map(Self::Whole),
        }
    }
}

impl fmt::Display for HashName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole(hash) => hash.fmt(f),
            Self::Head(head) => head.fmt(f),
        }
    }
}

/// Who may allow an app's upgrades (trust rule T8); the first compose file says so, once this service has seen it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Owners {
    /// The first compose file was not seen yet.
    #[default]
    Unknown,
    /// It names nobody, so the operator decides.
    Operator,
    /// These keys.
    Keys(Vec<SignerKey>),
}

/// What is known about an app.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Known {
    /// Who may allow upgrades.
    pub owners: Owners,
    /// Statements in force, by ascending number.
    pub statements: Vec<Statement>,
    /// What the operator allowed.
    pub allowed: BTreeSet<HashName>,
    /// What the operator revoked.
    pub revoked: BTreeSet<HashName>,
}

impl Known {
    /// The number below which everything is revoked.
    #[must_use]
    pub fn revoke_below(&self) -> u64 {
        self.statements.last().map_or(0, |s| s.revoke_below)
    }
}

/// Why a compose file may have the keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Basis {
    /// Its hash is the app id.
    First,
    /// The operator's registry has it.
    Operator,
    /// The owner's statement of this number.
    Owner(u64),
}

impl fmt::Display for Basis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::First => f.write_str("first"),
            Self::Operator => f.write_str("operator"),
            Self::Owner(seq) => write!(f, "owner:{seq}"),
        }
    }
}

/// Why it may not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denial {
    /// Nobody allowed it.
    #[error(
        "compose hash {1} is not allowed for app {0}; allow it with: dstackctl kms allow-upgrade {0} {1}"
    )]
    NotAllowed(AppId, ComposeHash),
    /// The operator revoked it.
    #[error(
        "compose hash {1} is revoked for app {0}; take that back with: dstackctl kms allow-upgrade {0} {1}"
    )]
    Revoked(AppId, ComposeHash),
    /// The owner signs upgrades and did not sign this one.
    #[error(
        "compose hash {1} is not allowed for app {0}: its owner signs upgrades; submit the owner's statement with: \
         dstackctl kms submit-upgrade FILE"
    )]
    NotSigned(AppId, ComposeHash),
    /// The owner revoked it.
    #[error("compose hash {1} of app {0} was revoked by the app's owner")]
    RevokedByOwner(AppId, ComposeHash),
    /// The owner's statement has ended.
    #[error("compose hash {1} of app {0}: the owner's statement ended at {2} (Unix seconds)")]
    Ended(AppId, ComposeHash, u64),
    /// Without the first compose file nobody knows who may allow this.
    #[error(
        "compose hash {1} is not allowed for app {0}: this key service has not seen the app's first compose file, so it \
         cannot know who signs upgrades; start the app with it once, or submit a statement that contains it"
    )]
    OwnersUnknown(AppId, ComposeHash),
}

/// Decides at the time `now` (Unix seconds).
///
/// A key service on a host lets its operator decide about apps whose first compose file it has not seen; that operator
/// can derive their keys anyway. One in a CVM does not.
///
/// # Errors
/// [`Denial`].
pub fn decide(
    app: &AppId,
    hash: &ComposeHash,
    known: &Known,
    custody: Custody,
    now: u64,
) -> Result<Basis, Denial> {
    if known.revoked.iter().any(|name| name.names(hash)) {
        return Err(Denial::Revoked(*app, *hash));
    }
    if hash.app_id() == *app {
        return if known.revoke_below() > 0 {
            Err(Denial::RevokedByOwner(*app, *hash))
        } else {
            Ok(Basis::First)
        };
    }
    match (&known.owners, custody) {
        (Owners::Keys(_), _) => by_owner(app, hash, known, now),
        (Owners::Unknown, Custody::Cvm) => Err(Denial::OwnersUnknown(*app, *hash)),
        _ if known.allowed.iter().any(|name| name.names(hash)) => Ok(Basis::Operator),
        _ => Err(Denial::NotAllowed(*app, *hash)),
    }
}

fn by_owner(app: &AppId, hash: &ComposeHash, known: &Known, now: u64) -> Result<Basis, Denial> {
    let of_hash = known.statements.iter().rev().filter(|s| s.compose_hash == *hash);
    let newest = of_hash.max_by_key(|s| s.seq).ok_or(Denial::NotSigned(*app, *hash))?;
    match () {
        () if newest.seq < known.revoke_below() => Err(Denial::RevokedByOwner(*app, *hash)),
        () if !newest.holds_at(now) => Err(Denial::Ended(*app, *hash, newest.not_after)),
        () => Ok(Basis::Owner(newest.seq)),
    }
}

/// Adds a statement whose signature was checked.
///
/// # Errors
/// A sentence when its number is not above all before it, or there are too many.
pub fn add(known: &mut Vec<Statement>, mut statement: Statement) -> Result<(), String> {
    // What is revoked stays revoked.
    statement.revoke_below = statement.revoke_below.max(known.last().map_or(0, |s| s.revoke_below));
    let newest = known.last().map_or(0, |s| s.seq);
    if statement.seq <= newest {
        return Err(format!(
            "the statement has seq {}, but one with seq {newest} is in force; sign it again with a higher one",
            statement.seq
        ));
    }
    // The newest stays for its number and for what it revokes; older ones only while they allow something.
    known.retain(|s| s.seq >= statement.revoke_below && s.compose_hash != statement.compose_hash);
    if known.len() >= STATEMENTS_MAX {
        return Err(format!(
            "there are {STATEMENTS_MAX} statements in force; revoke old ones by revoke_below"
        ));
    }
    known.push(statement);
    Ok(())
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
