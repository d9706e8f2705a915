// SPDX-License-Identifier: Apache-2.0
//! dstack-ct-monitor: watches Certificate Transparency. See `dstack-ct-monitor(8)`.

use clap::Parser;
use dstack_ctmonitor::cli::Cli;
use dstack_ctmonitor::{bus::introspect, cli, daemon};
use dstack_service::{lifecycle, logging};
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|arg| arg.starts_with("--bus-introspect")) {
        let request =
            dstack_service::cli::parse(daemon::NAME, "", env!("CARGO_PKG_VERSION"), args.into_iter());
        let answer = dstack_service::cli::answer(&request, &introspect::PATHS, introspect::describe);
        return answer.unwrap_or(ExitCode::FAILURE);
    }
    if !args.is_empty() {
        let arguments = Cli::parse();
        // What it says is for whoever started it; there is no level to change.
        let _level = logging::init(daemon::NAME);
        return cli::run(&arguments);
    }
    let level = logging::init(daemon::NAME);
    lifecycle::exit(daemon::run(level))
}
