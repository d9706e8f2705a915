// SPDX-License-Identifier: Apache-2.0
//! The guest agent's program; see the library for what it does.

use dstack_service::cli;
use dstack_tappd::{agent::VERSION, bus, daemon};
use std::process::ExitCode;

fn main() -> ExitCode {
    let about = "the guest agent: logs, metrics, the API for the host";
    let request = cli::parse(daemon::IDENTIFIER, about, VERSION, std::env::args().skip(1));
    if let Some(code) = cli::answer(&request, &[bus::PATH], bus::describe) {
        return code;
    }
    daemon::run()
}
