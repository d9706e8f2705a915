// SPDX-License-Identifier: Apache-2.0
//! From what failed to what the caller is told: an error name, and a sentence with a remedy.

use crate::authority::AuthorityError;
use crate::epoch_files::FilesError;
use crate::registry::RegistryError;
use crate::release_log::LogError;
use dstack_core::ids::AppId;
use dstack_service::api::kms1::Error;
use dstack_service::errors::Fdo;

/// Something that the caller wrote.
pub fn invalid(error: impl std::fmt::Display) -> Error {
    Error::InvalidArgument(error.to_string())
}

/// A defect of this service.
pub fn internal(error: impl std::fmt::Display) -> Error {
    Error::Fdo(Fdo::failed(format!("internal error, please report it: {error}")))
}

impl From<RegistryError> for Error {
    fn from(error: RegistryError) -> Self {
        match error {
            error if error.is_no_space() => Self::NoSpace(error.to_string()),
            RegistryError::NotThere(..) => Self::NoSuchUpgrade(error.to_string()),
            RegistryError::OwnerDecides(_) => Self::OwnerDecides(error.to_string()),
            RegistryError::Compose(_) => Self::InvalidArgument(error.to_string()),
            RegistryError::Statement(_) => Self::StatementRefused(error.to_string()),
            error => Self::StateUnreadable(error.to_string()),
        }
    }
}

impl From<FilesError> for Error {
    fn from(error: FilesError) -> Self {
        if error.is_no_space() {
            Self::NoSpace(error.to_string())
        } else {
            Self::StateUnreadable(error.to_string())
        }
    }
}

impl From<AuthorityError> for Error {
    fn from(error: AuthorityError) -> Self {
        match error {
            AuthorityError::Refused(_) => Self::InvalidArgument(error.to_string()),
            error => internal(error),
        }
    }
}

impl From<LogError> for Error {
    fn from(error: LogError) -> Self {
        Self::StateUnreadable(error.to_string())
    }
}

/// An app id as text.
///
/// # Errors
/// `InvalidArgument`.
pub fn app_id(text: &str) -> Result<AppId, Error> {
    text.parse().map_err(invalid)
}
