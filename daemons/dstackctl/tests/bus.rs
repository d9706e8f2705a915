// SPDX-License-Identifier: Apache-2.0
//! The real binary against a mock of teepod on a private bus.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

#[path = "cases/cert.rs"]
mod cert;
#[path = "cases/ct.rs"]
mod ct;
#[path = "cases/keys.rs"]
mod keys;
mod mock;
#[path = "cases/proxy.rs"]
mod proxy;
#[path = "cases/realm.rs"]
mod realm;

use mock::bus::Bus;
use mock::teepod::Teepod;
use mock::{command, finish, run};
use std::path::PathBuf;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;

const FILE: &str = "services:\n  web:\n    image: nginx@sha256:00\n";

struct World {
    bus: Bus,
    teepod: Teepod,
    directory: tempfile::TempDir,
}

impl World {
    async fn new() -> Self {
        let bus = Bus::start();
        let teepod = Teepod::start(&bus).await;
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("docker-compose.yaml"), FILE).unwrap();
        Self { bus, teepod, directory }
    }

    fn compose(&self) -> PathBuf {
        self.directory.path().join("docker-compose.yaml")
    }

    async fn ctl(&self, args: &[&str]) -> mock::Run {
        run(&self.bus.address, args).await
    }

    async fn deploy(&self, name: &str, more: &[&str]) -> mock::Run {
        let compose = self.compose();
        let mut args = vec!["deploy", compose.to_str().unwrap(), "--name", name];
        args.extend(more);
        self.ctl(&args).await
    }
}

