// SPDX-License-Identifier: Apache-2.0
//! Every target over mutated samples: the same inputs each time, so that a failure can be repeated.

use dstack_fuzz::{TARGETS, Target};

const ROUNDS: u32 = 20_000;

/// Some targets do cryptography for each input, or build a message, and without optimisation.
fn rounds(target: &Target) -> u32 {
    match target.name {
        "evidence" => 60,
        "prpc_body" | "encrypted_env" | "dns_answer" => ROUNDS / 10,
        _ => ROUNDS,
    }
}

/// xorshift64*: enough to vary inputs, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() >> 33).unwrap_or_default() % limit.max(1)
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[7]
    }
}

/// Changes a sample in one to four places: flips, overwrites, inserts, cuts, repeats.
fn mutate(sample: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = sample.to_vec();
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len() + 1);
        match random.below(5) {
            0 => bytes.iter_mut().skip(at).take(1).for_each(|b| *b ^= 1 << (at % 8)),
            1 => bytes.iter_mut().skip(at).take(1).for_each(|b| *b = random.byte()),
            2 => bytes.insert(at, random.byte()),
            3 => bytes.truncate(at),
            _ => bytes.extend_from_within(..at.min(600)),
        }
    }
    bytes
}

fn smoke(target: &Target) {
    let samples = (target.samples)();
    assert!(!samples.is_empty(), "{target:?} has no samples");
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for sample in &samples {
        (target.run)(sample);
    }
    for round in 0..rounds(target) {
        let sample = samples.get(round as usize % samples.len()).map(Vec::as_slice).unwrap_or_default();
        (target.run)(&mutate(sample, &mut random));
    }
}

#[test]
fn every_target_survives() {
    for target in TARGETS {
        smoke(target);
    }
}

#[test]
fn every_target_is_a_libfuzzer_program() {
    let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("libfuzzer");
    let manifest = std::fs::read_to_string(directory.join("Cargo.toml")).unwrap();
    let function = |name: &str| {
        let program = std::fs::read_to_string(directory.join(format!("fuzz_targets/{name}.rs"))).unwrap();
        program.rsplit_once("dstack_fuzz::").unwrap().1.to_owned()
    };
    for Target { name, .. } in TARGETS {
        assert!(manifest.contains(&format!("name = \"{name}\"\n")), "{name} is not in libfuzzer/Cargo.toml");
        assert!(function(name).contains(&format!("{name}(bytes)")), "{name} calls another target");
    }
    assert_eq!(manifest.matches("[[bin]]").count(), TARGETS.len());
}
