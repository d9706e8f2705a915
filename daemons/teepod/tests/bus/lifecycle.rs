// SPDX-License-Identifier: Apache-2.0
use crate::systemd::Start;
use crate::world::{COMPOSE, Seen, World, options, ports};
use dstack_service::api::teepod1::Error;
use zbus::Variant;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn create_start_stop_remove() {
    let world = World::new().await;
    let asked = options(&[
        ("vcpus", 2_u32.into()),
        ("memory", (1_u64 << 30).into()),
        ("ports", ports(&[("tcp", 21_080, 80)])),
    ]);
    let (vm, job) = world.manager.create_vm("a-1", COMPOSE.as_bytes(), asked).await.unwrap();
    assert_eq!(vm.as_str(), "/org/dstack/teepod1/vm/a_2d1");
    world.done(&job).await;
    let vm = world.vm("a-1").await;
    assert_eq!(vm.state().await.unwrap(), "running");
    assert_eq!(vm.unit().await.unwrap(), "dstack-vm@a-1.service");
    assert_eq!((vm.vcpus().await.unwrap(), vm.memory().await.unwrap()), (2, 1 << 30));
    assert_eq!(vm.ports().await.unwrap(), [("tcp".to_owned(), "127.0.0.1".to_owned(), 21_080, 80)]);
    assert_eq!(vm.boot_progress().await.unwrap(), "done");
    assert_eq!(vm.cid().await.unwrap(), 1000);
    assert_eq!(vm.image().await.unwrap(), "dstack-0.1.0");
    let id = vm.id().await.unwrap();
    assert_eq!(world.manager.get_vm(&id).await.unwrap().as_str(), "/org/dstack/teepod1/vm/a_2d1");
    let unit = "dstack-vm@a-1.service";
    assert_eq!(world.systemd.property(unit, "MemoryMax"), Some((1 << 30) + (512 << 20)));
    assert!(world.systemd.property(unit, "TasksMax").is_some());
    let rows = world.manager.list_vms().await.unwrap();
    assert_eq!((rows[0].0.as_str(), rows[0].3.as_str()), ("a-1", "running"));
    let launch = std::fs::read(world.path("state/vms/a-1/launch.json")).unwrap();
    let launch: dstack_core::spec::LaunchSpec = serde_json::from_slice(&launch).unwrap();
    assert_eq!((launch.cid, launch.uki.as_str()), (1000, "guest.efi"));

    let refused = world.manager.remove_vm("a-1").await.unwrap_err();
    assert!(matches!(&refused, Error::VmRunning(text) if text.contains("stop it first")), "{refused:?}");
    world.done(&vm.stop().await.unwrap()).await;
    assert_eq!(vm.state().await.unwrap(), "stopped");
    world.done(&world.manager.stop_vm("a-1").await.unwrap()).await;
    world.done(&world.manager.remove_vm("a-1").await.unwrap()).await;
    assert!(world.systemd.calls().contains(&"Start dstack-vm-remove@a-1.service".to_owned()));
    assert!(world.manager.list_vms().await.unwrap().is_empty());
    assert!(world.vm_files().is_empty());
    assert!(matches!(world.manager.get_vm("a-1").await, Err(Error::NoSuchVm(_))));
    world.until("VmNew", |s| matches!(s, Seen::VmNew(n) if n == "a-1").then_some(())).await;
    world.until("VmRemoved", |s| matches!(s, Seen::VmRemoved(n) if n == "a-1").then_some(())).await;
    world.until("JobNew", |s| matches!(s, Seen::JobNew).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_and_restart() {
    let world = World::new().await;
    world.create("a").await;
    world.systemd.forget_calls();
    world.done(&world.manager.restart_vm("a").await.unwrap()).await;
    assert_eq!(world.state("a").await, "running");
    world.manager.kill_vm("a").await.unwrap();
    assert_eq!(world.state("a").await, "stopped");
    let calls: Vec<_> = world.systemd.calls().into_iter().filter(|c| !c.starts_with("Reset")).collect();
    let unit = "dstack-vm@a.service";
    assert_eq!(calls, [format!("Restart {unit}"), format!("Stop {unit}"), format!("Kill all 9 {unit}")]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_state_follows_whoever_uses_systemctl() {
    let world = World::new().await;
    world.create("a").await;
    let unit = "dstack-vm@a.service";
    for (active, sub, result, state) in [
        ("deactivating", "stop-sigterm", "success", "stopping"),
        ("inactive", "dead", "success", "stopped"),
        ("activating", "start", "success", "starting"),
        ("active", "running", "success", "running"),
        ("failed", "failed", "oom-kill", "failed"),
        ("activating", "auto-restart", "success", "starting"),
    ] {
        world.forget_signals();
        world.systemd.set(unit, active, sub, result).await;
        world.until_state("a", state).await;
        assert_eq!(world.state("a").await, state);
    }
    world.systemd.set(unit, "failed", "failed", "start-limit-hit").await;
    world.until_state("a", "failed").await;
    assert!(world.vm("a").await.boot_error().await.unwrap().contains("too often"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vms_live_through_a_kill_of_teepod_and_are_adopted() {
    let mut world = World::new().await;
    for name in ["a", "b", "c"] {
        world.create(name).await;
    }
    world.create_stopped("d", &[]).await.unwrap();
    world.kill_teepod().await;
    // What happens meanwhile is seen too.
    world.systemd.set("dstack-vm@c.service", "failed", "failed", "signal").await;
    std::fs::create_dir(world.path("state/vms/.#tmp-left")).unwrap();
    world.systemd.forget_calls();
    world.start_teepod().await;
    let states: Vec<(String, String)> =
        world.manager.list_vms().await.unwrap().into_iter().map(|r| (r.0, r.3)).collect();
    let expected = [("a", "running"), ("b", "running"), ("c", "failed"), ("d", "stopped")];
    assert_eq!(states, expected.map(|(n, s)| (n.to_owned(), s.to_owned())));
    assert_eq!(world.vm_files(), ["a", "b", "c", "d"]);
    assert!(
        world.systemd.calls().iter().all(|c| !c.starts_with("St") && !c.starts_with("Kill")),
        "nothing is touched"
    );
    world.done(&world.manager.stop_vm("a").await.unwrap()).await;
    assert_eq!(world.state("a").await, "stopped");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_promised_start_is_kept_by_the_next_teepod() {
    let mut world = World::without_teepod("", &[]).await;
    world.start_teepod().await;
    world.create_stopped("a", &[]).await.unwrap();
    world.kill_teepod().await;
    // As a kill between the creation and the start leaves it.
    let path = world.path("state/vms/a/record.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let pending = text.replace("\"start_pending\": false", "\"start_pending\": true");
    assert_ne!(text, pending);
    std::fs::write(&path, pending).unwrap();
    world.start_teepod().await;
    world.systemd.wait_for("Start dstack-vm@a.service").await;
    world.until_state("a", "running").await;
    world.until_file("state/vms/a/record.json", "\"start_pending\": false").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removal_that_was_cut_short_is_finished() {
    let mut world = World::new().await;
    world.create_stopped("a", &[]).await.unwrap();
    world.systemd.on_start("dstack-vm-remove@a.service", Start::Wait);
    world.manager.remove_vm("a").await.unwrap();
    world.systemd.wait_for("Start dstack-vm-remove@a.service").await;
    world.kill_teepod().await;
    world.systemd.on_start("dstack-vm-remove@a.service", Start::Ready);
    world.forget_signals();
    world.start_teepod().await;
    world.until("VmRemoved", |s| matches!(s, Seen::VmRemoved(n) if n == "a").then_some(())).await;
    assert!(world.vm_files().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn autostart_only_after_a_reboot() {
    let mut world = World::new().await;
    world.create_stopped("auto", &[("autostart", true.into())]).await.unwrap();
    world.create_stopped("manual", &[]).await.unwrap();
    world.kill_teepod().await;
    world.systemd.forget_calls();
    world.start_teepod().await;
    world.kill_teepod().await;
    assert!(world.systemd.calls().iter().all(|c| !c.starts_with("Start")));
    let path = world.path("state/boot.json");
    std::fs::write(&path, r#"{"version":1,"data":{"boot_id":"another"}}"#).unwrap();
    world.start_teepod().await;
    world.systemd.wait_for("Start dstack-vm@auto.service").await;
    assert!(!world.systemd.calls().contains(&"Start dstack-vm@manual.service".to_owned()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_canceled_start_stops_the_vm() {
    let world = World::new().await;
    world.systemd.on_start("dstack-vm@a.service", Start::Wait);
    let (_, job) = world.manager.create_vm("a", COMPOSE.as_bytes(), options(&[])).await.unwrap();
    world.until_state("a", "starting").await;
    let proxy = world.job(&job).await;
    assert_eq!(
        (proxy.kind().await.unwrap().as_str(), proxy.subject().await.unwrap().as_str()),
        ("create-vm", "a")
    );
    world.systemd.wait_for("Start dstack-vm@a.service").await;
    proxy.cancel().await.unwrap();
    assert_eq!(world.ended(&job).await.0, "canceled");
    assert_eq!(world.state("a").await, "stopped");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopping_a_vm_that_boots_ends_its_start() {
    let world = World::new().await;
    world.systemd.on_start("dstack-vm@a.service", Start::Wait);
    let (_, start) = world.manager.create_vm("a", COMPOSE.as_bytes(), options(&[])).await.unwrap();
    world.systemd.wait_for("Start dstack-vm@a.service").await;
    world.done(&world.manager.stop_vm("a").await.unwrap()).await;
    let (result, name, text) = world.ended(&start).await;
    assert_eq!((result.as_str(), name.as_str()), ("failed", "org.dstack.teepod1.BootFailed"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upgrade_and_resize() {
    let world = World::new().await;
    world.create("a").await;
    let vm = world.vm("a").await;
    let app = vm.app_id().await.unwrap();
    let compose = COMPOSE.replace("hello", "world");
    let env = options(&[("encrypted_env", vec![1_u8, 2, 3].into())]);
    let hash = world.manager.upgrade_app("a", compose.as_bytes(), env).await.unwrap();
    assert_eq!(hash, dstack_core::ids::ComposeHash::of(compose.as_bytes()).to_string());
    assert_eq!(vm.compose_hash().await.unwrap(), hash);
    assert_eq!(vm.app_id().await.unwrap(), app, "the app stays the same");
    let disk = std::fs::read(world.path("state/vms/a/config.tar")).unwrap();
    let files = dstack_core::config_disk::parse(&disk).unwrap();
    assert_eq!(files[&dstack_core::config_disk::File::AppCompose], compose.as_bytes());
    assert_eq!(files[&dstack_core::config_disk::File::EncryptedEnv], [1, 2, 3]);
    let config = || {
        let disk = std::fs::read(world.path("state/vms/a/config.tar")).unwrap();
        dstack_core::config_disk::parse(&disk).unwrap()
    };
    // The signature comes and goes with its environment; the instance stays.
    let instance = config()[&dstack_core::config_disk::File::InstanceInfo].clone();
    let signature = dstack_core::config_disk::File::EncryptedEnvSig;
    let signed = [("encrypted_env", vec![4_u8].into()), ("encrypted_env_sig", b"{}".to_vec().into())];
    world.manager.upgrade_app("a", compose.as_bytes(), options(&signed)).await.unwrap();
    assert_eq!(config()[&signature], b"{}");
    world.manager.upgrade_app("a", compose.as_bytes(), options(&[])).await.unwrap();
    assert_eq!(config()[&signature], b"{}");
    let unsigned = options(&[("encrypted_env", vec![1_u8, 2, 3].into())]);
    world.manager.upgrade_app("a", compose.as_bytes(), unsigned).await.unwrap();
    assert!(!config().contains_key(&signature));
    assert_eq!(config()[&dstack_core::config_disk::File::InstanceInfo], instance);
    assert!(String::from_utf8_lossy(&instance).contains("\"instance_id_seed\":\""));
    assert_eq!(world.manager.get_app_compose("a").await.unwrap(), compose.as_bytes());
    assert!(matches!(world.manager.get_app_compose("b").await, Err(Error::NoSuchVm(_))));

    let resize = |pairs: &[(&'static str, Variant<'static>)]| world.manager.resize_vm("a", options(pairs));
    assert!(matches!(resize(&[("vcpus", 2_u32.into())]).await, Err(Error::VmRunning(_))));
    resize(&[("autostart", true.into())]).await.unwrap();
    assert!(vm.autostart().await.unwrap());
    world.done(&vm.stop().await.unwrap()).await;
    resize(&[
        ("vcpus", 4_u32.into()),
        ("disk", (30_u64 << 30).into()),
        ("ports", ports(&[("tcp", 21_090, 80)])),
    ])
    .await
    .unwrap();
    assert_eq!((vm.vcpus().await.unwrap(), vm.disk().await.unwrap()), (4, 30 << 30));
    assert!(matches!(resize(&[("disk", (20_u64 << 30).into())]).await, Err(Error::DiskShrink(_))));
    assert!(matches!(resize(&[("image", "nope-1".into())]).await, Err(Error::NoSuchImage(_))));
    assert!(matches!(resize(&[("vcpus", 400_u32.into())]).await, Err(Error::InvalidArgument(_))));
    let derived = options(&[("app_id", app.clone().into()), ("start", false.into())]);
    world.manager.create_vm("derived", compose.as_bytes(), derived).await.unwrap();
    assert_eq!(world.vm("derived").await.app_id().await.unwrap(), app);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn teepod_ends_at_once_when_told_to() {
    let mut world = World::new().await;
    world.systemd.on_start("dstack-vm@a.service", Start::Wait);
    world.manager.create_vm("a", COMPOSE.as_bytes(), options(&[])).await.unwrap();
    world.systemd.wait_for("Start dstack-vm@a.service").await;
    let mut teepod = world.teepod.take().unwrap();
    let pid = rustix::process::Pid::from_child(&teepod.0);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let ended = tokio::task::spawn_blocking(move || teepod.0.wait().unwrap());
    let status = tokio::time::timeout(std::time::Duration::from_secs(5), ended).await;
    assert!(status.expect("teepod does not end").unwrap().success());
    assert!(!world.systemd.calls().iter().any(|c| c.starts_with("Stop")), "VMs are left alone");
}
