// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]
use super::*;
use crate::testing::{self, Nobody, Sim};
use dstack_core::config_disk;
use dstack_core::event_log::{self, Trusted};
use dstack_tdx_attest::simulated::Simulated;
use serde_json::json;
use std::sync::atomic::Ordering;

fn boxed(sim: &Sim) -> Box<dyn Platform> {
    Box::new(Simulated::new(sim.clone()))
}

fn sample() -> Inputs {
    testing::inputs(&testing::files(testing::compose(&json!({})), &[]))
}

#[test]
fn t07_the_boot_is_measured_in_its_one_order() {
    let (dir, inputs) = (tempfile::tempdir().unwrap(), sample());
    let sim = Sim::launched_for(&inputs.compose_bytes);
    let mut measured = Measured::open(boxed(&sim), dir.path(), &inputs).unwrap();
    measured.inputs(&inputs).unwrap();
    assert!(!measured.past_keys());
    let log = event_log::parse(&measured.attest(&[0; 64]).unwrap().event_log).unwrap();
    let trusted = Trusted::of(&log).unwrap();
    assert_eq!(trusted.milestone, event_log::Milestone::KeysWanted);
    measured.key_provider("none", "").unwrap();
    assert!(measured.past_keys());
    measured.storage("ext4").unwrap();
    measured.ready().unwrap();
    let log = event_log::parse(&measured.attest(&[0; 64]).unwrap().event_log).unwrap();
    assert_eq!(log.iter().map(|e| e.event.as_str()).collect::<Vec<_>>(), TRUSTED);
    let trusted = Trusted::of(&log).unwrap();
    assert_eq!((trusted.app_id, trusted.compose_hash), (inputs.app_id, inputs.compose_hash));
    assert_eq!((trusted.instance_id, trusted.host_inputs), (inputs.instance_id, inputs.host_inputs));
    assert_eq!(trusted.os_image_hash.as_bytes(), &testing::IMAGE);
    assert_eq!(trusted.key_provider.unwrap(), br#"{"name":"none","id":""}"#);
    assert_eq!(event_log::replay(&log).unwrap()[3], sim.registers.lock().unwrap().rtmr3);
}

#[test]
fn t06_every_byte_of_the_host_is_in_the_measurement() {
    let (dir, inputs) = (tempfile::tempdir().unwrap(), sample());
    let files = testing::files(testing::compose(&json!({})), &[]);
    assert_eq!(inputs.host_inputs, config_disk::digest(&files));
    let mut other = files;
    other.insert(config_disk::File::UserConfig, b"hint".to_vec());
    let other = testing::inputs(&other);
    assert_ne!(other.host_inputs, inputs.host_inputs);
    // A config disk that answers differently the second time: the same boot takes it no more.
    let sim = Sim::launched_for(&inputs.compose_bytes);
    Measured::open(boxed(&sim), dir.path(), &inputs).unwrap().inputs(&inputs).unwrap();
    let mut again = Measured::open(boxed(&sim), dir.path(), &other).unwrap();
    assert!(matches!(again.inputs(&other), Err(MeasureError::Changed("host-inputs"))));
}

#[test]
fn p12_the_vm_must_have_been_launched_for_this_compose_file() {
    let (dir, inputs) = (tempfile::tempdir().unwrap(), sample());
    for sim in [Sim::new([0; 48]), Sim::launched_for(b"{}"), Sim::new([1; 48])] {
        let error = Measured::open(boxed(&sim), dir.path(), &inputs).unwrap_err();
        assert!(matches!(error, MeasureError::ConfigId { .. }), "{error}");
        assert_eq!(error.failure(), Failure::LaunchMismatch);
    }
}

#[test]
fn t14_p11_another_run_extends_nothing_twice() {
    let (dir, inputs) = (tempfile::tempdir().unwrap(), sample());
    let sim = Sim::launched_for(&inputs.compose_bytes);
    // The TEE falls silent after each number of events; the next run goes on from there.
    for limit in 1..=7 {
        sim.limit.store(limit, Ordering::SeqCst);
        let mut measured = Measured::open(boxed(&sim), dir.path(), &inputs).unwrap();
        assert_eq!(measured.inputs(&inputs).is_ok(), limit == 7);
        assert_eq!(sim.extends.load(Ordering::SeqCst), limit);
    }
    let second = Measured::open(boxed(&sim), dir.path(), &inputs).unwrap();
    assert!(matches!(
        Measured::open(boxed(&sim), dir.path(), &inputs),
        Err(MeasureError::Log(LogError::Owned))
    ));
    drop(second);
    // A register that somebody else extends, and a log that is gone.
    std::fs::remove_file(dir.path().join("events.json")).unwrap();
    assert!(matches!(
        Measured::open(boxed(&sim), dir.path(), &inputs),
        Err(MeasureError::Log(LogError::Poisoned))
    ));
}

#[test]
fn t24_an_app_without_key_service_needs_no_tee_and_others_do() {
    let dir = tempfile::tempdir().unwrap();
    let nobody = || -> Box<dyn Platform> { Box::new(Simulated::new(Nobody)) };
    let inputs = sample();
    let mut none = Measured::open(nobody(), dir.path(), &inputs).unwrap();
    assert_eq!(none.label(), "none");
    none.inputs(&inputs).unwrap();
    none.ready().unwrap();
    assert!(none.attest(&[0; 64]).is_err());
    let kms = Inputs { provider: Provider::Kms(vec![0x30]), ..sample() };
    let error = Measured::open(nobody(), dir.path(), &kms).unwrap_err();
    assert_eq!(error.failure(), Failure::TeeMissing);
    // A TEE that was there in this boot is missed.
    let sim = Sim::launched_for(&inputs.compose_bytes);
    Measured::open(boxed(&sim), dir.path(), &inputs).unwrap().inputs(&inputs).unwrap();
    assert!(Measured::open(nobody(), dir.path(), &inputs).is_err());
}

#[test]
fn t02_the_image_hash_is_the_hosts_claim_and_must_be_there() {
    let (dir, mut inputs) = (tempfile::tempdir().unwrap(), sample());
    inputs.hints.os_image_hash = None;
    let sim = Sim::launched_for(&inputs.compose_bytes);
    let mut measured = Measured::open(boxed(&sim), dir.path(), &inputs).unwrap();
    assert!(matches!(measured.inputs(&inputs), Err(MeasureError::NoImageHash)));
}
