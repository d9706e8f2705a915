// SPDX-License-Identifier: Apache-2.0
//! Whose keys are ours: what was told now, and all that was told before.

use super::{Inner, Refusal, Summary};
use crate::certificate::KeyId;
use crate::keys::Keys;
use crate::limits::KEYS_KEPT_MAX;
use crate::store::Told;
use std::collections::{BTreeMap, BTreeSet};

pub(super) fn keys_of(told: &BTreeMap<String, Told>) -> BTreeSet<KeyId> {
    told.values().flat_map(|t| &t.keys).filter_map(|hex| KeyId::from_hex(hex)).collect()
}

impl Inner {
    /// Keys of ours, those of before with them, also of somebody who does not answer. When somebody has never answered,
    /// nothing can be judged.
    pub(super) async fn known(&self, summary: &mut Summary) -> Result<BTreeSet<KeyId>, Refusal> {
        let before = self.parts.store.known()?;
        let mut told: BTreeMap<String, Told> = BTreeMap::new();
        for keys in &self.parts.keys {
            let old = before.get(keys.name());
            let room = KEYS_KEPT_MAX.saturating_sub(told.values().map(|t| t.keys.len()).sum());
            let found = keys.fetch().await;
            let joined = found.and_then(|found| joined(keys.as_ref(), &found, old, room, (self.clock)()));
            let entry = match (joined, old) {
                (Ok(entry), _) => entry,
                (Err(error), Some(old)) => {
                    summary.troubles.push(format!("keys of before are used: {error}"));
                    old.clone()
                }
                (Err(error), None) => return Err(Refusal::NoKeys(error)),
            };
            told.insert(keys.name().to_owned(), entry);
        }
        if told != before {
            self.parts.store.put_known(&told)?;
        }
        Ok(keys_of(&told))
    }
}

/// What somebody tells now, and told before: certificates stay in the logs when their keys are forgotten.
fn joined(
    keys: &dyn Keys,
    found: &BTreeSet<KeyId>,
    old: Option<&Told>,
    room: usize,
    now: u64,
) -> Result<Told, String> {
    let mut all: BTreeSet<String> = found.iter().map(KeyId::to_string).collect();
    let before = old.filter(|_| !keys.can_take_back()).map(|old| &old.keys);
    let less = before.map_or(0, |before| before.difference(&all).count());
    if less > 0 {
        tracing::info!("{} tells {less} keys of before no more; they stay known", keys.name());
        all.extend(before.into_iter().flatten().cloned());
    }
    if all.len() > room {
        return Err(format!(
            "with those of {}, more than {KEYS_KEPT_MAX} keys would be kept; see KNOWN KEYS in dstack-ct-monitor(8)",
            keys.name()
        ));
    }
    Ok(Told { keys: all, at: now })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::keys::Fixed;
    use dstack_ra_rpc::peer::BoxFuture;

    #[derive(Debug)]
    struct Somebody;

    impl Keys for Somebody {
        fn name(&self) -> &str {
            "somebody"
        }

        fn fetch(&self) -> BoxFuture<'_, Result<BTreeSet<KeyId>, String>> {
            Box::pin(async { Err("not asked here".to_owned()) })
        }
    }

    fn set(bytes: &[u8]) -> BTreeSet<KeyId> {
        bytes.iter().map(|byte| KeyId::of(&[*byte])).collect()
    }

    fn told(bytes: &[u8], at: u64) -> Told {
        Told { keys: set(bytes).iter().map(KeyId::to_string).collect(), at }
    }

    #[test]
    fn only_the_operator_takes_keys_back() {
        let before = told(&[1, 2], 5);
        let join = |keys: &dyn Keys, found: &[u8]| joined(keys, &set(found), Some(&before), 9, 7).unwrap();
        assert_eq!(join(&Somebody, &[2, 3]), told(&[1, 2, 3], 7));
        assert_eq!(join(&Somebody, &[]), told(&[1, 2], 7));
        assert_eq!(join(&Fixed(set(&[])), &[2, 3]), told(&[2, 3], 7));
        assert_eq!(joined(&Somebody, &set(&[4]), None, 9, 7), Ok(told(&[4], 7)));
    }

    #[test]
    fn p15_kept_keys_are_bounded() {
        let before = told(&[1, 2], 5);
        let full = joined(&Somebody, &set(&[3]), Some(&before), 2, 7).unwrap_err();
        assert!(full.contains("somebody") && full.contains("32768"), "{full}");
        assert!(joined(&Somebody, &set(&[2]), Some(&before), 2, 7).is_ok());
    }
}
