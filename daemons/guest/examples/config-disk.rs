// SPDX-License-Identifier: Apache-2.0
//! Makes a config disk by hand, for trying the boot agent in a VM without teepod:
//!
//! ```text
//! cargo run -p dstack-guest --example config-disk -- disk.img app-compose.json=app.json user-config=hello.txt
//! ```

use dstack_core::config_disk::{self, File, Files};
use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let out = args.next().ok_or("use: config-disk OUT NAME=FILE...")?;
    let files = args.map(|arg| entry(&arg)).collect::<Result<Files, _>>()?;
    std::fs::write(out, config_disk::write(&files)?)?;
    Ok(())
}

/// `NAME=FILE` as a file of the disk.
fn entry(arg: &str) -> Result<(File, Vec<u8>), Box<dyn Error>> {
    let (name, path) = arg.split_once('=').ok_or("a file is given as NAME=FILE")?;
    let file = File::ALL.into_iter().find(|f| f.name() == name).ok_or_else(|| {
        let names = File::ALL.map(File::name).join(", ");
        format!("{name} is none of {names}")
    })?;
    Ok((file, std::fs::read(path)?))
}
