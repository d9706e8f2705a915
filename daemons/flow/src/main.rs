// SPDX-License-Identifier: Apache-2.0
//! dstack-tproxy-flow: see the library.

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let options = dstack_flow::options::Options::parse();
    match dstack_flow::run::run(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("<3>{error}");
            ExitCode::FAILURE
        }
    }
}
