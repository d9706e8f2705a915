// SPDX-License-Identifier: Apache-2.0
//! The VM's data disk: made at the first start, grown when the spec has grown, never shrunk.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Bytes of the qcow2 header that are looked at.
const HEADER: usize = 80;

/// Why there is no data disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The file cannot be opened, renamed or synced.
    #[error("data disk {0}: {1}")]
    Io(PathBuf, io::Error),
    /// The file is not a qcow2 image of the kind that is made here.
    #[error("data disk {0} is not usable: {1}; restore it from a backup, or remove the VM")]
    Foreign(PathBuf, &'static str),
    /// qemu-img failed.
    #[error("qemu-img could not {0}: {1}")]
    Tool(&'static str, String),
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub enum Plan {
    /// The disk has the wanted size, or more: a disk never shrinks.
    Keep,
    /// The disk is smaller than wanted.
    Grow,
}

/// Decides by the first bytes of an existing disk.
///
/// # Errors
/// A sentence on what is wrong with it: the VM could have made QEMU write anything here.
pub fn plan(header: &[u8], size: u64) -> Result<Plan, &'static str> {
    let field =
        |at: usize| header.get(at..at + 8).and_then(|b| b.first_chunk()).map(|b| u64::from_be_bytes(*b));
    let (backing, now, features) = match (field(8), field(24), field(72)) {
        (Some(a), Some(b), Some(c)) if header.starts_with(b"QFI\xfb\0\0\0\x03") => (a, b, c),
        _ => return Err("it is no qcow2 image"),
    };
    match features {
        _ if backing != 0 => Err("it refers to another file"),
        f if f & 0b100 != 0 => Err("it refers to another file"),
        f if f & 0b010 != 0 => Err("it is marked as corrupt"),
        _ if now < size => Ok(Plan::Grow),
        _ => Ok(Plan::Keep),
    }
}

/// Makes or grows the disk `data.qcow2` in `dir` to `size` bytes; returns its path.
///
/// # Errors
/// [`DiskError`] names the file and the remedy.
pub fn ensure(qemu_img: &Path, dir: &Path, size: u64) -> Result<PathBuf, DiskError> {
    let path = dir.join("data.qcow2");
    match File::open(&path) {
        Ok(file) => grow(qemu_img, &path, file, size)?,
        Err(e) if e.kind() == io::ErrorKind::NotFound => create(qemu_img, dir, &path, size)?,
        Err(e) => return Err(DiskError::Io(path, e)),
    }
    Ok(path)
}

fn grow(qemu_img: &Path, path: &Path, file: File, size: u64) -> Result<(), DiskError> {
    let mut header = Vec::new();
    file.take(HEADER as u64).read_to_end(&mut header).map_err(|e| DiskError::Io(path.to_owned(), e))?;
    match plan(&header, size).map_err(|why| DiskError::Foreign(path.to_owned(), why))? {
        Plan::Keep => Ok(()),
        Plan::Grow => {
            let mut command = Command::new(qemu_img);
            command.args(["resize", "-q", "-f", "qcow2"]).arg(path).arg(size.to_string());
            run(&mut command, "grow the data disk")
        }
    }
}

/// Under another name first: a disk is whole or absent.
fn create(qemu_img: &Path, dir: &Path, path: &Path, size: u64) -> Result<(), DiskError> {
    let new = dir.join("data.qcow2.new");
    let io = |e| DiskError::Io(new.clone(), e);
    match std::fs::remove_file(&new) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(io(e)),
        _ => {}
    }
    let mut command = Command::new(qemu_img);
    command.args(["create", "-q", "-f", "qcow2"]).arg(&new).arg(size.to_string());
    run(&mut command, "make the data disk")?;
    File::open(&new).and_then(|file| file.sync_all()).map_err(io)?;
    std::fs::rename(&new, path).map_err(io)?;
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(io)
}

fn run(command: &mut Command, what: &'static str) -> Result<(), DiskError> {
    command.env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let output = dstack_sys::child::spawn(command, &[]).and_then(|child| child.wait_with_output());
    match output {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stderr);
            Err(DiskError::Tool(what, text.trim().chars().take(300).collect()))
        }
        Err(e) => Err(DiskError::Tool(what, format!("{}: {e}", command.get_program().display()))),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn header(size: u64, backing: u64, features: u64) -> Vec<u8> {
        let mut bytes = b"QFI\xfb\0\0\0\x03".to_vec();
        bytes.extend(backing.to_be_bytes());
        bytes.extend([0; 8]);
        bytes.extend(size.to_be_bytes());
        bytes.extend([0; 40]);
        bytes.extend(features.to_be_bytes());
        bytes
    }

    #[test]
    fn plans() {
        assert_eq!(plan(&header(100, 0, 0), 100), Ok(Plan::Keep));
        assert_eq!(plan(&header(100, 0, 1), 50), Ok(Plan::Keep));
        assert_eq!(plan(&header(100, 0, 0), 101), Ok(Plan::Grow));
        assert!(plan(b"", 1).is_err() && plan(&[0; HEADER], 1).is_err());
        assert!(plan(header(1, 0, 0).get(..79).unwrap(), 1).is_err());
    }

    #[test]
    fn a_disk_that_refers_to_another_file_is_refused() {
        for bad in [header(100, 512, 0), header(100, 0, 4), header(100, 0, 2)] {
            assert!(plan(&bad, 1000).is_err());
        }
    }

    /// A stand-in for qemu-img that notes its arguments and makes the file, or fails.
    fn tool(dir: &Path, fail: bool) -> PathBuf {
        let path = dir.join("qemu-img");
        let end = if fail { "echo 'No space left on device' >&2; exit 1" } else { "exit 0" };
        let script = format!(
            "#!/bin/bash\necho \"$@\" >>{0}/calls\n[ \"$1\" = resize ] || echo -n data >\"$5\"\n{end}\n",
            dir.display()
        );
        std::fs::write(&path, script).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    fn makes_and_grows() {
        let dir = tempfile::tempdir().unwrap();
        let tool = tool(dir.path(), false);
        let path = ensure(&tool, dir.path(), 1000).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"data");
        assert!(matches!(ensure(&tool, dir.path(), 1000), Err(DiskError::Foreign(..))));
        std::fs::write(&path, header(1000, 0, 0)).unwrap();
        ensure(&tool, dir.path(), 1000).unwrap();
        ensure(&tool, dir.path(), 2000).unwrap();
        let calls = std::fs::read_to_string(dir.path().join("calls")).unwrap();
        let calls: Vec<&str> = calls.lines().map(|l| l.split(' ').next().unwrap()).collect();
        assert_eq!(calls, ["create", "resize"]);
    }

    #[test]
    fn a_full_disk_leaves_nothing_that_looks_whole() {
        let dir = tempfile::tempdir().unwrap();
        let error = ensure(&tool(dir.path(), true), dir.path(), 1000).unwrap_err();
        assert_eq!(error.to_string(), "qemu-img could not make the data disk: No space left on device");
        assert!(!dir.path().join("data.qcow2").exists());
        ensure(&tool(dir.path(), false), dir.path(), 1000).unwrap();
        assert!(!dir.path().join("data.qcow2.new").exists());
    }
}
