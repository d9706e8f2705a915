// SPDX-License-Identifier: Apache-2.0
//! dstack-certbot: certificates of the ingress. See `dstack-certbot(8)`.

use dstack_certbot::bus::introspect;
use dstack_certbot::{cli, daemon};
use dstack_service::{cli as switches, lifecycle, logging};
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let is_command = arguments.first().is_some_and(|first| cli::is_command(first));
    if is_command {
        let level = logging::init(daemon::NAME);
        return cli::main(&arguments, &level);
    }
    let about = "certificates of the ingress of dstack; commands are renew, init, set-caa, cfg";
    let request = switches::parse(daemon::NAME, about, env!("CARGO_PKG_VERSION"), arguments.into_iter());
    if let Some(code) = switches::answer(&request, &introspect::PATHS, introspect::describe) {
        return code;
    }
    let level = logging::init(daemon::NAME);
    lifecycle::exit(daemon::run(level))
}
