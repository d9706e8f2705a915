// SPDX-License-Identifier: Apache-2.0
//! The simulated TEE's program; see the library for what it does.

use dstack_quote_sim::{daemon, store};
use dstack_service::cli;
use std::path::Path;
use std::process::ExitCode;
use time::OffsetDateTime;

fn main() -> ExitCode {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    if let [switch, directory] = args.as_slice()
        && switch == "--make-root"
    {
        return make_root(Path::new(directory));
    }
    // A lone --make-root is refused with the other unknown switches.
    let about = "the simulated TEE: quotes for the VMs of this host that protect nothing\n\n\
         \x20 --make-root DIRECTORY    make the test root, unless it is there, and end";
    let request = cli::parse(daemon::IDENTIFIER, about, env!("CARGO_PKG_VERSION"), args.drain(..));
    if let Some(code) = cli::answer(&request, &[], |_| None) {
        return code;
    }
    daemon::run()
}

fn make_root(directory: &Path) -> ExitCode {
    match store::make(directory, OffsetDateTime::now_utc()) {
        Ok(root) => {
            println!("{}", root.fingerprint());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("dstack-quote-sim: {error}");
            ExitCode::FAILURE
        }
    }
}
