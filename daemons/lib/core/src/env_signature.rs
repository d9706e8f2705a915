// SPDX-License-Identifier: Apache-2.0
//! `encrypted-env.sig`: who sent an app's encrypted environment (trust rule T9).
//!
//! The file is `{"seq":N,"signature":"<hex Ed25519>"}`. The signature is over [`message`], which binds the blob to one
//! app and one compose file; `seq` grows with each environment, so that an older one can be told from the newest.

use crate::ids::{AppId, ComposeHash};
use crate::limits::ENCRYPTED_ENV_SIG_MAX;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

const DOMAIN: &[u8] = b"dstack-env-v1";

/// The parsed file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnvSignature {
    /// Grows with each environment of the app.
    pub seq: u64,
    /// The Ed25519 signature.
    #[serde(with = "hex::serde")]
    pub signature: [u8; 64],
}

/// Why bytes are not `encrypted-env.sig`.
#[derive(Debug, thiserror::Error)]
pub enum EnvSignatureError {
    /// Larger than [`ENCRYPTED_ENV_SIG_MAX`].
    #[error("encrypted-env.sig of {0} bytes is larger than {ENCRYPTED_ENV_SIG_MAX}")]
    TooLarge(usize),
    /// Not the JSON it should be.
    #[error("encrypted-env.sig is not valid: {0}")]
    Json(#[from] serde_json::Error),
    /// Not an object.
    #[error("encrypted-env.sig must be a JSON object")]
    Form,
}

impl EnvSignature {
    /// Parses the file.
    ///
    /// # Errors
    /// [`EnvSignatureError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, EnvSignatureError> {
        if bytes.len() > ENCRYPTED_ENV_SIG_MAX {
            return Err(EnvSignatureError::TooLarge(bytes.len()));
        }
        // serde would also take an array of the fields in order.
        if bytes.iter().find(|b| !b.is_ascii_whitespace()) != Some(&b'{') {
            return Err(EnvSignatureError::Form);
        }
        Ok(serde_json::from_slice(bytes)?)
    }

    /// The file's bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        format!(r#"{{"seq":{},"signature":"{}"}}"#, self.seq, hex::encode(self.signature)).into_bytes()
    }
}

/// SHA-256 of an encrypted environment.
#[must_use]
pub fn digest(blob: &[u8]) -> [u8; 32] {
    Sha256::digest(blob).into()
}

/// What is signed: domain, app id, compose hash, `seq` (big endian), [`digest`] of the encrypted environment.
#[must_use]
pub fn message(app: &AppId, compose: &ComposeHash, seq: u64, digest: &[u8; 32]) -> Vec<u8> {
    [DOMAIN, app.as_bytes(), compose.as_bytes(), &seq.to_be_bytes(), digest].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn survives_and_refuses() {
        let file = EnvSignature { seq: u64::MAX, signature: [7; 64] };
        assert_eq!(EnvSignature::parse(&file.to_bytes()).unwrap(), file);
        assert!(file.to_bytes().len() < ENCRYPTED_ENV_SIG_MAX);
        let hex = "00".repeat(64);
        for bad in [
            String::new(),
            format!(r#"[1,"{hex}"]"#),
            format!(r#"{{"seq":-1,"signature":"{hex}"}}"#),
            format!(r#"{{"seq":1,"signature":"{hex}00"}}"#),
            format!(r#"{{"seq":1,"signature":"{hex}","more":1}}"#),
            format!(r#"{{"signature":"{hex}"}}"#),
            " ".repeat(ENCRYPTED_ENV_SIG_MAX + 1),
        ] {
            assert!(EnvSignature::parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn t09_the_message_has_one_reading() {
        let (app, hash) = (AppId::from([1; 20]), ComposeHash::from([2; 32]));
        let bytes = message(&app, &hash, 3, &super::digest(b"blob"));
        // sha256("blob"), computed apart.
        let expected_digest = "fa2c8cc4f28176bbeed4b736df569a34c79cd3723e9ec42f9674b4d46ac6b8b8";
        let expected = format!(
            "{}{}{}0000000000000003{expected_digest}",
            hex::encode("dstack-env-v1"),
            "01".repeat(20),
            "02".repeat(32)
        );
        assert_eq!(hex::encode(bytes), expected);
    }
}
