// SPDX-License-Identifier: Apache-2.0
//! What the units and rules of the guest promise beside the programs.
#![allow(clippy::unwrap_used, missing_docs)]

use std::fs;
use std::path::Path;

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)).unwrap()
}

/// The values of all assignments to a key.
fn values(text: &str, key: &str) -> Vec<String> {
    let values = text.lines().filter_map(|l| l.split_once('=').filter(|(k, _)| *k == key));
    values.flat_map(|(_, v)| v.split_whitespace().map(str::to_owned).collect::<Vec<_>>()).collect()
}

#[test]
fn t13_udev_never_looks_into_the_disks() {
    let rules = read("guest-os/mkosi.extra/usr/lib/udev/rules.d/60-dstack-storage.rules");
    assert!(!rules.contains("blkid") && !rules.contains("IMPORT{"), "{rules}");
    for list in ["guest-os/lists/udev-rules", "guest-os/lists/initrd"] {
        let list = read(list);
        for probing in ["60-block", "60-persistent-storage", "60-cdrom", "64-btrfs", "69-lvm", "90-udisks"] {
            assert!(!list.contains(probing), "{probing}");
        }
    }
}

#[test]
fn p33_nothing_of_docker_runs_before_the_guest_is_prepared() {
    for unit in ["docker.service.d/dstack.conf", "containerd.service.d/dstack.conf", "dstack-app.service"] {
        let unit = read(&format!("units/guest/{unit}"));
        for key in ["Requires", "After"] {
            assert!(values(&unit, key).contains(&"dstack-prepare.service".to_owned()), "{key} of {unit}");
        }
        assert_eq!(values(&unit, "RequiresMountsFor"), ["/data"]);
    }
}

#[test]
fn t18_only_fixed_sentences_reach_the_console() {
    for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../units/guest")).unwrap() {
        let path = entry.unwrap().path();
        let Ok(unit) = fs::read_to_string(&path) else { continue };
        let output = [values(&unit, "StandardOutput"), values(&unit, "StandardError")].concat();
        if output.iter().any(|o| o.contains("console") || o.contains("tty") || o.contains("kmsg")) {
            let report = "/usr/libexec/dstack/dstack-status report";
            assert!(
                unit.contains(&format!("ExecStart={report}"))
                    || unit.contains(&format!("ExecStart=-{report}")),
                "{path:?}"
            );
            assert!(values(&unit, "StandardError").iter().all(|o| o == "journal"), "{path:?}");
        }
    }
}

#[test]
fn t07_a_guest_that_cannot_be_prepared_powers_off() {
    for unit in ["dstack-prepare.service", "data.mount"] {
        assert_eq!(values(&read(&format!("units/guest/{unit}")), "OnFailure"), ["dstack-failure.service"]);
    }
    let failure = read("units/guest/dstack-failure.service");
    assert_eq!(values(&failure, "SuccessAction"), ["poweroff"]);
    assert_eq!(values(&failure, "FailureAction"), ["poweroff"]);
}

#[test]
fn t12_the_image_gives_the_clock_a_floor() {
    // Its time of change is the image's build, as of all files; systemd and dstack-prepare look at it.
    let epoch = "guest-os/mkosi.extra/usr/lib/clock-epoch";
    assert!(Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(epoch).is_file());
    assert!(read("guest-os/lib/assemble.sh").contains("-T\"$SOURCE_DATE_EPOCH\" --all-time"));
    // A clock that is behind is set before the disk is mounted, and the boot ends when it cannot be.
    let unit = read("units/guest/dstack-clock.service");
    assert_eq!(values(&unit, "CapabilityBoundingSet"), ["CAP_SYS_TIME"]);
    assert_eq!(values(&unit, "OnFailure"), ["dstack-failure.service"]);
    for key in ["Requires", "After"] {
        assert!(values(&read("units/guest/data.mount"), key).contains(&"dstack-clock.service".to_owned()));
    }
}

#[test]
fn t13_the_image_has_what_the_data_disk_needs() {
    let packages = read("guest-os/mkosi.conf");
    for package in ["cryptsetup-bin", "dmsetup", "e2fsprogs"] {
        assert!(packages.lines().any(|l| l.trim() == package), "{package}");
    }
    // Nothing of systemd looks into the disk: no crypttab, no fsck unit, no growth by systemd-growfs.
    let mount = read("units/guest/data.mount");
    assert!(!mount.contains("systemd-fsck@.service") && !mount.contains("x-systemd.growfs"), "{mount}");
    assert!(values(&mount, "Requires").contains(&"dstack-prepare.service".to_owned()));
}

#[test]
fn t04_a_td_finds_its_driver_and_every_vm_its_vsock() {
    let modules = read("guest-os/lists/kernel-modules");
    for module in ["tdx-guest", "tsm_report", "vsock", "vmw_vsock_virtio_transport"] {
        assert!(modules.lines().any(|l| l == module), "{module}");
    }
    let loaded = read("guest-os/mkosi.extra/usr/lib/modules-load.d/dstack.conf");
    for module in ["tdx-guest", "vmw_vsock_virtio_transport"] {
        assert!(loaded.lines().any(|l| l == module), "{module}");
    }
    let unit = read("units/guest/dstack-prepare.service");
    for after in ["systemd-modules-load.service", "sys-kernel-config.mount"] {
        assert!(values(&unit, "After").contains(&after.to_owned()), "{after}");
    }
    for path in ["-/sys/kernel/config", "-/sys/devices/virtual/misc/tdx_guest"] {
        assert!(values(&unit, "ReadWritePaths").contains(&path.to_owned()), "{path}");
    }
    for family in ["AF_VSOCK", "AF_INET", "AF_INET6"] {
        assert!(values(&unit, "RestrictAddressFamilies").contains(&family.to_owned()), "{family}");
    }
}

#[test]
fn a_boot_without_network_is_not_held_up_by_it() {
    let unit = read("units/guest/dstack-prepare.service");
    assert!(values(&unit, "Wants").contains(&"systemd-networkd.service".to_owned()));
    for key in ["After", "Requires"] {
        assert!(values(&unit, key).iter().all(|unit| !unit.contains("network")), "{key}");
    }
    assert_eq!(values(&unit, "TimeoutStartSec"), ["infinity"]);
}

#[test]
fn p03_the_secrets_directory_is_roots_alone() {
    let tmpfiles = read("units/guest/dstack-guest.tmpfiles");
    assert!(tmpfiles.contains("d /run/dstack/private 0700 root root -"));
    for unit in ["dstack-prepare.service", "dstack-app.service"] {
        assert_eq!(values(&read(&format!("units/guest/{unit}")), "UMask"), ["0077"]);
    }
}
