// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]
use super::*;
use crate::disk::{DiskKey, Watch};
use crate::tee::Behind;
use crate::testing::{self, Kms, Mode, Nobody, Sim, realm};
use dstack_core::config_disk::{self, Files};
use dstack_core::event_log::{self, TRUSTED};
use serde_json::{Value, json};
use std::cell::RefCell;
use std::io::Write;
use std::sync::atomic::Ordering;

/// A guest's directories and what happened to its data disk.
struct Guest {
    dir: tempfile::TempDir,
    disks: RefCell<Vec<String>>,
    /// When the disk says that it was last written.
    written: u64,
}

impl Guest {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        // systemd-tmpfiles makes it before.
        fs::create_dir(dir.path().join("run")).unwrap();
        Self { dir, disks: RefCell::default(), written: 0 }
    }

    fn layout(&self) -> Layout {
        Layout::at(&self.dir.path().join("run"), &self.dir.path().join("data"))
    }

    fn boot_by(&self, tee: &dyn Tee, files: &Files, clock: &Clock) -> Result<(), PrepareError> {
        let device = self.dir.path().join("config");
        fs::write(&device, config_disk::write(files).unwrap()).unwrap();
        let disk = |key: &DiskKey, watch: &mut dyn Watch| {
            self.disks.borrow_mut().push(match key {
                DiskKey::Ephemeral => "ephemeral".to_owned(),
                DiskKey::Persistent { key, label } => format!("{label} {}", *key.expose_hex()),
            });
            watch.written(self.written);
            Ok(watch.commit()?)
        };
        let layout = self.layout();
        Boot { layout: &layout, tee, config_disk: &device, clock: clock.clone(), disk: &disk }.run()
    }

    fn boot(&self, sim: &Sim, files: &Files) -> Result<(), PrepareError> {
        self.boot_by(&Behind(sim.clone()), files, &Clock::of_image())
    }

    fn json(&self, name: &str) -> Value {
        serde_json::from_slice(&fs::read(self.layout().run().join(name)).unwrap()).unwrap()
    }

    fn status(&self) -> String {
        fs::read_to_string(self.layout().status()).unwrap()
    }

    /// Names of the events so far.
    fn events(&self) -> Vec<String> {
        let log = dstack_tdx_attest::log::peek(&self.layout().private()).unwrap();
        log.into_iter().map(|event| event.event).collect()
    }
}

#[test]
fn t07_a_boot_with_a_key_service() {
    let (guest, kms) = (Guest::new(), Kms::start(Mode::Good, &realm()));
    let compose = testing::kms_compose(&kms, &json!({}));
    let sim = Sim::launched_for(&compose);
    guest.boot(&sim, &testing::files(compose.clone(), &[kms.url()])).unwrap();
    assert_eq!(guest.events(), TRUSTED);
    let (app, instance) = testing::ids(&compose);
    let disk_key = testing::kms_roots().disk_key(&app, Some(&instance)).unwrap().expose_hex();
    assert_eq!(*guest.disks.borrow(), [format!("dstack-{instance} {}", *disk_key)]);
    let keys = AppKeys::parse(&fs::read(guest.layout().app_keys()).unwrap()).unwrap();
    assert_eq!((keys.provider_id, keys.kms_urls), (kms.pin(), vec![kms.url()]));
    assert_eq!(keys.k256_key, testing::kms_roots().app_key(&app).unwrap());
    assert_eq!(
        (keys.os_image_hash, keys.vm_config.as_str()),
        (hex::encode(testing::IMAGE), "{\"cpu_count\":1}")
    );
    let about = guest.json("instance.json");
    assert_eq!((&about["realm"], &about["custody"]), (&json!(realm().to_string()), &json!("host")));
    assert!(!guest.layout().boot_keys().exists(), "the disk's key is forgotten");
    let status = guest.status();
    let expected =
        format!("STAGE config\nSTAGE measure\nINSTANCE {instance}\nSTAGE keys\nSTAGE disk\nSTAGE docker\n");
    assert_eq!(status, expected);
    // A second run in the same boot does nothing.
    let extends = sim.extends.load(Ordering::SeqCst);
    guest.boot(&sim, &testing::files(compose, &[])).unwrap();
    assert_eq!((sim.extends.load(Ordering::SeqCst), guest.status()), (extends, status));
}

#[test]
fn t07_t14_a_boot_goes_on_after_a_kill_at_any_event() {
    let (guest, kms) = (Guest::new(), Kms::start(Mode::Good, &realm()));
    let compose = testing::kms_compose(&kms, &json!({}));
    let (sim, files) = (Sim::launched_for(&compose), testing::files(compose.clone(), &[kms.url()]));
    for limit in 0..TRUSTED.len() {
        sim.limit.store(limit, Ordering::SeqCst);
        assert!(guest.boot(&sim, &files).is_err(), "{limit}");
        assert_eq!(guest.events(), TRUSTED[..limit]);
    }
    sim.limit.store(TRUSTED.len(), Ordering::SeqCst);
    guest.boot(&sim, &files).unwrap();
    assert_eq!((guest.events().len(), sim.extends.load(Ordering::SeqCst)), (TRUSTED.len(), TRUSTED.len()));
    // Keys are asked for at one moment only; later runs had them.
    assert_eq!(kms.asked.load(Ordering::SeqCst), 1);
    let log = dstack_tdx_attest::log::peek(&guest.layout().private()).unwrap();
    assert_eq!(event_log::replay(&log).unwrap()[3], sim.registers.lock().unwrap().rtmr3);
}

