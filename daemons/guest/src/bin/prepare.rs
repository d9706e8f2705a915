// SPDX-License-Identifier: Apache-2.0
//! `dstack-prepare`: reads the host's inputs, checks them, makes the data disk ready. Before Docker, once a boot.

use dstack_guest::layout::Layout;
use dstack_guest::prepare;
use std::process::ExitCode;

fn main() -> ExitCode {
    match prepare::run(&Layout::default()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("<3>{error}");
            ExitCode::FAILURE
        }
    }
}
