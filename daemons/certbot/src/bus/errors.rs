// SPDX-License-Identifier: Apache-2.0
//! From what failed to what the caller is told.

use crate::account::AccountError;
use crate::control::Idle;
use crate::engine::EngineError;
use dstack_service::api::certbot1::Error;

impl From<EngineError> for Error {
    fn from(error: EngineError) -> Self {
        let text = error.to_string();
        match error {
            EngineError::Account(AccountError::OtherAuthority { .. } | AccountError::File(_)) => {
                Self::AccountUnusable(text)
            }
            EngineError::File(_) => Self::StateUnreadable(text),
            EngineError::Acme(_) | EngineError::Unusable(_) => Self::AuthorityFailed(text),
            EngineError::Dns(_) => Self::DnsFailed(text),
            EngineError::Caa(_) | EngineError::NoIssuer(_) => Self::Misconfigured(text),
            EngineError::TooEarly { .. } | EngineError::Quiet { .. } => Self::TooEarly(text),
            EngineError::Busy(_) => Self::Busy(text),
            EngineError::NoSuchCertificate(..) => Self::NoSuchCertificate(text),
            EngineError::Rehearsal(_) => Self::RehearsalFailed(text),
        }
    }
}

impl From<Idle> for Error {
    fn from(idle: Idle) -> Self {
        let text = idle.to_string();
        match idle {
            Idle::NotConfigured => Self::NotConfigured(text),
            Idle::Misconfigured(_) => Self::Misconfigured(text),
        }
    }
}
