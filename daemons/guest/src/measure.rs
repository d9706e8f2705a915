// SPDX-License-Identifier: Apache-2.0
//! What of the boot goes into RTMR3, in the order of trust rule T7, and the comparison with MRCONFIGID (P12).
//!
//! A second run in the same boot finds its own events in the log and extends nothing twice; other inputs than the first
//! run's end it.

use crate::inputs::{Inputs, Provider};
use dstack_core::boot::Failure;
use dstack_core::event_log::TRUSTED;
use dstack_core::ids::ComposeHash;
use dstack_core::spec::mr_config_id;
use dstack_tdx_attest::{AttestError, Attested, EventLog, LogError, Platform};
use std::path::Path;
use std::sync::Arc;

/// Why the boot cannot be measured.
#[derive(Debug, thiserror::Error)]
pub enum MeasureError {
    /// The TEE failed.
    #[error(transparent)]
    Attest(#[from] AttestError),
    /// The event log failed.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The VM was launched with another app, or without one (P12).
    #[error(
        "the VM was launched for MRCONFIGID {found}, and this compose file needs {needed}: the host gave another app than the one it launched"
    )]
    ConfigId {
        /// What the register says.
        found: String,
        /// What it must say.
        needed: String,
    },
    /// An earlier run of this boot measured something else.
    #[error("event {0} was measured with other contents in this boot; restart the VM")]
    Changed(&'static str),
    /// The host says not what image it launched.
    #[error("sys-config.json has no os_image_hash")]
    NoImageHash,
}

impl MeasureError {
    /// What the host is told.
    #[must_use]
    pub const fn failure(&self) -> Failure {
        match self {
            Self::Attest(_) | Self::Log(LogError::Platform(_)) => Failure::TeeMissing,
            Self::ConfigId { .. } => Failure::LaunchMismatch,
            Self::NoImageHash => Failure::ConfigInvalid,
            Self::Changed(_) | Self::Log(_) => Failure::Internal,
        }
    }
}

/// The log of this boot; none where no TEE is and the app asks for no keys.
#[derive(Debug)]
pub struct Measured(Option<EventLog>);

impl Measured {
    /// Opens the log in `directory`, and checks what the VM was launched for. A VM without TEE may go on when its app
    /// wants no key service: nothing attests it, and it says so.
    ///
    /// # Errors
    /// [`MeasureError`].
    pub fn open(
        platform: Box<dyn Platform>,
        directory: &Path,
        inputs: &Inputs,
    ) -> Result<Self, MeasureError> {
        let platform: Arc<dyn Platform> = platform.into();
        let optional = inputs.provider == Provider::None && platform.label() == "simulated";
        // Once something was measured there is a TEE, however silent it is now.
        let first = !directory.join("events.json").exists();
        match EventLog::open(directory, Arc::clone(&platform)) {
            Ok(log) => {
                launched_for(platform.as_ref(), &inputs.compose_hash)?;
                Ok(Self(Some(log)))
            }
            Err(LogError::Platform(AttestError::Unreachable(why))) if optional && first => {
                println!("<5>no TEE: nothing attests this VM ({why})");
                Ok(Self(None))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// `tdx`, `simulated` or `none`.
    #[must_use]
    pub fn label(&self) -> &'static str {
        self.0.as_ref().map_or("none", EventLog::label)
    }

    /// Everything up to the point at which keys may be asked for.
    ///
    /// # Errors
    /// [`MeasureError`].
    pub fn inputs(&mut self, inputs: &Inputs) -> Result<(), MeasureError> {
        if self.0.is_none() {
            return Ok(());
        }
        let image = inputs.hints.os_image_hash.ok_or(MeasureError::NoImageHash)?;
        let instance = inputs.instance_id.map(|id| id.as_bytes().to_vec()).unwrap_or_default();
        let payloads: [&[u8]; 7] = [
            b"",
            inputs.app_id.as_bytes(),
            inputs.compose_hash.as_bytes(),
            &instance,
            b"",
            image.as_bytes(),
            &inputs.host_inputs,
        ];
        payloads.iter().enumerate().try_for_each(|(index, payload)| self.event(index, payload))
    }

    /// Whether the moment for asking for keys has passed (T7).
    #[must_use]
    pub fn past_keys(&self) -> bool {
        self.0.as_ref().is_some_and(|log| log.events().len() > 7)
    }

    /// `key-provider`: who gave the keys.
    ///
    /// # Errors
    /// [`MeasureError`].
    pub fn key_provider(&mut self, name: &str, id: &str) -> Result<(), MeasureError> {
        self.event(7, format!(r#"{{"name":"{name}","id":"{id}"}}"#).as_bytes())
    }

    /// `storage-fs`.
    ///
    /// # Errors
    /// [`MeasureError`].
    pub fn storage(&mut self, name: &str) -> Result<(), MeasureError> {
        self.event(8, name.as_bytes())
    }

    /// `system-ready`: what comes after it is the app's.
    ///
    /// # Errors
    /// [`MeasureError`].
    pub fn ready(&mut self) -> Result<(), MeasureError> {
        self.event(9, b"")
    }

    /// A quote and its log.
    ///
    /// # Errors
    /// [`LogError`]; also where there is no TEE.
    pub fn attest(&mut self, report_data: &[u8; 64]) -> Result<Attested, LogError> {
        let none = || AttestError::Unreachable(std::io::ErrorKind::NotFound.into());
        self.0.as_mut().ok_or_else(none)?.attest(report_data)
    }

    /// The event of this place, unless an earlier run of this boot has it.
    fn event(&mut self, index: usize, payload: &[u8]) -> Result<(), MeasureError> {
        let (Some(log), Some(name)) = (&mut self.0, TRUSTED.get(index)) else { return Ok(()) };
        match log.events().get(index) {
            Some(event) if event.event == *name && event.event_payload == payload => Ok(()),
            Some(_) => Err(MeasureError::Changed(name)),
            None => Ok(log.append(name, payload)?),
        }
    }
}

/// P12: the register must say this compose file; zeros say nothing, and are refused like any other.
fn launched_for(platform: &dyn Platform, compose: &ComposeHash) -> Result<(), MeasureError> {
    let (found, needed) = (hex::encode(platform.registers()?.mr_config_id), mr_config_id(compose));
    if found == needed { Ok(()) } else { Err(MeasureError::ConfigId { found, needed }) }
}

#[cfg(test)]
#[path = "measure_tests.rs"]
mod tests;
