// SPDX-License-Identifier: Apache-2.0
//! The registers of a VM at launch, by the formula `simulated-v1`.
//!
//! A host without TDX measures nothing, so the registers are made from what teepod launched. Each is
//! `sha384(tag ‖ inputs)`, numbers big-endian:
//!
//! | register | tag | inputs |
//! |---|---|---|
//! | MRTD | `dstack-sim-v1:mrtd` | SHA-256 of the image's firmware, or nothing when the host's is used |
//! | RTMR0 | `dstack-sim-v1:rtmr0` | vCPUs (4 bytes), memory in bytes (8 bytes) |
//! | RTMR1 | `dstack-sim-v1:rtmr1` | SHA-256 of the unified kernel image |
//! | RTMR2 | `dstack-sim-v1:rtmr2` | root hash of the image's root file system |
//! | RTMR3 | | 48 zero bytes |
//!
//! MRCONFIGID is `0x01 ‖ compose hash ‖ 15 zero bytes`, as on TDX. The values never equal those of a real TD.

use dstack_core::event_log::Digest;
use dstack_core::ids::ComposeHash;
use dstack_core::image::Manifest;
use dstack_core::quote_sim_wire::Registers;
use sha2::{Digest as _, Sha384};

/// What teepod launched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launched {
    /// SHA-256 of the image's firmware; `None` for the host's.
    pub firmware: Option<[u8; 32]>,
    /// SHA-256 of the unified kernel image.
    pub uki: [u8; 32],
    /// Root hash of the root file system.
    pub root_hash: [u8; 32],
    /// vCPUs.
    pub vcpus: u32,
    /// Memory, bytes.
    pub memory: u64,
    /// Hash of `app-compose.json`.
    pub compose_hash: ComposeHash,
}

impl Launched {
    /// A VM of this image, shape and app; `None` when the image lists no sum for one of its files.
    #[must_use]
    pub fn of(image: &Manifest, vcpus: u32, memory: u64, compose_hash: ComposeHash) -> Option<Self> {
        let sum = |name: &String| image.sums.get(name).copied();
        let firmware = match &image.metadata.firmware {
            Some(name) => Some(sum(name)?),
            None => None,
        };
        let mut root_hash = [0; 32];
        hex::decode_to_slice(&image.metadata.root_hash, &mut root_hash).ok()?;
        Some(Self { firmware, uki: sum(&image.metadata.uki)?, root_hash, vcpus, memory, compose_hash })
    }

    /// The registers at launch.
    #[must_use]
    pub fn registers(&self) -> Registers {
        let firmware = self.firmware.as_ref().map(<[u8; 32]>::as_slice).unwrap_or_default();
        Registers {
            mrtd: register("mrtd", &[firmware]),
            rtmr0: register("rtmr0", &[&self.vcpus.to_be_bytes(), &self.memory.to_be_bytes()]),
            rtmr1: register("rtmr1", &[&self.uki]),
            rtmr2: register("rtmr2", &[&self.root_hash]),
            rtmr3: [0; 48],
            mr_config_id: config_id(&self.compose_hash),
        }
    }
}

fn register(name: &str, inputs: &[&[u8]]) -> Digest {
    let mut hash = Sha384::new();
    hash.update(b"dstack-sim-v1:");
    hash.update(name);
    inputs.iter().for_each(|input| hash.update(input));
    hash.finalize().into()
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

    fn launched() -> Launched {
        Launched {
            firmware: Some([1; 32]),
            uki: [2; 32],
            root_hash: [3; 32],
            vcpus: 2,
            memory: 2 << 30,
            compose_hash: ComposeHash::of(b"{}"),
        }
    }

    #[test]
    fn each_input_changes_its_register_alone() {
        let base = launched().registers();
        type Change = fn(&mut Launched);
        let changes: [(&str, Change); 6] = [
            ("mrtd", |l| l.firmware = None),
            ("rtmr0", |l| l.vcpus = 3),
            ("rtmr0", |l| l.memory += 1),
            ("rtmr1", |l| l.uki = [9; 32]),
            ("rtmr2", |l| l.root_hash = [9; 32]),
            ("config", |l| l.compose_hash = ComposeHash::of(b"[]")),
        ];
        for (name, change) in changes {
            let mut other = launched();
            change(&mut other);
            let other = other.registers();
            let differ = [
                ("mrtd", base.mrtd != other.mrtd),
                ("rtmr0", base.rtmr0 != other.rtmr0),
                ("rtmr1", base.rtmr1 != other.rtmr1),
                ("rtmr2", base.rtmr2 != other.rtmr2),
                ("config", base.mr_config_id != other.mr_config_id),
            ];
            let names: Vec<_> = differ.into_iter().filter(|(_, d)| *d).map(|(n, _)| n).collect();
            assert_eq!(names, [name]);
        }
    }

    #[test]
    fn the_config_id_is_that_of_tdx() {
        let registers = launched().registers();
        assert_eq!(hex::encode(registers.mr_config_id), mr_config_id(&ComposeHash::of(b"{}")));
        assert_eq!(registers.rtmr3, [0; 48]);
        let expected = Sha384::digest([&b"dstack-sim-v1:rtmr1"[..], &[2; 32]].concat());
        assert_eq!(registers.rtmr1.as_slice(), expected.as_slice());
    }

    #[test]
    fn an_image_gives_its_sums() {
        let metadata = format!(
            r#"{{"name":"dstack","version":"1","uki":"u","root":"r","root_hash":"{}"}}"#,
            "ab".repeat(32)
        );
        let sums: String = [("metadata.json", "00"), ("r", "01"), ("u", "02")]
            .map(|(n, b)| format!("{}  {n}\n", b.repeat(32)))
            .concat();
        let manifest = Manifest::parse(metadata.as_bytes(), sums.as_bytes()).unwrap();
        let launched = Launched::of(&manifest, 1, 1, ComposeHash::of(b"{}")).unwrap();
        assert_eq!((launched.firmware, launched.uki, launched.root_hash), (None, [2; 32], [0xab; 32]));
    }
}
