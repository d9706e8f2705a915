// SPDX-License-Identifier: Apache-2.0
//! Who sent an encrypted environment (T9): a signature beside the blob, by the key that the measured compose names.

use crate::{KeyError, Secret, ed25519};
use dstack_core::env_signature::{EnvSignature, EnvSignatureError, digest, message};
use dstack_core::ids::{AppId, ComposeHash, SignerKey};

/// What an environment is sent to, and which one it is.
#[derive(Debug, Clone, Copy)]
pub struct Sent<'a> {
    /// The app it is for.
    pub app: &'a AppId,
    /// The compose file it goes with.
    pub compose: &'a ComposeHash,
    /// SHA-256 of the encrypted environment.
    pub digest: [u8; 32],
}

impl<'a> Sent<'a> {
    /// This encrypted environment, for this app and compose file.
    #[must_use]
    pub fn new(app: &'a AppId, compose: &'a ComposeHash, blob: &[u8]) -> Self {
        Self { app, compose, digest: digest(blob) }
    }

    fn message(&self, seq: u64) -> Vec<u8> {
        message(self.app, self.compose, seq, &self.digest)
    }
}

/// Why the sender of an environment is not the one it should be.
#[derive(Debug, thiserror::Error)]
pub enum SenderError {
    /// The compose names a signer, and there is no signature.
    #[error(
        "encrypted-env has no signature, and the compose file names an env_signer: send it with `dstackctl deploy --env-file` or `vm upgrade --env-file`"
    )]
    Missing,
    /// The file of the signature cannot be read.
    #[error(transparent)]
    File(#[from] EnvSignatureError),
    /// Another key, app, compose file, number or blob.
    #[error("encrypted-env was not signed by the app's env_signer for this app and compose file")]
    Forged,
    /// A key operation failed.
    #[error(transparent)]
    Key(#[from] KeyError),
}

/// Signs an environment; the bytes are the file `encrypted-env.sig`.
///
/// # Errors
/// When the cryptographic library refuses.
pub fn sign(key: &Secret, sent: &Sent<'_>, seq: u64) -> Result<Vec<u8>, KeyError> {
    let signature = ed25519::sign(key, &sent.message(seq))?;
    Ok(EnvSignature { seq, signature }.to_bytes())
}

/// Checks the sender; the number of the environment is returned. `file` is `encrypted-env.sig`, empty when absent.
///
/// # Errors
/// [`SenderError`].
pub fn verify(signer: &SignerKey, sent: &Sent<'_>, file: &[u8]) -> Result<u64, SenderError> {
    if file.is_empty() {
        return Err(SenderError::Missing);
    }
    let EnvSignature { seq, signature } = EnvSignature::parse(file)?;
    if ed25519::verify(signer, &sent.message(seq), &signature)? { Ok(seq) } else { Err(SenderError::Forged) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t09_p06_only_the_signers_environment_for_this_app_and_compose_is_taken() {
        let key = Secret::from([9; 32]);
        let signer = ed25519::public_key(&key).unwrap();
        let (app, compose) = (AppId::from([1; 20]), ComposeHash::from([2; 32]));
        let sent = Sent::new(&app, &compose, b"sealed");
        let file = sign(&key, &sent, 7).unwrap();
        assert_eq!(verify(&signer, &sent, &file).unwrap(), 7);
        let stranger = ed25519::public_key(&Secret::from([8; 32])).unwrap();
        assert!(matches!(verify(&stranger, &sent, &file), Err(SenderError::Forged)));
        let (other_app, other_compose) = (AppId::from([3; 20]), ComposeHash::from([3; 32]));
        for other in [
            Sent { app: &other_app, ..sent },
            Sent { compose: &other_compose, ..sent },
            Sent::new(&app, &compose, b"swapped"),
        ] {
            assert!(matches!(verify(&signer, &other, &file), Err(SenderError::Forged)), "{other:?}");
        }
        let renumbered = String::from_utf8(file).unwrap().replace(r#""seq":7"#, r#""seq":8"#);
        assert!(matches!(verify(&signer, &sent, renumbered.as_bytes()), Err(SenderError::Forged)));
        assert!(matches!(verify(&signer, &sent, b""), Err(SenderError::Missing)));
        assert!(matches!(verify(&signer, &sent, b"[]"), Err(SenderError::File(_))));
    }
}
