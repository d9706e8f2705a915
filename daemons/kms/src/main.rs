// SPDX-License-Identifier: Apache-2.0
//! dstack-kms: keys for apps, after their quote was checked. See `dstack-kms(8)`.

use dstack_kms::{bus::introspect, daemon};
use dstack_service::{cli, lifecycle, logging};
use std::process::ExitCode;

fn main() -> ExitCode {
    let about = "key service of dstack";
    let request = cli::parse(daemon::NAME, about, env!("CARGO_PKG_VERSION"), std::env::args().skip(1));
    if let Some(code) = cli::answer(&request, &introspect::PATHS, introspect::describe) {
        return code;
    }
    let level = logging::init(daemon::NAME);
    lifecycle::exit(daemon::run(level))
}
