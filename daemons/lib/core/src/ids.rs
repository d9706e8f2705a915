// SPDX-License-Identifier: Apache-2.0
//! Names and identifiers, parsed once at the edge into types.

use crate::limits::VM_NAME_MAX;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fmt;
use std::str::FromStr;

/// Why a text is not the identifier it should be. The text says what is allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// A VM name outside `[a-z0-9-]{1,30}`, or with a dash at an end.
    #[error(
        "VM name {0:?} is not allowed: use 1 to 30 of a-z, 0-9 and '-', beginning and ending with a letter or digit"
    )]
    VmName(String),
    /// Not hex of the right length.
    #[error("{what} {text:?} is not allowed: use {digits} hexadecimal digits")]
    Hex {
        /// Which identifier, e.g. `app id`.
        what: &'static str,
        /// The refused text, shortened.
        text: String,
        /// The number of hex digits it needs.
        digits: usize,
    },
    /// An image name that cannot be a directory name.
    #[error(
        "image name {0:?} is not allowed: use a-z, A-Z, 0-9, '.', '_' and '-', not beginning with '.' or '-'"
    )]
    ImageName(String),
}

/// At most 64 characters of a refused text, so that an error stays one line.
fn shorten(text: &str) -> String {
    text.chars().take(64).collect()
}

/// A VM's name: `[a-z0-9-]{1,30}`; also the instance of its unit and, with a `v` before it, its user name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VmName(String);

impl VmName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name of the VM's unit, e.g. `dstack-vm@hello.service`.
    #[must_use]
    pub fn unit(&self) -> String {
        format!("dstack-vm@{}.service", self.0)
    }
}

impl FromStr for VmName {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let edges = !text.starts_with('-') && !text.ends_with('-');
        if !text.is_empty() && text.len() <= VM_NAME_MAX && edges && text.chars().all(allowed) {
            Ok(Self(text.to_owned()))
        } else {
            Err(IdError::VmName(shorten(text)))
        }
    }
}

impl TryFrom<String> for VmName {
    type Error = IdError;
    fn try_from(text: String) -> Result<Self, IdError> {
        text.parse()
    }
}

impl From<VmName> for String {
    fn from(name: VmName) -> Self {
        name.0
    }
}

impl fmt::Display for VmName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The directory name of an image, e.g. `dstack-0.1.0`; never a path.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageName(String);

impl ImageName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ImageName {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        let first = text.chars().next().is_some_and(|c| c.is_ascii_alphanumeric());
        if first && text.len() <= 64 && text.chars().all(allowed) {
            Ok(Self(text.to_owned()))
        } else {
            Err(IdError::ImageName(shorten(text)))
        }
    }
}

impl TryFrom<String> for ImageName {
    type Error = IdError;
    fn try_from(text: String) -> Result<Self, IdError> {
        text.parse()
    }
}

impl From<ImageName> for String {
    fn from(name: ImageName) -> Self {
        name.0
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

macro_rules! hex_id {
    ($(#[$doc:meta])* $name:ident, $bytes:literal, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name([u8; $bytes]);

        impl $name {
            /// The raw bytes.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; $bytes] {
                &self.0
            }
        }

        impl From<[u8; $bytes]> for $name {
            fn from(bytes: [u8; $bytes]) -> Self {
                Self(bytes)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            /// Lower- or upper-case hex, with or without `0x`.
            fn from_str(text: &str) -> Result<Self, IdError> {
                let digits = text.strip_prefix("0x").unwrap_or(text);
                let mut bytes = [0; $bytes];
                hex::decode_to_slice(digits, &mut bytes).map_err(|_| IdError::Hex {
                    what: $what,
                    text: shorten(text),
                    digits: $bytes * 2,
                })?;
                Ok(Self(bytes))
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.to_string()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }
    };
}

hex_id!(
    /// An app's identity: 20 bytes, by default the head of the first compose hash. A claim until a kms checked it.
    AppId, 20, "app id"
);
hex_id!(
    /// One instance of an app: 20 bytes.
    InstanceId, 20, "instance id"
);
hex_id!(
    /// SHA-256 over the exact bytes of `app-compose.json`.
    ComposeHash, 32, "compose hash"
);
hex_id!(
    /// SHA-256 over an image's `sha256sum.txt`.
    OsImageHash, 32, "image hash"
);

hex_id!(
    /// An Ed25519 public key of an app's owner: who signs upgrades (T8) or the environment (T9).
    SignerKey, 32, "Ed25519 public key"
);

impl ComposeHash {
    /// The hash of a compose file's exact bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// The app id of an app whose first compose this is: the first 20 bytes.
    #[must_use]
    pub fn app_id(&self) -> AppId {
        let mut head = [0; 20];
        head.iter_mut().zip(self.0).for_each(|(to, from)| *to = from);
        AppId(head)
    }
}

impl OsImageHash {
    /// The hash of an image's `sha256sum.txt`.
    #[must_use]
    pub fn of(sums: &[u8]) -> Self {
        Self(Sha256::digest(sums).into())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn vm_names() {
        for good in ["a", "hello", "a-1", "0", &"x".repeat(30)] {
            assert_eq!(good.parse::<VmName>().unwrap().as_str(), good);
        }
        for bad in ["", "-a", "a-", "A", "a_b", "a/b", "..", "a b", "é", &"x".repeat(31)] {
            assert!(bad.parse::<VmName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn p26_image_names_are_never_paths() {
        for good in ["dstack-0.1.0", "dstack-dev-0.1.0", "A_b"] {
            assert!(good.parse::<ImageName>().is_ok(), "{good:?}");
        }
        for bad in ["", ".", "..", "a/b", "/etc", ".hidden", "-x", "a\0b", &"x".repeat(65)] {
            assert!(bad.parse::<ImageName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn t20_app_ids_are_exactly_20_bytes() {
        let text = "3327603e03f5bd1f830812ca4a789277fc31f577";
        assert_eq!(text.parse::<AppId>().unwrap().to_string(), text);
        assert_eq!(format!("0x{text}").parse::<AppId>().unwrap().to_string(), text);
        for bad in ["", "33", &text[1..], &format!("{text}00"), "zz27603e03f5bd1f830812ca4a789277fc31f577"] {
            assert!(bad.parse::<AppId>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn app_id_is_the_head_of_the_compose_hash() {
        let hash = ComposeHash::of(b"{}");
        assert_eq!(hash.to_string(), "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a");
        assert_eq!(hash.app_id().to_string(), "44136fa355b3678a1146ad16f7e8649e94fb4fc2");
    }
}