#[test]
fn t07_keys_that_were_lost_are_not_asked_for_again() {
    let (guest, kms) = (Guest::new(), Kms::start(Mode::Good, &realm()));
    let compose = testing::kms_compose(&kms, &json!({}));
    let (sim, files) = (Sim::launched_for(&compose), testing::files(compose, &[kms.url()]));
    sim.limit.store(8, Ordering::SeqCst);
    assert!(guest.boot(&sim, &files).is_err());
    fs::remove_file(guest.layout().boot_keys()).unwrap();
    assert!(matches!(guest.boot(&sim, &files), Err(PrepareError::KeysLost)));
}

#[test]
fn t24_a_boot_without_key_service_is_ephemeral_with_and_without_tee() {
    let compose = testing::compose(&json!({}));
    let files = testing::files(compose.clone(), &[]);
    let (with, without) = (Guest::new(), Guest::new());
    with.boot(&Sim::launched_for(&compose), &files).unwrap();
    assert_eq!(with.events(), TRUSTED);
    assert_eq!(with.json("instance.json")["platform"], "simulated");
    without.boot_by(&Behind(Nobody), &files, &Clock::of_image()).unwrap();
    assert_eq!(without.events(), Vec::<String>::new());
    let about = without.json("instance.json");
    assert_eq!(
        (&about["platform"], &about["realm"], &about["key_provider"]),
        (&json!("none"), &json!(""), &json!("none"))
    );
    for guest in [with, without] {
        assert_eq!(*guest.disks.borrow(), ["ephemeral"]);
        let keys = AppKeys::parse(&fs::read(guest.layout().app_keys()).unwrap()).unwrap();
        assert!(keys.ca_key.is_some() && keys.provider_id.is_empty());
    }
}

#[test]
fn failures_reach_the_host_as_codes() {
    let kms = Kms::start(Mode::Refuse, &realm());
    let compose = testing::kms_compose(&kms, &json!({}));
    let good = || Sim::launched_for(&compose);
    let plain = testing::files(compose.clone(), &[kms.url()]);
    let mut sealed = testing::files(testing::compose(&json!({})), &[]);
    sealed.insert(config_disk::File::EncryptedEnv, b"secret".to_vec());
    let launched = Sim::launched_for(&testing::compose(&json!({})));
    for (sim, files, code) in [
        (&good(), &plain, "keys-refused"),
        (&Sim::new([0; 48]), &plain, "launch-mismatch"),
        (&good(), &testing::files(compose.clone(), &[]), "keys-unreachable"),
        (&launched, &sealed, "env-invalid"),
        (&good(), &Files::new(), "config-invalid"),
    ] {
        let guest = Guest::new();
        assert!(guest.boot(sim, files).is_err());
        assert!(guest.status().ends_with(&format!("ERROR {code}\n")), "{code}: {}", guest.status());
        assert!(guest.disks.borrow().is_empty() && !guest.layout().app_keys().exists(), "{code}");
    }
}

#[test]
fn t12_what_the_disk_says_is_past_is_past() {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let compose = testing::compose(&json!({}));
    let guest = Guest { written: now - 5, ..Guest::new() };
    let clock = Clock::of_image();
    let sim = Sim::launched_for(&compose);
    guest.boot_by(&Behind(sim), &testing::files(compose, &[]), &clock).unwrap();
    assert_eq!(clock.floor(), now - 5);
    assert!(!guest.layout().clock_floor().exists());
    // A host that has set the clock back: dstack-clock sets it to what the disk knows.
    let guest = Guest { written: now + 3600, ..Guest::new() };
    let compose = testing::compose(&json!({}));
    let sim = Sim::launched_for(&compose);
    guest.boot(&sim, &testing::files(compose, &[])).unwrap();
    assert_eq!(fs::read_to_string(guest.layout().clock_floor()).unwrap(), (now + 3600).to_string());
}

#[test]
fn t06_the_device_is_read_up_to_its_cap() {
    let mut device = tempfile::NamedTempFile::new().unwrap();
    device.write_all(&vec![0; CONFIG_DISK_MAX + 4096]).unwrap();
    let error = read_inputs(device.path(), [0; 20]).err().unwrap();
    assert_eq!(error.failure(), Failure::ConfigInvalid);
    assert!(error.to_string().contains("larger"), "{error}");
}

#[test]
fn a_second_run_has_the_same_seed() {
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout::at(dir.path(), dir.path());
    assert_eq!(seed(&layout).unwrap(), seed(&layout).unwrap());
    assert_ne!(seed(&layout).unwrap(), Seed::default());
}

#[test]
fn a_missing_disk_is_told_apart_from_a_bad_one() {
    let error = read_inputs(Path::new("/nonexistent"), [0; 20]).err().unwrap();
    assert_eq!(error.failure(), Failure::ConfigMissing);
}
