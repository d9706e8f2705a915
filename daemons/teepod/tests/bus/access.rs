// SPDX-License-Identifier: Apache-2.0
use crate::world::World;
use std::process::Command;

/// One call by an ordinary user; the reply's text.
async fn call(world: &World, member: &str, args: &[&str]) -> String {
    let mut command = Command::new("dbus-send");
    if rustix::process::geteuid().is_root() {
        command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "dbus-send"]);
    }
    command
        .arg(format!("--bus={}", world.address))
        .args(["--print-reply", "--dest=org.dstack.teepod1", "/org/dstack/teepod1"])
        .arg(format!("org.dstack.teepod1.Manager.{member}"))
        .args(args);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p32_polkit_decides_per_verb_and_vm() {
    let world = World::new().await;
    world.create("a").await;
    {
        let mut polkit = world.polkit.inner.lock().unwrap();
        polkit.denied.insert("org.dstack.teepod1.kill-vms".into());
        polkit.denied.insert("org.dstack.teepod1.remove-vms".into());
        polkit.challenged.insert("org.dstack.teepod1.manage-vms".into());
        polkit.asked.clear();
    }
    assert!(call(&world, "ListVms", &[]).await.contains("string \"a\""));
    for (member, error) in [
        ("StartVm", "InteractiveAuthorizationRequired"),
        ("StopVm", "InteractiveAuthorizationRequired"),
        ("RestartVm", "InteractiveAuthorizationRequired"),
        ("KillVm", "AccessDenied"),
        ("RemoveVm", "AccessDenied"),
    ] {
        for vm in ["a", "nosuch"] {
            let said = call(&world, member, &[&format!("string:{vm}")]).await;
            assert!(said.contains(error) && said.contains("dstack-admin"), "{member}: {said}");
        }
    }
    assert_eq!(world.state("a").await, "running");
    let asked = world.polkit.inner.lock().unwrap().asked.clone();
    let of = |verb: &str, vm: &str| asked.iter().any(|(_, d)| d["verb"] == verb && d["vm"] == vm);
    assert!(of("KillVm", "a") && of("KillVm", "nosuch") && of("StopVm", "a"), "{asked:?}");
    let app = &asked.iter().find(|(_, d)| d["vm"] == "a").unwrap().1["app"];
    assert_eq!(app.len(), 40);
    world.polkit.inner.lock().unwrap().challenged.clear();
    assert!(call(&world, "StopVm", &["string:nosuch"]).await.contains("NoSuchVm"));
    assert!(call(&world, "StopVm", &["string:a"]).await.contains("/org/dstack/teepod1/job/"));
}
