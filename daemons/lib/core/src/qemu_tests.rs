// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]
use super::*;
use crate::ids::ComposeHash;
use crate::spec::{CONFIG_DISK, LAUNCH_VERSION, VmSpec, mr_config_id};

fn launch(platform: Platform) -> LaunchSpec {
    let hash = ComposeHash::of(b"{}");
    LaunchSpec {
        version: LAUNCH_VERSION,
        vm: VmSpec {
            id: Uuid::from_u128(0x6ba7_b810_9dad_11d1_80b4_00c0_4fd4_30c8),
            name: "hello".parse().unwrap(),
            app_id: hash.app_id(),
            compose_hash: hash,
            image: "dstack-0.1.0".parse().unwrap(),
            vcpus: 2,
            memory: 2 << 30,
            disk: 20 << 30,
            ports: Vec::new(),
            autostart: false,
            created_at: 0,
        },
        platform,
        vsock: if platform == Platform::Tcg { Vsock::User } else { Vsock::Kernel },
        cid: 4242,
        network: Network::User,
        qemu: "/usr/bin/qemu-system-x86_64".into(),
        vsock_program: "/usr/libexec/dstack/vhost-device-vsock".into(),
        image_dir: "/var/lib/dstack/images/dstack-0.1.0".into(),
        uki: "dstack.efi".into(),
        root: "root.img".into(),
        verity: Some("root.verity".into()),
        firmware: "/usr/share/ovmf/OVMF.fd".into(),
        config_disk: CONFIG_DISK.into(),
        mr_config_id: mr_config_id(&hash),
        qgs_port: (platform == Platform::Tdx).then_some(4050),
        progress_timeout: 180,
        boot_timeout: 900,
        stop_timeout: 90,
    }
}

fn runtime() -> Runtime {
    Runtime {
        data_disk: "/var/lib/dstack-vm/hello/data.qcow2".into(),
        vsock_socket: "/run/dstack-vm/hello/vhost-vsock.sock".into(),
        net_socket: NET_SOCKET.into(),
        qmp_fd: 10,
        serial_fd: 11,
        tap_fd: None,
        version: (10, 0),
    }
}

/// One option and its value on each line.
fn text(list: &[String]) -> String {
    let mut out = String::new();
    for (index, arg) in list.iter().enumerate() {
        out.push_str(if index == 0 {
            ""
        } else if arg.starts_with('-') {
            "\n"
        } else {
            " "
        });
        out.push_str(arg);
    }
    out + "\n"
}

/// Compares with `qemu_golden/<name>.txt`; `UPDATE_GOLDEN=1` writes it instead.
fn golden(name: &str, list: &[String]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("src/qemu_golden/{name}.txt"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, text(list)).unwrap();
    }
    assert_eq!(
        text(list),
        std::fs::read_to_string(&path).unwrap(),
        "{name}: run with UPDATE_GOLDEN=1 to accept"
    );
}

#[test]
fn golden_command_lines() {
    for platform in [Platform::Tdx, Platform::Kvm, Platform::Tcg] {
        golden(&platform.to_string(), &arguments(&launch(platform), &runtime()).unwrap());
    }
}

#[test]
fn golden_tap_without_verity() {
    let mut launch = launch(Platform::Kvm);
    launch.network = Network::Tap { device: "dstack0".into() };
    launch.verity = None;
    golden("kvm-tap", &arguments(&launch, &Runtime { tap_fd: Some(12), ..runtime() }).unwrap());
    assert_eq!(arguments(&launch, &runtime()), Err(QemuError::NoTap));
}

#[test]
fn t2_nothing_is_appended_to_the_command_line() {
    for platform in [Platform::Tdx, Platform::Kvm, Platform::Tcg] {
        let list = arguments(&launch(platform), &runtime()).unwrap();
        for forbidden in ["-append", "-initrd", "-fw_cfg", "-smbios", "-dtb"] {
            assert!(!list.iter().any(|arg| arg == forbidden), "{forbidden}");
        }
    }
}

#[test]
fn no_value_becomes_an_option() {
    let mut launch = launch(Platform::Tcg);
    launch.image_dir = "/images/a,read-only=off".into();
    let list = arguments(&launch, &runtime()).unwrap();
    let root = list.iter().find(|arg| arg.contains("node-name=root")).unwrap();
    assert!(root.ends_with("file.filename=/images/a,,read-only=off/root.img"), "{root}");
}

#[test]
fn mr_config_id_is_base64_of_48_bytes() {
    let launch = launch(Platform::Tdx);
    let list = arguments(&launch, &runtime()).unwrap();
    let object = list.iter().find(|arg| arg.contains("tdx-guest")).unwrap();
    let json: serde_json::Value = serde_json::from_str(object).unwrap();
    let id = json["mrconfigid"].as_str().unwrap();
    assert_eq!(id.len(), 64);
    // 0x01 and the first two bytes of the hash of `{}`, 44 13.
    assert!(id.starts_with("AUQT"), "{id}");
    assert!(id.ends_with("AAAAAAAAAAAA"), "{id}");
    for bad in ["", "01", &"zz".repeat(48), &"00".repeat(49)] {
        let launch = LaunchSpec { mr_config_id: bad.to_owned(), ..launch.clone() };
        assert!(matches!(arguments(&launch, &runtime()), Err(QemuError::MrConfigId(_))), "{bad}");
    }
}

#[test]
fn tdx_refuses_shared_memory() {
    let launch = LaunchSpec { vsock: Vsock::User, ..launch(Platform::Tdx) };
    assert_eq!(arguments(&launch, &runtime()), Err(QemuError::TdxVsock));
}

#[test]
fn versions() {
    let debian = "QEMU emulator version 10.0.13 (Debian 1:10.0.13+ds-0+deb13u1)\nCopyright (c) 2003-2025 …\n";
    assert_eq!(version(debian), Some((10, 0)));
    assert_eq!(version("QEMU emulator version 7.2.22"), Some((7, 2)));
    for bad in ["", "QEMU", "QEMU emulator version", "QEMU emulator version x.y", "busybox version 1"] {
        assert_eq!(version(bad), None, "{bad:?}");
    }
    let words =
        [((7, 2), ""), ((8, 0), ",reconnect=1"), ((9, 1), ",reconnect=1"), ((9, 2), ",reconnect-ms=1000")];
    for (version, word) in words {
        assert_eq!(reconnect(version), word);
    }
    assert_eq!(reconnect((11, 0)), ",reconnect-ms=1000");
}

#[test]
fn macs_are_stable_local_and_unicast() {
    let mac_of = |n| mac(Uuid::from_u128(n));
    assert_eq!(mac_of(1), mac_of(1));
    assert_ne!(mac_of(1), mac_of(2));
    assert_eq!(mac_of(1).len(), 17);
    assert!(mac_of(1).starts_with("52:54:"));
}
