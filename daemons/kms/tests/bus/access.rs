// SPDX-License-Identifier: Apache-2.0
//! polkit is asked for each verb, with the app. Root passes without, so this needs another user.

use crate::world::World;
use std::process::Command;

const NOBODY: &str = "65534";

/// A call as an unprivileged user; gives its output.
fn call(world: &World, member: &str, signature_and_arguments: &[&str]) -> Option<String> {
    let output = Command::new("setpriv")
        .args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", "busctl"])
        .arg(format!("--address={}", world.address))
        .args(["call", "org.dstack.kms1", "/org/dstack/kms1", "org.dstack.kms1.Manager", member])
        .args(signature_and_arguments)
        .output()
        .ok()?;
    let text = [output.stdout, output.stderr].concat();
    Some(String::from_utf8_lossy(&text).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn t04_each_verb_has_its_action() {
    if !rustix::process::geteuid().is_root() || Command::new("busctl").arg("--version").output().is_err() {
        // The host tests hold this, too; without root there is no second user to ask as.
        eprintln!("skipped: needs root and busctl");
        return;
    }
    let world = World::new().await;
    let app = "0".repeat(40);
    let cases: [(&str, Vec<&str>, &str); 9] = [
        ("Forecast", vec![], "org.dstack.kms1.forecast"),
        ("Bootstrap", vec!["sa{sv}", "a.b", "0"], "org.dstack.kms1.bootstrap"),
        ("AllowUpgrade", vec!["ss", &app, &app], "org.dstack.kms1.manage-upgrades"),
        ("RevokeUpgrade", vec!["ss", &app, &app], "org.dstack.kms1.manage-upgrades"),
        ("ForgetDisk", vec!["ss", &app, &app], "org.dstack.kms1.forget-disk"),
        ("AllowPeer", vec!["st", &app, "1"], "org.dstack.kms1.onboard"),
        ("Onboard", vec!["sa{sv}", "https://a", "0"], "org.dstack.kms1.onboard"),
        ("SignGatewayCertificate", vec!["ay", "0"], "org.dstack.kms1.sign-gateway"),
        ("Reload", vec![], "org.dstack.kms1.reload"),
    ];
    for (member, arguments, action) in cases {
        world.polkit.inner.lock().unwrap().denied.insert(action.to_owned());
        let said = call(&world, member, &arguments).unwrap();
        assert!(said.contains("Access denied"), "{member}: {said}");
        let asked = world.polkit.inner.lock().unwrap().asked.pop().unwrap();
        assert_eq!((asked.0.as_str(), asked.1["verb"].as_str()), (action, member));
    }
    assert!(!world.manager.bootstrapped().await.unwrap());
    let said = call(&world, "ListUpgrades", &["s", &app]).unwrap();
    assert!(said.contains("first"), "{said}");
    assert_eq!(world.polkit.inner.lock().unwrap().asked.pop().unwrap().1["app"], app);
}
