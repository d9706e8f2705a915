// SPDX-License-Identifier: Apache-2.0
//! Shell completions where Debian's shells look for them.

use crate::{Result, put};
use clap::CommandFactory;
use clap_complete::{Shell, generate};
use dstackctl::cli::Cli;
use std::path::Path;

const PLACES: [(Shell, &str); 3] = [
    (Shell::Bash, "bash-completion/completions/dstackctl"),
    (Shell::Zsh, "zsh/vendor-completions/_dstackctl"),
    (Shell::Fish, "fish/vendor_completions.d/dstackctl.fish"),
];

/// Writes one file per shell below `out`, which is `/usr/share` of the package.
pub fn write(out: &Path) -> Result<()> {
    for (shell, place) in PLACES {
        let mut text = Vec::new();
        generate(shell, &mut Cli::command(), "dstackctl", &mut text);
        put(out.join(place), &text)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_shell_gets_a_file() {
        let out = tempfile::tempdir().unwrap();
        super::write(out.path()).unwrap();
        for (_, place) in super::PLACES {
            let text = std::fs::read_to_string(out.path().join(place)).unwrap();
            assert!(text.contains("deploy") && text.contains("no-ask-password"), "{place}");
        }
    }
}
