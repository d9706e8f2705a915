// SPDX-License-Identifier: Apache-2.0
//! Rules of the house that the compiler does not hold: who may use whom, where `unsafe` may be, licence headers.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Libraries of this workspace that each library may use.
const ALLOWED: &[(&str, &[&str])] = &[
    ("dstack-core", &[]),
    ("dstack-sys", &["dstack-core"]),
    ("dstack-service", &["dstack-core", "dstack-sys"]),
    ("dstack-rpc", &["dstack-core", "dstack-sys"]),
    ("dstack-keys", &["dstack-core"]),
    ("dstack-ra-tls", &["dstack-core"]),
    ("dstack-wireguard", &["dstack-core"]),
    ("dstack-tdx-attest", &["dstack-core", "dstack-sys"]),
    ("dstack-ra-rpc", &["dstack-core", "dstack-ra-tls", "dstack-rpc"]),
];

/// Programs that only tests or builds run; they may use anything.
const TOOLS: &[&str] = &["xtask", "dstack-fuzz"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../..").canonicalize().unwrap()
}

/// Name of each member and the members it depends on, development dependencies left out.
fn members() -> BTreeMap<String, Vec<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .unwrap();
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let names: Vec<&str> = packages.iter().map(|p| p["name"].as_str().unwrap()).collect();
    let uses = |package: &serde_json::Value| -> Vec<String> {
        let all = package["dependencies"].as_array().unwrap().iter();
        let normal = all.filter(|d| d["kind"].as_str() != Some("dev")).map(|d| d["name"].as_str().unwrap());
        normal.filter(|n| names.contains(n)).map(ToOwned::to_owned).collect()
    };
    packages.iter().map(|p| (p["name"].as_str().unwrap().to_owned(), uses(p))).collect()
}

#[test]
fn who_may_use_whom() {
    let libraries: Vec<&str> = ALLOWED.iter().map(|(name, _)| *name).collect();
    for (name, uses) in members() {
        if TOOLS.contains(&name.as_str()) {
            continue;
        }
        let allowed = ALLOWED.iter().find(|(n, _)| *n == name).map_or(libraries.as_slice(), |(_, a)| a);
        for used in uses {
            assert!(allowed.contains(&used.as_str()), "{name} may not use {used}; see ARCHITECTURE.md");
        }
    }
}

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && path.file_name().is_some_and(|n| n != "target") {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn unsafe_is_in_sys_alone_and_every_file_has_its_licence() {
    let mut files = Vec::new();
    sources(&root().join("daemons"), &mut files);
    assert!(files.len() > 30);
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let shown = file.strip_prefix(root()).unwrap().display().to_string();
        assert!(
            text.starts_with("// SPDX-License-Identifier: Apache-2.0\n"),
            "{shown} lacks the licence line"
        );
        let has_unsafe = text.lines().any(|l| {
            let code = l.split("//").next().unwrap_or_default();
            ["unsafe {", "unsafe fn", "unsafe impl", "allow(unsafe_code)"].iter().any(|w| code.contains(w))
        });
        let here = shown.ends_with("core/tests/house.rs") || shown.starts_with("daemons/lib/sys/");
        assert!(!has_unsafe || here, "{shown} has unsafe code; it belongs to daemons/lib/sys");
    }
}

/// P34: features add up over a whole build, so any dependency could switch off a check of the quote verifier.
#[test]
fn p34_no_dangerous_feature_of_a_library_is_on() {
    let output = Command::new(env!("CARGO"))
        .args([
            "tree",
            "--workspace",
            "--edges=normal,build",
            "--format={p} {f}",
            "--prefix=none",
            "--offline",
        ])
        .current_dir(root())
        .output()
        .unwrap();
    let tree = String::from_utf8(output.stdout).unwrap();
    assert!(tree.lines().any(|l| l.starts_with("dcap-qvl ")), "{}", String::from_utf8_lossy(&output.stderr));
    let danger: Vec<&str> = tree.lines().filter(|l| l.contains("danger")).collect();
    assert!(danger.is_empty(), "{danger:#?}");
}
