// SPDX-License-Identifier: Apache-2.0
//! Statements by which an app's owner allows and revokes compose files (trust rule T8).
//!
//! The signed bytes are `dstack-upgrade-v1` ‖ app id (20) ‖ compose hash (32) ‖ seq ‖ `not_after` ‖ `revoke_below`, the
//! last three as 8 bytes each, big-endian. A statement travels as JSON with its signatures, and with the first
//! compose file, whose hash is the app id: so it says for itself who may sign.
//!
//! ```json
//! {"app_id":"…","compose_hash":"…","seq":2,"not_after":0,"revoke_below":0,"signatures":[{"key":"…","signature":"…"}]}
//! ```

use crate::ids::{AppId, ComposeHash, SignerKey};
use crate::limits::APP_COMPOSE_MAX;
use serde::{Deserialize, Serialize};

/// Domain of the signed bytes.
pub const DOMAIN: &[u8] = b"dstack-upgrade-v1";
/// Length of the signed bytes.
pub const LENGTH: usize = DOMAIN.len() + 20 + 32 + 3 * 8;
/// Most signatures of one statement.
pub const SIGNATURES_MAX: usize = 16;
/// Largest JSON, bytes: a first compose file may be in it, escaped.
pub const JSON_MAX: usize = 2 * APP_COMPOSE_MAX + 16 * 1024;

/// What an owner states.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statement {
    /// The app.
    pub app_id: AppId,
    /// The compose file that is allowed.
    pub compose_hash: ComposeHash,
    /// Number; each statement's is above all before it. The first compose file counts as number 0.
    pub seq: u64,
    /// Until when it may get keys, Unix seconds; 0: without end.
    #[serde(default)]
    pub not_after: u64,
    /// Statements with a number below this, and the first compose file when it is above 0, are revoked.
    #[serde(default)]
    pub revoke_below: u64,
}

/// A signature of a statement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signature {
    /// Ed25519 public key.
    pub key: SignerKey,
    /// Ed25519 signature.
    #[serde(with = "hex::serde")]
    pub signature: [u8; 64],
}

/// A statement as it travels; no signature is checked yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signed {
    /// The statement.
    #[serde(flatten)]
    pub statement: Statement,
    /// Its signatures.
    #[serde(default)]
    pub signatures: Vec<Signature>,
    /// The exact text of the app's first compose file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_compose: Option<String>,
}

/// Why a statement is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UpgradeError {
    /// Over [`JSON_MAX`], [`SIGNATURES_MAX`] or the limit of a compose file.
    #[error("upgrade statement: {0} over the limit")]
    TooLarge(&'static str),
    /// Not [`LENGTH`] bytes that begin with [`DOMAIN`].
    #[error("upgrade statement is not {LENGTH} bytes that begin with dstack-upgrade-v1")]
    Bytes,
    /// Not the JSON it should be.
    #[error("upgrade statement is not valid JSON: {0}")]
    Json(String),
    /// Number 0 is the first compose file's.
    #[error("upgrade statement has seq 0; numbers begin with 1")]
    Zero,
    /// It revokes itself.
    #[error("upgrade statement has a revoke_below above its own seq")]
    RevokesItself,
}

impl Statement {
    /// The signed bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let numbers = [self.seq, self.not_after, self.revoke_below].map(u64::to_be_bytes);
        [DOMAIN, self.app_id.as_bytes(), self.compose_hash.as_bytes(), numbers.as_flattened()].concat()
    }

    /// Parses the signed bytes.
    ///
    /// # Errors
    /// [`UpgradeError`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, UpgradeError> {
        let body = bytes.strip_prefix(DOMAIN).filter(|_| bytes.len() == LENGTH).ok_or(UpgradeError::Bytes)?;
        let (app, rest) = body.split_first_chunk::<20>().ok_or(UpgradeError::Bytes)?;
        let (hash, rest) = rest.split_first_chunk::<32>().ok_or(UpgradeError::Bytes)?;
        let (numbers, _) = rest.as_chunks::<8>();
        let [seq, not_after, revoke_below] = numbers else { return Err(UpgradeError::Bytes) };
        let statement = Self {
            app_id: AppId::from(*app),
            compose_hash: ComposeHash::from(*hash),
            seq: u64::from_be_bytes(*seq),
            not_after: u64::from_be_bytes(*not_after),
            revoke_below: u64::from_be_bytes(*revoke_below),
        };
        statement.check().map(|()| statement)
    }

    fn check(&self) -> Result<(), UpgradeError> {
        match self {
            Self { seq: 0, .. } => Err(UpgradeError::Zero),
            Self { seq, revoke_below, .. } if revoke_below > seq => Err(UpgradeError::RevokesItself),
            _ => Ok(()),
        }
    }

    /// Whether it still holds at this time (Unix seconds).
    #[must_use]
    pub const fn holds_at(&self, now: u64) -> bool {
        self.not_after == 0 || now <= self.not_after
    }
}

