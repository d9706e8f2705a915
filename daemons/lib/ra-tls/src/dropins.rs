// SPDX-License-Identifier: Apache-2.0
//! The policy for evidence: drop-ins of `policy.d`, in the order of their names, made into one.
//!
//! Lists (`images`, `devices`, `refused_advisories`) are joined, so that an image's package can bring its own file; of
//! any other key the last one counts. A file in `/etc/dstack` hides one of the same name in `/usr/lib/dstack`.

use crate::Policy;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// Name of the directory.
pub const DIRECTORY: &str = "policy.d";
/// Largest drop-in, bytes.
const DROPIN_MAX: u64 = 1024 * 1024;
/// Lists that are joined.
const JOINED: [&str; 3] = ["images", "devices", "refused_advisories"];

/// Why the policy cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}", path.display())]
pub struct PolicyError {
    path: PathBuf,
    reason: String,
}

impl PolicyError {
    fn new(path: &Path, reason: impl std::fmt::Display) -> Self {
        Self { path: path.to_owned(), reason: reason.to_string() }
    }
}

/// Reads the policy from the `policy.d` of the vendor's and the operator's directory.
///
/// # Errors
/// [`PolicyError`] names the file, and the key and line where there is one.
pub fn load(vendor: &Path, operator: &Path) -> Result<Policy, PolicyError> {
    let mut merged = Table::new();
    let mut last = operator.join(DIRECTORY);
    for path in files(vendor, operator)? {
        let text = read(&path)?;
        // By itself first: only then an error has a line.
        Policy::parse(&text).map_err(|e| PolicyError::new(&path, e))?;
        let table = toml::from_str::<Table>(&text).map_err(|e| PolicyError::new(&path, e))?;
        join(&mut merged, table);
        last = path;
    }
    let policy: Policy = Value::Table(merged).try_into().map_err(|e| PolicyError::new(&last, e))?;
    policy.check().map_err(|e| PolicyError::new(&last, e))?;
    Ok(policy)
}

fn files(vendor: &Path, operator: &Path) -> Result<Vec<PathBuf>, PolicyError> {
    let mut files = BTreeMap::new();
    for directory in [vendor, operator] {
        let directory = directory.join(DIRECTORY);
        let entries = match std::fs::read_dir(&directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            other => other.map_err(|e| PolicyError::new(&directory, e))?,
        };
        for entry in entries {
            let path = entry.map_err(|e| PolicyError::new(&directory, e))?.path();
            if path.extension().is_some_and(|e| e == "toml") {
                files.insert(path.file_name().map(ToOwned::to_owned), path);
            }
        }
    }
    Ok(files.into_values().collect())
}

fn read(path: &Path) -> Result<String, PolicyError> {
    let size = std::fs::metadata(path).map_err(|e| PolicyError::new(path, e))?.len();
    if size > DROPIN_MAX {
        return Err(PolicyError::new(path, format!("is larger than {DROPIN_MAX} bytes")));
    }
    std::fs::read_to_string(path).map_err(|e| PolicyError::new(path, e))
}

fn join(into: &mut Table, from: Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(Value::Array(old)), Value::Array(new)) if JOINED.contains(&key.as_str()) => old.extend(new),
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

    fn with(files: &[(&str, &str)]) -> Result<Policy, PolicyError> {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = root.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        load(&root.path().join("lib"), &root.path().join("etc"))
    }

    fn device(byte: &str) -> String {
        format!("devices = [\"{}\"]", byte.repeat(32))
    }

    #[test]
    fn lists_are_joined_and_other_keys_replaced() {
        assert_eq!(with(&[]).unwrap(), Policy::default());
        let policy = with(&[
            ("lib/policy.d/10.toml", &format!("min_evaluation_number = 3\n{}", device("01"))),
            ("lib/policy.d/20.toml", "allow_dev = true"),
            ("etc/policy.d/20.toml", &device("02")),
            ("etc/policy.d/30.toml", "min_evaluation_number = 4"),
            ("etc/policy.d/README", "not a policy"),
        ]);
        let policy = policy.unwrap();
        assert_eq!((policy.min_evaluation_number, policy.devices.len(), policy.allow_dev), (4, 2, false));
    }

    #[test]
    fn t22_no_drop_in_goes_beyond_the_bounds_and_errors_name_the_file() {
        for bad in ["tcb_grace_days = 31", "tcb_statuses = [\"Revoked\"]", "allow_any = true", "images = 1"] {
            let error = with(&[("etc/policy.d/x.toml", bad)]).unwrap_err().to_string();
            assert!(error.contains("x.toml"), "{error}");
        }
    }

    #[test]
    fn p25_there_is_no_wildcard() {
        for bad in ["devices = [\"any\"]", "devices = \"any\"", "[[images]]\nos_image_hash = \"any\""] {
            assert!(with(&[("etc/policy.d/x.toml", bad)]).is_err(), "{bad}");
        }
    }
}
