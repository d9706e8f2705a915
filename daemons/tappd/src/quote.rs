// SPDX-License-Identifier: Apache-2.0
//! What a quote of our own TEE says beside its registers: on which device, and under whose TD it was made.

use dstack_core::event_log::Digest;
use dstack_core::quote_sim_wire::Registers;
use sha2::{Digest as _, Sha256};

/// Where the platform's id is in a quote's header.
const USER_DATA: usize = 28;
/// Where the TD report's body begins in a version 4 quote; in version 5 a type and a size come before it.
const BODY: [(u16, usize); 2] = [(4, 48), (5, 54)];
/// From the body's begin to MROWNER, and to MROWNERCONFIG behind it.
const MR_OWNER: usize = 232;

/// What is fixed while the machine runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// SHA-256 of the platform's id.
    pub device_id: [u8; 32],
    mr_owner: Digest,
    mr_owner_config: Digest,
}

impl Facts {
    /// Reads them from a quote; `None` for one of another version or cut short.
    #[must_use]
    pub fn of(quote: &[u8]) -> Option<Self> {
        let version = u16::from_le_bytes(array(quote, 0)?);
        let (_, body) = BODY.into_iter().find(|(v, _)| *v == version)?;
        let user_data: [u8; 20] = array(quote, USER_DATA)?;
        Some(Self {
            device_id: Sha256::digest(user_data).into(),
            mr_owner: array(quote, body + MR_OWNER)?,
            mr_owner_config: array(quote, body + MR_OWNER + 48)?,
        })
    }

    /// SHA-256 over all registers; those that the host chose count when one of them is not zero.
    #[must_use]
    pub fn aggregated(&self, registers: &Registers) -> [u8; 32] {
        let Registers { mrtd, rtmr0, rtmr1, rtmr2, rtmr3, mr_config_id } = registers;
        let chosen = [mr_config_id, &self.mr_owner, &self.mr_owner_config];
        let mut hash = Sha256::new();
        [mrtd, rtmr0, rtmr1, rtmr2, rtmr3].into_iter().for_each(|register| hash.update(register));
        if chosen.iter().any(|register| register.iter().any(|byte| *byte != 0)) {
            chosen.iter().for_each(|register| hash.update(register));
        }
        hash.finalize().into()
    }
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use dstack_quote_sim::pki::{self, TestRoot};
    use dstack_quote_sim::quote::TdReport;
    use dstack_ra_tls::verdict::Measurements;

    #[test]
    fn facts_are_those_that_a_verifier_finds() {
        let root = TestRoot::load(&pki::generate(time::OffsetDateTime::now_utc()).unwrap()).unwrap();
        let mut report = TdReport::default();
        (report.mr_td, report.rtmr) = ([1; 48], [[2; 48], [3; 48], [4; 48], [5; 48]]);
        let registers = |config| Registers {
            mrtd: [1; 48],
            rtmr0: [2; 48],
            rtmr1: [3; 48],
            rtmr2: [4; 48],
            rtmr3: [5; 48],
            mr_config_id: config,
        };
        for config in [[0; 48], [9; 48]] {
            report.mr_config_id = config;
            let quote = root.quote(&report);
            let facts = Facts::of(&quote).unwrap();
            let seen = Measurements {
                mr_td: [1; 48],
                rtmr: report.rtmr,
                mr_config_id: config,
                mr_owner: [0; 48],
                mr_owner_config: [0; 48],
            };
            assert_eq!(facts.aggregated(&registers(config)), seen.aggregated());
            assert_eq!(facts.device_id, <[u8; 32]>::from(Sha256::digest(&quote[28..48])));
        }
    }

    #[test]
    fn what_is_no_quote_has_no_facts() {
        let mut five = vec![0; 382];
        assert_eq!(Facts::of(&five), None, "version 0");
        five[0] = 5;
        assert!(Facts::of(&five).is_some());
        for cut in [0, 1, 47, 300, 381] {
            assert_eq!(Facts::of(&five[..cut]), None, "{cut}");
        }
    }
}
