// SPDX-License-Identifier: Apache-2.0
//! What is remembered of a certificate between runs.

use crate::files::FileError;
use crate::renewal::{Failures, Suggested};
use crate::workdir::Workdir;
use dstack_service::state;
use serde::{Deserialize, Serialize};

const FILE: &str = "renewal.json";
const VERSION: u32 = 1;

/// Failures, and what the authority suggests.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renewal {
    /// What failed since it last went well.
    pub failures: Failures,
    /// The last failure, in words.
    #[serde(default)]
    pub error: String,
    /// When the authority wants it renewed.
    pub suggested: Option<Suggested>,
    /// For the certificate with this serial number.
    pub suggested_for: Option<Vec<u8>>,
    /// The authority suggests nothing for it; it is asked again then, Unix seconds.
    #[serde(default)]
    pub nothing_until: i64,
    /// Directory of the authority that issued the live one; `None`: a certificate from elsewhere.
    pub directory: Option<String>,
}

impl Renewal {
    /// Reads it.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn load(workdir: &Workdir) -> Result<Self, FileError> {
        Ok(state::load(&workdir.file(FILE), VERSION)?.unwrap_or_default())
    }

    /// Writes it, when it has changed.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn store(&self, workdir: &Workdir) -> Result<(), FileError> {
        if Self::load(workdir)? == *self {
            return Ok(());
        }
        Ok(state::store(&workdir.file(FILE), VERSION, self)?)
    }
}
