// SPDX-License-Identifier: Apache-2.0
//! What the build makes besides programs: man pages, shell completions, D-Bus XML. Run it in the source tree's root.

mod completions;
mod dbus_page;
mod dbus_xml;
mod introspection;
mod man;
mod sizes;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

const USAGE: &str = "\
usage: xtask man OUT              man pages into OUT/man1 and OUT/man5
       xtask completions OUT      completions of bash, zsh and fish below OUT
       xtask dbus-xml BIN         compare dbus/interfaces with the daemons in BIN
       xtask dbus-xml BIN write   take dbus/interfaces from the daemons in BIN
       xtask sizes BIN            sizes of the programs in BIN
";

/// Why a task failed, in words.
type Result<T> = std::result::Result<T, String>;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["man", out] => man::write(Path::new("."), Path::new(out)),
        ["completions", out] => completions::write(Path::new(out)),
        ["dbus-xml", bin] => dbus_xml::compare(Path::new("."), Path::new(bin)),
        ["dbus-xml", bin, "write"] => dbus_xml::write(Path::new("."), Path::new(bin)),
        ["sizes", bin] => sizes::print(Path::new(bin)),
        _ => {
            eprint!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error}");
            ExitCode::FAILURE
        }
    }
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|e| format!("cannot read {}: {e}", path.display()))
}

fn put(path: PathBuf, text: &[u8]) -> Result<()> {
    let parent = path.parent().unwrap_or(Path::new("."));
    let written = std::fs::create_dir_all(parent).and_then(|()| std::fs::write(&path, text));
    written.map_err(|e| format!("cannot write {}: {e}", path.display()))
}
