// SPDX-License-Identifier: Apache-2.0
//! The dstack command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    dstackctl::main(std::env::args_os())
}
