// SPDX-License-Identifier: Apache-2.0
//! Boots with rollback protection against the key service itself; the disk is a sector and a journal in memory.
#![allow(clippy::unwrap_used, clippy::panic)]

use crate::clock::Clock;
use crate::disk::opened::{Opened, Sector, settle};
use crate::disk::{DiskError, DiskKey, Watch};
use crate::layout::Layout;
use crate::prepare::{Boot, PrepareError};
use crate::real_kms_tests::Service;
use crate::tee::Behind;
use crate::testing::{self, Sim};
use dstack_core::boot::Failure;
use dstack_core::config_disk;
use dstack_core::epoch::{Epoch, SIZE};
use dstack_core::event_log::TRUSTED;
use dstack_core::ext4::Superblock;
use dstack_core::ids::InstanceId;
use serde_json::{Value, json};
use std::cell::RefCell;
use std::fs;

/// A data disk.
#[derive(Debug, Clone, Default, PartialEq)]
struct Disk {
    /// The first sector; `None` while the disk is empty.
    sector: Option<Sector>,
    /// The first sector as the journal has it, when the file system was not put away.
    journal: Option<Sector>,
    /// When it was last written, seconds since 1970.
    newest: u64,
    /// What was done to it.
    done: Vec<&'static str>,
}

impl Opened for Disk {
    fn superblock(&mut self) -> Result<(Superblock, u64), DiskError> {
        Ok((Superblock { blocks: 1, block_size: 1024, newest: self.newest }, 1024))
    }

    fn first_sector(&mut self) -> Result<Sector, DiskError> {
        Ok(self.sector.unwrap())
    }

    fn check(&mut self, _grows: bool) -> Result<(), DiskError> {
        self.done.push("check");
        // The journal has whole blocks, and the first one holds both.
        self.sector = self.journal.take().or(self.sector);
        Ok(())
    }

    fn write_first_sector(&mut self, sector: &Sector) -> Result<(), DiskError> {
        self.done.push("write");
        self.sector = Some(*sector);
        Ok(())
    }
}

impl Disk {
    fn epoch(&self) -> Option<u64> {
        Epoch::parse(&self.sector.unwrap()).unwrap().map(|epoch| epoch.number())
    }

    /// What `disk::prepare` does.
    fn prepare(&mut self, watch: &mut dyn Watch) -> Result<(), DiskError> {
        match self.sector {
            Some(_) => settle(self, watch)?,
            None => {
                let sector = watch.begin(&[0; SIZE], true)?;
                self.write_first_sector(&sector.unwrap_or([0; SIZE]))?;
            }
        }
        watch.commit()?;
        // Mounted: the journal holds the block as it is now, and a VM that is killed leaves it so.
        self.journal = self.sector;
        Ok(())
    }
}

/// After what a boot is killed.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kill {
    Begun,
    Written,
    Committed,
}

/// Ends the boot at one moment.
struct Killer<'a> {
    inner: &'a mut dyn Watch,
    at: Kill,
}

fn killed() -> DiskError {
    DiskError::State(std::io::ErrorKind::Interrupted.into())
}

/// One boot of a VM: its directories live as long as it.
struct Vm {
    dir: tempfile::TempDir,
    sim: Sim,
    compose: Vec<u8>,
    urls: Vec<String>,
}

impl Vm {
    fn new(service: &Service, rollback: Option<&str>) -> Self {
        let compose = service.compose_with(&json!({"rollback": rollback}));
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("run")).unwrap();
        Self { dir, sim: Sim::launched_for(&compose), compose, urls: vec![service.url.clone()] }
    }

    fn layout(&self) -> Layout {
        Layout::at(&self.dir.path().join("run"), self.dir.path())
    }

    /// Runs the boot agent, with this in place of `disk::prepare`.
    fn run_by(&self, prepare: impl Fn(&mut dyn Watch) -> Result<(), DiskError>) -> Result<(), PrepareError> {
        let device = self.dir.path().join("config");
        let files = testing::files(self.compose.clone(), &self.urls);
        fs::write(&device, config_disk::write(&files).unwrap()).unwrap();
        let (layout, tee) = (self.layout(), Behind(self.sim.clone()));
        let disk = |_: &DiskKey, watch: &mut dyn Watch| prepare(watch);
        Boot { layout: &layout, tee: &tee, config_disk: &device, clock: Clock::of_image(), disk: &disk }.run()
    }

    fn run(&self, disk: &RefCell<Disk>) -> Result<(), PrepareError> {
        self.run_by(|watch| disk.borrow_mut().prepare(watch))
    }

    fn run_killed(&self, disk: &RefCell<Disk>, at: Kill) {
        let outcome = self.run_by(|watch| {
            let mut disk = disk.borrow_mut();
            disk.done.clear();
            let ended = disk.prepare(&mut Killer { inner: watch, at });
            // Nothing is mounted before the boot agent is done.
            if at != Kill::Committed { ended } else { ended.and(Err(killed())) }
        });
        assert!(outcome.is_err(), "{at:?}");
    }

    fn about(&self) -> Value {
        serde_json::from_slice(&fs::read(self.layout().run().join("instance.json")).unwrap()).unwrap()
    }

    fn last_line(&self) -> String {
        fs::read_to_string(self.layout().status()).unwrap().lines().last().unwrap().to_owned()
    }
}

