// SPDX-License-Identifier: Apache-2.0
//! A guest for the SDKs of `tests/sdk`: the real agent on a simulated TEE. `sdk_guest PROGRAM none|kms` prints the paths
//! of `dstack.sock` and `tappd.sock`, and ends when its input does.
#![allow(clippy::unwrap_used)]

#[path = "../tests/common/mod.rs"]
mod common;

use common::program::{Bus, activate};
use common::world::World;
use dstack_keys::handover::Provider;
use std::io::Read;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [program, provider] = args.as_slice() else {
        eprintln!("usage: sdk_guest PROGRAM none|kms");
        return ExitCode::from(2);
    };
    let provider = if provider == "kms" { Provider::Kms } else { Provider::None };
    let world = World::new(provider, 10);
    let Some(bus) = Bus::start(world.directory.path()) else { return ExitCode::from(77) };
    let settings = world.settings(Some(&world.run()));
    let mut agent = activate(Path::new(program), world.directory.path(), &settings, &bus);
    println!("{} {}", agent.dstack.display(), agent.tappd.display());
    let ended = std::io::stdin().read_to_end(&mut Vec::new()).is_ok();
    let alive = agent.child.try_wait().unwrap().is_none();
    if !alive {
        eprintln!("the agent ended: {}", std::fs::read_to_string(world.path("log")).unwrap_or_default());
    }
    if ended && alive { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
