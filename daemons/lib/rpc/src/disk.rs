// SPDX-License-Identifier: Apache-2.0
//! Messages of `KMS.DiskEpoch`: the key service remembers which boot of an instance wrote its data disk last (T13).
//!
//! A boot whose log ends at `host-inputs` calls twice. `begin` tells what the opened disk says and gives the epoch to
//! write there; `commit` says that it is written and flushed, and only then the boot may go on. Statuses: 409 when the
//! disk is older than what is known, or another boot has begun since; 421 when this key service keeps no epochs and
//! another one may; 403 when the boot may not have its app's keys.

use dstack_core::epoch::{self, EpochError};
use prost::Message;
use serde::{Deserialize, Serialize};

/// An epoch as it travels.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct Epoch {
    /// From 1.
    #[prost(uint64, tag = "1")]
    pub number: u64,
    /// 16 random bytes.
    #[prost(bytes = "vec", tag = "2")]
    #[serde(with = "crate::hexbytes")]
    pub token: Vec<u8>,
}

impl From<epoch::Epoch> for Epoch {
    fn from(epoch: epoch::Epoch) -> Self {
        Self { number: epoch.number(), token: epoch.token().to_vec() }
    }
}

impl TryFrom<&Epoch> for epoch::Epoch {
    type Error = EpochError;

    fn try_from(epoch: &Epoch) -> Result<Self, EpochError> {
        Self::new(epoch.number, &epoch.token)
    }
}

/// The first step.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct BeginEpoch {
    /// What the opened disk says; none when it has no epoch.
    #[prost(message, optional, tag = "1")]
    pub disk: Option<Epoch>,
    /// Whether the disk is empty and will be made by this boot.
    #[prost(bool, tag = "2")]
    pub fresh: bool,
    /// Whether the boot goes on with an older disk (`rollback: warn`).
    #[prost(bool, tag = "3")]
    pub warn: bool,
}

/// Arguments of DiskEpoch: exactly one of the two steps.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct DiskEpochRequest {
    /// The first step.
    #[prost(message, optional, tag = "1")]
    pub begin: Option<BeginEpoch>,
    /// The second: the epoch that was written.
    #[prost(message, optional, tag = "2")]
    pub commit: Option<Epoch>,
}

/// Answer of DiskEpoch.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
#[serde(default)]
pub struct DiskEpochResponse {
    /// After `begin`: what to write to the disk.
    #[prost(message, optional, tag = "1")]
    pub epoch: Option<Epoch>,
    /// After `begin` with `warn`: why the disk is not the last one; empty when it is.
    #[prost(string, tag = "2")]
    pub warning: String,
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::wire::{Format, decode, encode};

    #[test]
    fn both_formats_carry_both_steps() {
        let known = epoch::Epoch::new(7, &[9; 16]).unwrap();
        let begin = BeginEpoch { disk: Some(known.into()), fresh: false, warn: true };
        for request in [
            DiskEpochRequest { begin: Some(begin), commit: None },
            DiskEpochRequest { begin: None, commit: Some(known.into()) },
        ] {
            for format in [Format::Json, Format::Protobuf] {
                let bytes = encode(format, &request).unwrap();
                assert_eq!(decode::<DiskEpochRequest>(format, &bytes).unwrap(), request);
            }
        }
        assert_eq!(epoch::Epoch::try_from(&Epoch::from(known)), Ok(known));
        assert!(epoch::Epoch::try_from(&Epoch::default()).is_err());
    }
}