impl Watch for Killer<'_> {
    fn written(&mut self, time: u64) {
        self.inner.written(time);
    }

    fn begin(
        &mut self,
        sector: &Sector,
        fresh: bool,
    ) -> Result<Option<Sector>, crate::rollback::RollbackError> {
        let begun = self.inner.begin(sector, fresh)?;
        if self.at == Kill::Begun { Err(interrupted()) } else { Ok(begun) }
    }

    fn commit(&mut self) -> Result<(), crate::rollback::RollbackError> {
        if self.at == Kill::Written { Err(interrupted()) } else { self.inner.commit() }
    }
}

fn interrupted() -> crate::rollback::RollbackError {
    crate::rollback::RollbackError::State(std::io::ErrorKind::Interrupted.into())
}

fn boot(service: &Service, disk: &RefCell<Disk>) -> Result<(), PrepareError> {
    Vm::new(service, Some("refuse")).run(disk)
}

#[test]
fn p07_t13_a_disk_that_was_put_back_ends_the_boot_and_stays_as_it_is() {
    let (service, disk) = (Service::start(), RefCell::<Disk>::default());
    boot(&service, &disk).unwrap();
    let old = disk.borrow().clone();
    boot(&service, &disk).unwrap();
    assert_eq!((old.epoch(), disk.borrow().epoch()), (Some(1), Some(2)));
    for put_back in [old.clone(), Disk { sector: Some([0; SIZE]), ..old.clone() }, Disk::default()] {
        let (vm, before) = (Vm::new(&service, Some("refuse")), RefCell::new(put_back.clone()));
        let error = vm.run(&before).unwrap_err();
        assert_eq!(error.failure(), Failure::DiskRolledBack, "{error}");
        assert!(error.to_string().contains("dstackctl kms forget-disk"), "{error}");
        assert_eq!(before.into_inner(), put_back, "not a byte was written");
        assert_eq!(vm.last_line(), "ERROR disk-rolled-back");
        assert!(!vm.layout().app_keys().exists(), "nothing is handed over");
    }
    let damaged = RefCell::new(Disk { sector: Some([7; SIZE]), ..Disk::default() });
    assert_eq!(boot(&service, &damaged).unwrap_err().failure(), Failure::DiskForeign);
    boot(&service, &disk).unwrap();
}

#[test]
fn t13_t12_a_disk_of_a_time_to_come_does_not_lock_its_app_out() {
    let (service, disk) = (Service::start(), RefCell::<Disk>::default());
    boot(&service, &disk).unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    disk.borrow_mut().newest = now + 365 * 86_400;
    boot(&service, &disk).unwrap();
    boot(&service, &disk).unwrap();
    assert_eq!(disk.borrow().epoch(), Some(3));
}

#[test]
fn t13_t07_the_log_has_its_order_and_the_disk_its_epoch() {
    let (service, disk) = (Service::start(), RefCell::<Disk>::default());
    for number in 1..4 {
        let vm = Vm::new(&service, Some("refuse"));
        vm.run(&disk).unwrap();
        let log = dstack_tdx_attest::log::peek(&vm.layout().private()).unwrap();
        assert_eq!(log.into_iter().map(|event| event.event).collect::<Vec<_>>(), TRUSTED);
        // The check replays a journal that has the sector of the boot before, and comes before the write.
        assert_eq!(disk.borrow().epoch(), Some(number));
        assert_eq!(vm.about()["rollback"], "last");
    }
    let done = disk.borrow().done.clone();
    assert_eq!(done, ["write", "check", "write", "check", "write"]);
}

