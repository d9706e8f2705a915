// SPDX-License-Identifier: Apache-2.0
//! Bad input and faults: a named error with a remedy, and nothing left behind.

use crate::systemd::Start;
use crate::world::{COMPOSE, World, options, ports};
use dstack_service::api::teepod1::Error;
use zbus::{DBusError, Variant};

type Options = &'static [(&'static str, fn() -> Variant<'static>)];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p26_bad_input_is_named_and_leaves_nothing() {
    let world = World::new().await;
    let long = "x".repeat(31);
    let huge = " ".repeat(200_000);
    let no_services = COMPOSE.replace("services:", "volumes:");
    let cases: &[(&str, &str, Options, &str, &str)] = &[
        ("A", COMPOSE, &[], "InvalidArgument", "1 to 30 of a-z"),
        ("../etc", COMPOSE, &[], "InvalidArgument", "1 to 30 of a-z"),
        (&long, COMPOSE, &[], "InvalidArgument", "1 to 30 of a-z"),
        ("", COMPOSE, &[], "InvalidArgument", "1 to 30 of a-z"),
        ("a", "{", &[], "InvalidCompose", "not valid"),
        ("a", "{}", &[], "InvalidCompose", "manifest_version"),
        ("a", &huge, &[], "InvalidCompose", "larger than"),
        ("a", &no_services, &[], "InvalidCompose", "at least one"),
        ("a", COMPOSE, &[("image", || "nope-1".into())], "NoSuchImage", "dstackctl image list"),
        ("a", COMPOSE, &[("image", || "../x".into())], "InvalidArgument", "image name"),
        ("a", COMPOSE, &[("vcpus", || 0_u32.into())], "InvalidArgument", "1 to 256"),
        ("a", COMPOSE, &[("vcpus", || 21_u32.into())], "LimitExceeded", "cvm.max_allocable_vcpu"),
        ("a", COMPOSE, &[("memory", || (200_u64 << 30).into())], "LimitExceeded", "max_allocable_memory"),
        ("a", COMPOSE, &[("memory", || 1_u64.into())], "InvalidArgument", "512 MiB"),
        ("a", COMPOSE, &[("disk", || (101_u64 << 30).into())], "LimitExceeded", "max_disk_size"),
        ("a", COMPOSE, &[("ports", || ports(&[("tcp", 80, 80)]))], "PortNotAllowed", "1024 to 32767"),
        ("a", COMPOSE, &[("ports", || ports(&[("tcp", 0, 80)]))], "InvalidArgument", "1 to 65535"),
        (
            "a",
            COMPOSE,
            &[("ports", || ports(&[("tcp", 5000, 1), ("tcp", 5000, 2)]))],
            "InvalidArgument",
            "once",
        ),
        ("a", COMPOSE, &[("vcpu", || 1_u32.into())], "InvalidArgument", "vcpus"),
        ("a", COMPOSE, &[("encrypted_env", || vec![0_u8; 300_000].into())], "InvalidArgument", "larger than"),
    ];
    for (name, compose, given, error, part) in cases {
        let given: Vec<_> = given.iter().map(|(k, v)| (*k, v())).collect();
        let refused = world.manager.create_vm(name, compose.as_bytes(), options(&given)).await.unwrap_err();
        assert_eq!(refused.name().as_str(), format!("org.dstack.teepod1.{error}"), "{name:.40}: {refused}");
        assert!(refused.to_string().contains(part), "{part:?} in {refused}");
        assert!(world.vm_files().is_empty(), "{refused}");
    }
    assert!(world.manager.list_vms().await.unwrap().is_empty());
    // And nothing is held: the name and the first context id are free.
    world.create_stopped("a", &[]).await.unwrap();
    assert_eq!(world.vm("a").await.cid().await.unwrap(), 1000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_ids_and_ports_are_taken_once() {
    let world = World::with("[cvm]\ncid_pool_size = 2\n", &[]).await;
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let taken = listener.local_addr().unwrap().port();
    // The kernel may give a port outside the allowed range.
    if taken <= 32_767 {
        let refused =
            world.create_stopped("a", &[("ports", ports(&[("tcp", taken, 80)]))]).await.unwrap_err();
        assert!(
            matches!(&refused, Error::PortInUse(text) if text.contains("another process")),
            "{refused:?}"
        );
    }
    world.create_stopped("a", &[("ports", ports(&[("tcp", 21_100, 80)]))]).await.unwrap();
    let refused = world.create_stopped("a", &[]).await.unwrap_err();
    assert!(matches!(&refused, Error::VmExists(text) if text.contains("another name")), "{refused:?}");
    let refused = world.create_stopped("b", &[("ports", ports(&[("tcp", 21_100, 81)]))]).await.unwrap_err();
    assert!(matches!(&refused, Error::PortInUse(text) if text.contains("VM a")), "{refused:?}");
    world.create_stopped("b", &[]).await.unwrap();
    let refused = world.create_stopped("c", &[]).await.unwrap_err();
    assert!(matches!(&refused, Error::NoFreeCid(text) if text.contains("cid_pool_size")), "{refused:?}");
    assert_eq!(world.vm_files(), ["a", "b"]);
    world.done(&world.manager.remove_vm("a").await.unwrap()).await;
    world.create_stopped("c", &[("ports", ports(&[("tcp", 21_100, 80)]))]).await.unwrap();
    assert_eq!(world.vm("c").await.cid().await.unwrap(), 1000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_taken_meanwhile_fails_the_start_with_its_name() {
    let world = World::new().await;
    world.create_stopped("a", &[("ports", ports(&[("tcp", 21_110, 80)]))]).await.unwrap();
    let _listener = std::net::TcpListener::bind(("127.0.0.1", 21_110)).unwrap();
    let (result, name, text) = world.ended(&world.manager.start_vm("a").await.unwrap()).await;
    assert_eq!((result.as_str(), name.as_str()), ("failed", "org.dstack.teepod1.PortInUse"), "{text}");
    assert_eq!(world.state("a").await, "stopped");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_never_becomes_ready() {
    let world = World::new().await;
    world.systemd.on_start("dstack-vm@a.service", Start::Fail("timeout"));
    let (_, job) = world.manager.create_vm("a", COMPOSE.as_bytes(), options(&[])).await.unwrap();
    let (result, name, text) = world.ended(&job).await;
    assert_eq!((result.as_str(), name.as_str()), ("failed", "org.dstack.teepod1.BootFailed"));
    assert!(text.contains("in time") && text.contains("journalctl -u dstack-vm@a.service"), "{text}");
    assert_eq!(world.state("a").await, "failed");
    // It stays for a look, and can be started again or removed.
    world.systemd.on_start("dstack-vm@a.service", Start::Ready);
    world.done(&world.manager.start_vm("a").await.unwrap()).await;
    world.done(&world.manager.stop_vm("a").await.unwrap()).await;
    world.done(&world.manager.remove_vm("a").await.unwrap()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusing_systemd_is_named() {
    let world = World::new().await;
    world.systemd.on_start("dstack-vm@a.service", Start::Refuse);
    let (_, job) = world.manager.create_vm("a", COMPOSE.as_bytes(), options(&[])).await.unwrap();
    let (_, name, text) = world.ended(&job).await;
    assert_eq!(name, "org.dstack.teepod1.UnitFailed");
    assert!(text.contains("polkit"), "{text}");
    world.systemd.on_start("dstack-vm-remove@a.service", Start::Fail("exit-code"));
    let (_, name, text) = world.ended(&world.manager.remove_vm("a").await.unwrap()).await;
    assert_eq!(name, "org.dstack.teepod1.UnitFailed", "{text}");
    assert_eq!(world.vm_files(), ["a"], "it can be tried again");
    world.systemd.on_start("dstack-vm-remove@a.service", Start::Ready);
    world.done(&world.manager.remove_vm("a").await.unwrap()).await;
    assert!(world.vm_files().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p30_unreadable_state_is_left_alone_and_others_work() {
    let mut world = World::new().await;
    world.create_stopped("good", &[]).await.unwrap();
    world.create_stopped("bad", &[]).await.unwrap();
    world.kill_teepod().await;
    let path = world.path("state/vms/bad/record.json");
    std::fs::write(&path, "{ not json").unwrap();
    world.start_teepod().await;
    assert_eq!(world.manager.list_vms().await.unwrap().len(), 1);
    for refused in [
        world.manager.get_vm("bad").await.map(drop).unwrap_err(),
        world.manager.start_vm("bad").await.map(drop).unwrap_err(),
        world.manager.remove_vm("bad").await.map(drop).unwrap_err(),
        world.create_stopped("bad", &[]).await.unwrap_err(),
    ] {
        assert!(
            matches!(&refused, Error::StateUnreadable(text) if text.contains("record.json")),
            "{refused:?}"
        );
    }
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "{ not json");
    world.done(&world.manager.start_vm("good").await.unwrap()).await;
}

/// A small tmpfs over the state directory, seen by teepod alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_named_and_leaves_nothing() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: needs root to mount a small file system");
        return;
    }
    let script = "mount -t tmpfs -o size=600k tmpfs \"$STATE_DIRECTORY\" && exec \"$@\"";
    let world = World::with("", &["unshare", "-m", "sh", "-ec", script, "sh"]).await;
    world.create_stopped("small", &[]).await.unwrap();
    let env = || vec![7_u8; 250_000].into();
    world.create_stopped("b", &[("encrypted_env", env())]).await.unwrap();
    let much = [("encrypted_env", env()), ("user_config", vec![7_u8; 500_000].into())];
    let refused = world.create_stopped("c", &much).await.unwrap_err();
    assert!(matches!(&refused, Error::NoSpace(text) if text.contains("free some space")), "{refused:?}");
    // Whatever was written is gone: as much fits as before.
    world.create_stopped("d", &[("user_config", vec![7_u8; 200_000].into())]).await.unwrap();
    let names: Vec<String> = world.manager.list_vms().await.unwrap().into_iter().map(|r| r.0).collect();
    assert_eq!(names, ["b", "d", "small"]);
}