/// Answers every connection like a small web server; its port.
async fn web() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut line = String::new();
            let _ = BufReader::new(&mut stream).read_line(&mut line).await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deploy_shows_stages_and_the_url() {
    let world = World::new().await;
    let port = format!("{}:80", web().await);
    let run = world.deploy("hello", &["-p", &port, "-c", "2", "-m", "2G"]).await;
    assert_eq!(run.code, 0, "{run:?}");
    for part in ["creating disks", "starting QEMU", "starting Docker", "fresh at each boot"] {
        assert!(run.err.contains(part), "{part}: {run:?}");
    }
    let url = format!("http://127.0.0.1:{}/", port.trim_end_matches(":80"));
    for part in [
        "hello is up",
        &url,
        "at boot      not started",
        "--autostart",
        "answers",
        "app id",
        "instance id",
        "dstackctl logs hello",
    ] {
        assert!(run.out.contains(part), "{part}: {run:?}");
    }
    let vm = world.teepod.shared.vms.lock().unwrap().get("hello").cloned().unwrap();
    assert!(vm.compose.starts_with(b"{\"manifest_version\":2,\"name\":\"hello\""));
    assert!(vm.options.get("memory").unwrap().contains("2147483648"), "{:?}", vm.options);
    assert!(!vm.options.contains_key("disk"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deploy_as_json_prints_one_object() {
    let world = World::new().await;
    let port = format!("{}:80", web().await);
    let run = world.deploy("hello", &["-p", &port, "--json"]).await;
    assert_eq!(run.code, 0, "{run:?}");
    let value = run.json();
    assert_eq!(value["state"], "running");
    assert_eq!(value["answers"], true);
    assert_eq!(value["app_id"].as_str().unwrap().len(), 40);
    assert!(!run.err.contains("starting"), "{run:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_boot_leaves_the_vm_and_says_how_to_look_at_it() {
    let world = World::new().await;
    let run = world.deploy("fail", &[]).await;
    assert_eq!(run.code, 1, "{run:?}");
    for part in ["could not be pulled", "dstackctl vm logs fail", "dstackctl vm remove --force fail"] {
        assert!(run.err.contains(part), "{part}: {run:?}");
    }
    assert!(world.teepod.shared.vms.lock().unwrap().contains_key("fail"));
    let wait = world.ctl(&["vm", "wait", "fail"]).await;
    assert_eq!(wait.code, 1, "{wait:?}");
    assert!(wait.err.contains("could not be pulled"), "{wait:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_boot_that_failed_is_not_waited_for_although_the_guest_stays_up() {
    let world = World::new().await;
    let run = world.deploy("stuck", &[]).await;
    assert!(run.code == 1 && run.err.contains("could not start the containers"), "{run:?}");
    let wait = world.ctl(&["vm", "wait", "stuck"]).await;
    assert!(wait.code == 1 && wait.err.contains("could not start the containers"), "{wait:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exit_codes_of_refusals() {
    let world = World::new().await;
    for (args, code, part) in [
        (vec!["vm", "start", "nosuch"], 3, "dstackctl vm list"),
        (vec!["vm", "show", "nosuch"], 3, "nosuch"),
        (vec!["image", "remove", "nosuch-1"], 3, "image list"),
        (vec!["vm", "wait", "nosuch"], 3, "nosuch"),
        (vec!["vm", "resize", "x"], 2, "nothing to change"),
        (vec!["frobnicate"], 2, "frobnicate"),
    ] {
        let run = world.ctl(&args).await;
        assert!(run.code == code && run.err.contains(part), "{args:?}: {run:?}");
    }
    let slow = world.deploy("slow", &[]).await;
    assert_eq!(slow.code, 5, "{slow:?}");
    let taken = world.deploy("taken", &[]).await;
    assert!(taken.code == 1 && taken.err.contains("--name"), "{taken:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn authentication_is_asked_for_unless_forbidden() {
    let world = World::new().await;
    let asked = world.deploy("denied", &[]).await;
    assert!(asked.code == 4 && asked.err.contains("(asked)"), "{asked:?}");
    assert!(asked.err.contains("dstack-admin"), "{asked:?}");
    let silent = world.deploy("denied", &["--no-ask-password"]).await;
    assert!(silent.code == 4 && silent.err.contains("(not asked)"), "{silent:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ctrl_c_ends_the_waiting_and_not_the_vm() {
    let world = World::new().await;
    let compose = world.compose();
    let args = ["deploy", compose.to_str().unwrap(), "--name", "hang"];
    let mut child = command(&world.bus.address, &args).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    while let Some(line) = lines.next_line().await.unwrap() {
        if line.contains("starting Docker") {
            break;
        }
    }
    let pid = rustix::process::Pid::from_raw(child.id().unwrap().cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let mut rest = String::new();
    while let Some(line) = lines.next_line().await.unwrap() {
        rest.push_str(&line);
    }
    assert_eq!(finish(child).await.code, 130);
    assert!(rest.contains("goes on booting") && rest.contains("dstackctl vm wait hang"), "{rest}");
    assert!(!world.teepod.shared.called("KillVm hang"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiting_survives_a_restart_of_teepod() {
    let world = World::new().await;
    let run = world.deploy("gone", &[]).await;
    assert_eq!(run.code, 0, "{run:?}");
    assert!(run.err.contains("the VM goes on") && run.out.contains("gone is up"), "{run:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_wait_and_no_start_return_at_once() {
    let world = World::new().await;
    let run = world.deploy("hang", &["--no-wait"]).await;
    assert!(run.code == 0 && run.out.contains("dstackctl vm wait hang"), "{run:?}");
    let run = world.deploy("still", &["--no-start"]).await;
    assert!(run.code == 0 && run.out.contains("dstackctl vm start still"), "{run:?}");
    assert_eq!(world.teepod.shared.vms.lock().unwrap().get("still").unwrap().state, "stopped");
    let wait = world.ctl(&["vm", "wait", "still", "--timeout", "1s"]).await;
    assert_eq!(wait.code, 5, "{wait:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_life_of_a_vm() {
    let world = World::new().await;
    let empty = world.ctl(&["vm", "list"]).await;
    assert!(empty.code == 0 && empty.out.is_empty() && empty.err.contains("no VMs"), "{empty:?}");
    assert_eq!(world.ctl(&["--json", "vm", "list"]).await.json(), serde_json::json!([]));
    assert_eq!(world.deploy("a", &["--no-start"]).await.code, 0);
    assert_eq!(world.ctl(&["vm", "start", "a"]).await.out, "a: running\n");
    let list = world.ctl(&["vm", "list"]).await;
    assert!(list.out.lines().nth(1).unwrap().starts_with("a     running"), "{list:?}");
    assert_eq!(world.ctl(&["vm", "list", "--json"]).await.json()[0]["state"], "running");
    let show = world.ctl(&["vm", "show", "a"]).await;
    for part in ["dstack-vm@a.service", "2 GiB", "20 GiB", "2023-11-14", "9.0s  docker"] {
        assert!(show.out.contains(part), "{part}: {show:?}");
    }
    let refused = world.ctl(&["vm", "remove", "a"]).await;
    assert!(refused.code == 1 && refused.err.contains("vm stop"), "{refused:?}");
    assert_eq!(world.ctl(&["vm", "stop", "a"]).await.out, "a: stopped\n");
    assert_eq!(world.ctl(&["vm", "resize", "a", "-m", "4G", "--no-ports", "--autostart"]).await.code, 0);
    assert!(world.teepod.shared.called("ResizeVm autostart,memory,ports"));
    let compose = world.compose();
    let upgraded = world.ctl(&["vm", "upgrade", "a", compose.to_str().unwrap(), "--no-public-logs"]).await;
    assert!(upgraded.code == 0 && upgraded.out.contains("compose hash"), "{upgraded:?}");
    assert_eq!(world.ctl(&["vm", "start", "a"]).await.code, 0);
    let removed = world.ctl(&["vm", "remove", "--force", "a"]).await;
    assert!(removed.code == 0 && world.teepod.shared.called("KillVm a"), "{removed:?}");
    assert!(world.teepod.shared.vms.lock().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn images() {
    let world = World::new().await;
    let list = world.ctl(&["image", "list"]).await;
    for part in ["dstack-0.1.0", "production", "300 MiB", "default"] {
        assert!(list.out.contains(part), "{part}: {list:?}");
    }
    let none = world.ctl(&["image", "import", world.directory.path().to_str().unwrap()]).await;
    assert!(none.code == 1 && none.err.contains("metadata.json"), "{none:?}");
    std::fs::write(world.directory.path().join("metadata.json"), "{}").unwrap();
    let import = world.ctl(&["image", "import", world.directory.path().to_str().unwrap()]).await;
    assert!(import.code == 0 && import.out.contains("imported"), "{import:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs() {
    let world = World::new().await;
    assert_eq!(world.deploy("a", &[]).await.code, 0);
    let list = world.ctl(&["logs", "a"]).await;
    assert!(list.out.contains("web") && !list.out.contains('\u{1b}'), "{list:?}");
    let web = world.ctl(&["logs", "a", "web", "--tail", "5"]).await;
    assert_eq!(web.out, "größe text=true&bare=true&ansi=true&tail=5\n");
    let none = world.ctl(&["logs", "a", "db"]).await;
    assert!(none.code == 3 && none.out.is_empty() && none.err.contains("dstackctl logs a"), "{none:?}");
    let silent = world.ctl(&["logs", "a", "silent"]).await;
    assert!(silent.code == 0 && silent.out.is_empty() && silent.err.is_empty(), "{silent:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_absent_teepod_is_named() {
    let bus = Bus::start();
    let run = run(&bus.address, &["vm", "list"]).await;
    assert!(run.code == 1 && run.err.contains("systemctl start dstack-teepod.socket"), "{run:?}");
    let nobody = mock::run("unix:path=/nonexistent", &["vm", "list"]).await;
    assert!(nobody.code == 1 && nobody.err.contains("dbus.socket"), "{nobody:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dry_run_needs_no_bus() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("docker-compose.yaml");
    std::fs::write(&file, FILE).unwrap();
    let args = ["deploy", file.to_str().unwrap(), "--name", "x", "--dry-run"];
    let run = run("unix:path=/nonexistent", &args).await;
    assert_eq!(run.code, 0, "{run:?}");
    let app_id = dstack_core::compose::hash(run.out.as_bytes()).app_id().to_string();
    assert!(run.err.contains(&app_id), "{run:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_host_over_ssh() {
    let world = World::new().await;
    let ssh = world.directory.path().join("ssh");
    std::fs::write(
        &ssh,
        "#!/bin/sh\n[ \"$1 $2 $3\" = '-xT -- box' ] && exec \"$4\" -p \"$DBUS_SYSTEM_BUS_ADDRESS\"\n",
    )
    .unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&ssh, mode).unwrap();
    if std::process::Command::new("systemd-stdio-bridge").arg("--help").output().is_err() {
        eprintln!("skipped: systemd-stdio-bridge is not installed");
        return;
    }
    let path = format!("{}:{}", world.directory.path().display(), std::env::var("PATH").unwrap());
    let ctl = async |args: &[&str]| {
        finish(command(&world.bus.address, args).env("PATH", &path).spawn().unwrap()).await
    };
    assert_eq!(world.deploy("a", &[]).await.code, 0);
    let list = ctl(&["-H", "box", "vm", "list"]).await;
    assert!(list.code == 0 && list.out.contains("running"), "{list:?}");
    let logs = ctl(&["-H", "box", "vm", "console", "a"]).await;
    assert!(logs.code == 2 && logs.err.contains("ssh -t box dstackctl"), "{logs:?}");
}