#[test]
fn t13_a_boot_goes_on_after_a_kill_at_any_step() {
    let (service, disk) = (Service::start(), RefCell::<Disk>::default());
    for at in [Kill::Begun, Kill::Written, Kill::Committed] {
        // The boot agent is killed and runs again in the same boot.
        let vm = Vm::new(&service, Some("refuse"));
        vm.run_killed(&disk, at);
        vm.run_killed(&disk, at);
        vm.run(&disk).unwrap();
        // The whole VM is killed.
        Vm::new(&service, Some("refuse")).run_killed(&disk, at);
        boot(&service, &disk).unwrap();
    }
}

#[test]
fn t13_of_two_clones_one_goes_on() {
    let (service, disk) = (Service::start(), RefCell::<Disk>::default());
    boot(&service, &disk).unwrap();
    let clone = RefCell::new(disk.borrow().clone());
    let vm = Vm::new(&service, Some("refuse"));
    // The host holds this one after its epoch was written, and lets the clone go first.
    let error = vm.run_by(|watch| {
        let mut disk = disk.borrow_mut();
        settle(&mut *disk, watch)?;
        boot(&service, &clone).unwrap();
        Ok(watch.commit()?)
    });
    let error = error.unwrap_err();
    assert_eq!(error.failure(), Failure::DiskSuperseded, "{error}");
    assert_eq!(vm.last_line(), "ERROR disk-superseded");
    assert_eq!(boot(&service, &disk).unwrap_err().failure(), Failure::DiskRolledBack);
    boot(&service, &clone).unwrap();
}

#[test]
fn t13_an_app_that_wants_to_be_warned_is_warned_also_after_a_kill() {
    let (service, disk) = (Service::start(), RefCell::<Disk>::default());
    let boot = || Vm::new(&service, Some("warn"));
    boot().run(&disk).unwrap();
    let old = RefCell::new(disk.borrow().clone());
    boot().run(&disk).unwrap();
    let vm = boot();
    vm.run_killed(&old, Kill::Written);
    vm.run(&old).unwrap();
    assert_eq!(vm.about()["rollback"], "older");
    // From now on it is the last one.
    let vm = boot();
    vm.run(&old).unwrap();
    assert_eq!(vm.about()["rollback"], "last");
}

#[test]
fn t13_it_waits_for_the_key_service_between_the_steps() {
    let (service, disk) = (Service::start(), RefCell::<Disk>::default());
    let vm = Vm::new(&service, Some("refuse"));
    let service = RefCell::new(Some(service));
    vm.run_by(|watch| {
        let mut disk = disk.borrow_mut();
        let sector = watch.begin(&[0; SIZE], true)?;
        disk.write_first_sector(&sector.unwrap())?;
        let service = &mut *service.borrow_mut();
        *service = service.take().map(Service::restarted);
        Ok(watch.commit()?)
    })
    .unwrap();
    assert_eq!(disk.borrow().epoch(), Some(1));
}

#[test]
fn t13_existing_disks_get_their_first_epoch_and_others_none() {
    let (service, disk) = (Service::start(), RefCell::<Disk>::default());
    let vm = Vm::new(&service, None);
    vm.run(&disk).unwrap();
    assert_eq!((disk.borrow().epoch(), &vm.about()["rollback"]), (None, &json!("off")));
    // The app asks for nothing, so the sector is nobody's business.
    let odd = RefCell::new(Disk { sector: Some([7; SIZE]), ..Disk::default() });
    Vm::new(&service, None).run(&odd).unwrap();
    assert_eq!(odd.borrow().sector, Some([7; SIZE]));
    boot(&service, &disk).unwrap();
    assert_eq!(disk.borrow().epoch(), Some(1));
}

#[test]
fn t13_a_backup_passes_once_the_operator_has_said_so() {
    let (service, disk) = (Service::start(), RefCell::<Disk>::default());
    boot(&service, &disk).unwrap();
    let backup = RefCell::new(disk.borrow().clone());
    boot(&service, &disk).unwrap();
    let compose = Vm::new(&service, Some("refuse")).compose;
    let (app, instance): (_, InstanceId) = testing::ids(&compose);
    // As `forget-disk` leaves it.
    let service = {
        let (state, url) = (std::sync::Arc::clone(&service.state), service.url.clone());
        service.end();
        let files = dstack_kms::epoch_files::EpochFiles::open(state.path()).unwrap();
        let forgotten: Result<(), dstack_kms::epoch_files::FilesError> =
            files.change(&app, &instance, |known| Ok((Some(known.forget()), ())));
        forgotten.unwrap();
        Service::at(state, url.trim_start_matches("https://"))
    };
    boot(&service, &backup).unwrap();
    assert_eq!(boot(&service, &disk).unwrap_err().failure(), Failure::DiskRolledBack);
}
