// SPDX-License-Identifier: Apache-2.0
//! Sizes of the built programs.

use crate::Result;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Prints each program of a directory with its size, the largest first.
pub fn print(bin: &Path) -> Result<()> {
    let entries = std::fs::read_dir(bin).map_err(|e| format!("cannot read {}: {e}", bin.display()))?;
    let mut programs: Vec<(u64, String)> = entries
        .filter_map(|entry| {
            let (entry, name) = entry.ok().map(|e| (e.metadata(), e.file_name()))?;
            let meta = entry.ok().filter(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)?;
            Some((meta.len(), name.to_string_lossy().into_owned()))
        })
        .filter(|(_, name)| !name.contains(".so"))
        .collect();
    programs.sort_unstable_by(|a, b| b.cmp(a));
    programs.iter().for_each(|(bytes, name)| println!("{:>8} KiB  {name}", bytes / 1024));
    Ok(())
}
