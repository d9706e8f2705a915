// SPDX-License-Identifier: Apache-2.0
//! dstack-vm-net: becomes passt, the user-space network of one VM; with `--wanted` it only says, by its exit status,
//! whether the VM has such a network.

use dstack_vm::net;
use dstack_vm::setup::{self, SetupError};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

const PASST: &str = "passt";

fn main() -> ExitCode {
    match become_passt() {
        Ok(never) => never,
        Err(e) => {
            eprintln!("Cannot start the VM's network: {e}");
            // Not 1 to 254, which is how --wanted says no.
            ExitCode::from(255)
        }
    }
}

fn become_passt() -> Result<ExitCode, SetupError> {
    let dir = |name| std::env::var_os(name).map(PathBuf::from).ok_or(SetupError::Environment(name));
    let launch = setup::launch(&dir("CREDENTIALS_DIRECTORY")?)?;
    if std::env::args_os().nth(1).is_some_and(|arg| arg == "--wanted") {
        return Ok(if net::wanted(&launch) { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let runtime = dir("RUNTIME_DIRECTORY")?;
    // A host without resolvers is no error: the guest has none then either.
    let conf = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let socket = runtime.join("passt.sock");
    let arguments = net::arguments(&launch, &net::resolvers(&conf), &socket, &runtime.join("passt.pid"));
    Err(SetupError::Program(PASST.into(), Command::new(PASST).args(arguments).exec()))
}
