// SPDX-License-Identifier: Apache-2.0
use super::*;
use dstack_core::event_log;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use std::thread::JoinHandle;
use tempfile::TempDir;

/// A directory tree in which a thread plays the kernel: both blobs are pipes, so neither side waits in vain.
struct Fake {
    root: TempDir,
}

impl Fake {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::under(root.path());
        let entry = paths.reports.join(ENTRY);
        for directory in [&entry, &paths.measurements, &root.path().join("run/dstack/private")] {
            fs::create_dir_all(directory).unwrap();
        }
        for blob in ["inblob", "outblob"] {
            mknodat(CWD, entry.join(blob), FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        }
        fs::write(entry.join("generation"), "7\n").unwrap();
        for (name, value) in [
            ("mrtd:sha384", 1),
            ("rtmr0:sha384", 2),
            ("rtmr1:sha384", 3),
            ("rtmr2:sha384", 4),
            ("mrconfigid", 5),
        ] {
            fs::write(paths.measurements.join(name), [value; 48]).unwrap();
        }
        fs::write(paths.measurements.join("rtmr3:sha384"), [0; 48]).unwrap();
        Self { root }
    }

    fn tdx(&self) -> Tdx {
        Tdx::open(Paths::under(self.root.path())).unwrap()
    }

    /// Answers as many requests as there are steps; a step is what `generation` rises by. Returns the requests.
    fn kernel(&self, steps: Vec<u64>) -> JoinHandle<Vec<Vec<u8>>> {
        let entry = Paths::under(self.root.path()).reports.join(ENTRY);
        std::thread::spawn(move || {
            let mut generation = 7;
            let mut requests = Vec::new();
            for step in steps {
                let request = fs::read(entry.join("inblob")).unwrap();
                generation += step;
                fs::write(entry.join("generation"), format!("{generation}\n")).unwrap();
                fs::write(entry.join("outblob"), [b"quote of ", request.as_slice()].concat()).unwrap();
                requests.push(request);
            }
            requests
        })
    }
}

#[test]
fn a_quote_is_of_the_report_data() {
    let fake = Fake::new();
    let kernel = fake.kernel(vec![1]);
    let quote = fake.tdx().quote(&[9; 64]).unwrap();
    assert_eq!(quote, [&b"quote of "[..], &[9; 64]].concat());
    assert_eq!(kernel.join().unwrap(), [vec![9; 64]]);
}

#[test]
fn p16_an_interloper_costs_attempts_never_a_wrong_quote_or_a_loop() {
    let fake = Fake::new();
    let kernel = fake.kernel(vec![2, 3, 1]);
    assert!(fake.tdx().quote(&[1; 64]).is_ok());
    assert_eq!(kernel.join().unwrap().len(), 3);

    let fake = Fake::new();
    let kernel = fake.kernel(vec![2; ATTEMPTS as usize]);
    assert!(matches!(fake.tdx().quote(&[1; 64]), Err(AttestError::Contended(ATTEMPTS))));
    assert_eq!(kernel.join().unwrap().len(), ATTEMPTS as usize);
}

#[test]
fn p16_parallel_quotes_take_turns() {
    let fake = Fake::new();
    let kernel = fake.kernel(vec![1; 16]);
    std::thread::scope(|scope| {
        for number in 0..4 {
            let tdx = fake.tdx();
            scope.spawn(move || {
                for _ in 0..4 {
                    assert_eq!(
                        tdx.quote(&[number; 64]).unwrap(),
                        [&b"quote of "[..], &[number; 64]].concat()
                    );
                }
            });
        }
    });
    assert_eq!(kernel.join().unwrap().len(), 16);
}

#[test]
fn registers_are_read_and_rtmr3_gets_the_digest() {
    let fake = Fake::new();
    let tdx = fake.tdx();
    let registers = tdx.registers().unwrap();
    assert_eq!((registers.mrtd, registers.rtmr2, registers.mr_config_id), ([1; 48], [4; 48], [5; 48]));
    let digest = event_log::digest(event_log::EVENT_TYPE, "app-id", b"x");
    tdx.extend(&digest).unwrap();
    assert_eq!(tdx.registers().unwrap().rtmr3, digest, "the fake keeps what was written");
}

#[test]
fn t04_a_missing_driver_is_a_failure() {
    for gone in ["sys/kernel/config/tsm/report", "sys/devices/virtual/misc/tdx_guest/measurements"] {
        let fake = Fake::new();
        fs::remove_dir_all(fake.root.path().join(gone)).unwrap();
        let opened = Tdx::open(Paths::under(fake.root.path()));
        assert!(
            matches!(opened, Err(AttestError::NoDriver(path)) if path.starts_with(fake.root.path().join(gone)))
        );
    }
}

#[test]
fn p15_what_the_kernel_gives_has_limits() {
    let fake = Fake::new();
    let entry = Paths::under(fake.root.path()).reports.join(ENTRY);
    fs::remove_file(entry.join("outblob")).unwrap();
    fs::write(entry.join("outblob"), vec![0; QUOTE_MAX + 1]).unwrap();
    let inblob = entry.join("inblob");
    let reader = std::thread::spawn(move || fs::read(inblob).unwrap());
    assert!(matches!(fake.tdx().quote(&[1; 64]), Err(AttestError::Malformed(_))));
    reader.join().unwrap();
    fs::write(Paths::under(fake.root.path()).measurements.join("mrtd:sha384"), [0; 47]).unwrap();
    assert!(matches!(fake.tdx().registers(), Err(AttestError::Malformed(_))));
}

#[test]
fn the_firmwares_log_may_be_absent_but_not_damaged() {
    let fake = Fake::new();
    assert_eq!(fake.tdx().firmware_events().unwrap(), []);
    let ccel = Paths::under(fake.root.path()).ccel;
    fs::create_dir_all(ccel.parent().unwrap()).unwrap();
    fs::write(&ccel, [1; 100]).unwrap();
    assert!(matches!(fake.tdx().firmware_events(), Err(AttestError::Firmware(_))));
    let data = [&b"Spec ID Event03\0"[..], &[0; 8], &[1, 0, 0, 0, 0x0c, 0, 48, 0], &[0]].concat();
    let start = [&[1, 0, 0, 0, 3, 0, 0, 0][..], &[0; 20], &[33, 0, 0, 0], &data].concat();
    let head = [2, 0, 0, 0, 1, 0, 0, 0x80, 1, 0, 0, 0, 0x0c, 0];
    fs::write(&ccel, [&start[..], &head, &[7; 48], &[2, 0, 0, 0], b"ab"].concat()).unwrap();
    let events = fake.tdx().firmware_events().unwrap();
    assert_eq!((events.len(), events[0].imr, events[0].digest), (1, 1, [7; 48]));
    assert!(events[0].event_payload.is_empty());
}
