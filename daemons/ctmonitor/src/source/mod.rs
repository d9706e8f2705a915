// SPDX-License-Identifier: Apache-2.0
//! Where certificates are heard of.

pub mod log;
pub mod progress;
pub mod rfc6962;
pub mod search;
pub mod statics;

use crate::certificate::{Certificate, CertificateError, KeyId};
use crate::head::Lie;
use crate::http::HttpError;
use crate::limits::{PAUSE_ASKED_MAX, PAUSE_MAX, PAUSE_MIN};
use crate::store::Cursor;
use dstack_ra_rpc::peer::BoxFuture;
use hyper::StatusCode;

/// Something that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Where, for people.
    pub place: String,
    /// The certificate, or the digest of bytes that cannot be read and may be one.
    pub what: Result<Certificate, (KeyId, CertificateError)>,
}

/// Takes what a source finds.
pub trait Sink: Send + Sync {
    /// Judges what was found, tells of it, and keeps the place: what comes later begins there.
    ///
    /// # Errors
    /// A sentence, when it cannot be kept; the source must end then.
    fn take(&self, found: Vec<Found>, cursor: Cursor) -> Result<(), String>;
    /// Something that does not end the look, and that people should know.
    fn trouble(&self, text: String);
    /// What it is doing, and how many entries wait.
    fn stage(&self, text: String, pending: u64);
}

/// Why a look ended early.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// The source does not answer as it should; it is left alone for a while, as long as it asks for.
    #[error("{text}")]
    Failed {
        /// What happened.
        text: String,
        /// How long it asks to be left alone, seconds.
        retry_after: Option<u64>,
    },
    /// The source answers, and some of what it has could not be looked at. It is asked again as if nothing were wrong.
    #[error("{0}")]
    Incomplete(String),
    /// The source lies.
    #[error("{lie} ({evidence})")]
    Lie {
        /// How.
        lie: Lie,
        /// What shows it.
        evidence: String,
    },
    /// What was found cannot be kept.
    #[error("{0}")]
    Sink(String),
}

impl SourceError {
    /// A failure without a wish.
    pub fn failed(text: impl Into<String>) -> Self {
        Self::Failed { text: text.into(), retry_after: None }
    }

    /// The same failure with a few words before it.
    #[must_use]
    pub fn at(self, what: &str) -> Self {
        match self {
            Self::Failed { text, retry_after } => {
                Self::Failed { text: format!("{what}: {text}"), retry_after }
            }
            other => other,
        }
    }

    /// Whether everything else that is asked of this server would fail as well.
    #[must_use]
    pub const fn is_busy(&self) -> bool {
        matches!(self, Self::Failed { retry_after: Some(_), .. })
    }
}

impl From<HttpError> for SourceError {
    fn from(error: HttpError) -> Self {
        let text = error.to_string();
        match error {
            HttpError::Status { status, retry_after, .. } => {
                let busy =
                    status == StatusCode::TOO_MANY_REQUESTS || status == StatusCode::SERVICE_UNAVAILABLE;
                Self::Failed { text, retry_after: retry_after.or(busy.then_some(PAUSE_MIN)) }
            }
            _ => Self::Failed { text, retry_after: None },
        }
    }
}

/// A place where certificates are heard of.
pub trait Source: Send + Sync + std::fmt::Debug {
    /// Its name, for people and for its place in the state.
    fn name(&self) -> &str;
    /// The server; when it asks to be left alone, all sources of it are.
    fn server(&self) -> &str;
    /// The id of a log, hex; empty for others.
    fn log_id(&self) -> String {
        String::new()
    }
    /// Goes on from a place.
    fn look<'a>(
        &'a self,
        cursor: Cursor,
        sink: &'a dyn Sink,
        now: u64,
    ) -> BoxFuture<'a, Result<(), SourceError>>;
}

/// How long a source is left alone after so many failures in a row, seconds: twice as long each time, and at least as long
/// as it asks for.
#[must_use]
pub fn pause(failures: u32, retry_after: Option<u64>) -> u64 {
    let own = PAUSE_MIN.checked_shl(failures.saturating_sub(1).min(16)).unwrap_or(PAUSE_MAX).min(PAUSE_MAX);
    own.max(retry_after.unwrap_or(0).min(PAUSE_ASKED_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_wishes_are_honoured_within_reason() {
        for (failures, asked, expected) in [
            (1, None, 60),
            (2, None, 120),
            (7, None, 3600),
            (u32::MAX, None, 3600),
            (1, Some(900), 900),
            (7, Some(5), 3600),
            (1, Some(u64::MAX), 86_400),
        ] {
            assert_eq!(pause(failures, asked), expected, "{failures} {asked:?}");
        }
    }
}
