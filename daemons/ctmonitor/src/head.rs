// SPDX-License-Identifier: Apache-2.0
//! A signed tree head: its signature, and what two heads say about each other. Pure.

use crate::limits::SIGNATURE_MAX;
use crate::merkle::Hash;
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{Id, PKey, Public};
use openssl::sign::Verifier;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fmt;

/// TLS 1.2's number of SHA-256.
const SHA256: u8 = 4;
/// TLS 1.2's numbers of signatures.
const RSA: u8 = 1;
const ECDSA: u8 = 3;
/// Least RSA modulus, bits.
const RSA_MIN: u32 = 2048;

/// The key of a log: P-256, or RSA of at least 2048 bits.
#[derive(Clone)]
pub struct LogKey {
    key: PKey<Public>,
    scheme: u8,
    id: [u8; 32],
}

impl fmt::Debug for LogKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LogKey({})", hex::encode(self.id))
    }
}

/// Why bytes are no key of a log, or a signature is not its.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// The key is neither P-256 nor RSA of 2048 bits or more.
    #[error("the key of a log is a SubjectPublicKeyInfo of P-256, or of RSA with at least 2048 bits")]
    Key,
    /// The signature is out of form or of another kind than the key.
    #[error("the signature of the tree head is out of form")]
    Form,
    /// It is not by this key, or over something else.
    #[error("the signature of the tree head is not by the key of the log")]
    Wrong,
}

impl LogKey {
    /// The key of a SubjectPublicKeyInfo (DER).
    ///
    /// # Errors
    /// [`SignatureError::Key`].
    pub fn from_der(der: &[u8]) -> Result<Self, SignatureError> {
        let key = PKey::public_key_from_der(der).map_err(|_| SignatureError::Key)?;
        let is_p256 = || {
            let curve = key.ec_key().ok().and_then(|ec| ec.group().curve_name());
            curve == Some(Nid::X9_62_PRIME256V1)
        };
        let scheme = match key.id() {
            Id::EC if is_p256() => ECDSA,
            Id::RSA if key.bits() >= RSA_MIN => RSA,
            _ => return Err(SignatureError::Key),
        };
        Ok(Self { key, scheme, id: Sha256::digest(der).into() })
    }

    /// The id of the log: the digest of its key.
    #[must_use]
    pub const fn id(&self) -> &[u8; 32] {
        &self.id
    }

    /// Checks a `digitally-signed` structure of TLS 1.2 over `message`.
    fn check(&self, message: &[u8], signed: &[u8]) -> Result<(), SignatureError> {
        let form = SignatureError::Form;
        let ([hash, scheme, high, low], signature) = signed.split_first_chunk().ok_or(form)?;
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        if (*hash, *scheme) != (SHA256, self.scheme) || signature.len() != length || length > SIGNATURE_MAX {
            return Err(form);
        }
        let verified = Verifier::new(MessageDigest::sha256(), &self.key)
            .and_then(|mut verifier| verifier.verify_oneshot(signature, message));
        // The library calls a signature out of form an error, and one that is wrong `false`.
        if verified.unwrap_or(false) { Ok(()) } else { Err(SignatureError::Wrong) }
    }
}

/// A tree head whose signature was checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Leaves of the tree.
    pub size: u64,
    /// When it was signed, milliseconds since 1970.
    pub timestamp: u64,
    /// Root of the tree.
    pub root: Hash,
    /// The `digitally-signed` structure, hex: with it anybody can convict the log.
    pub signature: String,
}

/// A tree head as somebody gave it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unchecked {
    /// Leaves of the tree.
    pub size: u64,
    /// When it was signed, milliseconds since 1970.
    pub timestamp: u64,
    /// Root of the tree.
    pub root: Hash,
    /// The `digitally-signed` structure of TLS 1.2.
    pub signature: Vec<u8>,
}

impl Unchecked {
    /// What a log signs (RFC 6962, 3.5).
    #[must_use]
    pub fn message(&self) -> Vec<u8> {
        // Version 1 is 0; a tree head is 1.
        let mut message = vec![0, 1];
        message.extend(self.timestamp.to_be_bytes());
        message.extend(self.size.to_be_bytes());
        message.extend(self.root.0);
        message
    }

    /// Checks the signature.
    ///
    /// # Errors
    /// [`SignatureError`].
    pub fn check(self, key: &LogKey) -> Result<Head, SignatureError> {
        key.check(&self.message(), &self.signature)?;
        let signature = hex::encode(&self.signature);
        Ok(Head { size: self.size, timestamp: self.timestamp, root: self.root, signature })
    }
}

