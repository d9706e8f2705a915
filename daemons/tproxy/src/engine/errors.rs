// SPDX-License-Identifier: Apache-2.0
//! What the engine refuses, for the bus and for guests.

use crate::journal::WriteError;
use crate::registry::RegisterError;
use dstack_core::ids::InstanceId;
use dstack_rpc::RpcError;
use dstack_service::api::tproxy1::Error;

/// Why something is not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The registration breaks a rule.
    #[error(transparent)]
    Register(#[from] RegisterError),
    /// The state cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The tunnel does not take the peer.
    #[error("the tunnel cannot be used: {0}")]
    Tunnel(String),
    /// There is no such instance.
    #[error("no instance {0} is registered; list them with: dstackctl proxy list")]
    NoSuchInstance(InstanceId),
    /// A setting has changed that counts from the next start on.
    #[error(
        "[wg], [kms] and proxy.resolver count from the next start on; run: systemctl restart dstack-tproxy"
    )]
    Restart,
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        let message = refusal.to_string();
        match refusal {
            Refusal::NoSuchInstance(_) => Self::NoSuchInstance(message),
            Refusal::Restart => Self::Misconfigured(message),
            Refusal::Tunnel(_) => Self::TunnelFailed(message),
            Refusal::Register(_) | Refusal::Write(_) => Self::StateUnwritable(message),
        }
    }
}

impl From<Refusal> for RpcError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Register(_) => Self::forbidden(refusal.to_string()),
            _ => Self::failed(refusal.to_string()),
        }
    }
}