impl Signed {
    /// Parses a statement as it travels.
    ///
    /// # Errors
    /// [`UpgradeError`].
    pub fn parse(json: &[u8]) -> Result<Self, UpgradeError> {
        if json.len() > JSON_MAX {
            return Err(UpgradeError::TooLarge("it is"));
        }
        let signed: Self = serde_json::from_slice(json).map_err(|e| UpgradeError::Json(e.to_string()))?;
        if signed.signatures.len() > SIGNATURES_MAX {
            return Err(UpgradeError::TooLarge("its number of signatures is"));
        }
        if signed.first_compose.as_ref().is_some_and(|text| text.len() > APP_COMPOSE_MAX) {
            return Err(UpgradeError::TooLarge("its first compose file is"));
        }
        signed.statement.check().map(|()| signed)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn statement() -> Statement {
        Statement {
            app_id: AppId::from([1; 20]),
            compose_hash: ComposeHash::from([2; 32]),
            seq: 3,
            not_after: 0x0405,
            revoke_below: 2,
        }
    }

    #[test]
    fn t08_the_signed_bytes_have_one_layout() {
        let bytes = statement().to_bytes();
        let expected = [
            &b"dstack-upgrade-v1"[..],
            &[1; 20],
            &[2; 32],
            &[0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 4, 5, 0, 0, 0, 0, 0, 0, 0, 2],
        ];
        assert_eq!(bytes, expected.concat());
        assert_eq!(bytes.len(), LENGTH);
        assert_eq!(Statement::from_bytes(&bytes), Ok(statement()));
        for at in 0..bytes.len() {
            let mut other = bytes.clone();
            other.iter_mut().skip(at).take(1).for_each(|b| *b ^= 0x80);
            assert_ne!(Statement::from_bytes(&other), Ok(statement()), "{at}");
        }
        assert!(Statement::from_bytes(&[bytes.as_slice(), &[0]].concat()).is_err());
    }

    #[test]
    fn json_carries_it_with_signatures() {
        let signed = Signed {
            statement: statement(),
            signatures: vec![Signature { key: SignerKey::from([5; 32]), signature: [6; 64] }],
            first_compose: Some("{}".into()),
        };
        let json = serde_json::to_vec(&signed).unwrap();
        assert_eq!(Signed::parse(&json), Ok(signed));
        for bad in ["", "{}", r#"{"app_id":"01"}"#] {
            assert!(Signed::parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn numbers_begin_with_one_and_nothing_revokes_itself() {
        let zero = Statement { seq: 0, revoke_below: 0, ..statement() };
        assert_eq!(Statement::from_bytes(&zero.to_bytes()), Err(UpgradeError::Zero));
        let own = Statement { revoke_below: 4, ..statement() };
        assert_eq!(Statement::from_bytes(&own.to_bytes()), Err(UpgradeError::RevokesItself));
        assert!(statement().holds_at(0x0405) && !statement().holds_at(0x0406));
        assert!(Statement { not_after: 0, ..statement() }.holds_at(u64::MAX));
    }

    #[test]
    fn p15_statements_have_limits() {
        assert!(matches!(Signed::parse(&vec![b' '; JSON_MAX + 1]), Err(UpgradeError::TooLarge(_))));
        let many = vec![Signature { key: SignerKey::from([5; 32]), signature: [6; 64] }; SIGNATURES_MAX + 1];
        let signed = Signed { statement: statement(), signatures: many, first_compose: None };
        assert!(matches!(
            Signed::parse(&serde_json::to_vec(&signed).unwrap()),
            Err(UpgradeError::TooLarge(_))
        ));
    }
}
