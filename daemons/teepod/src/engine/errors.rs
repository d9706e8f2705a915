// SPDX-License-Identifier: Apache-2.0
//! From what failed to what the caller is told: an error name, and a sentence with a remedy.

use crate::images::ImagesError;
use crate::store::StoreError;
use crate::units::UnitError;
use dstack_core::compose::ComposeError;
use dstack_core::ids::VmName;
use dstack_service::api::teepod1::Error;
use dstack_service::errors::Fdo;

/// There is no such VM.
#[must_use]
pub fn no_such_vm(text: &str) -> Error {
    let text: String = text.chars().take(64).collect();
    Error::NoSuchVm(format!("there is no VM {text:?}; `dstackctl vm list` shows all"))
}

/// The VM's files cannot be read.
#[must_use]
pub fn unreadable(name: &VmName, reason: &str) -> Error {
    Error::StateUnreadable(format!("VM {name} is left alone because its state cannot be read: {reason}"))
}

/// A defect of teepod itself.
pub fn internal(error: &dyn std::fmt::Display) -> Error {
    Error::Fdo(Fdo::failed(format!("internal error, please report it: {error}")))
}

/// The file system is full.
#[must_use]
pub fn no_space(error: &dyn std::fmt::Display) -> Error {
    Error::NoSpace(format!(
        "{error}; free some space, e.g. `dstackctl image remove` or `dstackctl vm remove`"
    ))
}

/// Something that the caller wrote.
pub fn invalid(error: impl std::fmt::Display) -> Error {
    Error::InvalidArgument(error.to_string())
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Input(error) => invalid(error),
            error if error.is_no_space() => no_space(&error),
            error => Self::StateUnreadable(error.to_string()),
        }
    }
}

impl From<ImagesError> for Error {
    fn from(error: ImagesError) -> Self {
        match error {
            ImagesError::Absent(name) => Self::NoSuchImage(format!(
                "there is no image {name}; `dstackctl image list` shows all, `dstackctl image import DIR` adds one"
            )),
            ImagesError::Exists(_) => Self::ImageExists(error.to_string()),
            error if error.is_no_space() => no_space(&error),
            error => Self::ImageInvalid(error.to_string()),
        }
    }
}

impl From<UnitError> for Error {
    fn from(error: UnitError) -> Self {
        Self::UnitFailed(error.to_string())
    }
}

/// The compose file is not usable.
#[must_use]
pub fn bad_compose(error: &ComposeError) -> Error {
    Error::InvalidCompose(error.to_string())
}
