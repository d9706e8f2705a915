// SPDX-License-Identifier: Apache-2.0
//! Why a key, a certificate or a quote is not given.

use crate::report_data::ReportDataError;
use dstack_core::csr::CsrError;
use dstack_keys::KeyError;
use dstack_rpc::RpcError;
use dstack_tdx_attest::{AttestError, LogError};

/// Why the guest agent does not do what an app asks. Each says what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The boot has not recorded its last event.
    #[error(
        "the guest is not ready: its boot has not reached system-ready; see `journalctl -u dstack-prepare`"
    )]
    NotReady,
    /// The boot handed over no keys.
    #[error(
        "this guest has no keys: the boot handed none over; see `journalctl -u dstack-prepare -u dstack-tappd`"
    )]
    NoKeys,
    /// The keys that the boot handed over cannot be used.
    #[error("the keys of this app cannot be used: {0}")]
    BadKeys(&'static str),
    /// There is no quote, or the event is refused.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The TEE failed.
    #[error(transparent)]
    Attest(#[from] AttestError),
    /// The data to be quoted do not fit.
    #[error(transparent)]
    ReportData(#[from] ReportDataError),
    /// A key operation failed.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The wish for a certificate is refused.
    #[error(transparent)]
    Csr(#[from] CsrError),
    /// An argument is out of form.
    #[error("{0}")]
    Argument(String),
    /// The certificate cannot be made.
    #[error("the certificate cannot be made: {0}")]
    Certificate(String),
    /// No key service signed.
    #[error("no key service signed the certificate: {0}")]
    Kms(String),
    /// The work was cut off.
    #[error("the agent is stopping")]
    Stopping,
}

impl From<TrustError> for RpcError {
    fn from(error: TrustError) -> Self {
        Self::failed(error.to_string())
    }
}

impl From<tokio::task::JoinError> for TrustError {
    fn from(_: tokio::task::JoinError) -> Self {
        Self::Stopping
    }
}
