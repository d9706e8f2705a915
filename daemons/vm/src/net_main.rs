// SPDX-License-Identifier: Apache-2.0
//! dstack-vm-net: becomes passt, the user-space network of one VM.

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
            ExitCode::FAILURE
        }
    }
}

fn become_passt() -> Result<ExitCode, SetupError> {
    let dir = |name| std::env::var_os(name).map(PathBuf::from).ok_or(SetupError::Environment(name));
    let launch = setup::launch(&dir("CREDENTIALS_DIRECTORY")?)?;
    // A host without resolvers is no error: the guest has none then either.
    let conf = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let arguments = net::arguments(&launch, &net::resolvers(&conf));
    Err(SetupError::Program(PASST.into(), Command::new(PASST).args(arguments).exec()))
}