/// What a log did that no honest log does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lie {
    /// Two trees of one size.
    Forked,
    /// A later tree with fewer leaves.
    RolledBack,
    /// A tree that does not begin with the one before.
    Inconsistent(String),
    /// Entries that are not those of the signed tree.
    Entries(String),
}

impl Lie {
    /// The kind in one word, for telling each only once.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Forked => "forked",
            Self::RolledBack => "rolled-back",
            Self::Inconsistent(_) => "inconsistent",
            Self::Entries(_) => "entries",
        }
    }
}

impl fmt::Display for Lie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Forked => f.write_str("it signed two different trees of one size"),
            Self::RolledBack => f.write_str("it signed a later tree with fewer entries"),
            Self::Inconsistent(why) => {
                write!(f, "its tree does not begin with the one it signed before: {why}")
            }
            Self::Entries(why) => write!(f, "its entries are not those of the tree it signed: {why}"),
        }
    }
}

/// What a new head means for one that was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// The same tree.
    Same,
    /// A larger tree, whose consistency is to be proven.
    Grown,
    /// An older head, as caches give them.
    Older,
    /// A lie that needs no further proof.
    Lie(Lie),
}

/// Compares a head with the newest one that was seen; both are signed.
#[must_use]
pub fn compare(seen: &Head, new: &Head) -> Step {
    match new.size.cmp(&seen.size) {
        std::cmp::Ordering::Equal if new.root == seen.root => Step::Same,
        std::cmp::Ordering::Equal => Step::Lie(Lie::Forked),
        std::cmp::Ordering::Greater => Step::Grown,
        std::cmp::Ordering::Less if new.timestamp > seen.timestamp => Step::Lie(Lie::RolledBack),
        std::cmp::Ordering::Less => Step::Older,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use openssl::ec::{EcGroup, EcKey};
    use openssl::pkey::Private;
    use openssl::rsa::Rsa;
    use openssl::sign::Signer;

    fn ec(curve: Nid) -> PKey<Private> {
        PKey::from_ec_key(EcKey::generate(&EcGroup::from_curve_name(curve).unwrap()).unwrap()).unwrap()
    }

    fn signed(key: &PKey<Private>, scheme: u8, head: &mut Unchecked) {
        let mut signer = Signer::new(MessageDigest::sha256(), key).unwrap();
        let signature = signer.sign_oneshot_to_vec(&head.message()).unwrap();
        let length = u16::try_from(signature.len()).unwrap().to_be_bytes();
        head.signature = [&[SHA256, scheme], length.as_slice(), &signature].concat();
    }

    fn head(size: u64, timestamp: u64, root: u8) -> Head {
        Head { size, timestamp, root: Hash([root; 32]), signature: String::new() }
    }

    #[test]
    fn signatures_are_checked() {
        let rsa = PKey::from_rsa(Rsa::generate(2048).unwrap()).unwrap();
        for (key, scheme) in [(ec(Nid::X9_62_PRIME256V1), ECDSA), (rsa, RSA)] {
            let public = LogKey::from_der(&key.public_key_to_der().unwrap()).unwrap();
            let mut head = Unchecked { size: 7, timestamp: 9, root: Hash([1; 32]), signature: Vec::new() };
            signed(&key, scheme, &mut head);
            assert_eq!(head.clone().check(&public).unwrap().size, 7);
            let other = LogKey::from_der(&ec(Nid::X9_62_PRIME256V1).public_key_to_der().unwrap()).unwrap();
            assert!(head.clone().check(&other).is_err());
            for change in 0..4 {
                let mut changed = head.clone();
                match change {
                    0 => changed.size = 8,
                    1 => changed.timestamp = 8,
                    2 => changed.root = Hash([2; 32]),
                    _ => drop(changed.signature.pop()),
                }
                assert!(changed.check(&public).is_err(), "{change}");
            }
        }
    }

    #[test]
    fn weak_keys_are_none() {
        let weak = PKey::from_rsa(Rsa::generate(1024).unwrap()).unwrap();
        for key in [weak, ec(Nid::SECP384R1)] {
            let der = key.public_key_to_der().unwrap();
            assert_eq!(LogKey::from_der(&der).unwrap_err(), SignatureError::Key);
        }
        assert!(LogKey::from_der(b"x").is_err());
    }

    #[test]
    fn heads_convict_a_log() {
        let seen = head(10, 100, 1);
        for (new, step) in [
            (head(10, 200, 1), Step::Same),
            (head(10, 200, 2), Step::Lie(Lie::Forked)),
            (head(11, 200, 2), Step::Grown),
            (head(9, 50, 2), Step::Older),
            (head(9, 101, 2), Step::Lie(Lie::RolledBack)),
        ] {
            assert_eq!(compare(&seen, &new), step);
        }
    }
}
