// SPDX-License-Identifier: Apache-2.0
//! The guest's command line for its TEE; see the library for what it does.

use clap::Parser;
use dstack_tdx_attest::{detect, log};
use dstack_tdxctl::{Args, World, run};
use std::io::{stdin, stdout};
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args = Args::parse();
    let world = World { platform: &|| detect().map(Into::into), log: Path::new(log::DIRECTORY) };
    match run(&args.command, &world, &mut stdin().lock(), &mut stdout().lock()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tdxctl: {error}");
            ExitCode::FAILURE
        }
    }
}
