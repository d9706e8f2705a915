// SPDX-License-Identifier: Apache-2.0
//! dstack-teepod: VMs of this host as systemd units. See `dstack-teepod(8)`.

use dstack_service::{cli, lifecycle, logging};
use dstack_teepod::{bus::introspect, daemon};
use std::process::ExitCode;

fn main() -> ExitCode {
    let about = "VM manager of the dstack host";
    let request = cli::parse(daemon::NAME, about, env!("CARGO_PKG_VERSION"), std::env::args().skip(1));
    if let Some(code) = cli::answer(&request, &introspect::PATHS, introspect::describe) {
        return code;
    }
    let level = logging::init(daemon::NAME);
    lifecycle::exit(daemon::run(level))
}
