// SPDX-License-Identifier: Apache-2.0
//! polkit is asked for each verb, and keys are for the ingress alone. Root passes without, so this needs another user.

use crate::world::World;
use std::process::Command;

const NOBODY: &str = "65534";

/// A call as an unprivileged user; gives its output.
fn call(world: &World, member: &str, signature_and_arguments: &[&str]) -> String {
    let output = Command::new("setpriv")
        .args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", "busctl"])
        .arg(format!("--address={}", world.address))
        .args(["call", "org.dstack.certbot1", "/org/dstack/certbot1", "org.dstack.certbot1.Manager", member])
        .args(signature_and_arguments)
        .output()
        .unwrap();
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn t04_each_verb_has_its_action_and_keys_are_for_the_ingress() {
    if !rustix::process::geteuid().is_root() || Command::new("busctl").arg("--version").output().is_err() {
        // The host tests hold this, too; without root there is no second user to ask as.
        eprintln!("skipped: needs root and busctl");
        return;
    }
    let world = World::new().await;
    assert!(world.run(&["request", "renew"]).status.success());
    let cases: [(&str, Vec<&str>, &str); 6] = [
        ("ListCertificates", vec![], "inspect"),
        ("HistoricalKeys", vec!["s", ""], "inspect"),
        ("Renew", vec!["sa{sv}", "", "0"], "manage"),
        ("SetCaa", vec!["sa{sv}", "", "0"], "manage"),
        ("Rehearse", vec!["a{sv}", "0"], "rehearse"),
        ("Reload", vec![], "reload"),
    ];
    for (member, arguments, action) in cases {
        let action = format!("org.dstack.certbot1.{action}");
        world.polkit.inner.lock().unwrap().denied.insert(action.clone());
        let said = call(&world, member, &arguments);
        assert!(said.contains("Access denied"), "{member}: {said}");
        let asked = world.polkit.inner.lock().unwrap().asked.pop().unwrap();
        assert_eq!((asked.0.as_str(), asked.1["verb"].as_str()), (action.as_str(), member));
    }
    // polkit is not even asked for keys.
    world.polkit.inner.lock().unwrap().denied.clear();
    world.polkit.inner.lock().unwrap().asked.clear();
    let said = call(&world, "GetCertificate", &["s", ""]);
    assert!(said.contains("Access denied"), "{said}");
    assert!(world.polkit.inner.lock().unwrap().asked.is_empty());
    assert!(world.manager.get_certificate("").await.is_ok(), "root passes");
}
