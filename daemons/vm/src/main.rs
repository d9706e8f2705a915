// SPDX-License-Identifier: Apache-2.0
//! dstack-vm: see the library.

use dstack_core::home::SOCKET as HOME;
use dstack_core::qemu::NET_SOCKET;
use std::ffi::OsString;
use std::process::ExitCode;

const USAGE: &str = "\
usage: dstack-vm [--home SOCKET --net-socket SOCKET]
                                   run the VM of this unit (dstack-vm@.service)
       dstack-vm probe [--qemu PROGRAM] [--accel kvm|tcg]
                                   say as JSON what this host can run, by running something
       dstack-vm remove            delete the VM's state (dstack-vm-remove@.service)
       dstack-vm --version
";

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    let words: Vec<&str> = args.iter().map(|arg| arg.to_str().unwrap_or_default()).collect();
    match words.as_slice() {
        [] => dstack_vm::run::run(HOME.into(), NET_SOCKET.into()).into(),
        ["--home", home, "--net-socket", net] => dstack_vm::run::run(home.into(), net.into()).into(),
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
