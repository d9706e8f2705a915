// SPDX-License-Identifier: Apache-2.0
//! `dstack-network`: keeps the tunnels to the ingress up, once each time it is run. Nothing of the boot waits for it.

use dstack_guest::layout::Layout;
use dstack_guest::network;
use std::process::ExitCode;

fn main() -> ExitCode {
    match network::run(&Layout::default()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("<4>{error}");
            ExitCode::FAILURE
        }
    }
}
