// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]
use super::super::explain::explain;
use super::super::tdvf::tests::ovmf;
use super::super::uki::tests::uki;
use super::*;
use crate::event_log::Event;

const SHAPE: Shape = Shape { vcpus: 2, memory: 2 << 30 };
const ACPI: Acpi = Acpi { loader: [1; 48], rsdp: [2; 48], tables: [3; 48] };

fn predict(platform: Platform, uki: &[u8], shape: Shape, acpi: Option<&Acpi>) -> Prediction {
    let inputs = Inputs { firmware: &ovmf(), uki, shape, acpi, order: PageOrder::OnePass };
    Prediction::of(platform, &inputs).unwrap()
}

fn registers(of: &Prediction) -> [Digest; 4] {
    [of.mrtd, of.rtmr0.unwrap(), of.rtmr1, of.rtmr2]
}

/// The log that a TD with these events would have.
fn log(of: &Prediction) -> Vec<Event> {
    let imr = |register| match register {
        Register::Mrtd => None,
        Register::Rtmr0 => Some(0),
        Register::Rtmr1 => Some(1),
        Register::Rtmr2 => Some(2),
    };
    let event = |e: &Entry| {
        let (imr, event_type, digest) = (imr(e.register)?, e.event_type, e.digest);
        Some(Event { imr, event_type, digest, event: String::new(), event_payload: Vec::new() })
    };
    of.entries.iter().filter_map(event).collect()
}

#[test]
fn registers_are_the_replay_of_their_events() {
    let image = uki(b"quiet", b"initrd");
    let of = predict(Platform::Tdx, &image, SHAPE, Some(&ACPI));
    let replayed = crate::event_log::replay(&log(&of)).unwrap();
    assert_eq!(&replayed[..3], &registers(&of)[1..]);
    let names: Vec<&str> = of.entries.iter().map(|e| e.name.as_str()).collect();
    assert_eq!(names[..4], ["firmware", "td-hob", "cfv", "SecureBoot"]);
    assert_eq!(names[9..14], ["acpi-loader", "acpi-rsdp", "acpi-tables", "BootOrder", "Boot0000"]);
    assert_eq!(names[14..16], ["uki", "Calling EFI Application from Boot Option"]);
    let tail =
        [".linux name", ".linux", ".osrel name", ".osrel", ".cmdline name", ".cmdline", ".initrd name"];
    assert_eq!(names[20..27], tail);
    assert_eq!(names[28..], [".sbat name", ".sbat", "command-line", "initrd"]);
}

#[test]
fn t02_without_acpi_rtmr0_is_not_predicted() {
    let image = uki(b"quiet", b"initrd");
    assert_eq!(predict(Platform::Tdx, &image, SHAPE, None).rtmr0, None);
    assert!(predict(Platform::Simulated, &image, SHAPE, None).rtmr0.is_some());
}

#[test]
fn the_simulated_tee_differs_in_rtmr0_alone() {
    let image = uki(b"quiet", b"initrd");
    let (real, simulated) = (
        predict(Platform::Tdx, &image, SHAPE, Some(&ACPI)),
        predict(Platform::Simulated, &image, SHAPE, None),
    );
    let (a, b) = (registers(&real), registers(&simulated));
    assert_eq!([a[0], a[2], a[3]], [b[0], b[2], b[3]]);
    assert_ne!(a[1], b[1]);
    let booted = Booted::of(&ovmf(), &image, Platform::Simulated, PageOrder::OnePass).unwrap();
    assert_eq!(booted.simulated(SHAPE), b);
}

#[test]
fn firmware_that_is_no_tdvf_starts_no_td() {
    let image = uki(b"quiet", b"initrd");
    let of = |platform, firmware: &[u8]| Booted::of(firmware, &image, platform, PageOrder::OnePass);
    assert_eq!(of(Platform::Tdx, b"bios").unwrap_err(), MeasureError::NoMetadata);
    let one = of(Platform::Simulated, b"bios").unwrap();
    assert!(one.mrtd.source.starts_with("simulated-v2"));
    assert_ne!(one.mrtd.digest, of(Platform::Simulated, b"other").unwrap().mrtd.digest);
}

#[test]
fn t02_a_difference_is_named_with_its_cause() {
    let image = uki(b"quiet", b"initrd");
    let base = predict(Platform::Tdx, &image, SHAPE, Some(&ACPI));
    assert_eq!(explain(&base, registers(&base), &log(&base)), None);
    let memory = Shape { memory: 4 << 30, ..SHAPE };
    let acpi = Acpi { tables: [9; 48], ..ACPI };
    let cases = [
        (predict(Platform::Tdx, &image, memory, Some(&ACPI)), Register::Rtmr0, "td-hob", "memory size"),
        (predict(Platform::Tdx, &image, SHAPE, Some(&acpi)), Register::Rtmr0, "acpi-tables", "vCPUs"),
        (
            predict(Platform::Tdx, &uki(b"loud", b"initrd"), SHAPE, Some(&ACPI)),
            Register::Rtmr1,
            "uki",
            "kernel image",
        ),
    ];
    for (other, register, event, cause) in cases {
        let found = explain(&base, registers(&other), &log(&other)).unwrap();
        assert_eq!((found.register, found.event.as_deref()), (register, Some(event)));
        assert!(found.cause.contains(cause), "{}", found.cause);
        let blind = explain(&base, registers(&other), &[]).unwrap();
        assert_eq!((blind.register, blind.event), (register, None));
    }
    let mut appended = log(&base);
    let line = appended.iter().position(|e| e.digest == base.entries[30].digest).unwrap();
    appended[line].digest = [7; 48];
    let mut measured = registers(&base);
    measured[3] = crate::event_log::replay(&appended).unwrap()[2];
    let found = explain(&base, measured, &appended).unwrap();
    assert_eq!(found.event.as_deref(), Some("command-line"));
    assert!(found.cause.contains("command line"));
}

#[test]
fn t02_an_unpredicted_register_is_compared_by_the_events_that_are_known() {
    let image = uki(b"quiet", b"initrd");
    let partial = predict(Platform::Tdx, &image, SHAPE, None);
    let whole = predict(Platform::Tdx, &image, SHAPE, Some(&ACPI));
    assert_eq!(explain(&partial, registers(&whole), &log(&whole)), None);
    let other = predict(Platform::Tdx, &image, Shape { memory: 3 << 30, ..SHAPE }, Some(&ACPI));
    let found = explain(&partial, registers(&other), &log(&other)).unwrap();
    assert_eq!((found.register, found.event.as_deref()), (Register::Rtmr0, Some("td-hob")));
}

#[test]
fn p20_acpi_comes_from_files_or_from_the_log_of_such_a_td() {
    let base = predict(Platform::Tdx, &uki(b"quiet", b"initrd"), SHAPE, Some(&ACPI));
    let mut events = log(&base);
    assert_eq!(Acpi::of_log(&events), Some(ACPI));
    events.retain(|e| e.digest != ACPI.rsdp);
    assert_eq!(Acpi::of_log(&events), None);
    assert_eq!(Acpi::of_files(b"a", b"b", b"c").rsdp, super::super::sha384(b"b"));
}
