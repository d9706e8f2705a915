// SPDX-License-Identifier: Apache-2.0
//! From a judged peer to a claim (trust rules T1, T21). Pure.

use crate::registry::{Claim, Ports};
use dstack_core::event_log::Milestone;
use dstack_ra_rpc::Peer;
use dstack_ra_tls::certificate::Usage;
use dstack_rpc::tproxy::RegisterCvmRequest;
use serde::Deserialize;

/// Why a peer may not register.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ClaimError {
    /// Its certificate is not an app's, or has no evidence.
    #[error(
        "registering needs a certificate that this tproxy's key service issued to an app, with the quote inside"
    )]
    Evidence,
    /// The boot is not over.
    #[error("the boot has not come to system-ready")]
    NotReady,
    /// Its keys are not of the key service that issued its certificate.
    #[error("the boot got its keys from another key service than this tproxy's")]
    KeyProvider,
    /// It has no identity of its own.
    #[error("the instance id is empty; an instance without one cannot register")]
    NoInstance,
    /// The key it sends.
    #[error("client_public_key is no WireGuard key: use the base64 of 32 bytes")]
    Key,
    /// A port it sends.
    #[error("ports are numbers from 1 to 65535")]
    Port,
}

/// The event `key-provider`.
#[derive(Deserialize)]
struct Provider {
    name: String,
    id: String,
}

/// What a peer claims, as far as its evidence bears it out. `kms` is the SubjectPublicKeyInfo of our key service.
///
/// # Errors
/// [`ClaimError`].
pub fn claim(peer: &Peer, request: &RegisterCvmRequest, kms: &[u8]) -> Result<Claim, ClaimError> {
    let verdict = peer.verdict.as_ref().filter(|_| peer.usage == Some(Usage::AppCustom));
    let boot = verdict.and_then(|v| v.boot.as_ref()).ok_or(ClaimError::Evidence)?;
    if boot.milestone != Milestone::Ready {
        return Err(ClaimError::NotReady);
    }
    if peer.app_id != Some(boot.app_id) {
        return Err(ClaimError::Evidence);
    }
    let provider: Option<Provider> =
        boot.key_provider.as_deref().and_then(|json| serde_json::from_slice(json).ok());
    if !provider.is_some_and(|p| p.name == "kms" && hex::decode(p.id).is_ok_and(|id| id == kms)) {
        return Err(ClaimError::KeyProvider);
    }
    Ok(Claim {
        app_id: boot.app_id,
        instance_id: boot.instance_id.ok_or(ClaimError::NoInstance)?,
        public_key: request.client_public_key.parse().map_err(|_| ClaimError::Key)?,
        ports: Ports {
            allowed: Some(ports(&request.allowed_ports)?).filter(|ports| !ports.is_empty()),
            proxy_protocol: ports(&request.proxy_protocol_ports)?,
        },
    })
}

fn ports(numbers: &[u32]) -> Result<Vec<u16>, ClaimError> {
    let port = |number: &u32| u16::try_from(*number).ok().filter(|port| *port != 0).ok_or(ClaimError::Port);
    numbers.iter().map(port).collect()
}
