// SPDX-License-Identifier: Apache-2.0
//! Reading files of the working directory. Unreadable is never taken for absent.

use crate::limits::FILE_MAX;
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// A file or directory that cannot be used. It is left as it is.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}", path.display())]
pub struct FileError {
    path: PathBuf,
    reason: String,
}

impl FileError {
    /// About a path.
    #[must_use]
    pub fn new(path: &Path, reason: impl std::fmt::Display) -> Self {
        Self { path: path.to_owned(), reason: reason.to_string() }
    }

    /// To be used with `map_err`.
    pub fn at(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |error| Self { path, reason: error.to_string() }
    }
}

impl From<dstack_service::state::StateError> for FileError {
    fn from(error: dstack_service::state::StateError) -> Self {
        use dstack_service::state::StateError;
        match error {
            StateError::Io { path, error } => Self::new(&path, error),
            StateError::Damaged { ref path, .. } | StateError::Newer { ref path, .. } => {
                let (path, text) = (path.clone(), error.to_string());
                let start = format!("{}: ", path.display());
                Self { reason: text.strip_prefix(&start).unwrap_or(&text).to_owned(), path }
            }
        }
    }
}

/// A small file; `None` only when there is none.
///
/// # Errors
/// [`FileError`] when it is there and cannot be read, or is larger than [`FILE_MAX`].
pub fn read(path: &Path) -> Result<Option<Zeroizing<Vec<u8>>>, FileError> {
    let file = match std::fs::File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        other => other.map_err(FileError::at(path))?,
    };
    let mut bytes = Zeroizing::new(Vec::with_capacity(8 * 1024));
    file.take(FILE_MAX + 1).read_to_end(&mut bytes).map_err(FileError::at(path))?;
    if bytes.len() as u64 > FILE_MAX {
        return Err(FileError::new(path, format!("is larger than {FILE_MAX} bytes")));
    }
    Ok(Some(bytes))
}

/// Removes a file and makes that durable; one that is not there is no error.
///
/// # Errors
/// [`FileError`].
pub fn remove(path: &Path) -> Result<(), FileError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        other => other.map_err(FileError::at(path))?,
    }
    dstack_service::state::sync_parent(path).map_err(FileError::at(path))
}
