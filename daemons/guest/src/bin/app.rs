// SPDX-License-Identifier: Apache-2.0
//! `dstack-app`: logs in, runs the app's scripts, starts its containers, and ends them in order.

use dstack_guest::app::run;
use dstack_guest::layout::Layout;
use std::process::ExitCode;

fn main() -> ExitCode {
    match run::run(&Layout::default()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("<3>{error}");
            ExitCode::FAILURE
        }
    }
}
