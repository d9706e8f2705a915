// SPDX-License-Identifier: Apache-2.0
//! polkit is asked for each verb, with the instance. Root passes without, so this needs another user.

use crate::world::World;
use std::process::Command;

const NOBODY: &str = "65534";

/// A call as an unprivileged user; gives its output.
fn call(world: &World, member: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new("setpriv")
        .args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", "busctl"])
        .arg(format!("--address={}", world.address))
        .args(["call", "org.dstack.tproxy1", "/org/dstack/tproxy1", "org.dstack.tproxy1.Manager", member])
        .args(arguments)
        .output()
        .ok()?;
    let text = [output.stdout, output.stderr].concat();
    Some(String::from_utf8_lossy(&text).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_verb_has_its_action() {
    if !rustix::process::geteuid().is_root() || Command::new("busctl").arg("--version").output().is_err() {
        // The host tests hold this, too; without root there is no second user to ask as.
        eprintln!("skipped: needs root and busctl");
        return;
    }
    let world = World::new().await;
    let id = "0".repeat(40);
    let cases: [(&str, Vec<&str>, &str); 8] = [
        ("ListInstances", vec![], "inspect"),
        ("GetInstance", vec!["s", &id], "inspect"),
        ("ListRoutes", vec![], "inspect"),
        ("Stats", vec![], "inspect"),
        ("Drain", vec!["s", &id], "manage-instances"),
        ("Undrain", vec!["s", &id], "manage-instances"),
        ("Remove", vec!["s", &id], "manage-instances"),
        ("Reload", vec![], "reload"),
    ];
    for (member, arguments, action) in cases {
        let action = format!("org.dstack.tproxy1.{action}");
        world.polkit.inner.lock().unwrap().denied.insert(action.clone());
        let said = call(&world, member, &arguments).unwrap();
        assert!(said.contains("Access denied"), "{member}: {said}");
        let asked = world.polkit.inner.lock().unwrap().asked.pop().unwrap();
        let instance = if arguments.is_empty() { "" } else { id.as_str() };
        assert_eq!((asked.0, asked.1["verb"].as_str()), (action, member));
        assert_eq!(asked.1["instance"], instance);
    }
}
