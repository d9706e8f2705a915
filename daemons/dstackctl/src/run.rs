// SPDX-License-Identifier: Apache-2.0
//! From arguments to an exit code.

use crate::cli::{Cli, Command};
use crate::errors::Failure;
use crate::output::{self, Ui};
use crate::{app, cert, ct, deploy, doctor, image, init, kms, logs, measure, proxy, verify, vm};
use clap::Parser;
use std::ffi::OsString;
use std::process::ExitCode;

/// Runs the command line; the program's `main`.
pub fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let ui = Ui::detect(cli.global.json);
    match block_on(run(&cli, &ui)) {
        Ok(code) => code,
        Err(failure) => {
            output::report(&failure);
            ExitCode::from(failure.exit as u8)
        }
    }
}

/// One thread is enough: the program mostly waits.
fn block_on(work: impl Future<Output = Result<ExitCode, Failure>>) -> Result<ExitCode, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| Failure::new(format!("cannot start the runtime: {e}")))?;
    let result = runtime.block_on(work);
    // A thread may hang in a read of the terminal; it must not keep the program.
    runtime.shutdown_background();
    result
}

async fn run(cli: &Cli, ui: &Ui) -> Result<ExitCode, Failure> {
    match &cli.command {
        Command::Deploy(args) => deploy::run(args, &cli.global, ui).await?,
        Command::Vm(command) => vm::run(command, &cli.global, ui).await?,
        Command::Kms(command) => kms::run(command, &cli.global, ui).await?,
        Command::Proxy(command) => proxy::run(command, &cli.global, ui).await?,
        Command::Ct(command) => ct::run(command, &cli.global, ui).await?,
        Command::Cert(command) => return cert::run(command, &cli.global, ui).await,
        Command::App(command) => app::run(command, ui)?,
        Command::Image(command) => image::run(command, &cli.global, ui).await?,
        Command::Logs(args) => logs::run(args, &cli.global, ui).await?,
        Command::Measure(args) => measure::run(args, &cli.global, ui)?,
        Command::Verify(args) => return verify::run(args, &cli.global, ui).await,
        Command::Init(args) => return init::run(args, &cli.global, ui).await,
        Command::Doctor => return doctor::run(&cli.global, ui).await,
    }
    Ok(ExitCode::SUCCESS)
}
