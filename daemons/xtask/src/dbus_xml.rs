// SPDX-License-Identifier: Apache-2.0
//! `dbus/interfaces`: what the built daemons print with `--bus-introspect`.

use crate::{Result, put, read};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The daemons that are on a bus.
const DAEMONS: [&str; 6] =
    ["dstack-certbot", "dstack-ct-monitor", "dstack-kms", "dstack-tappd", "dstack-teepod", "dstack-tproxy"];

/// Fails when a file of `root/dbus/interfaces` is not what the daemons in `bin` print.
pub fn compare(root: &Path, bin: &Path) -> Result<()> {
    let mut wrong = Vec::new();
    for (name, printed) in printed(bin)? {
        let kept = read(&file(root, &name)).unwrap_or_default();
        if kept.trim() != printed.trim() {
            wrong.push(name);
        }
    }
    if wrong.is_empty() {
        return Ok(());
    }
    Err(format!(
        "dbus/interfaces differs from the daemons: {}; run `xtask dbus-xml {} write`",
        wrong.join(" "),
        bin.display()
    ))
}

/// Takes the files from the daemons.
pub fn write(root: &Path, bin: &Path) -> Result<()> {
    for (name, xml) in printed(bin)? {
        put(file(root, &name), format!("{}\n", xml.trim()).as_bytes())?;
    }
    Ok(())
}

fn file(root: &Path, interface: &str) -> PathBuf {
    root.join("dbus/interfaces").join(format!("{interface}.xml"))
}

/// What the daemons print: XML by interface.
fn printed(bin: &Path) -> Result<BTreeMap<String, String>> {
    let mut documents = BTreeMap::new();
    for daemon in DAEMONS {
        let program = bin.join(daemon);
        for path in run(&program, "list")?.lines() {
            let xml = run(&program, path)?;
            let interfaces = crate::introspection::parse(&xml);
            let name = interfaces.first().map(|i| i.name.clone());
            documents.insert(name.ok_or_else(|| format!("{daemon} has no interface at {path}"))?, xml);
        }
    }
    Ok(documents)
}

fn run(program: &Path, path: &str) -> Result<String> {
    let shown = program.display();
    let output = Command::new(program).arg(format!("--bus-introspect={path}")).output();
    let output = output.map_err(|e| format!("cannot run {shown}: {e}; build it first"))?;
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{shown} --bus-introspect={path}: {error}"));
    }
    String::from_utf8(output.stdout).map_err(|e| format!("{shown}: {e}"))
}
