// SPDX-License-Identifier: Apache-2.0
//! Nothing is forwarded out of the tunnel: shown in network namespaces, which need root.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::process::{Command, Stdio};

/// Runs the rest of this test in a network namespace of its own, as another process.
const INSIDE: &str = "DSTACK_TEST_INSIDE";

fn can_unshare() -> bool {
    let tried = Command::new("unshare").args(["--net", "ip", "link"]).stdout(Stdio::null()).status();
    tried.is_ok_and(|status| status.success())
}

fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    String::from_utf8(text).unwrap()
}

#[test]
fn t19_nothing_is_forwarded_out_of_the_tunnel() {
    if std::env::var_os(INSIDE).is_some() {
        return inside();
    }
    if !can_unshare() {
        eprintln!("skipped: needs root, unshare and ip");
        return;
    }
    let test = std::env::current_exe().unwrap();
    let name = "t19_nothing_is_forwarded_out_of_the_tunnel";
    let mut command = Command::new("unshare");
    command.arg("--net").arg(test).args(["--exact", name, "--nocapture"]).env(INSIDE, "1");
    assert!(command.status().unwrap().success());
}

/// A veth pair stands for the tunnel: what comes out of it goes to this machine, and not on to another network.
fn inside() {
    for line in [
        "link set lo up",
        "link add tun0 type veth peer name peer0",
        "addr add 10.0.0.1/16 dev tun0",
        "link set tun0 up",
        "link set peer0 up",
        "link add lan0 type veth peer name lan1",
        "addr add 192.0.2.1/24 dev lan0",
        "link set lan0 up",
        "link set lan1 up",
    ] {
        let said = ip(line);
        if !said.is_empty() {
            // Kernels of test machines do not have every kind of link.
            eprintln!("skipped: ip {line}: {said}");
            return;
        }
    }
    let asks = |to: &str| ip(&format!("route get {to} from 10.0.0.2 iif tun0"));
    if let Err(error) = std::fs::write("/proc/sys/net/ipv4/ip_forward", "1") {
        eprintln!("skipped: forwarding cannot be switched on: {error}");
        return;
    }
    for (other, way) in [("10.0.0.3", "dev tun0"), ("192.0.2.7", "dev lan0")] {
        let said = asks(other);
        assert!(said.contains(way), "without the rule the kernel forwards: {said}");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for _ in 0..2 {
        // Twice: it may be repeated.
        runtime.block_on(dstack_tproxy::tunnel::forbid(&"tun0".parse().unwrap())).unwrap();
    }
    assert_eq!(ip("rule show").matches("iif tun0 prohibit").count(), 1, "{}", ip("rule show"));
    for other in ["10.0.0.3", "192.0.2.7"] {
        let said = asks(other);
        assert!(said.contains("Permission denied") || said.contains("prohibit"), "{other}: {said}");
    }
    let own = asks("10.0.0.1");
    assert!(own.starts_with("local 10.0.0.1"), "this machine itself is reached: {own}");
}
