// SPDX-License-Identifier: Apache-2.0
//! The registers of a VM at launch, by the formula `simulated-v2` of `dstack_core::measure::predict`.
//!
//! RTMR1 and RTMR2 are computed from the UKI's real bytes, as a TD would measure them, and MRTD from the firmware's;
//! RTMR0 stands for the shape. MRCONFIGID is `0x01 ‖ compose hash ‖ 15 zero bytes`, as on TDX.

use dstack_core::event_log::Digest;
use dstack_core::ids::ComposeHash;
use dstack_core::measure::{Booted, Shape};
use dstack_core::quote_sim_wire::Registers;

/// What teepod launched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launched {
    /// MRTD and RTMR0 to RTMR2.
    pub measured: [Digest; 4],
    /// Hash of `app-compose.json`.
    pub compose_hash: ComposeHash,
}

impl Launched {
    /// A VM that boots this in this shape, for this app.
    #[must_use]
    pub fn of(booted: &Booted, shape: Shape, compose_hash: ComposeHash) -> Self {
        Self { measured: booted.simulated(shape), compose_hash }
    }

    /// The registers at launch.
    #[must_use]
    pub fn registers(&self) -> Registers {
        let [mrtd, rtmr0, rtmr1, rtmr2] = self.measured;
        Registers { mrtd, rtmr0, rtmr1, rtmr2, rtmr3: [0; 48], mr_config_id: config_id(&self.compose_hash) }
    }
}

fn config_id(compose: &ComposeHash) -> Digest {
    let mut id = [0; 48];
    let bytes = std::iter::once(&1).chain(compose.as_bytes());
    id.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    id
}

#[cfg(test)]
mod tests {
    use super::*;
    use dstack_core::spec::mr_config_id;

    #[test]
    fn the_config_id_is_that_of_tdx() {
        let compose_hash = ComposeHash::of(b"{}");
        let launched = Launched { measured: [[1; 48], [2; 48], [3; 48], [4; 48]], compose_hash };
        let registers = launched.registers();
        assert_eq!(hex::encode(registers.mr_config_id), mr_config_id(&ComposeHash::of(b"{}")));
        assert_eq!(registers.rtmr3, [0; 48]);
        assert_eq!((registers.mrtd, registers.rtmr2), ([1; 48], [4; 48]));
    }
}
