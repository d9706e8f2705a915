// SPDX-License-Identifier: Apache-2.0
//! Keys of an app: how they come from the roots, what they sign, and the environment that is encrypted for them.
//!
//! The derivations reproduce those of the original's versions 0.4 and later to the byte, so that apps keep their keys.
//!
//! - [`secret`]: 32 bytes that are wiped and never printed
//! - [`derive`]: HKDF, and each key of an app
//! - [`ecdsa`]: signatures of a certificate's key
//! - [`sign`]: recoverable secp256k1 signatures
//! - [`ed25519`]: signatures of an app's owner
//! - [`env`]: the encrypted environment and its sender
//! - [`handover`]: what the boot hands over to the guest agent
//! - [`keyfile`]: keys of an app's owner as PEM

pub mod derive;
pub mod ecdsa;
pub mod ed25519;
pub mod env;
pub mod handover;
pub mod keyfile;
pub mod secret;
pub mod sign;

pub use secret::Secret;

/// Why a key operation failed.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The cryptographic library refused, e.g. for want of randomness.
    #[error("cryptographic library: {0}")]
    Library(#[from] openssl::error::ErrorStack),
    /// 32 bytes that are no scalar of the curve; it happens once in 2^32 derivations at most.
    #[error("derived bytes are not a key of the curve")]
    NotAKey,
    /// Bytes of a wrong length or form.
    #[error("{0}")]
    Form(&'static str),
}
