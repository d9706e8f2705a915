// SPDX-License-Identifier: Apache-2.0
//! What teepod remembers about a VM.

use dstack_core::spec::VmSpec;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Version of [`Record`] that this build writes.
pub const VERSION: u32 = 1;

/// A VM's record, one file per VM. Everything else (disks, console, readiness) belongs to the VM's unit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// What the VM is.
    #[serde(flatten)]
    pub spec: VmSpec,
    /// Its leased context id.
    pub cid: u32,
    /// Whether its start was promised and has not reached systemd yet; a new teepod keeps the promise.
    #[serde(default)]
    pub start_pending: bool,
    /// Whether its removal has begun; a new teepod finishes it.
    #[serde(default)]
    pub removing: bool,
    /// 20 random bytes behind the VM's instance id; `None` in records from before there were any.
    #[serde(default, with = "seed")]
    pub seed: Option<Seed>,
}

/// Random bytes behind an instance id. Nobody needs to keep them secret or believe them: another seed is another
/// instance, whose key opens no other disk.
pub type Seed = [u8; 20];

impl Record {
    /// The seed; of an old record one that follows from its id, so that it stays the same.
    #[must_use]
    pub fn instance_seed(&self) -> Seed {
        let digest: [u8; 32] = Sha256::digest(self.spec.id.as_bytes()).into();
        let mut derived = Seed::default();
        derived.iter_mut().zip(digest).for_each(|(to, from)| *to = from);
        self.seed.unwrap_or(derived)
    }
}

/// A seed as 40 hex digits.
mod seed {
    use super::Seed;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(seed: &Option<Seed>, out: S) -> Result<S::Ok, S::Error> {
        seed.map(hex::encode).serialize(out)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(input: D) -> Result<Option<Seed>, D::Error> {
        let text = Option::<String>::deserialize(input)?;
        let parse = |text: String| {
            let mut seed = Seed::default();
            hex::decode_to_slice(text, &mut seed).map(|()| seed).map_err(serde::de::Error::custom)
        };
        text.map(parse).transpose()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_stays_the_same_over_restarts() {
        let old = r#"{"id":"00000000-0000-4000-8000-000000000001","name":"a",
            "app_id":"3327603e03f5bd1f830812ca4a789277fc31f577","compose_hash":"HASH","image":"dstack-0.1.0",
            "vcpus":1,"memory":1073741824,"disk":1073741824,"cid":1000}"#;
        let mut record: Record = serde_json::from_str(&old.replace("HASH", &"0".repeat(64))).unwrap();
        assert_eq!(record.seed, None);
        let derived = record.instance_seed();
        assert_eq!(derived, record.clone().instance_seed());
        assert_ne!(derived, Seed::default());
        record.seed = Some([7; 20]);
        let again: Record = serde_json::from_str(&serde_json::to_string(&record).unwrap()).unwrap();
        assert_eq!((again.instance_seed(), &again), ([7; 20], &record));
        let bad = serde_json::to_string(&record).unwrap().replace(&"07".repeat(20), "07");
        assert!(serde_json::from_str::<Record>(&bad).is_err(), "damaged is not absent");
    }
}
