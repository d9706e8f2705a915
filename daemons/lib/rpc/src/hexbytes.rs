// SPDX-License-Identifier: Apache-2.0
//! serde for `bytes` fields: lower-case hex out; hex of either case in, with any number of `0x` before it.
//!
//! Use with `#[serde(with = "dstack_rpc::hexbytes")]` on a `Vec<u8>`.

use serde::{Deserialize, Deserializer, Serializer, de::Error};

/// Writes lower-case hex.
///
/// # Errors
/// Those of the serializer.
pub fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&hex::encode(bytes))
}

/// Reads hex; `null` is empty.
///
/// # Errors
/// When the text is no hex of whole bytes.
pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
    let text = Option::<String>::deserialize(from)?.unwrap_or_default();
    parse(&text).map_err(|e| D::Error::custom(format!("not hexadecimal: {e}")))
}

/// Parses hex of either case, with any number of `0x` before it.
///
/// # Errors
/// When the rest is no hex of whole bytes.
pub fn parse(text: &str) -> Result<Vec<u8>, hex::FromHexError> {
    hex::decode(text.trim_start_matches("0x"))
}

/// serde for `repeated bytes` fields: an array of hex texts; `null` is empty.
pub mod list {
    use super::{Deserialize, Deserializer, Error, Serializer};

    /// Writes an array of lower-case hex.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(items: &[Vec<u8>], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(items.iter().map(hex::encode))
    }

    /// Reads an array of hex.
    ///
    /// # Errors
    /// When one of the texts is no hex of whole bytes.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Vec<u8>>, D::Error> {
        let texts = Option::<Vec<String>>::deserialize(from)?.unwrap_or_default();
        let parsed = texts.iter().map(|text| super::parse(text)).collect::<Result<_, _>>();
        parsed.map_err(|e| D::Error::custom(format!("not hexadecimal: {e}")))
    }
}

/// serde for fields that clients may send as `null`.
pub mod absent {
    use super::{Deserialize, Deserializer};

    /// Reads a value; `null` is the default.
    ///
    /// # Errors
    /// Those of the value.
    pub fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
        from: D,
    ) -> Result<T, D::Error> {
        Ok(Option::<T>::deserialize(from)?.unwrap_or_default())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::parse;

    #[test]
    fn prefixes_and_case() {
        for (text, bytes) in
            [("", &[][..]), ("0x", &[]), ("0x0x12aB", &[0x12, 0xab]), ("1234DEAD", &[0x12, 0x34, 0xde, 0xad])]
        {
            assert_eq!(parse(text).unwrap(), bytes, "{text}");
        }
        assert!(parse("123").is_err());
        assert!(parse("xy").is_err());
    }
}
