// SPDX-License-Identifier: Apache-2.0
//! dstack-vm: see the library.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

const USAGE: &str = "\
usage: dstack-vm [--home SOCKET]   run the VM of this unit (dstack-vm@.service)
       dstack-vm probe [--qemu PROGRAM] [--accel kvm|tcg]
                                   say as JSON what this host can run, by running something
       dstack-vm remove            delete the VM's state (dstack-vm-remove@.service)
       dstack-vm --version
";

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    let words: Vec<&str> = args.iter().map(|arg| arg.to_str().unwrap_or_default()).collect();
    match words.as_slice() {
        [] => dstack_vm::run::run(PathBuf::from(dstack_core::home::SOCKET)).into(),
        ["--home", path] => dstack_vm::run::run(PathBuf::from(path)).into(),
        ["probe", rest @ ..] => dstack_vm::probe::main(rest),
        ["remove"] => dstack_vm::setup::remove(),
        ["--version"] => {
            println!("dstack-vm {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        ["--help" | "-h"] => {
            print!("{USAGE}");
            ExitCode::SUCCESS
        }
        _ => {
            eprint!("{USAGE}");
            ExitCode::from(64)
        }
    }
}
