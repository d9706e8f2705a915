// SPDX-License-Identifier: Apache-2.0
//! Configuration in three stages: fragments as written -> one merged input -> the daemon's validated settings.
//!
//! Fragments, later ones winning key by key: `/usr/lib/dstack/<daemon>.toml`, `/etc/dstack/<daemon>.toml` (which hides
//! the former if it exists), then `<daemon>.toml.d/*.toml` of both directories in the order of their file names, where
//! a file in `/etc` hides one of the same name in `/usr/lib`.

use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// Largest fragment, bytes.
pub const FRAGMENT_MAX: u64 = 1024 * 1024;

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A fragment cannot be read.
    #[error("{}: cannot be read: {error}", path.display())]
    Unreadable {
        /// The fragment.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// A fragment is larger than [`FRAGMENT_MAX`].
    #[error("{}: is larger than {FRAGMENT_MAX} bytes", .0.display())]
    TooLarge(PathBuf),
    /// A fragment is not TOML, or has an unknown or wrong key. The message shows line, key and what is allowed.
    #[error("{}: {error}", path.display())]
    Invalid {
        /// The fragment.
        path: PathBuf,
        /// What is wrong, with the line.
        error: Box<toml::de::Error>,
    },
    /// The merged input breaks a rule of the daemon.
    #[error("configuration: {key}: {reason}")]
    Rule {
        /// The key, e.g. `cvm.cid_start`.
        key: String,
        /// What is wrong and what is allowed.
        reason: String,
    },
}

impl ConfigError {
    /// A broken rule of the daemon.
    pub fn rule(key: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Rule { key: key.into(), reason: reason.into() }
    }
}

/// Directories in which fragments are looked for.
#[derive(Debug, Clone)]
pub struct Directories {
    /// The vendor's, `/usr/lib/dstack`.
    pub vendor: PathBuf,
    /// The operator's, `/etc/dstack`; `$CONFIGURATION_DIRECTORY` when systemd sets it.
    pub operator: PathBuf,
}

impl Default for Directories {
    fn default() -> Self {
        let operator =
            std::env::var_os("CONFIGURATION_DIRECTORY").map_or_else(|| "/etc/dstack".into(), PathBuf::from);
        Self { vendor: "/usr/lib/dstack".into(), operator }
    }
}

/// Reads a daemon's input. `T` is the merged input: every field has a default, unknown fields are denied.
///
/// # Errors
/// [`ConfigError`] names the file, the line and the key.
pub fn load<T: DeserializeOwned>(directories: &Directories, daemon: &str) -> Result<T, ConfigError> {
    let mut merged = Table::new();
    let mut last = directories.operator.join(format!("{daemon}.toml"));
    for path in fragments(directories, daemon)? {
        let text = read(&path)?;
        let invalid = |error| ConfigError::Invalid { path: path.clone(), error: Box::new(error) };
        // Each fragment is checked by itself, since only then an error has a file and a line.
        toml::from_str::<T>(&text).map_err(invalid)?;
        merge(&mut merged, toml::from_str::<Table>(&text).map_err(invalid)?);
        last = path;
    }
    Value::Table(merged)
        .try_into()
        .map_err(|error| ConfigError::Invalid { path: last, error: Box::new(error) })
}

/// The fragments that exist, in the order in which they are merged.
fn fragments(directories: &Directories, daemon: &str) -> Result<Vec<PathBuf>, ConfigError> {
    let main = format!("{daemon}.toml");
    let [vendor, operator] = [directories.vendor.join(&main), directories.operator.join(&main)];
    let main = [operator, vendor].into_iter().find(|p| p.exists());
    let mut dropins = BTreeMap::new();
    for directory in [&directories.vendor, &directories.operator] {
        for path in toml_files(&directory.join(format!("{daemon}.toml.d")))? {
            dropins.insert(path.file_name().map(ToOwned::to_owned), path);
        }
    }
    Ok(main.into_iter().chain(dropins.into_values()).collect())
}

fn toml_files(directory: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let unreadable = |error| ConfigError::Unreadable { path: directory.to_owned(), error };
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(unreadable)?,
    };
    let paths: Result<Vec<_>, _> = entries.map(|entry| entry.map(|e| e.path())).collect();
    let is_toml = |p: &PathBuf| p.extension().is_some_and(|e| e == "toml");
    Ok(paths.map_err(unreadable)?.into_iter().filter(is_toml).collect())
}

fn read(path: &Path) -> Result<String, ConfigError> {
    let unreadable = |error| ConfigError::Unreadable { path: path.to_owned(), error };
    if std::fs::metadata(path).map_err(unreadable)?.len() > FRAGMENT_MAX {
        return Err(ConfigError::TooLarge(path.to_owned()));
    }
    std::fs::read_to_string(path).map_err(unreadable)
}

/// Tables are merged key by key; anything else is replaced.
fn merge(into: &mut Table, from: Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(Value::Table(old)), Value::Table(new)) => merge(old, new),
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Input {
        cvm: Cvm,
    }

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Cvm {
        cid_start: u32,
        cid_pool_size: u32,
    }

    fn with(files: &[(&str, &str)]) -> Result<Input, ConfigError> {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = root.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let directories = Directories { vendor: root.path().join("lib"), operator: root.path().join("etc") };
        load(&directories, "teepod")
    }

    #[test]
    fn later_fragments_win_key_by_key() {
        let input = with(&[
            ("lib/teepod.toml", "[cvm]\ncid_start=1\ncid_pool_size=7"),
            ("lib/teepod.toml.d/20.toml", "[cvm]\ncid_start=2"),
            ("etc/teepod.toml.d/10.toml", "[cvm]\ncid_start=3"),
        ]);
        assert_eq!(input.unwrap().cvm, Cvm { cid_start: 2, cid_pool_size: 7 });
        let hidden = with(&[
            ("lib/teepod.toml", "[cvm]\ncid_pool_size=7"),
            ("etc/teepod.toml", ""),
            ("lib/teepod.toml.d/10.toml", "[cvm]\ncid_start=2"),
            ("etc/teepod.toml.d/10.toml", "[cvm]\ncid_start=3"),
        ]);
        assert_eq!(hidden.unwrap().cvm, Cvm { cid_start: 3, cid_pool_size: 0 });
        assert_eq!(with(&[]).unwrap(), Input::default());
    }

    #[test]
    fn errors_name_file_line_key_and_what_is_allowed() {
        let error = with(&[("etc/teepod.toml", "[cvm]\ncid_stort = 1\n")]).unwrap_err().to_string();
        for part in ["etc/teepod.toml", "line 2", "cid_stort", "cid_start"] {
            assert!(error.contains(part), "{part} in {error}");
        }
        let error =
            with(&[("lib/teepod.toml.d/x.toml", "[cvm]\ncid_start = \"x\"\n")]).unwrap_err().to_string();
        assert!(error.contains("x.toml") && error.contains("line 2"), "{error}");
    }
}
